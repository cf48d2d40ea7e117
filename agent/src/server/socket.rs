//! A connected stream socket that one task reads while another writes.

use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes of small frames that are read at once.
const BUFFER_LEN: usize = 4096;

pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// `fd` is non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(crate::watch(fd)?))
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let send = |fd: &OwnedFd| Ok(rustix::net::send(fd, bytes, SendFlags::NOSIGNAL)?);
            let count = self.0.async_io(Interest::WRITABLE, send).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let receive = |fd: &OwnedFd| Ok(rustix::net::recv(fd, &mut *buffer, RecvFlags::empty())?.0);
        self.0.async_io(Interest::READABLE, receive).await
    }
}

/// Reads frames: small ones several at a time, large ones straight to their place.
pub struct Reader<'a> {
    socket: &'a Socket,
    buffer: Vec<u8>,
    /// What of the buffer was not taken yet.
    start: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub fn new(socket: &'a Socket) -> Self {
        Self { socket, buffer: vec![0; BUFFER_LEN], start: 0, end: 0 }
    }

    /// Fills `to`; false when the peer ended before its first byte.
    pub async fn fill(&mut self, to: &mut [u8]) -> io::Result<bool> {
        let length = to.len();
        let mut left = to;
        while !left.is_empty() {
            let taken = self.take(left);
            left = left.get_mut(taken..).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            let count = if left.len() >= BUFFER_LEN {
                let count = self.socket.read(left).await?;
                left = left.get_mut(count..).unwrap_or_default();
                count
            } else {
                let count = self.socket.read(&mut self.buffer).await?;
                (self.start, self.end) = (0, count);
                count
            };
            if count == 0 {
                let is_first = left.len() == length;
                return if is_first { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        Ok(true)
    }

    /// Reads and forgets `length` bytes.
    pub async fn skip(&mut self, mut length: usize) -> io::Result<()> {
        let mut waste = vec![0; BUFFER_LEN];
        while length > 0 {
            let part = waste.get_mut(..length.min(BUFFER_LEN)).unwrap_or_default();
            let count = part.len();
            if !self.fill(part).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            length -= count;
        }
        Ok(())
    }

    fn take(&mut self, to: &mut [u8]) -> usize {
        let there = self.buffer.get(self.start..self.end).unwrap_or_default();
        let count = there.len().min(to.len());
        to.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        self.start += count;
        count
    }
}
