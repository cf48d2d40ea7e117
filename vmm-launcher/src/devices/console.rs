//! The guest's console without an exit for each byte: virtio-console (virtio 1.2, section 5.3) with one port. What the guest
//! writes goes out; nobody types.

use std::io::Write;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

/// Where the guest waits for what is typed.
const RECEIVE: usize = 0;
/// Bytes copied at once.
const CHUNK_BYTES: usize = 4096;
/// Bytes of one request; the driver of Linux sends pages.
const REQUEST_BYTES_MAX: u32 = 64 << 10;

/// A console that writes to `out`.
pub struct Console<W> {
    out: W,
    notes: Notes,
    meter: Meter,
}

impl<W: Write> Console<W> {
    pub fn new(out: W, notes: Notes) -> Self {
        Self { out, notes, meter: Meter::default() }
    }

    /// `struct virtio_console_config`, none of which is valid without the features of which it speaks.
    pub fn config_space() -> Vec<u8> {
        vec![0; 12]
    }

    fn print(&mut self, memory: &GuestMemoryMmap, address: vm_memory::GuestAddress, len: u32) {
        use vm_memory::Address;
        let mut chunk = [0; CHUNK_BYTES];
        let mut done = 0;
        let len = len.min(REQUEST_BYTES_MAX);
        while done < len {
            let now = (len - done).min(CHUNK_BYTES as u32);
            let piece = chunk.get_mut(..now as usize).unwrap_or_default();
            let place = address.checked_add(u64::from(done));
            if place.is_none_or(|place| memory.read_slice(piece, place).is_err()) {
                return self.notes.add("virtio-console: text outside guest memory");
            }
            // Without a reader the guest goes on without one.
            let _ = self.out.write_all(piece);
            done += now;
        }
        self.meter.from_guest(len.into());
    }
}

impl<W: Write + Send + Sync + 'static> Queues for Console<W> {
    const NAME: &'static str = "virtio-console";
    const COUNT: usize = 2;

    fn features(&self) -> u64 {
        0
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while index != RECEIVE
            && let Some(chain) = queue.pop_descriptor_chain(memory)
        {
            let head = chain.head_index();
            for descriptor in chain.filter(|descriptor| !descriptor.is_write_only()) {
                self.print(memory, descriptor.addr(), descriptor.len());
            }
            if let Err(error) = queue.add_used(memory, head, 0) {
                self.notes.add(format_args!("virtio-console used ring: {error}"));
            }
            used = true;
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_guest_writes_goes_out_and_what_it_cannot_have_written_is_said() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_slice(b"hello, world\n", GuestAddress(0x2_0000)).unwrap();
        let (page, notes) = (Page::default(), Notes::default());
        let mut console = Console::new(page.clone(), notes.clone());
        let driver = MockSplitQueue::new(&memory, 16);
        let descriptor =
            |address, len, flags, next| RawDescriptor::from(Descriptor::new(address, len, flags, next));
        // In two pieces, with one in between that the device may write, and one that is nowhere.
        let chain = [
            descriptor(0x2_0000, 7, 1, 1),
            descriptor(0x3_0000, 7, 1 | 2, 2),
            descriptor(0x2_0007, 6, 1, 3),
            descriptor(u64::MAX - 2, 9, 0, 0),
        ];
        driver.build_desc_chain(&chain).unwrap();
        let mut queue = driver.create_queue().unwrap();
        assert!(!console.process(RECEIVE, &mut queue, &memory));
        assert!(console.process(1, &mut queue, &memory));
        assert_eq!(*page.0.lock().unwrap(), b"hello, world\n");
        assert!(notes.list()[0].contains("outside"), "{:?}", notes.list());
    }
}
