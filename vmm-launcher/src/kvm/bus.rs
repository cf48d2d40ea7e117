//! What a guest's access to an address or a port means.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout::{DEVICE_BYTES, DEVICES};
use super::ports::Ports;
use super::transport::Transport;

/// Everything that answers when a processor leaves the guest.
pub struct Bus<W: Write> {
    ports: Mutex<Ports<W>>,
    devices: Vec<Mutex<Transport>>,
}

impl<W: Write> Bus<W> {
    pub fn new(ports: Ports<W>, devices: Vec<Transport>) -> Self {
        Self { ports: Mutex::new(ports), devices: devices.into_iter().map(Mutex::new).collect() }
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
            None => data.fill(0xff),
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            locked(device).write(offset, data);
        }
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
