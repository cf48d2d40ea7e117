//! A disk: virtio-blk (virtio 1.2, section 5.2) over a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::meter::Meter;
use super::notes::Notes;
use super::queues::Queues;

/// What positions and lengths are counted in, whatever the disk's own blocks are.
const SECTOR_BYTES: u64 = 512;
/// Type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// Sector, count, flags: one range of a discard.
const RANGE_BYTES: usize = 16;
/// Ranges of one discard.
const RANGES_MAX: u32 = 64;
/// Sectors of one range.
const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Data descriptors of one request.
const SEGMENTS_MAX: u32 = 126;
/// Bytes of one request: what the driver of Linux makes at most with these segments, and room.
const REQUEST_BYTES_MAX: u64 = 32 << 20;
const ID_BYTES: usize = 20;
/// Bytes copied at once between file and guest.
const CHUNK_BYTES: usize = 128 << 10;

/// A disk and the file behind it.
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    /// What the guest flushes reaches the medium. Not worth it for a disk that nothing outlives.
    durable: bool,
    notes: Notes,
    meter: Meter,
    chunk: Vec<u8>,
}

/// Why a request is not done; the driver gets the status.
struct Refusal(u32);

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Refusal(VIRTIO_BLK_S_IOERR)
    }
}

impl From<vm_memory::GuestMemoryError> for Refusal {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Refusal(VIRTIO_BLK_S_IOERR)
    }
}

impl Disk {
    /// # Errors
    /// The size of the file cannot be asked.
    pub fn new(file: File, read_only: bool, durable: bool, notes: Notes) -> io::Result<Self> {
        let sectors = file.metadata()?.len() / SECTOR_BYTES;
        Ok(Self {
            file,
            sectors,
            read_only,
            durable,
            notes,
            meter: Meter::default(),
            chunk: vec![0; CHUNK_BYTES],
        })
    }

    /// `struct virtio_blk_config`: capacity, and the limits of requests.
    pub fn config_space(&self) -> Vec<u8> {
        let mut space = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = space.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        // Discard and write zeroes: sectors, ranges, alignment; then whether zeroes may unmap.
        put(36, &RANGE_SECTORS_MAX.to_le_bytes());
        put(40, &RANGES_MAX.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]);
        space
    }

    /// Carries out one request; how many bytes of the chain were written.
    fn answer(&mut self, memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
        let request = match Request::read(memory, chain) {
            Ok(request) => request,
            Err(problem) => {
                self.notes.add(format_args!("virtio-blk: {problem}"));
                return 0;
            }
        };
        let mut written = 0;
        let status = match self.carry_out(&request, memory, &mut written) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refusal(status)) => status,
        };
        match memory.write_obj(status as u8, request.status) {
            Ok(()) => written + 1,
            Err(_) => 0,
        }
    }

    fn carry_out(
        &mut self,
        request: &Request,
        memory: &GuestMemoryMmap,
        written: &mut u32,
    ) -> Result<(), Refusal> {
        match request.kind {
            VIRTIO_BLK_T_IN => {
                let mut offset = self.place(request.sector, request.bytes(true))?;
                for part in request.parts.iter().filter(|part| part.for_device) {
                    self.read_part(part, offset, memory)?;
                    offset += u64::from(part.len);
                    *written += part.len;
                    self.meter.to_guest(part.len.into());
                }
                Ok(())
            }
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                let mut offset = self.place(request.sector, request.bytes(false))?;
                for part in request.parts.iter().filter(|part| !part.for_device) {
                    self.write_part(part, offset, memory)?;
                    self.meter.from_guest(part.len.into());
                    offset += u64::from(part.len);
                }
                Ok(())
            }
            VIRTIO_BLK_T_FLUSH => {
                if self.durable {
                    fdatasync(&self.file).map_err(io::Error::from)?;
                }
                Ok(())
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.clear(request, memory),
            VIRTIO_BLK_T_GET_ID => {
                let part =
                    request.parts.iter().find(|part| part.for_device).ok_or(Refusal(VIRTIO_BLK_S_IOERR))?;
                let id = [0; ID_BYTES];
                let id = id.get(..(part.len as usize).min(ID_BYTES)).unwrap_or_default();
                memory.write_slice(id, part.address)?;
                *written += id.len() as u32;
                Ok(())
            }
            _ => Err(Refusal(VIRTIO_BLK_S_UNSUPP)),
        }
    }

    fn read_part(&mut self, part: &Part, offset: u64, memory: &GuestMemoryMmap) -> Result<(), Refusal> {
        let mut done = 0;
        while done < part.len {
            let now = (part.len - done).min(CHUNK_BYTES as u32);
            let chunk = self.chunk.get_mut(..now as usize).unwrap_or_default();
            self.file.read_exact_at(chunk, offset + u64::from(done))?;
            memory.write_slice(chunk, part.at(done)?)?;
            done += now;
        }
        Ok(())
    }

    fn write_part(&mut self, part: &Part, offset: u64, memory: &GuestMemoryMmap) -> Result<(), Refusal> {
        let mut done = 0;
        while done < part.len {
            let now = (part.len - done).min(CHUNK_BYTES as u32);
            let chunk = self.chunk.get_mut(..now as usize).unwrap_or_default();
            memory.read_slice(chunk, part.at(done)?)?;
            self.file.write_all_at(chunk, offset + u64::from(done))?;
            done += now;
        }
        Ok(())
    }

    /// Discards, or writes zeroes over, the ranges that a request lists.
    fn clear(&mut self, request: &Request, memory: &GuestMemoryMmap) -> Result<(), Refusal> {
        self.writable()?;
        let bytes = request.bytes(false);
        if bytes == 0
            || !bytes.is_multiple_of(RANGE_BYTES as u64)
            || bytes / RANGE_BYTES as u64 > u64::from(RANGES_MAX)
        {
            return Err(Refusal(VIRTIO_BLK_S_UNSUPP));
        }
        let mut list = Vec::with_capacity(bytes as usize);
        for part in request.parts.iter().filter(|part| !part.for_device) {
            let start = list.len();
            list.resize(start + part.len as usize, 0);
            memory.read_slice(list.get_mut(start..).unwrap_or_default(), part.address)?;
        }
        for range in list.chunks_exact(RANGE_BYTES) {
            let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *range else { continue };
            let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let sectors = u32::from_le_bytes([i, j, k, l]);
            if sectors > RANGE_SECTORS_MAX {
                return Err(Refusal(VIRTIO_BLK_S_UNSUPP));
            }
            let len = u64::from(sectors) * SECTOR_BYTES;
            let offset = self.place(sector, len)?;
            if len > 0 {
                // A hole reads as zeros: that is good enough for both.
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, flags, offset, len).map_err(io::Error::from)?;
            }
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.read_only { Err(Refusal(VIRTIO_BLK_S_IOERR)) } else { Ok(()) }
    }

    /// Where in the file a request begins, all of it inside.
    fn place(&self, sector: u64, bytes: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR_BYTES));
        match end {
            Some(end) if end <= self.sectors && bytes.is_multiple_of(SECTOR_BYTES) => {
                Ok(sector * SECTOR_BYTES)
            }
            _ => Err(Refusal(VIRTIO_BLK_S_IOERR)),
        }
    }
}

impl Queues for Disk {
    const NAME: &'static str = "virtio-blk";
    const COUNT: usize = 1;

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX;
        let own = match self.read_only {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        common | own
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    fn process(&mut self, _index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let len = self.answer(memory, chain);
            if let Err(error) = queue.add_used(memory, head, len) {
                self.notes.add(format_args!("virtio-blk used ring: {error}"));
            }
            used = true;
        }
        used
    }
}

/// One descriptor with data.
struct Part {
    address: GuestAddress,
    len: u32,
    /// The device writes it.
    for_device: bool,
}

impl Part {
    fn at(&self, offset: u32) -> Result<GuestAddress, Refusal> {
        use vm_memory::Address;
        self.address.checked_add(u64::from(offset)).ok_or(Refusal(VIRTIO_BLK_S_IOERR))
    }
}

/// A request as the descriptors have it: the header read once, the data by place.
struct Request {
    kind: u32,
    sector: u64,
    parts: Vec<Part>,
    status: GuestAddress,
}

impl Request {
    /// The header alone in the first descriptor and the status alone in the last: so all drivers lay it out.
    fn read(
        memory: &GuestMemoryMmap,
        mut chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<Self, &'static str> {
        let header = chain.next().ok_or("a request without descriptors")?;
        if header.is_write_only() || (header.len() as usize) < HEADER_BYTES {
            return Err("a request without a header");
        }
        let mut bytes = [0; HEADER_BYTES];
        memory.read_slice(&mut bytes, header.addr()).map_err(|_| "a header outside guest memory")?;
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = bytes;
        let mut parts = Vec::new();
        let mut total = 0;
        for descriptor in chain {
            // The status is one of them until the last is known.
            if parts.len() > SEGMENTS_MAX as usize {
                return Err("a request of too many descriptors");
            }
            total += u64::from(descriptor.len());
            if total > REQUEST_BYTES_MAX {
                return Err("a request of too many bytes");
            }
            parts.push(Part {
                address: descriptor.addr(),
                len: descriptor.len(),
                for_device: descriptor.is_write_only(),
            });
        }
        let status = parts.pop().filter(|part| part.for_device && part.len > 0);
        let status = status.ok_or("a request without room for its status")?;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            parts,
            status: status.address,
        })
    }

    /// Bytes of the parts that the device writes, or of the others.
    fn bytes(&self, for_device: bool) -> u64 {
        self.parts.iter().filter(|part| part.for_device == for_device).map(|part| u64::from(part.len)).sum()
    }
}
