//! Packing a kernel's ELF file: the linker puts each segment at a file offset that is a multiple of 2 MiB, so a third
//! of the file is padding. A boot loader reads segments by offset and needs none of it.
//!
//! Layout after ELF-64 Object File Format, version 1.5. Sections are dropped: booting only looks at segments.

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// What the offsets of the packed segments are multiples of.
const PAGE_BYTES: usize = 4096;
/// A vmlinux has five segments.
const MAX_SEGMENTS: usize = 32;
/// Types of segments: to be loaded, and notes (of which one is the PVH entry point).
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a 64-bit little-endian x86 executable")]
    NotX86Executable,
    #[error("{0} ends beyond the file")]
    Truncated(&'static str),
    #[error("{0} segments, at most {MAX_SEGMENTS} are expected")]
    TooManySegments(usize),
    #[error("segment {0} is neither loaded nor inside a segment that is")]
    StraySegment(usize),
}

/// The same executable with the same segments at the same addresses, in as few bytes as page alignment allows.
pub fn pack(elf: &[u8]) -> Result<Vec<u8>, Error> {
    let segments = segments(elf)?;
    let mut packed = vec![0; HEADER_BYTES + segments.len() * PROGRAM_HEADER_BYTES];
    let mut offsets = Vec::with_capacity(segments.len());
    for segment in &segments {
        offsets.push(match segment.kind {
            PT_LOAD => Some(append(&mut packed, segment.bytes(elf)?)),
            _ => None,
        });
    }
    for (index, segment) in segments.iter().enumerate() {
        let offset = match offsets[index] {
            Some(offset) => offset,
            None => moved(segment, &segments, &offsets).ok_or(Error::StraySegment(index))?,
        };
        let at = HEADER_BYTES + index * PROGRAM_HEADER_BYTES;
        packed[at..at + PROGRAM_HEADER_BYTES].copy_from_slice(&segment.header(offset as u64));
    }
    packed[..HEADER_BYTES].copy_from_slice(&header(elf, segments.len())?);
    Ok(packed)
}

/// One program header.
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

impl Segment {
    fn parse(header: &[u8; PROGRAM_HEADER_BYTES]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
        Self {
            kind: word(0),
            flags: word(4),
            offset: long(8),
            virtual_address: long(16),
            physical_address: long(24),
            file_bytes: long(32),
            memory_bytes: long(40),
            align: long(48),
        }
    }

    fn header(&self, offset: u64) -> [u8; PROGRAM_HEADER_BYTES] {
        let mut header = [0; PROGRAM_HEADER_BYTES];
        header[0..4].copy_from_slice(&self.kind.to_le_bytes());
        header[4..8].copy_from_slice(&self.flags.to_le_bytes());
        let align = self.align.min(PAGE_BYTES as u64);
        let rest =
            [offset, self.virtual_address, self.physical_address, self.file_bytes, self.memory_bytes, align];
        for (slot, value) in header[8..].chunks_exact_mut(8).zip(rest) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    fn bytes<'a>(&self, elf: &'a [u8]) -> Result<&'a [u8], Error> {
        let start = usize::try_from(self.offset).map_err(|_| Error::Truncated("a segment"))?;
        let len = usize::try_from(self.file_bytes).map_err(|_| Error::Truncated("a segment"))?;
        slice(elf, start, len, "a segment")
    }

    fn contains(&self, other: &Self) -> bool {
        let end = |segment: &Self| segment.offset.checked_add(segment.file_bytes);
        match (end(self), end(other)) {
            (Some(mine), Some(theirs)) => self.offset <= other.offset && theirs <= mine,
            _ => false,
        }
    }
}

fn segments(elf: &[u8]) -> Result<Vec<Segment>, Error> {
    const CLASS_64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    const EXECUTABLE_X86_64: &[u8] = &[2, 0, 62, 0];
    let header = slice(elf, 0, HEADER_BYTES, "the header")?;
    let entry_bytes = usize::from(u16::from_le_bytes([header[54], header[55]]));
    if !header.starts_with(CLASS_64_LITTLE_ENDIAN)
        || &header[16..20] != EXECUTABLE_X86_64
        || entry_bytes != PROGRAM_HEADER_BYTES
    {
        return Err(Error::NotX86Executable);
    }
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    if count > MAX_SEGMENTS {
        return Err(Error::TooManySegments(count));
    }
    let table = u64::from_le_bytes(std::array::from_fn(|byte| header[32 + byte]));
    let table = usize::try_from(table).map_err(|_| Error::Truncated("the program header table"))?;
    let table = slice(elf, table, count * PROGRAM_HEADER_BYTES, "the program header table")?;
    let (headers, _) = table.as_chunks::<PROGRAM_HEADER_BYTES>();
    let used = headers.iter().map(Segment::parse).filter(|segment| matches!(segment.kind, PT_LOAD | PT_NOTE));
    Ok(used.collect())
}

/// The old header with the program headers right behind it and without sections.
fn header(elf: &[u8], segments: usize) -> Result<[u8; HEADER_BYTES], Error> {
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(slice(elf, 0, HEADER_BYTES, "the header")?);
    header[32..40].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
    header[40..48].fill(0);
    header[56..58].copy_from_slice(&(segments as u16).to_le_bytes());
    header[58..64].fill(0);
    Ok(header)
}

/// Appends on a page boundary and tells where.
fn append(packed: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let offset = packed.len().next_multiple_of(PAGE_BYTES);
    packed.resize(offset, 0);
    packed.extend_from_slice(bytes);
    offset
}

/// Where a segment ended up that lies inside a loaded one.
fn moved(inner: &Segment, segments: &[Segment], offsets: &[Option<usize>]) -> Option<usize> {
    segments.iter().zip(offsets).find_map(|(outer, offset)| {
        let offset = (*offset)?;
        outer.contains(inner).then(|| offset + (inner.offset - outer.offset) as usize)
    })
}

fn slice<'a>(bytes: &'a [u8], start: usize, len: usize, what: &'static str) -> Result<&'a [u8], Error> {
    start.checked_add(len).and_then(|end| bytes.get(start..end)).ok_or(Error::Truncated(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIGN: usize = 0x20_0000;

    /// Text with notes inside at 2 MiB, data at 4 MiB with more memory than file.
    fn vmlinux() -> Vec<u8> {
        let segment = |kind, flags, offset: usize, address: u64, file_bytes, memory_bytes| Segment {
            kind,
            flags,
            offset: offset as u64,
            virtual_address: 0xffff_ffff_8000_0000 + address,
            physical_address: address,
            file_bytes,
            memory_bytes,
            align: ALIGN as u64,
        };
        let segments = [
            segment(PT_LOAD, 5, ALIGN, 0x100_0000, 5000, 5000),
            segment(PT_LOAD, 6, 2 * ALIGN, 0x120_0000, 100, 9000),
            segment(PT_NOTE, 0, ALIGN + 4500, 0x100_0000 + 4500, 20, 20),
        ];
        let mut elf = vec![0; 2 * ALIGN + 200];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
        elf[24..32].copy_from_slice(&0x100_0123_u64.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[40..48].copy_from_slice(&77_u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&3_u16.to_le_bytes());
        for (index, segment) in segments.iter().enumerate() {
            let at = HEADER_BYTES + index * PROGRAM_HEADER_BYTES;
            elf[at..at + PROGRAM_HEADER_BYTES].copy_from_slice(&segment.header(segment.offset));
        }
        elf[ALIGN..ALIGN + 5000].fill(b't');
        elf[ALIGN + 4500..ALIGN + 4520].fill(b'n');
        elf[2 * ALIGN..2 * ALIGN + 100].fill(b'd');
        elf
    }

    #[test]
    fn a_packed_kernel_loads_the_same_bytes_at_the_same_addresses() {
        let elf = vmlinux();
        let packed = pack(&elf).unwrap();
        assert!(packed.len() < 16 << 10, "{} bytes", packed.len());
        assert_eq!(packed[24..32], elf[24..32], "the entry point");
        let (before, after) = (segments(&elf).unwrap(), segments(&packed).unwrap());
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.bytes(&elf), after.bytes(&packed));
            assert_eq!(before.kind, after.kind);
            assert_eq!(before.flags, after.flags);
            assert_eq!(before.virtual_address, after.virtual_address);
            assert_eq!(before.physical_address, after.physical_address);
            assert_eq!(before.memory_bytes, after.memory_bytes);
            if after.kind == PT_LOAD {
                assert_eq!(after.offset % PAGE_BYTES as u64, after.virtual_address % PAGE_BYTES as u64);
            }
        }
    }

    #[test]
    fn packing_twice_changes_nothing_more() {
        let packed = pack(&vmlinux()).unwrap();
        assert!(pack(&packed).unwrap() == packed);
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        type Spoil = fn(&mut Vec<u8>);
        let cases: [(&str, Spoil, Error); 6] = [
            ("empty", |elf| elf.clear(), Error::Truncated("the header")),
            ("32-bit", |elf| elf[4] = 1, Error::NotX86Executable),
            ("another machine", |elf| elf[18] = 183, Error::NotX86Executable),
            ("too many segments", |elf| elf[57] = 1, Error::TooManySegments(259)),
            ("cut off", |elf| elf.truncate(ALIGN + 10), Error::Truncated("a segment")),
            ("notes outside the text", |elf| elf[64 + 2 * 56 + 9] = 0xff, Error::StraySegment(2)),
        ];
        for (what, spoil, expected) in cases {
            let mut elf = vmlinux();
            spoil(&mut elf);
            assert_eq!(pack(&elf).unwrap_err(), expected, "{what}");
        }
    }
}
