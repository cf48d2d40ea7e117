//! The network card: virtio-net (virtio 1.2, section 5.1) over a stream of frames, each behind its length (four bytes,
//! big-endian), as passt and QEMU speak it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

const RX: usize = 0;
/// `struct virtio_net_hdr_v1`: all zero without offloads, but for the count of buffers.
const HEADER_BYTES: usize = 12;
const LENGTH_BYTES: usize = 4;
/// Bytes of one frame, whatever the MTU.
const FRAME_BYTES_MAX: usize = 65_550;
/// Bytes read off the stream at once.
const INPUT_BYTES: usize = 256 << 10;

pub struct Card {
    stream: UnixStream,
    mac: [u8; 6],
    mtu: u16,
    notes: Notes,
    meter: Meter,
    /// What came off the stream: the bytes from `taken` to `filled` are still to go to the guest.
    input: Box<[u8]>,
    taken: usize,
    filled: usize,
    /// What the stream has not taken yet of the last frame of the guest.
    output: Vec<u8>,
    gone: bool,
}

/// What every card offers.
pub const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MTU;

/// `struct virtio_net_config`: address, status, queue pairs, MTU.
pub fn config_space(mac: [u8; 6], mtu: u16) -> Vec<u8> {
    let mut space = mac.to_vec();
    space.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    space.extend(1_u16.to_le_bytes());
    space.extend(mtu.to_le_bytes());
    space
}

impl Card {
    /// # Errors
    /// The stream cannot be made not to block.
    pub fn new(stream: OwnedFd, mac: [u8; 6], mtu: u16, notes: Notes) -> io::Result<Self> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true)?;
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        let meter = Meter::default();
        Ok(Self {
            stream,
            mac,
            mtu,
            notes,
            meter,
            input,
            taken: 0,
            filled: 0,
            output: Vec::new(),
            gone: false,
        })
    }

    pub fn config_space(&self) -> Vec<u8> {
        config_space(self.mac, self.mtu)
    }

    /// The next whole frame that came in; its place in the input.
    fn next_frame(&mut self) -> Option<std::ops::Range<usize>> {
        loop {
            let waiting = self.input.get(self.taken..self.filled).unwrap_or_default();
            if let Some(&[a, b, c, d]) = waiting.get(..LENGTH_BYTES) {
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                if len > FRAME_BYTES_MAX {
                    // The other side is a program of this host, and has lost its way.
                    self.notes.add(format_args!("network: a frame of {len} bytes"));
                    self.gone = true;
                    return None;
                }
                if waiting.len() >= LENGTH_BYTES + len {
                    let start = self.taken + LENGTH_BYTES;
                    self.taken = start + len;
                    return Some(start..start + len);
                }
            }
            if self.gone {
                return None;
            }
            // A frame fits at the front, so there is room behind what is left of the last one.
            self.input.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
            match self.stream.read(self.input.get_mut(self.filled..).unwrap_or_default()) {
                Ok(0) => self.gone = true,
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => self.gone = true,
            }
        }
    }

    /// Gives frames to the guest as long as there are some, and room.
    fn receive(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let Some(frame) = self.next_frame() else {
                queue.go_to_previous_position();
                break;
            };
            let head = chain.head_index();
            let mut header = [0; HEADER_BYTES];
            header[10] = 1;
            let frame = self.input.get(frame).unwrap_or_default();
            let mut rest = header.iter().chain(frame).copied();
            let mut len = 0;
            let mut piece = Vec::new();
            for descriptor in chain.filter(|descriptor| descriptor.is_write_only()) {
                piece.clear();
                piece.extend(rest.by_ref().take(descriptor.len() as usize));
                if memory.write_slice(&piece, descriptor.addr()).is_err() {
                    len = 0;
                    break;
                }
                len += piece.len() as u32;
            }
            self.meter.to_guest(frame.len() as u64);
            if (len as usize) < HEADER_BYTES + frame.len() {
                self.notes.add("virtio-net: a buffer with too little room for a frame");
            }
            if let Err(error) = queue.add_used(memory, head, len) {
                self.notes.add(format_args!("virtio-net used ring: {error}"));
            }
            used = true;
        }
        used
    }

    /// Sends what the guest has queued.
    fn send(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        // What the stream does not take stays in the queue: then the guest waits, and nothing is lost.
        while self.flush()
            && let Some(chain) = queue.pop_descriptor_chain(memory)
        {
            let head = chain.head_index();
            let mut frame = vec![0; LENGTH_BYTES];
            let mut skip = HEADER_BYTES;
            for descriptor in chain.filter(|descriptor| !descriptor.is_write_only()) {
                let len = descriptor.len() as usize;
                let now = skip.min(len);
                skip -= now;
                let start = frame.len();
                if start + len - now > FRAME_BYTES_MAX {
                    frame.clear();
                    break;
                }
                frame.resize(start + len - now, 0);
                let place = descriptor.addr().0.saturating_add(now as u64);
                if memory
                    .read_slice(frame.get_mut(start..).unwrap_or_default(), vm_memory::GuestAddress(place))
                    .is_err()
                {
                    frame.clear();
                    break;
                }
            }
            match frame.len().checked_sub(LENGTH_BYTES).and_then(|len| u32::try_from(len).ok()) {
                Some(len) if skip == 0 && len > 0 => {
                    self.meter.from_guest(len.into());
                    if let Some(place) = frame.get_mut(..LENGTH_BYTES) {
                        place.copy_from_slice(&len.to_be_bytes());
                    }
                    self.push(&frame);
                }
                _ => self.notes.add("virtio-net: a frame that is none"),
            }
            if let Err(error) = queue.add_used(memory, head, 0) {
                self.notes.add(format_args!("virtio-net used ring: {error}"));
            }
            used = true;
        }
        used
    }

    /// Writes what is left of the last frame; whether that is all of it.
    fn flush(&mut self) -> bool {
        let rest = std::mem::take(&mut self.output);
        self.push(&rest);
        self.output.is_empty()
    }

    /// Writes as much as the stream takes; keeps the rest.
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.gone {
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.gone = true,
            }
        }
        // Without the other side nothing is kept, and nothing waits.
        self.output = if self.gone { Vec::new() } else { bytes.to_vec() };
    }
}

impl Queues for Card {
    const NAME: &'static str = "virtio-net";
    const COUNT: usize = 2;

    fn features(&self) -> u64 {
        FEATURES
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        match index {
            RX => self.receive(queue, memory),
            _ => self.send(queue, memory),
        }
    }

    fn stream(&self) -> Option<RawFd> {
        Some(self.stream.as_raw_fd())
    }
}
