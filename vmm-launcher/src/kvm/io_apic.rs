//! The I/O APIC (82093AA data sheet; Documentation/virt/kvm/api.rst, `KVM_CAP_SPLIT_IRQCHIP`): where the interrupts of the
//! devices go.
//!
//! KVM has one of its own, with 24 lines and the two older interrupt controllers beside it. A kernel reads and writes every
//! line about two dozen times before it runs its first process, and asks for what else there is: with as many lines as there
//! are devices, and nothing else, hundreds of exits are spared. It is a table only: what a line carries, KVM delivers, from the
//! device's event to the local APIC, by the message that stands for the line's entry.

use std::io;

use super::layout::IO_APIC_ID;

// Offsets in its page.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const ENTRIES: u8 = 0x10;
/// An I/O APIC without an end-of-interrupt register.
const VERSION_NUMBER: u32 = 0x11;

// Bits of an entry.
const VECTOR: u64 = 0xff;
const DELIVERY_MODE: u64 = 0x700;
const LOGICAL: u64 = 1 << 11;
const MASKED: u64 = 1 << 16;
const DESTINATION: u32 = 56;
/// Delivery status and remote IRR, which only the hardware sets.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// Where a message goes that is an interrupt (Intel SDM volume 3, 11.11).
const MESSAGES: u32 = 0xfee0_0000;

/// An interrupt as a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub line: u32,
    pub address: u32,
    pub data: u32,
}

/// The lines, and who is told when one of them is to be delivered otherwise.
pub struct IoApic<R> {
    select: u8,
    entries: Vec<u64>,
    route: R,
}

impl<R: FnMut(&[Message]) -> io::Result<()>> IoApic<R> {
    /// With every line masked. `route` is told of all that are not, when one of them changes.
    pub fn new(lines: u8, route: R) -> Self {
        Self { select: 0, entries: vec![MASKED; lines.into()], route }
    }

    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => match self.select {
                ID | ARBITRATION => u32::from(IO_APIC_ID) << 24,
                VERSION => VERSION_NUMBER | (self.entries.len() as u32).saturating_sub(1) << 16,
                register => self.entry(register).map_or(0, |(entry, shift)| (entry >> shift) as u32),
            },
            _ => 0,
        }
    }

    /// # Errors
    /// KVM's, when it does not take a route.
    pub fn write(&mut self, offset: u64, value: u32) -> io::Result<()> {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => {
                let Some((entry, shift)) = self.entry(self.select) else { return Ok(()) };
                let kept = entry & !(0xffff_ffff << shift);
                let new = (kept | u64::from(value) << shift) & !READ_ONLY;
                let line = usize::from((self.select - ENTRIES) / 2);
                if let Some(place) = self.entries.get_mut(line) {
                    *place = new;
                }
                if new != entry && (new & MASKED == 0 || entry & MASKED == 0) {
                    let messages = self.messages();
                    return (self.route)(&messages);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The entry that a register is half of, and by how much that half is shifted.
    fn entry(&self, register: u8) -> Option<(u64, u32)> {
        let half = register.checked_sub(ENTRIES)?;
        Some((*self.entries.get(usize::from(half / 2))?, u32::from(half % 2) * 32))
    }

    fn messages(&self) -> Vec<Message> {
        let open = (0..).zip(&self.entries).filter(|(_, entry)| *entry & MASKED == 0);
        open.map(|(line, entry)| message(line, *entry)).collect()
    }
}

/// Every line is one that tells of an event, not one that stays up: no device here shares its own.
fn message(line: u32, entry: u64) -> Message {
    let destination = (entry >> DESTINATION) as u32;
    let logical = u32::from(entry & LOGICAL != 0);
    Message {
        line,
        address: MESSAGES | destination << 12 | logical << 2,
        data: (entry & (VECTOR | DELIVERY_MODE)) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes registers by pairs of number and value, and says what was routed, and what the register reads then.
    fn written(writes: &[(u8, u32)]) -> (Vec<Vec<Message>>, Vec<u32>) {
        let mut routed = Vec::new();
        let mut read = Vec::new();
        let mut apic = IoApic::new(3, |messages: &[Message]| {
            routed.push(messages.to_vec());
            Ok(())
        });
        for (register, value) in writes {
            apic.write(SELECT, (*register).into()).unwrap();
            apic.write(WINDOW, *value).unwrap();
            read.push(apic.read(WINDOW));
        }
        (routed, read)
    }

    #[test]
    fn a_line_is_routed_while_it_is_open() {
        let message = Message { line: 1, address: 0xfee0_3000, data: 0x31 };
        let (routed, read) = written(&[
            (0x13, 3 << 24),
            (0x12, 0x1_0031),
            (0x12, 0x31),
            // The same again is nothing new; a level-triggered one is delivered as the event it is.
            (0x12, 0x31),
            (0x12, 0x8831),
            (0x12, 0x1_0031),
        ]);
        let logical = Message { address: 0xfee0_3004, ..message };
        assert_eq!(routed, [vec![message], vec![logical], vec![]]);
        assert_eq!(read, [3 << 24, 0x1_0031, 0x31, 0x31, 0x8831, 0x1_0031]);
    }

    #[test]
    fn what_is_not_there_reads_as_nothing() {
        let (routed, read) = written(&[(0x16, 0x31), (0xff, 0x31), (0x03, 0x31), (0x01, 0), (0x00, 0)]);
        assert!(routed.is_empty());
        assert_eq!(read[..3], [0, 0, 0]);
        assert_eq!(read[3], 0x2_0011, "three lines");
        assert_eq!(read[4], u32::from(IO_APIC_ID) << 24);
        let mut apic = IoApic::new(1, |_: &[Message]| Ok(()));
        apic.write(0x40, 7).unwrap();
        assert_eq!(apic.read(0x40), 0);
    }

    #[test]
    fn what_only_the_hardware_sets_is_not_kept() {
        let (routed, read) = written(&[(0x10, 0xffff_ffff), (0x10, 0x5040)]);
        assert_eq!(read, [!(READ_ONLY as u32), 0x40]);
        assert_eq!(routed.len(), 1);
    }
}
