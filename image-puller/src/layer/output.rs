use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::aligned::{ALIGNMENT_BYTES, AlignedBuffer};

/// A file written at offsets. Bytes that nobody wrote read as zeros.
pub trait WriteAt {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
}

impl WriteAt for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

impl<W: WriteAt> WriteAt for &W {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }
}

/// Collects small appends into writes of [`Appender::BUFFER_BYTES`], aligned in memory and, after the first, in the file.
pub struct Appender<W> {
    file: W,
    buffer: AlignedBuffer,
    filled: usize,
    flushed: u64,
}

impl<W: WriteAt> Appender<W> {
    const BUFFER_BYTES: usize = 64 << 10;

    /// Appends from `start` on.
    pub fn new(file: W, start: u64) -> Self {
        Appender { file, buffer: AlignedBuffer::new(Self::BUFFER_BYTES), filled: 0, flushed: start }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.flushed + self.filled as u64
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.capacity().saturating_sub(self.filled);
            let (now, later) = rest.split_at(room.min(rest.len()));
            let place = self.buffer.part_mut(self.filled..self.filled + now.len());
            if place.len() == now.len() {
                place.copy_from_slice(now);
            }
            self.filled += now.len();
            rest = later;
            if self.filled >= self.capacity() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Up to where the file is aligned, then whole buffers.
    fn capacity(&self) -> usize {
        match self.flushed as usize % ALIGNMENT_BYTES {
            0 => Self::BUFFER_BYTES,
            ahead => ALIGNMENT_BYTES - ahead,
        }
    }

    /// Appends zeros until the position is `position`, which lies at or after the present one.
    pub fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        while self.position() < position {
            let missing = usize::try_from(position - self.position()).unwrap_or(ZEROS.len());
            self.append(ZEROS.get(..missing).unwrap_or(&ZEROS))?;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.buffer.front(self.filled), self.flushed)?;
        self.flushed += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}
