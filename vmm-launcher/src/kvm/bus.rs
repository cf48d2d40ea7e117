//! What a guest's access to an address or a port means.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::io_apic::{IoApic, Message};
use super::layout::{DEVICE_BYTES, DEVICES, IO_APIC, IO_APIC_BYTES};
use super::ports::Ports;
use super::transport::Transport;

/// Tells KVM where interrupts go.
pub type Route = Box<dyn FnMut(&[Message]) -> io::Result<()> + Send>;

/// Everything that answers when a processor leaves the guest.
pub struct Bus<W: Write> {
    ports: Mutex<Ports<W>>,
    io_apic: Mutex<IoApic<Route>>,
    devices: Vec<Mutex<Transport>>,
}

impl<W: Write> Bus<W> {
    pub fn new(ports: Ports<W>, io_apic: IoApic<Route>, devices: Vec<Transport>) -> Self {
        let devices = devices.into_iter().map(Mutex::new).collect();
        Self { ports: Mutex::new(ports), io_apic: Mutex::new(io_apic), devices }
    }

    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        locked(&self.ports).read(port, data);
    }

    /// Whether the guest resets itself.
    pub fn write_port(&self, port: u16, data: &[u8]) -> bool {
        locked(&self.ports).write(port, data)
    }

    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((device, offset)) => locked(device).read(offset, data),
            None => match (io_apic_offset(address), data) {
                (Some(offset), data @ [_, _, _, _]) => {
                    data.copy_from_slice(&locked(&self.io_apic).read(offset).to_le_bytes());
                }
                (_, data) => data.fill(0xff),
            },
        }
    }

    /// # Errors
    /// An interrupt that KVM does not route.
    pub fn write(&self, address: u64, data: &[u8]) -> io::Result<()> {
        if let Some((device, offset)) = self.device(address) {
            locked(device).write(offset, data);
        } else if let (Some(offset), &[a, b, c, d]) = (io_apic_offset(address), data) {
            return locked(&self.io_apic).write(offset, u32::from_le_bytes([a, b, c, d]));
        }
        Ok(())
    }

    pub fn flush(&self) {
        locked(&self.ports).flush();
    }

    fn device(&self, address: u64) -> Option<(&Mutex<Transport>, u64)> {
        let offset = address.checked_sub(DEVICES)?;
        let index = usize::try_from(offset / DEVICE_BYTES).ok()?;
        Some((self.devices.get(index)?, offset % DEVICE_BYTES))
    }
}

fn io_apic_offset(address: u64) -> Option<u64> {
    address.checked_sub(IO_APIC.into()).filter(|offset| *offset < IO_APIC_BYTES)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
