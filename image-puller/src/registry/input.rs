//! A stream with what was read of it too early.

use std::io::{self, Read};

use super::http::{HEAD_BYTES_MAX, Head};
use super::transport::Stream;

/// Bytes read at once when the caller reads less.
const BUFFER_BYTES: usize = 16 << 10;
/// Longest line that announces a chunk, and longest trailer, in bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 4 << 10;

/// What a peer sends is not what its protocol has.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

pub fn malformed(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Malformed(reason))
}

pub struct Input {
    pub stream: Stream,
    buffer: Vec<u8>,
    at: usize,
}

impl Input {
    pub fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new(), at: 0 }
    }

    /// Nothing was read too early.
    pub fn is_empty(&self) -> bool {
        self.buffer.len() == self.at
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// The head of an answer in HTTP/1.1.
    pub fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some((head, length)) = Head::parse(self.unread()).map_err(malformed)? {
                self.at += length;
                return Ok(head);
            }
            if self.unread().len() >= HEAD_BYTES_MAX {
                return Err(malformed("head is larger than 64 KiB"));
            }
            self.fill()?;
        }
    }

    /// Reads more behind what is there; the end of the stream is an error.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let there = self.buffer.len();
        self.buffer.resize(there + BUFFER_BYTES, 0);
        let read = self.stream.read(self.buffer.get_mut(there..).unwrap_or_default());
        self.buffer.truncate(there + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    pub fn read(&mut self, wanted: &mut [u8]) -> io::Result<usize> {
        let buffered = self.unread();
        if buffered.is_empty() {
            return self.stream.read(wanted);
        }
        let length = buffered.len().min(wanted.len());
        if let (Some(from), Some(to)) = (buffered.get(..length), wanted.get_mut(..length)) {
            to.copy_from_slice(from);
        }
        self.at += length;
        Ok(length)
    }

    /// The next `length` bytes.
    pub fn exact(&mut self, length: usize) -> io::Result<&[u8]> {
        while self.unread().len() < length {
            self.fill()?;
        }
        let from = self.at;
        self.at += length;
        Ok(self.buffer.get(from..self.at).unwrap_or_default())
    }

    /// A line without its end, CR LF or LF.
    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let unread = self.unread();
            if let Some(length) = unread.iter().position(|&byte| byte == b'\n') {
                let line = unread.get(..length).unwrap_or_default();
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                self.at += length + 1;
                return Ok(line);
            }
            if unread.len() > CHUNK_LINE_BYTES_MAX {
                return Err(malformed("chunk is malformed"));
            }
            self.fill()?;
        }
    }
}
