//! A driver that is made up: guest memory with one queue in it, all of it out of the fuzzer's bytes.

pub mod layers;

use std::path::PathBuf;

use nacre::devices::queues::Queues;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Guest memory, in bytes.
pub const MEMORY_BYTES: u64 = 256 << 10;
const ENTRIES: u16 = 16;
const DESCRIPTOR_BYTES: usize = 8;
// Where things are.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// The rest of the fuzzer's bytes: what descriptors should point to.
pub const DATA: u64 = 0x3000;

/// A queue that the driver has filled, and its memory.
pub struct Driver {
    pub memory: GuestMemoryMmap,
    pub queue: Queue,
}

impl Driver {
    /// From the number of descriptors, the heads that are available, each descriptor in a short form, then what is in memory.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let (&[count, heads], rest) = bytes.split_first_chunk::<2>()?;
        let (count, heads) = (u16::from(count) % (ENTRIES + 1), u16::from(heads) % (ENTRIES + 1));
        let (descriptors, data) = rest.split_at_checked(usize::from(count) * DESCRIPTOR_BYTES)?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).ok()?;
        let write = |bytes: &[u8], address: u64| memory.write_slice(bytes, GuestAddress(address)).ok();
        for (index, short) in (0_u64..).zip(descriptors.as_chunks::<DESCRIPTOR_BYTES>().0) {
            write(&descriptor(short), index * 16)?;
        }
        let room = (MEMORY_BYTES - DATA) as usize;
        write(data.get(..room).unwrap_or(data), DATA)?;
        // Flags, index, then the heads: the first descriptors, each by its own number.
        write(&heads.to_le_bytes(), AVAILABLE + 2)?;
        for head in 0..heads {
            write(&head.to_le_bytes(), AVAILABLE + 4 + u64::from(head) * 2)?;
        }
        let mut queue = Queue::new(ENTRIES).ok()?;
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        Some(Self { memory, queue })
    }

    /// The device looks at the same requests as at those of each of its queues, and the rings stay what they are.
    pub fn drive<Q: Queues>(&mut self, device: &mut Q) {
        for index in 0..Q::COUNT {
            device.process(index, &mut self.queue, &self.memory);
            // What is given back is never more than was available.
            let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).expect("the used ring");
            assert!(used <= ENTRIES);
            self.queue.set_next_avail(0);
            self.queue.set_next_used(0);
            self.memory.write_obj(0_u16, GuestAddress(USED + 2)).expect("the used ring");
        }
    }
}

/// Address (offset in the data, or anything), length, flags, next: sixteen bytes as the specification has them.
fn descriptor(short: &[u8; DESCRIPTOR_BYTES]) -> [u8; 16] {
    let [a, b, c, d, l, m, flags, next] = *short;
    let address = u64::from(u32::from_le_bytes([a, b, c, d]));
    // Mostly inside; else far away, or at the very end of all addresses.
    let address = match d {
        0..0xe0 => DATA + address % (MEMORY_BYTES - DATA),
        0xe0..0xf0 => address << 16,
        _ => u64::MAX - address % 0x1_0000,
    };
    let length = u32::from(u16::from_le_bytes([l, m]));
    let length = if flags & 0x80 == 0 { length } else { length << 16 | length };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12] = flags & 7;
    bytes[14] = next % 17;
    bytes
}

/// A folder of this checkout for what a device needs on the host, empty.
pub fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("cannot make a folder");
    path
}
