//! The few devices of a PC that a kernel without PCI and ACPI still knows: a serial port, and the keyboard controller's reset
//! line.

use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use super::layout::SERIAL_PORT;

const SERIAL_PORTS: u16 = 8;
/// The keyboard controller's command port, and its command to pulse the reset line.
const CONTROLLER: u16 = 0x64;
const RESET: u8 = 0xfe;
/// Nothing answers there.
const NOTHING: u8 = 0xff;

/// The serial port's interrupt.
pub struct Interrupt(pub EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// All ports. What the guest writes to the serial port goes to `out`.
pub struct Ports<W: Write> {
    serial: vm_superio::Serial<Interrupt, NoEvents, W>,
}

impl<W: Write> Ports<W> {
    pub fn new(interrupt: Interrupt, out: W) -> Self {
        Self { serial: vm_superio::Serial::new(interrupt, out) }
    }

    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(NOTHING);
        match (self.serial_offset(port), data) {
            (Some(offset), [byte]) => *byte = self.serial.read(offset),
            (None, [byte]) if port == CONTROLLER => *byte = 0,
            _ => {}
        }
    }

    /// Whether the guest resets itself.
    pub fn write(&mut self, port: u16, data: &[u8]) -> bool {
        match (self.serial_offset(port), data) {
            // Without a reader of the console the guest goes on without one.
            (Some(offset), [byte]) => drop(self.serial.write(offset, *byte)),
            (None, [RESET]) => return port == CONTROLLER,
            _ => {}
        }
        false
    }

    pub fn flush(&mut self) {
        let _ = self.serial.writer_mut().flush();
    }

    fn serial_offset(&self, port: u16) -> Option<u8> {
        port.checked_sub(SERIAL_PORT).filter(|offset| *offset < SERIAL_PORTS).map(|offset| offset as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_written_and_the_reset_line_is_seen() {
        let interrupt = Interrupt(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut ports = Ports::new(interrupt, Vec::new());
        for byte in b"hi" {
            assert!(!ports.write(SERIAL_PORT, &[*byte]));
        }
        assert_eq!(ports.serial.writer(), b"hi");
        let mut byte = [0];
        ports.read(SERIAL_PORT + 5, &mut byte);
        assert_eq!(byte[0] & 0x20, 0x20, "ready for the next byte");
        ports.read(0x70, &mut byte);
        assert_eq!(byte, [NOTHING]);
        assert!(!ports.write(CONTROLLER, &[0xd1]));
        assert!(!ports.write(0x60, &[RESET]));
        assert!(ports.write(CONTROLLER, &[RESET]));
    }
}
