//! Memory that a guest gets later and gives back: virtio-mem (virtio 1.3, section 5.15). The host says how much of a region it
//! may have; the guest takes blocks of it, and returns them.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_sys::guest_memory::give_back;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::config_space::ConfigSpace;
use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

/// What the guest takes and returns at once: a huge page.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// What of the region becomes memory at once: Linux adds memory by so much, and then takes what it may of it.
pub const STEP_BYTES: u64 = 128 << 20;

/// Feature bit: memory that the guest has not taken is not there (section 5.15.3).
const UNPLUGGED_INACCESSIBLE: u64 = 1;

// Requests (section 5.15.6).
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
// Answers.
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;
// States of a range.
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// `struct virtio_mem_req`: the type, padding, then an address and a number of blocks.
const REQUEST_BYTES: usize = 24;
/// `struct virtio_mem_resp`: the type, padding, then a state.
const ANSWER_BYTES: usize = 10;

/// The region, as host and device see it; clones share it.
#[derive(Clone)]
pub struct Growth {
    blocks: Arc<Mutex<Blocks>>,
    space: ConfigSpace,
}

struct Blocks {
    /// Where the region begins.
    start: u64,
    /// For each block of the region whether the guest has it.
    taken: Vec<bool>,
    /// Blocks that the host wants the guest to have.
    wanted: usize,
    /// Blocks, from the first on, that are memory at all.
    present: usize,
}

/// An answer: its type and, of a question about a state, that.
type Answer = (u16, u16);

impl Growth {
    /// A region of which the guest has nothing yet. It begins at a multiple of [`BLOCK_BYTES`], and so many are in it.
    pub fn new(start: u64, bytes: u64) -> Self {
        let blocks = Blocks { start, taken: vec![false; count(bytes)], wanted: 0, present: 0 };
        let space = ConfigSpace::from(blocks.config_space());
        Self { blocks: Arc::new(Mutex::new(blocks)), space }
    }

    pub fn config_space(&self) -> ConfigSpace {
        self.space.clone()
    }

    /// Says how much the guest should have. So much from the region's beginning as is `present` must be memory by now, and what
    /// once was stays it: the guest may take any blocks of it. Whoever calls interrupts the driver then.
    pub fn want(&self, bytes: u64, present: u64) {
        let mut blocks = self.blocks();
        blocks.wanted = count(bytes).min(blocks.taken.len());
        blocks.present = count(present).clamp(blocks.present, blocks.taken.len());
        self.space.set(blocks.config_space(), true);
    }

    /// Bytes that the guest has.
    pub fn taken_bytes(&self) -> u64 {
        self.blocks().taken_count() as u64 * BLOCK_BYTES
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    /// `struct virtio_mem_config`.
    fn config_space(&self) -> Vec<u8> {
        let bytes = |blocks: usize| blocks as u64 * BLOCK_BYTES;
        // The second word is a NUMA node, which is not there without its feature.
        let (region, present) = (bytes(self.taken.len()), bytes(self.present));
        let words =
            [BLOCK_BYTES, 0, self.start, region, present, bytes(self.taken_count()), bytes(self.wanted)];
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn taken_count(&self) -> usize {
        self.taken.iter().filter(|taken| **taken).count()
    }

    /// The blocks of a request, if they are memory.
    fn range(&mut self, address: u64, blocks: u16) -> Option<&mut [bool]> {
        let first = address.checked_sub(self.start).filter(|offset| offset.is_multiple_of(BLOCK_BYTES))?;
        let first = usize::try_from(first / BLOCK_BYTES).ok()?;
        let end = first.checked_add(blocks.into()).filter(|end| *end <= self.present && blocks > 0)?;
        self.taken.get_mut(first..end)
    }

    fn plug(&mut self, address: u64, blocks: u16) -> Answer {
        let room = self.wanted.saturating_sub(self.taken_count());
        match self.range(address, blocks) {
            Some(range) if range.contains(&true) => (ERROR, 0),
            Some(range) if range.len() > room => (NACK, 0),
            Some(range) => {
                range.fill(true);
                (ACK, 0)
            }
            None => (ERROR, 0),
        }
    }

    fn state(&mut self, address: u64, blocks: u16) -> Answer {
        match self.range(address, blocks) {
            Some(range) if !range.contains(&false) => (ACK, PLUGGED),
            Some(range) if !range.contains(&true) => (ACK, UNPLUGGED),
            Some(_) => (ACK, MIXED),
            None => (ERROR, 0),
        }
    }
}

/// The device.
pub struct GrowingMemory {
    growth: Growth,
    notes: Notes,
    meter: Meter,
    returned: Meter,
}

impl GrowingMemory {
    /// Counts in `returned` what the guest gave back, as bytes from the guest.
    pub fn new(growth: Growth, returned: Meter, notes: Notes) -> Self {
        Self { growth, notes, meter: Meter::default(), returned }
    }

    fn answer(&self, request: &[u8; REQUEST_BYTES], memory: &GuestMemoryMmap) -> Answer {
        let [kind0, kind1, _, _, _, _, _, _, address @ .., b0, b1, _, _, _, _, _, _] = *request;
        let (address, blocks) = (u64::from_le_bytes(address), u16::from_le_bytes([b0, b1]));
        let mut state = self.growth.blocks();
        let answer = match u16::from_le_bytes([kind0, kind1]) {
            PLUG => state.plug(address, blocks),
            UNPLUG => self.unplug(&mut state, address, blocks, memory),
            UNPLUG_ALL => {
                for block in 0..state.taken.len() {
                    if state.taken.get(block) == Some(&true) {
                        let address = state.start + block as u64 * BLOCK_BYTES;
                        self.unplug(&mut state, address, 1, memory);
                    }
                }
                (ACK, 0)
            }
            STATE => state.state(address, blocks),
            other => {
                self.notes.add(format_args!("virtio-mem: a request of type {other}"));
                (ERROR, 0)
            }
        };
        self.growth.space.set(state.config_space(), false);
        answer
    }

    fn unplug(&self, state: &mut Blocks, address: u64, blocks: u16, memory: &GuestMemoryMmap) -> Answer {
        let Some(range) = state.range(address, blocks).filter(|range| !range.contains(&false)) else {
            return (ERROR, 0);
        };
        range.fill(false);
        for block in 0..u64::from(blocks) {
            // One by one: neighbours may have become memory at different times.
            match give_back(memory, GuestAddress(address + block * BLOCK_BYTES), BLOCK_BYTES) {
                Ok(()) => self.returned.from_guest(BLOCK_BYTES),
                Err(error) => self.notes.add(format_args!("virtio-mem: {error}")),
            }
        }
        (ACK, 0)
    }

    /// Bytes written.
    fn serve(
        &self,
        chain: &DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Result<u32, String> {
        let mut request = [0; REQUEST_BYTES];
        let reader = chain.clone().reader(memory).map_err(|error| error.to_string());
        reader?.read_exact(&mut request).map_err(|error| format!("a request: {error}"))?;
        let mut writer = chain.clone().writer(memory).map_err(|error| error.to_string())?;
        if writer.available_bytes() < ANSWER_BYTES {
            return Err(format!("no room for an answer of {ANSWER_BYTES} bytes"));
        }
        let (kind, state) = self.answer(&request, memory);
        let ([a, b], [c, d]) = (kind.to_le_bytes(), state.to_le_bytes());
        writer.write_all(&[a, b, 0, 0, 0, 0, 0, 0, c, d]).map_err(|error| error.to_string())?;
        self.meter.from_guest(REQUEST_BYTES as u64);
        self.meter.to_guest(ANSWER_BYTES as u64);
        Ok(ANSWER_BYTES as u32)
    }
}

impl Queues for GrowingMemory {
    const NAME: &'static str = "virtio-mem";
    const COUNT: usize = 1;

    fn features(&self) -> u64 {
        1 << UNPLUGGED_INACCESSIBLE
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, _index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let written = self.serve(&chain, memory).unwrap_or_else(|problem| {
                self.notes.add(format_args!("virtio-mem: {problem}"));
                0
            });
            if let Err(error) = queue.add_used(memory, chain.head_index(), written) {
                self.notes.add(format_args!("virtio-mem used ring: {error}"));
            }
            used = true;
        }
        used
    }
}

fn count(bytes: u64) -> usize {
    usize::try_from(bytes / BLOCK_BYTES).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::Bytes;

    const START: u64 = 4 << 20;
    const REGION_BLOCKS: u64 = 8;
    const REQUEST_AT: u64 = 0x2_0000;
    const ANSWER_AT: u64 = 0x3_0000;

    struct Machine {
        memory: GuestMemoryMmap,
        growth: Growth,
        notes: Notes,
        returned: Meter,
    }

    impl Machine {
        /// With half of the region as memory.
        fn new() -> Self {
            let ranges = [
                (GuestAddress(0), 1 << 20),
                (GuestAddress(START), (REGION_BLOCKS / 2 * BLOCK_BYTES) as usize),
            ];
            let growth = Growth::new(START, REGION_BLOCKS * BLOCK_BYTES);
            growth.want(REGION_BLOCKS / 2 * BLOCK_BYTES, REGION_BLOCKS / 2 * BLOCK_BYTES);
            let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
            Self { memory, growth, notes: Notes::default(), returned: Meter::default() }
        }

        /// Of a request of so many bytes, and room for so many of an answer.
        fn raw(&self, request: &[u8], room: u32) -> Option<Answer> {
            let driver = MockSplitQueue::new(&self.memory, 16);
            self.memory.write_slice(request, GuestAddress(REQUEST_AT)).unwrap();
            self.memory.write_slice(&[0xee; ANSWER_BYTES], GuestAddress(ANSWER_AT)).unwrap();
            let descriptors = [
                RawDescriptor::from(Descriptor::new(REQUEST_AT, request.len() as u32, 1, 1)),
                RawDescriptor::from(Descriptor::new(ANSWER_AT, room, 2, 0)),
            ];
            driver.build_desc_chain(&descriptors).unwrap();
            let mut device =
                GrowingMemory::new(self.growth.clone(), self.returned.clone(), self.notes.clone());
            assert!(device.process(0, &mut driver.create_queue().unwrap(), &self.memory));
            let read = |offset| self.memory.read_obj::<u16>(GuestAddress(ANSWER_AT + offset)).unwrap();
            (read(0) != 0xeeee).then(|| (read(0), read(8)))
        }

        fn ask(&self, kind: u16, address: u64, blocks: u16) -> Answer {
            let mut request = u64::from(kind).to_le_bytes().to_vec();
            request.extend(address.to_le_bytes());
            request.extend(u64::from(blocks).to_le_bytes());
            self.raw(&request, ANSWER_BYTES as u32).unwrap()
        }

        /// Present, taken and wanted blocks, as the driver reads them.
        fn read(&self) -> [u64; 3] {
            [32, 40, 48].map(|offset| {
                let mut bytes = [0; 8];
                self.growth.config_space().read(offset, &mut bytes);
                u64::from_le_bytes(bytes) / BLOCK_BYTES
            })
        }
    }

    fn at(block: u64) -> u64 {
        START + block * BLOCK_BYTES
    }

    #[test]
    fn a_guest_takes_blocks_and_returns_them_empty() {
        let machine = Machine::new();
        assert_eq!(machine.read(), [4, 0, 4]);
        assert_eq!(machine.ask(STATE, at(0), 4), (ACK, UNPLUGGED));
        assert_eq!(machine.ask(PLUG, at(1), 2), (ACK, 0));
        assert_eq!((machine.read(), machine.growth.taken_bytes()), ([4, 2, 4], 2 * BLOCK_BYTES));
        assert_eq!(machine.ask(STATE, at(1), 2), (ACK, PLUGGED));
        assert_eq!(machine.ask(STATE, at(0), 2), (ACK, MIXED));
        machine.memory.write_obj(7_u8, GuestAddress(at(2))).unwrap();
        assert_eq!(machine.ask(UNPLUG, at(2), 1), (ACK, 0));
        assert_eq!(machine.memory.read_obj::<u8>(GuestAddress(at(2))).unwrap(), 0);
        assert_eq!((machine.read(), machine.returned.read().from_guest_bytes), ([4, 1, 4], BLOCK_BYTES));
        assert_eq!(machine.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
        assert_eq!((machine.read(), machine.notes.list().len()), ([4, 0, 4], 0));
    }

    #[test]
    fn the_host_wants_less_and_gets_no_more_than_it_wants() {
        let machine = Machine::new();
        assert_eq!(machine.ask(PLUG, at(0), 3), (ACK, 0));
        machine.growth.want(2 * BLOCK_BYTES, 2 * BLOCK_BYTES);
        assert!(machine.growth.config_space().is_news());
        assert_eq!(machine.read(), [4, 3, 2]);
        assert_eq!(machine.ask(PLUG, at(3), 1), (NACK, 0));
        assert_eq!(machine.ask(UNPLUG, at(0), 2), (ACK, 0));
        // Which blocks they are is the guest's choice.
        assert_eq!(machine.ask(PLUG, at(3), 1), (ACK, 0));
        assert_eq!(machine.read(), [4, 2, 2]);
    }

    #[test]
    fn blocks_that_cannot_be_are_refused() {
        let machine = Machine::new();
        assert_eq!(machine.ask(PLUG, at(0), 1), (ACK, 0));
        for (kind, address, blocks) in [
            (PLUG, at(0), 2),
            (PLUG, at(1) + 4096, 1),
            (PLUG, at(1), 0),
            (PLUG, at(4), 1),
            (PLUG, at(3), 2),
            (PLUG, 0, 1),
            (PLUG, u64::MAX - BLOCK_BYTES + 1, 1),
            (PLUG, at(1), u16::MAX),
            (UNPLUG, at(1), 1),
            (UNPLUG, at(0), 2),
            (STATE, at(8), 1),
            (7, at(1), 1),
        ] {
            assert_eq!(machine.ask(kind, address, blocks).0, ERROR, "{kind} {address:#x} {blocks}");
        }
        assert_eq!(machine.read(), [4, 1, 4]);
        for (request, room) in [(&[0; 8][..], 10), (&[0; REQUEST_BYTES], 9)] {
            assert_eq!(machine.raw(request, room), None);
        }
        assert_eq!(machine.notes.list().len(), 3, "{:?}", machine.notes.list());
    }
}
