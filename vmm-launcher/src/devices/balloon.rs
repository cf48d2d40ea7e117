//! Memory that the guest does not need goes back to the host: virtio-balloon (virtio 1.2, section 5.5) with reporting of free
//! pages.

use nacre_sys::guest_memory::give_back;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

// Feature bits (section 5.5.3).
const DEFLATE_ON_OOM: u64 = 2;
const PAGE_REPORTING: u64 = 5;

/// The guest gives pages away.
const INFLATE: usize = 0;
/// The guest takes pages back, which needs nothing of us: they are there again when it writes to them.
const DEFLATE: usize = 1;
const PAGE_BYTES: u64 = 4096;
/// Bytes of a page's number in an inflate request.
const NUMBER_BYTES: usize = 4;
/// Pages of one inflate request; the driver of Linux makes 256.
const PAGES_MAX: usize = 1024;
/// Descriptors of one report; the driver of Linux makes 32.
const RANGES_MAX: usize = 256;

/// A balloon of no pages: its size is never asked for, only reports come.
pub struct Balloon {
    notes: Notes,
    meter: Meter,
    /// Counts what was given back, as bytes from the guest.
    returned: Meter,
}

impl Balloon {
    pub fn new(returned: Meter, notes: Notes) -> Self {
        Self { notes, meter: Meter::default(), returned }
    }

    /// `struct virtio_balloon_config`: how many pages the host wants, and how many it has.
    pub fn config_space() -> Vec<u8> {
        vec![0; 8]
    }

    /// The pages whose numbers the descriptors hold.
    fn inflate(&self, descriptors: impl Iterator<Item = Descriptor>, memory: &GuestMemoryMmap) {
        let mut left = PAGES_MAX;
        for descriptor in descriptors.filter(|descriptor| !descriptor.is_write_only()) {
            let pages = (descriptor.len() as usize / NUMBER_BYTES).min(left);
            left -= pages;
            let mut numbers = vec![0; pages * NUMBER_BYTES];
            if memory.read_slice(&mut numbers, descriptor.addr()).is_err() {
                return self.notes.add("virtio-balloon: page numbers outside guest memory");
            }
            self.meter.from_guest(numbers.len() as u64);
            for number in numbers.as_chunks::<NUMBER_BYTES>().0 {
                let page = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES;
                self.give_back(GuestAddress(page), PAGE_BYTES, memory);
            }
        }
    }

    /// The ranges that the descriptors are.
    fn report(&self, descriptors: impl Iterator<Item = Descriptor>, memory: &GuestMemoryMmap) {
        for descriptor in descriptors.filter(|descriptor| descriptor.is_write_only()).take(RANGES_MAX) {
            self.give_back(descriptor.addr(), descriptor.len().into(), memory);
        }
    }

    /// Whole pages of guest memory alone: the guest loses what was in them, and nobody else anything.
    fn give_back(&self, address: GuestAddress, bytes: u64, memory: &GuestMemoryMmap) {
        if !address.raw_value().is_multiple_of(PAGE_BYTES) || !bytes.is_multiple_of(PAGE_BYTES) || bytes == 0
        {
            return self.notes.add("virtio-balloon: a range that is no pages");
        }
        match give_back(memory, address, bytes) {
            Ok(()) => self.returned.from_guest(bytes),
            Err(error) => self.notes.add(format_args!("virtio-balloon: {error}")),
        }
    }
}

impl Queues for Balloon {
    const NAME: &'static str = "virtio-balloon";
    /// The queues for statistics and for hints are not there, so that of reports is the third.
    const COUNT: usize = 3;

    fn features(&self) -> u64 {
        1 << PAGE_REPORTING | 1 << DEFLATE_ON_OOM
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            match index {
                INFLATE => self.inflate(chain, memory),
                DEFLATE => {}
                _ => self.report(chain, memory),
            }
            if let Err(error) = queue.add_used(memory, head, 0) {
                self.notes.add(format_args!("virtio-balloon used ring: {error}"));
            }
            used = true;
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::mock::MockSplitQueue;

    const WRITE: u16 = 2;
    const REPORT: usize = 2;
    const MEMORY: u64 = 1 << 20;

    /// What is left of memory full of ones, and what was said, after a request of one descriptor.
    fn after(
        queue: usize,
        (address, len, flags): (u64, u32, u16),
        numbers: &[u32],
    ) -> (Vec<u64>, Vec<String>, u64) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        // The rings are in the first pages.
        let pages = 16..MEMORY / PAGE_BYTES;
        pages
            .clone()
            .for_each(|page| memory.write_slice(&[1; 4096], GuestAddress(page * PAGE_BYTES)).unwrap());
        for (place, number) in (0..).zip(numbers) {
            memory.write_obj(*number, GuestAddress(0x2_0000 + place * 4)).unwrap();
        }
        let driver = MockSplitQueue::new(&memory, 16);
        let descriptor = RawDescriptor::from(Descriptor::new(address, len, flags, 0));
        driver.build_desc_chain(&[descriptor]).unwrap();
        let (notes, returned) = (Notes::default(), Meter::default());
        let mut balloon = Balloon::new(returned.clone(), notes.clone());
        assert!(balloon.process(queue, &mut driver.create_queue().unwrap(), &memory));
        let gone = pages.filter(|page| memory.read_obj::<u8>(GuestAddress(page * PAGE_BYTES)).unwrap() == 0);
        (gone.collect(), notes.list(), returned.read().from_guest_bytes)
    }

    #[test]
    fn reported_and_inflated_pages_are_gone_and_no_others() {
        assert_eq!(after(REPORT, (0x4_0000, 0x3000, WRITE), &[]), (vec![64, 65, 66], vec![], 0x3000));
        assert_eq!(after(INFLATE, (0x2_0000, 8, 0), &[80, 255]), (vec![80, 255], vec![], 0x2000));
        assert_eq!(after(DEFLATE, (0x2_0000, 8, 0), &[80, 255]), (vec![], vec![], 0));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused_and_said() {
        for (queue, descriptor, numbers, words) in [
            (REPORT, (0x4_0001, 0x1000, WRITE), &[][..], "no pages"),
            (REPORT, (0x4_0000, 0x800, WRITE), &[], "no pages"),
            (REPORT, (0x4_0000, 0, WRITE), &[], "no pages"),
            (REPORT, (0xf_f000, 0x2000, WRITE), &[], "outside"),
            (REPORT, (u64::MAX - 0xfff, 0x2000, WRITE), &[], "outside"),
            (INFLATE, (0x2_0000, 4, 0), &[u32::MAX], "outside"),
            (INFLATE, (MEMORY - 2, 4, 0), &[], "outside"),
        ] {
            let (gone, said, returned) = after(queue, descriptor, numbers);
            assert!(gone.is_empty() && returned == 0, "{descriptor:?}: {gone:?}");
            assert!(said.iter().any(|line| line.contains(words)), "{descriptor:?}: {said:?}");
        }
        // For the other direction than the queue's: passed over.
        assert_eq!(after(REPORT, (0x4_0000, 0x1000, 0), &[]), (vec![], vec![], 0));
    }
}
