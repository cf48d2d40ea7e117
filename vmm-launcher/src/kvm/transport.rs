//! The registers of a virtio-mmio device (virtio 1.2, section 4.2.2): what the driver reads and writes to set it up.

use super::carrier::{Carried, QueueSetup};
use crate::devices::config_space::ConfigSpace;
use crate::devices::notes::Notes;

// Offsets.
const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
/// Where the driver kicks: an ioeventfd, so no write of it is seen here.
pub const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_AVAILABLE: u64 = 0x090;
const QUEUE_USED: u64 = 0x0a0;
const SHARED_MEMORY: std::ops::RangeInclusive<u64> = 0x0b0..=0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"nacr");
const VERSION_1: u64 = 1 << virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Interrupts reach the guest from the devices' threads without passing here, so "a buffer was used" is always said: a
/// driver that looks in vain finds nothing.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

// Bits of the status.
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// A device behind its registers.
pub struct Transport {
    name: &'static str,
    /// Of the specification's list (section 5).
    id: u32,
    config: ConfigSpace,
    device: Box<dyn Carried>,
    notes: Notes,
    queues: Vec<QueueSetup>,
    selected_queue: u32,
    selected_device_features: u32,
    selected_driver_features: u32,
    driver_features: u64,
    status: u32,
}

impl Transport {
    /// `queues` counts those that the driver expects; those that the device does not serve stay idle.
    pub fn new(
        name: &'static str,
        id: u32,
        queues: usize,
        config: ConfigSpace,
        device: Box<dyn Carried>,
        notes: Notes,
    ) -> Self {
        Self {
            name,
            id,
            config,
            device,
            notes,
            queues: vec![QueueSetup::default(); queues],
            selected_queue: 0,
            selected_device_features: 0,
            selected_driver_features: 0,
            driver_features: 0,
            status: 0,
        }
    }

    /// The driver reads `data` at `offset`.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(start) = offset.checked_sub(CONFIG) {
            self.config.read(usize::try_from(start).unwrap_or(usize::MAX), data);
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        } else {
            data.fill(0);
        }
    }

    /// The driver writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a configuration to be written.
        if let [a, b, c, d] = *data {
            self.set_register(offset, u32::from_le_bytes([a, b, c, d]));
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.selected_queue as usize);
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => 2,
            DEVICE_ID => self.id,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.device.features(), self.selected_device_features),
            QUEUE_SIZE_MAX => queue.map_or(0, |_| self.device.queue_size_max().into()),
            QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            INTERRUPT_STATUS if self.config.is_news() => USED_BUFFER | CONFIG_CHANGED,
            INTERRUPT_STATUS => USED_BUFFER,
            STATUS => self.status,
            CONFIG_GENERATION => self.config.generation(),
            // No shared memory: as large as can be, says the specification.
            offset if SHARED_MEMORY.contains(&offset) => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SELECT => self.selected_device_features = value,
            DRIVER_FEATURES_SELECT => self.selected_driver_features = value,
            DRIVER_FEATURES if self.status & FEATURES_OK == 0 => match self.selected_driver_features {
                0 => set_low(&mut self.driver_features, value),
                1 => set_high(&mut self.driver_features, value),
                _ => {}
            },
            QUEUE_SELECT => self.selected_queue = value,
            STATUS => self.set_status(value),
            INTERRUPT_ACK if value & CONFIG_CHANGED != 0 => self.config.heard(),
            INTERRUPT_ACK | QUEUE_NOTIFY => {}
            _ => self.set_queue(offset, value),
        }
    }

    fn set_queue(&mut self, offset: u64, value: u32) {
        // A queue in use stays as it is.
        if self.status & DRIVER_OK != 0 {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.selected_queue as usize) else { return };
        match offset {
            QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
            QUEUE_READY => queue.ready = value & 1 != 0,
            QUEUE_DESCRIPTORS => set_low(&mut queue.descriptors, value),
            offset if offset == QUEUE_DESCRIPTORS + 4 => set_high(&mut queue.descriptors, value),
            QUEUE_AVAILABLE => set_low(&mut queue.available, value),
            offset if offset == QUEUE_AVAILABLE + 4 => set_high(&mut queue.available, value),
            QUEUE_USED => set_low(&mut queue.used, value),
            offset if offset == QUEUE_USED + 4 => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.device.stop();
            self.queues.fill(QueueSetup::default());
            (self.status, self.driver_features) = (0, 0);
            return;
        }
        let fresh = value & !self.status;
        self.status |= value;
        if fresh & FEATURES_OK != 0 {
            let offered = self.device.features();
            if self.driver_features & !offered != 0 || self.driver_features & VERSION_1 == 0 {
                // The driver reads back that it is not so.
                self.status &= !FEATURES_OK;
            }
        }
        if fresh & DRIVER_OK != 0 {
            let started = match self.status & FEATURES_OK {
                0 => Err("the driver did not agree on features".to_owned()),
                _ => self.check_queues().and_then(|()| self.device.start(self.driver_features, &self.queues)),
            };
            if let Err(problem) = started {
                self.notes.add(format_args!("{}: {problem}", self.name));
                self.device.stop();
                self.status |= NEEDS_RESET;
            }
        }
    }

    fn check_queues(&self) -> Result<(), String> {
        let largest = self.device.queue_size_max();
        for (index, queue) in self.queues.iter().enumerate().filter(|(_, queue)| queue.ready) {
            if !queue.size.is_power_of_two() || queue.size > largest {
                return Err(format!("queue {index} of {} entries, the limit is {largest}", queue.size));
            }
        }
        Ok(())
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const OFFERED: u64 = VERSION_1 | 1 << 5;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<Option<Start>>>>);
    type Start = (u64, Vec<QueueSetup>);

    impl Carried for Seen {
        fn features(&self) -> u64 {
            OFFERED
        }
        fn queue_size_max(&self) -> u16 {
            256
        }
        fn start(&mut self, features: u64, queues: &[QueueSetup]) -> Result<(), String> {
            self.0.lock().unwrap().push(Some((features, queues.to_vec())));
            Ok(())
        }
        fn stop(&mut self) {
            self.0.lock().unwrap().push(None);
        }
    }

    fn device() -> (Transport, Seen) {
        with_config(vec![1, 2, 3, 4, 5].into())
    }

    fn with_config(config: ConfigSpace) -> (Transport, Seen) {
        let seen = Seen::default();
        (Transport::new("test", 2, 2, config, Box::new(seen.clone()), Notes::default()), seen)
    }

    fn get(transport: &mut Transport, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(transport: &mut Transport, writes: &[(u64, u32)]) {
        writes.iter().for_each(|(offset, value)| transport.write(*offset, &value.to_le_bytes()));
    }

    const AGREE: &[(u64, u32)] =
        &[(STATUS, 1), (STATUS, 3), (DRIVER_FEATURES_SELECT, 1), (DRIVER_FEATURES, 1), (STATUS, 11)];

    #[test]
    fn a_driver_finds_the_device_and_starts_it() {
        let (mut device, seen) = device();
        assert_eq!(get(&mut device, MAGIC), 0x7472_6976);
        assert_eq!((get(&mut device, VERSION), get(&mut device, DEVICE_ID)), (2, 2));
        assert_eq!(get(&mut device, DEVICE_FEATURES), 1 << 5);
        set(&mut device, &[(DEVICE_FEATURES_SELECT, 1)]);
        assert_eq!(get(&mut device, DEVICE_FEATURES), 1);
        set(&mut device, AGREE);
        assert_eq!(get(&mut device, STATUS), 11);
        let queue = [
            (QUEUE_SELECT, 1),
            (QUEUE_SIZE, 64),
            (QUEUE_DESCRIPTORS, 0x1000),
            (QUEUE_DESCRIPTORS + 4, 1),
            (QUEUE_AVAILABLE, 0x2000),
            (QUEUE_USED, 0x3000),
            (QUEUE_READY, 1),
            (STATUS, 15),
            // Too late.
            (QUEUE_SIZE, 32),
        ];
        set(&mut device, &queue);
        assert_eq!(get(&mut device, STATUS), 15);
        let expected =
            QueueSetup { size: 64, ready: true, descriptors: 0x1_0000_1000, available: 0x2000, used: 0x3000 };
        let started = seen.0.lock().unwrap().clone();
        assert_eq!(started, [Some((VERSION_1, vec![QueueSetup::default(), expected]))]);
        set(&mut device, &[(STATUS, 0)]);
        assert_eq!(get(&mut device, STATUS), 0);
        assert_eq!(seen.0.lock().unwrap().last(), Some(&None));
    }

    #[test]
    fn a_driver_hears_that_the_configuration_changed_until_it_says_so() {
        let config = ConfigSpace::from(vec![1; 4]);
        let (mut device, _) = with_config(config.clone());
        assert_eq!((get(&mut device, INTERRUPT_STATUS), get(&mut device, CONFIG_GENERATION)), (1, 0));
        config.set(vec![2; 4], true);
        assert_eq!((get(&mut device, INTERRUPT_STATUS), get(&mut device, CONFIG_GENERATION)), (3, 1));
        set(&mut device, &[(INTERRUPT_ACK, 1)]);
        assert_eq!((get(&mut device, INTERRUPT_STATUS), get(&mut device, CONFIG)), (3, 0x0202_0202));
        set(&mut device, &[(INTERRUPT_ACK, 3)]);
        assert_eq!(get(&mut device, INTERRUPT_STATUS), 1);
    }

    #[test]
    fn what_a_driver_may_not_do_has_no_effect() {
        let started = |writes: &[(u64, u32)]| {
            let (mut device, seen) = device();
            set(&mut device, writes);
            (get(&mut device, STATUS), seen.0.lock().unwrap().iter().any(Option::is_some))
        };
        // A feature that was not offered; none of version 1; queues that cannot be.
        let (status, _) = started(&[(STATUS, 3), (DRIVER_FEATURES, 2), (STATUS, 11)]);
        assert_eq!(status & FEATURES_OK, 0);
        assert_eq!(started(&[(STATUS, 15)]), (7 | NEEDS_RESET, false));
        for size in [0, 3, 512, 0x1_0040] {
            let queue = [(QUEUE_SIZE, size), (QUEUE_READY, 1), (STATUS, 15)];
            assert_eq!(started(&[AGREE, &queue].concat()), (15 | NEEDS_RESET, false), "{size}");
        }
        // Queues and registers that are not there, odd widths.
        let (mut device, _) = device();
        set(&mut device, &[(QUEUE_SELECT, 2), (QUEUE_READY, 1), (0xffc, 1)]);
        assert_eq!((get(&mut device, QUEUE_SIZE_MAX), get(&mut device, QUEUE_READY)), (0, 0));
        device.write(STATUS, &[1]);
        device.write(STATUS, &[1; 8]);
        assert_eq!(get(&mut device, STATUS), 0);
        let mut wide = [9; 8];
        device.read(CONFIG + 3, &mut wide);
        assert_eq!(wide, [4, 5, 0, 0, 0, 0, 0, 0]);
        device.read(u64::MAX, &mut wide);
        assert_eq!(wide, [0; 8]);
    }
}
