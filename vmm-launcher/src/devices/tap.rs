//! The network card over a tap of the host: virtio-net (virtio 1.2, section 5.1) with checksums and segmentation left to the
//! other side, and large frames over several buffers of the guest.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nacre_sys::tap::{self, CHECKSUM, HEADER_BYTES, TSO4, TSO6};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::ethernet;
use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

const RX: usize = 0;
/// Bytes of one frame, and its header.
const FRAME_BYTES_MAX: usize = 65_550 + HEADER_BYTES;
/// Where the header counts buffers.
const BUFFERS_AT: std::ops::Range<usize> = 10..12;
/// Buffers of one frame.
const BUFFERS_MAX: usize = 64;
/// Frames until the other queue has its turn.
const BATCH_MAX: usize = 256;

pub struct TapCard {
    tap: File,
    mac: [u8; 6],
    mtu: u16,
    notes: Notes,
    meter: Meter,
    features: u64,
    /// The guest has agreed on other features than the tap was told of.
    changed: bool,
    /// What came off the tap and has not gone to the guest; empty if there is nothing.
    waiting: Vec<u8>,
    buffer: Box<[u8]>,
    /// The last batch had a frame over several buffers.
    spread: bool,
}

/// Buffers of the guest for one frame.
#[derive(Default)]
struct Room {
    /// Each with the number of bytes that it takes.
    chains: Vec<(u16, Vec<(GuestAddress, usize)>)>,
    bytes: usize,
}

impl TapCard {
    /// # Errors
    /// It is no tap that carries headers.
    pub fn new(tap: OwnedFd, mac: [u8; 6], mtu: u16, notes: Notes) -> io::Result<Self> {
        tap::prepare(&tap)?;
        Self::over(tap, mac, mtu, notes)
    }

    /// The same over anything that gives and takes a frame behind its header with each read and write.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn over(tap: OwnedFd, mac: [u8; 6], mtu: u16, notes: Notes) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&tap, true)?;
        Ok(Self {
            tap: tap.into(),
            mac,
            mtu,
            notes,
            meter: Meter::default(),
            features: 0,
            changed: true,
            waiting: Vec::new(),
            buffer: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            spread: false,
        })
    }

    pub fn config_space(&self) -> Vec<u8> {
        ethernet::config_space(self.mac, self.mtu)
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Here and not where the guest agrees: only the card's own thread may talk to the tap.
    fn tell_tap(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let offloads = [
            (VIRTIO_NET_F_GUEST_CSUM, CHECKSUM),
            (VIRTIO_NET_F_GUEST_TSO4, TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TSO6),
        ];
        // Large segments without checksums cannot be.
        let offloads = match self.has(VIRTIO_NET_F_GUEST_CSUM) {
            true => {
                offloads.iter().filter(|(feature, _)| self.has(*feature)).fold(0, |all, (_, bit)| all | bit)
            }
            false => 0,
        };
        if let Err(error) = tap::set_offloads(&self.tap, offloads) {
            self.notes.add(format_args!("network: the tap refuses offloads: {error}"));
        }
    }

    /// Whether a frame waits for the guest.
    fn fetch(&mut self) -> bool {
        while self.waiting.is_empty() {
            match (&self.tap).read(&mut self.buffer) {
                Ok(count) if count > HEADER_BYTES => {
                    self.waiting.extend_from_slice(self.buffer.get(..count).unwrap_or_default());
                }
                Ok(_) => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        self.notes.add(format_args!("network: the tap: {error}"));
                    }
                    return false;
                }
            }
        }
        true
    }

    fn receive(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        for _ in 0..BATCH_MAX {
            let before = queue.next_avail();
            if !self.fetch() {
                break;
            }
            let Some(room) = self.room(queue, memory) else {
                // The frame waits until the guest has added more.
                queue.set_next_avail(before);
                break;
            };
            self.deliver(&room, queue, memory);
            self.waiting.clear();
            used = true;
        }
        used
    }

    /// Buffers for the frame that waits; `None` if there are too few now.
    fn room(&self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Option<Room> {
        let most = if self.has(VIRTIO_NET_F_MRG_RXBUF) { BUFFERS_MAX } else { 1 };
        let mut room = Room::default();
        while room.bytes < self.waiting.len() && room.chains.len() < most {
            let chain = queue.pop_descriptor_chain(memory)?;
            let head = chain.head_index();
            let mut parts = Vec::new();
            for descriptor in chain.filter(|descriptor| descriptor.is_write_only()) {
                let part = (self.waiting.len() - room.bytes).min(descriptor.len() as usize);
                if part > 0 {
                    parts.push((descriptor.addr(), part));
                    room.bytes += part;
                }
            }
            room.chains.push((head, parts));
        }
        Some(room)
    }

    /// Writes the frame, and shows all its buffers to the guest at once.
    fn deliver(&mut self, room: &Room, queue: &mut Queue, memory: &GuestMemoryMmap) {
        let count = room.chains.len() as u16;
        if room.bytes < self.waiting.len() {
            self.notes.add("virtio-net: buffers with too little room for a frame");
        }
        if let Some(place) = self.waiting.get_mut(BUFFERS_AT) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        self.meter.to_guest((self.waiting.len() - HEADER_BYTES) as u64);
        self.spread |= count > 1;
        let mut rest = self.waiting.as_slice();
        for (index, (head, parts)) in (1..).zip(&room.chains) {
            let mut len = 0;
            for (address, bytes) in parts {
                let (now, behind) = rest.split_at_checked(*bytes).unwrap_or((rest, &[]));
                rest = behind;
                if memory.write_slice(now, *address).is_err() {
                    self.notes.add("virtio-net: a buffer outside guest memory");
                    break;
                }
                len += now.len() as u32;
            }
            // The guest looks for all buffers of a frame as soon as it sees the first: so it sees them with the last.
            let written = match index == count {
                true => queue.add_used(memory, *head, len).map_err(|error| error.to_string()),
                false => hide_used(queue, memory, *head, len),
            };
            if let Err(error) = written {
                self.notes.add(format_args!("virtio-net used ring: {error}"));
            }
        }
    }

    fn send(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let mut filled = Some(0);
            for descriptor in chain.filter(|descriptor| !descriptor.is_write_only()) {
                let len = descriptor.len() as usize;
                filled = filled.and_then(|start: usize| {
                    let place = self.buffer.get_mut(start..start.checked_add(len)?)?;
                    memory.read_slice(place, descriptor.addr()).ok()?;
                    Some(start + len)
                });
            }
            match filled.and_then(|len| self.buffer.get(..len)).filter(|frame| frame.len() > HEADER_BYTES) {
                Some(frame) => {
                    self.meter.from_guest((frame.len() - HEADER_BYTES) as u64);
                    // What the host does not take is lost, as on any network; a header that cannot be is refused there.
                    if let Err(error) = (&self.tap).write(frame)
                        && error.kind() != ErrorKind::WouldBlock
                    {
                        self.notes.add(format_args!("virtio-net: the tap refuses a frame: {error}"));
                    }
                }
                None => self.notes.add("virtio-net: a frame that is none"),
            }
            if let Err(error) = queue.add_used(memory, head, 0) {
                self.notes.add(format_args!("virtio-net used ring: {error}"));
            }
            used = true;
        }
        used
    }
}

/// Gives a chain back where the driver does not look yet: the index of the ring stays.
fn hide_used(queue: &mut Queue, memory: &GuestMemoryMmap, head: u16, len: u32) -> Result<(), String> {
    const RING_AT: u64 = 4;
    const ELEMENT_BYTES: u64 = 8;
    let next = queue.next_used();
    let offset = RING_AT + u64::from(next % queue.size()) * ELEMENT_BYTES;
    let place = GuestAddress(queue.used_ring()).checked_add(offset).ok_or("beyond all addresses")?;
    let element = u64::from(len) << 32 | u64::from(head);
    memory.write_slice(&element.to_le_bytes(), place).map_err(|error| error.to_string())?;
    queue.set_next_used(next.wrapping_add(1));
    Ok(())
}

impl Queues for TapCard {
    const NAME: &'static str = "virtio-net";
    const COUNT: usize = 2;

    fn features(&self) -> u64 {
        const OFFLOADS: [u32; 7] = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MRG_RXBUF,
        ];
        OFFLOADS.iter().fold(ethernet::FEATURES, |all, feature| all | 1 << feature)
    }

    fn negotiated(&mut self, features: u64) {
        self.features = features;
        self.changed = true;
        self.waiting.clear();
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        self.tell_tap();
        match index {
            RX => self.receive(queue, memory),
            _ => self.send(queue, memory),
        }
    }

    fn interrupts_anyway(&mut self) -> bool {
        std::mem::take(&mut self.spread)
    }

    fn stream(&self) -> Option<RawFd> {
        Some(self.tap.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    const WRITE: u16 = 2;
    const BUFFERS: u64 = 0x2_0000;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn card(features: u64) -> (TapCard, UnixDatagram, Notes) {
        let (ours, host) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let notes = Notes::default();
        let mut card = TapCard::over(ours.into(), [2, 0, 0, 0, 0, 1], 1500, notes.clone()).unwrap();
        card.negotiated(features);
        (card, host, notes)
    }

    /// A frame of this many bytes with its header, each byte another one than those beside it.
    fn frame(len: usize) -> Vec<u8> {
        std::iter::repeat_n(0, HEADER_BYTES).chain((0..len).map(|n| n as u8)).collect()
    }

    fn buffer(index: u64, len: u32) -> RawDescriptor {
        RawDescriptor::from(Descriptor::new(BUFFERS + index * 0x1000, len, WRITE, 0))
    }

    #[test]
    fn a_large_frame_waits_for_all_its_buffers_and_is_seen_whole() {
        let memory = memory();
        let (mut card, host, _) = card(1 << VIRTIO_NET_F_MRG_RXBUF);
        host.send(&frame(2500)).unwrap();
        let driver = MockSplitQueue::new(&memory, 16);
        let used = || memory.read_obj::<u16>(driver.used_addr().unchecked_add(2)).unwrap();
        let mut queue = driver.create_queue().unwrap();
        driver.add_desc_chains(&[buffer(0, 1024), buffer(1, 1024)], 0).unwrap();
        assert!(!card.process(RX, &mut queue, &memory), "two of three");
        assert_eq!((used(), card.interrupts_anyway()), (0, false));
        driver.add_desc_chains(&[buffer(2, 1024)], 2).unwrap();
        assert!(card.process(RX, &mut queue, &memory));
        assert_eq!((used(), card.interrupts_anyway()), (3, true));
        let mut got = Vec::new();
        for index in 0..3 {
            let element = driver.used_addr().unchecked_add(4 + index * 8);
            let (head, len) =
                (memory.read_obj::<u32>(element), memory.read_obj::<u32>(element.unchecked_add(4)));
            assert_eq!(u64::from(head.unwrap()), index);
            let mut part = vec![0; len.unwrap() as usize];
            memory.read_slice(&mut part, GuestAddress(BUFFERS + index * 0x1000)).unwrap();
            got.extend(part);
        }
        assert_eq!(got[BUFFERS_AT], [3, 0]);
        assert_eq!(got[HEADER_BYTES..], frame(2500)[HEADER_BYTES..]);
    }

    #[test]
    fn without_merging_a_frame_has_one_buffer() {
        let memory = memory();
        let (mut card, host, notes) = card(0);
        host.send(&frame(100)).unwrap();
        host.send(&frame(1500)).unwrap();
        let driver = MockSplitQueue::new(&memory, 16);
        driver.add_desc_chains(&[buffer(0, 1024), buffer(1, 1024), buffer(2, 1024)], 0).unwrap();
        let mut queue = driver.create_queue().unwrap();
        assert!(card.process(RX, &mut queue, &memory));
        assert_eq!(memory.read_obj::<u16>(driver.used_addr().unchecked_add(2)).unwrap(), 2);
        assert!(notes.list().iter().any(|note| note.contains("too little room")), "{:?}", notes.list());
    }

    #[test]
    fn what_the_guest_sends_comes_out_with_its_header() {
        let memory = memory();
        let (mut card, host, notes) = card(0);
        memory.write_slice(&frame(600), GuestAddress(BUFFERS)).unwrap();
        let driver = MockSplitQueue::new(&memory, 16);
        let descriptor =
            |address, len, flags, next| RawDescriptor::from(Descriptor::new(address, len, flags, next));
        // A frame in two pieces, one without a byte, one from nowhere, one that is too long.
        let chains = [
            descriptor(BUFFERS, 12, 1, 1),
            descriptor(BUFFERS + 12, 600, 0, 0),
            descriptor(BUFFERS, 12, 0, 0),
            descriptor(1 << 40, 100, 0, 0),
            descriptor(BUFFERS, 0x2_0000, 0, 0),
        ];
        driver.add_desc_chains(&chains, 0).unwrap();
        assert!(card.process(1, &mut driver.create_queue().unwrap(), &memory));
        let mut got = [0; 4096];
        let count = host.recv(&mut got).unwrap();
        assert_eq!(got[..count], frame(600));
        assert!(host.recv(&mut got).is_err());
        assert!(
            notes.list().iter().any(|note| note.contains("a frame that is none (3 times)")),
            "{:?}",
            notes.list()
        );
    }
}
