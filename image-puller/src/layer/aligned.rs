use std::ops::Range;

/// What direct I/O asks of addresses in memory and of places in a file, on any disk.
pub const ALIGNMENT_BYTES: usize = 4096;

/// Memory that begins at a multiple of [`ALIGNMENT_BYTES`].
pub struct AlignedBuffer {
    memory: Box<[u8]>,
    /// Of the first aligned byte.
    start: usize,
}

impl AlignedBuffer {
    pub fn new(len: usize) -> Self {
        let memory: Box<[u8]> = vec![0; len + ALIGNMENT_BYTES].into();
        // Where this cannot be told the buffer is not aligned, which is only slower.
        let start =
            Some(memory.as_ptr().align_offset(ALIGNMENT_BYTES)).filter(|start| *start < ALIGNMENT_BYTES);
        AlignedBuffer { memory, start: start.unwrap_or(0) }
    }

    /// The first `len` bytes.
    pub fn front(&self, len: usize) -> &[u8] {
        self.memory.get(self.start..self.start.saturating_add(len)).unwrap_or_default()
    }

    pub fn part_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.memory.get_mut(self.start + range.start..self.start + range.end).unwrap_or_default()
    }
}
