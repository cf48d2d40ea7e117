//! How a sparse file is mapped: EROFS maps a file in chunks of one size, each of them a hole or a run of whole blocks.

use super::error::LayerError;
use super::limits::Limits;
use super::output::WriteAt;
use super::tar::Segment;

/// Bytes of a block of the index and of the tar, as a power of two.
pub const BLOCK_BITS: u32 = 9;
pub const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;

/// The chunks of a sparse file that are not holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkMap {
    /// Bytes of a chunk, as a power of two.
    pub chunk_bits: u32,
    /// In order; what lies between them is holes.
    pub extents: Vec<Extent>,
}

/// Chunks that follow each other in the file and on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub first_chunk: u64,
    pub chunks: u64,
    pub device: Device,
    /// Where the first of them begins, in blocks of the device.
    pub block: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The image that holds the metadata.
    Index,
    /// The tar beside it.
    Tar,
}

/// What to do with a sparse file's data.
pub enum Plan {
    /// Every segment covers whole blocks of the tar: point at them.
    Direct(ChunkMap),
    /// Copy the data into the index, in chunks of this many bytes (as a power of two).
    Realign { chunk_bits: u32 },
}

/// Bytes of chunk table that any sparse file may take.
const FREE_TABLE_BYTES: u64 = 1 << 20;
/// A larger table must be matched by this many bytes of data for each of its own.
const DATA_PER_TABLE_BYTE: u64 = 8;
const TABLE_ENTRY_BYTES: u64 = 8;
/// The largest chunk that EROFS can name: 31 bits above the block.
const MAX_CHUNK_BITS: u32 = BLOCK_BITS + 31;
/// Chunks of copied data are at least a page.
const MIN_REALIGNED_BITS: u32 = 12;

/// Decides how to map a file of `size` bytes whose segments lie packed at `data_offset` of the tar.
///
/// GNU tar takes segments from the file system, so they begin and end at multiples of 4096 and can be pointed at. Those
/// that do not, and small data strewn over a huge file (`lastlog` with high user numbers), are copied instead.
pub fn plan(segments: &[Segment], size: u64, data_offset: u64) -> Plan {
    let data: u64 = segments.iter().map(|segment| segment.len).sum();
    let mut edges = 0u64;
    for segment in segments {
        edges |= segment.offset;
        // A segment that ends the file may end anywhere: what follows in the tar is its padding.
        if segment.offset + segment.len != size {
            edges |= segment.len;
        }
    }
    let whole = size.checked_next_power_of_two().map_or(MAX_CHUNK_BITS, u64::trailing_zeros);
    let chunk_bits = edges.trailing_zeros().min(whole).clamp(BLOCK_BITS, MAX_CHUNK_BITS);
    let table_limit = FREE_TABLE_BYTES.max(data / DATA_PER_TABLE_BYTE);
    let aligned = edges.trailing_zeros() >= BLOCK_BITS && data_offset.is_multiple_of(BLOCK_BYTES);
    if aligned
        && chunks(size, chunk_bits) * TABLE_ENTRY_BYTES <= table_limit
        && let Some(extents) = direct_extents(segments, chunk_bits, data_offset)
    {
        return Plan::Direct(ChunkMap { chunk_bits, extents });
    }
    let fits = |bits: &u32| chunks(size, *bits) * TABLE_ENTRY_BYTES <= table_limit;
    Plan::Realign { chunk_bits: (MIN_REALIGNED_BITS..MAX_CHUNK_BITS).find(fits).unwrap_or(MAX_CHUNK_BITS) }
}

/// Chunks of a file of `size` bytes.
pub fn chunks(size: u64, chunk_bits: u32) -> u64 {
    (size >> chunk_bits) + u64::from(size & ((1 << chunk_bits) - 1) != 0)
}

/// `None` if the tar is too long for block numbers of 32 bits.
fn direct_extents(segments: &[Segment], chunk_bits: u32, data_offset: u64) -> Option<Vec<Extent>> {
    let mut at = data_offset;
    let mut extents = Vec::with_capacity(segments.len());
    for segment in segments {
        extents.push(Extent {
            first_chunk: segment.offset >> chunk_bits,
            chunks: chunks(segment.len, chunk_bits),
            device: Device::Tar,
            block: u32::try_from(at >> BLOCK_BITS).ok()?,
        });
        at += segment.len;
    }
    Some(extents)
}

/// Copies the data of sparse files to the front of the index, before its metadata.
pub struct Realigner {
    /// Where the next chunk goes, in bytes of the index.
    next: u64,
    start: u64,
}

/// One file on its way through a [`Realigner`].
pub struct Realigned<'r, W> {
    realigner: &'r mut Realigner,
    index: W,
    limits: Limits,
    path: &'r [u8],
    segments: std::slice::Iter<'r, Segment>,
    /// What is left of the present segment.
    segment: Segment,
    map: ChunkMap,
}

impl Realigner {
    /// Copies go to byte `start` of the index and on.
    pub fn new(start: u64) -> Self {
        Realigner { next: start, start }
    }

    /// Where the copies end.
    pub fn end(&self) -> u64 {
        self.next
    }

    pub fn file<'r, W: WriteAt>(
        &'r mut self,
        index: W,
        limits: &Limits,
        path: &'r [u8],
        segments: &'r [Segment],
        chunk_bits: u32,
    ) -> Realigned<'r, W> {
        Realigned {
            realigner: self,
            index,
            limits: *limits,
            path,
            segments: segments.iter(),
            segment: Segment { offset: 0, len: 0 },
            map: ChunkMap { chunk_bits, extents: Vec::new() },
        }
    }
}

impl<W: WriteAt> Realigned<'_, W> {
    /// Takes the next bytes of the packed data.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), LayerError> {
        let chunk_bytes = 1u64 << self.map.chunk_bits;
        let mut rest = piece;
        while !rest.is_empty() {
            if self.segment.len == 0 {
                let Some(next) = self.segments.next() else { break };
                self.segment = *next;
                continue;
            }
            let in_chunk = self.segment.offset & (chunk_bytes - 1);
            let room = self.segment.len.min(chunk_bytes - in_chunk);
            let count = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(count);
            let chunk = self.chunk(self.segment.offset >> self.map.chunk_bits)?;
            self.index
                .write_at(now, chunk + in_chunk)
                .map_err(|source| LayerError::Io { operation: "write sparse data into the index", source })?;
            self.segment.offset += count as u64;
            self.segment.len -= count as u64;
            rest = later;
        }
        Ok(())
    }

    pub fn finish(self) -> ChunkMap {
        self.map
    }

    /// Where chunk `number` lies in the index, in bytes. Chunks are asked for in order.
    fn chunk(&mut self, number: u64) -> Result<u64, LayerError> {
        let chunk_bytes = 1u64 << self.map.chunk_bits;
        if self.map.extents.last().is_some_and(|last| last.first_chunk + last.chunks == number + 1) {
            return Ok(self.realigner.next - chunk_bytes);
        }
        let at = self.realigner.next;
        let max = self.limits.realigned_bytes;
        let end = at.checked_add(chunk_bytes).filter(|end| *end - self.realigner.start <= max);
        let (Some(end), Ok(block)) = (end, u32::try_from(at >> BLOCK_BITS)) else {
            return Err(LayerError::limit(self.path, "sparse data not aligned to blocks", max, "bytes"));
        };
        self.realigner.next = end;
        match self.map.extents.last_mut() {
            Some(last) if last.first_chunk + last.chunks == number => last.chunks += 1,
            _ => {
                self.map.extents.push(Extent { first_chunk: number, chunks: 1, device: Device::Index, block })
            }
        }
        Ok(at)
    }
}
