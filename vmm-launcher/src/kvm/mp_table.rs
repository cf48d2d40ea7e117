//! The MP table (MultiProcessor specification 1.4): without ACPI this is how a kernel finds its processors and how
//! interrupts are wired.

use super::layout::{IO_APIC, IO_APIC_ID, LOCAL_APIC, MP_TABLE};

const FLOATING_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
/// Version of the local APIC that KVM has.
const APIC_VERSION: u8 = 0x14;
const ISA_BUS: u8 = 0;

/// The whole table, for [`MP_TABLE`], with an I/O APIC of so many lines.
pub fn table(processors: u8, lines: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..processors {
        // Type 0: enabled, the first one is the bootstrap processor; family 6, with FPU and APIC.
        let flags = 1 | u8::from(id == 0) << 1;
        entry(&[0, id, APIC_VERSION, flags, 0, 6, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    // Type 1: a bus. Type 2: the I/O APIC.
    entry(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    entry(&[2, IO_APIC_ID, 0x11, 1, a, b, c, d]);
    // Type 3: every interrupt is wired to the line of its number; 0 is nobody's. Type 4: the local APIC's second line takes what
    // cannot be masked, as after a reset of a PC.
    for line in 1..lines {
        entry(&[3, 0, 0, 0, ISA_BUS, line, IO_APIC_ID, line]);
    }
    entry(&[4, 1, 0, 0, ISA_BUS, 0, 0xff, 1]);

    let mut header = Vec::from(*b"PCMP");
    header.extend(((HEADER_BYTES + entries.len()) as u16).to_le_bytes());
    header.extend([4, 0]);
    header.extend(b"NACRE   ");
    header.extend(b"SANDBOX     ");
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(LOCAL_APIC.to_le_bytes());
    header.extend([0; 4]);
    let mut table = [header, entries].concat();
    set_checksum(&mut table, 7);

    let mut floating = Vec::from(*b"_MP_");
    floating.extend((MP_TABLE as u32 + FLOATING_BYTES as u32).to_le_bytes());
    floating.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut floating, 10);
    [floating, table].concat()
}

/// Makes all bytes add up to zero by that at `place`.
fn set_checksum(bytes: &mut [u8], place: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(place) {
        *byte = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::HIGH_MEMORY;
    use super::*;

    #[test]
    fn lengths_counts_and_checksums_agree() {
        for processors in [1, 2, 64] {
            let all = table(processors, 24);
            let (floating, table) = all.split_at(FLOATING_BYTES);
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((sum(floating), sum(table)), (0, 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let mut rest = &table[HEADER_BYTES..];
            let mut count = 0;
            while let Some(kind) = rest.first() {
                rest = &rest[if *kind == 0 { 20 } else { 8 }..];
                count += 1;
            }
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), count);
            assert!(all.len() as u64 <= HIGH_MEMORY - MP_TABLE, "what is reserved for it");
        }
    }
}
