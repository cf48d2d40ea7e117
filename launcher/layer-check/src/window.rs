use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::CheckError;

/// Something that can be read at offsets.
pub trait ReadAt {
    /// Fills `buffer` from byte `at` on.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, at)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let bytes = usize::try_from(at).ok().and_then(|at| self.get(at..at.checked_add(buffer.len())?));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part of the image in memory that moves on as higher places are asked for.
pub struct Window<'r, R: ?Sized> {
    file: &'r R,
    file_bytes: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl<'r, R: ReadAt + ?Sized> Window<'r, R> {
    const BYTES: u64 = 64 << 10;

    pub fn new(file: &'r R, file_bytes: u64) -> Self {
        Window { file, file_bytes, at: 0, bytes: Vec::new() }
    }

    /// `len` bytes from `at` on; `None` if they are not all inside the image.
    pub fn get(&mut self, at: u64, len: u64) -> Result<Option<&[u8]>, CheckError> {
        let Some(end) = at.checked_add(len).filter(|end| *end <= self.file_bytes) else { return Ok(None) };
        if at < self.at || end > self.at + self.bytes.len() as u64 {
            let load = len.max(Self::BYTES).min(self.file_bytes - at);
            self.bytes.resize(usize::try_from(load).unwrap_or(0), 0);
            self.at = at;
            self.file.read_exact_at(&mut self.bytes, at).map_err(|source| CheckError::Read { at, source })?;
        }
        let from = (at - self.at) as usize;
        Ok(self.bytes.get(from..from + len as usize))
    }
}

/// Little-endian numbers in a record; zero beyond its end, which callers have made sure not to reach.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub fn is_zero(bytes: &[u8], range: std::ops::Range<usize>) -> bool {
    bytes.get(range).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}
