//! The registers of a virtio-mmio device: a device is started only with what it offers and with queues that can be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre::devices::notes::Notes;
use nacre::kvm::carrier::{Carried, QueueSetup};
use nacre::kvm::transport::Transport;

const OFFERED: u64 = 1 << 32 | 1 << 29 | 1 << 5;
const SIZE_MAX: u16 = 256;

struct Checked;

impl Carried for Checked {
    fn features(&self) -> u64 {
        OFFERED
    }

    fn queue_size_max(&self) -> u16 {
        SIZE_MAX
    }

    fn start(&mut self, features: u64, queues: &[QueueSetup]) -> Result<(), String> {
        assert_eq!((features & !OFFERED, features & 1 << 32), (0, 1 << 32));
        for queue in queues.iter().filter(|queue| queue.ready) {
            assert!(queue.size.is_power_of_two() && queue.size <= SIZE_MAX);
        }
        if queues.iter().any(|queue| queue.descriptors == 13) {
            Err("a bad number".to_owned())
        } else {
            Ok(())
        }
    }

    fn stop(&mut self) {}
}

fuzz_target!(|bytes: &[u8]| {
    let config = vec![7; 60];
    let mut device = Transport::new("fuzzed", 2, 3, config.into(), Box::new(Checked), Notes::default());
    for &[access, low, high, a, b, c, d] in bytes.as_chunks::<7>().0 {
        // Registers mostly, now and then something far away.
        let offset = u64::from(u16::from_le_bytes([low, high & 1]));
        let offset = if access & 0x80 == 0 { offset } else { u64::MAX - offset };
        let width = [1, 2, 4, 8][usize::from(access >> 1 & 3)];
        let mut data = [a, b, c, d, 0, 0, 0, 0];
        match access & 1 {
            0 => device.write(offset, &data[..width]),
            _ => device.read(offset, &mut data[..width]),
        }
    }
});
