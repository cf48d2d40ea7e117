//! As much of rtnetlink (netlink(7), rtnetlink(7)) as interfaces, addresses and routes need: messages are put together and
//! taken apart here, bytes in and bytes out; [`Socket`] carries them.

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Largest datagram that the kernel makes of a dump, in bytes.
const DATAGRAM_MAX: usize = 64 * 1024;
/// Most datagrams of one answer.
const DATAGRAMS_MAX: usize = 256;
/// How long an answer of the kernel may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Message types.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Flags of a request.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
/// Bits of an attribute's type that say how it is to be read.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// A request in the making: the fixed part, then attributes.
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// One that changes something; `flags` are further `NLM_F_*`.
    pub fn change(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        Self { kind, flags: NLM_F_REQUEST | NLM_F_ACK | flags, body: fixed.to_vec() }
    }

    /// One that lists everything of a kind.
    pub fn dump(kind: u16, fixed: &[u8]) -> Self {
        Self { kind, flags: NLM_F_REQUEST | NLM_F_DUMP, body: fixed.to_vec() }
    }

    /// All values here are a few bytes: an address, a name, a number.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        append_attribute(&mut self.body, kind, value);
        self
    }

    pub fn nested(self, kind: u16, inner_kind: u16, value: &[u8]) -> Self {
        let mut inner = Vec::new();
        append_attribute(&mut inner, inner_kind, value);
        self.attribute(kind | NESTED, &inner)
    }

    fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER + self.body.len());
        message.extend(((HEADER + self.body.len()) as u32).to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(&self.body);
        message
    }
}

fn append_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// One message of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// The messages of a datagram; ends at the first that is not whole.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let message = datagram.get(..length)?;
        let body = message.get(HEADER..)?;
        let (kind, sequence) = (u16_at(message, 4)?, u32_at(message, 8)?);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    })
}

/// The attributes behind a fixed part of `fixed` bytes; ends at the first that is not whole.
pub fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(fixed.next_multiple_of(4)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        let kind = u16_at(rest, 2)? & ATTRIBUTE_TYPE;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub fn family(address: &IpAddr) -> u8 {
    if address.is_ipv6() { AF_INET6 } else { AF_INET }
}

pub fn address_bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// A conversation with the kernel, one request at a time.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open() -> io::Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// Sends a change and waits for its acknowledgement.
    pub fn apply(&mut self, request: &Request) -> io::Result<()> {
        self.exchange(request, &mut |_| ())
    }

    /// Sends a dump and shows each of its messages' bodies.
    pub fn list(&mut self, request: &Request, mut show: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(request, &mut show)
    }

    fn exchange(&mut self, request: &Request, show: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.fd, &request.encode(self.sequence), SendFlags::empty())?;
        for _ in 0..DATAGRAMS_MAX {
            let flags = RecvFlags::TRUNC;
            let (_, length) = rustix::io::retry_on_intr(|| recv(&self.fd, &mut self.buffer, flags))?;
            let datagram = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            for message in messages(datagram).filter(|message| message.sequence == self.sequence) {
                match message.kind {
                    NLMSG_ERROR => return acknowledged(message.body),
                    NLMSG_DONE => return Ok(()),
                    _ => show(message.body),
                }
            }
        }
        Err(Errno::OVERFLOW.into())
    }
}

/// `struct nlmsgerr`: a negative errno, or 0.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(error @ i32::MIN..0) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(Errno::BADMSG.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        let request = Request::change(24, NLM_F_CREATE, &[7; 12])
            .attribute(1, &[10, 0, 2, 0])
            .attribute(3, b"eth0\0")
            .nested(8, 2, &1500u32.to_ne_bytes());
        let bytes = request.encode(9);
        assert_eq!(bytes.len() % 4, 0);
        let found: Vec<_> = messages(&bytes).collect();
        let [message] = found[..] else { panic!("{found:?}") };
        assert_eq!((message.kind, message.sequence), (24, 9));
        let attributes: Vec<_> = attributes(message.body, 12).collect();
        assert_eq!(attributes[0], (1, &[10, 0, 2, 0][..]));
        assert_eq!(attributes[1], (3, &b"eth0\0"[..]));
        assert_eq!(attributes[2].0, 8);
        assert_eq!(super::attributes(attributes[2].1, 0).next(), Some((2, &1500u32.to_ne_bytes()[..])));
    }

    #[test]
    fn what_is_cut_anywhere_ends_and_never_panics() {
        let bytes = Request::dump(18, &[0; 16]).attribute(1, &[1; 6]).encode(1);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0);
            assert!(attributes(&bytes[..end], HEADER + 16).count() <= 1);
        }
        for length in [0u32, 1, 15, 0xffff_ffff] {
            let mut bytes = bytes.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[0; 64], 0).count(), 0);
    }
}
