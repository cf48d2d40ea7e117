//! Random bytes for the guest: virtio-rng (virtio 1.2, section 5.4).

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

/// Most bytes of one answer; the driver asks again.
const ANSWER_BYTES_MAX: usize = 256;

pub struct Entropy {
    notes: Notes,
    meter: Meter,
}

impl Entropy {
    pub fn new(notes: Notes) -> Self {
        Self { notes, meter: Meter::default() }
    }
}

impl Queues for Entropy {
    const NAME: &'static str = "virtio-rng";
    const COUNT: usize = 1;

    fn features(&self) -> u64 {
        0
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, _index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while let Some(mut chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let mut bytes = [0; ANSWER_BYTES_MAX];
            let filled = getrandom(&mut bytes[..], GetRandomFlags::empty()).unwrap_or(0);
            let place = chain.find(|descriptor| descriptor.is_write_only());
            let len = place.map_or(0, |descriptor| {
                let bytes = bytes.get(..filled.min(descriptor.len() as usize)).unwrap_or_default();
                memory.write_slice(bytes, descriptor.addr()).map_or(0, |()| bytes.len() as u32)
            });
            self.meter.to_guest(len.into());
            if let Err(error) = queue.add_used(memory, head, len) {
                self.notes.add(format_args!("virtio-rng used ring: {error}"));
            }
            used = true;
        }
        used
    }
}
