//! vsock packets: the header of virtio 1.3, section 5.10.6, and what makes one acceptable. Pure functions.

use std::fmt;

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = 44;
/// Bytes of payload in one packet that the device accepts (Linux sends at most this much).
pub const MAX_PAYLOAD_BYTES: u32 = 64 * 1024;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// Stream sockets, the only type this device carries.
pub const TYPE_STREAM: u16 = 1;
/// `Shutdown` flag: the sender will receive no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `Shutdown` flag: the sender will send no more data.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

/// One header, as it stands on the wire; nothing checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the little-endian fields.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        let mut rest = bytes.as_slice();
        Header {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.kind.to_le_bytes());
        put(&mut rest, &self.op.to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buf_alloc.to_le_bytes());
        put(&mut rest, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Judges a header that came from the guest with `payload` bytes behind it.
    ///
    /// # Errors
    /// The first rule that it breaks; see [`PacketError::wants_reset`] for what to answer.
    pub fn check(&self, guest_cid: u64, payload: usize) -> Result<Op, PacketError> {
        if self.src_cid != guest_cid {
            return Err(PacketError::SourceCid(self.src_cid));
        }
        if self.dst_cid != HOST_CID {
            return Err(PacketError::DestinationCid(self.dst_cid));
        }
        if self.kind != TYPE_STREAM {
            return Err(PacketError::Type(self.kind));
        }
        let op = self.operation()?;
        if self.len > MAX_PAYLOAD_BYTES {
            return Err(PacketError::TooLong(self.len));
        }
        if self.len as usize > payload {
            return Err(PacketError::Truncated { len: self.len, payload });
        }
        if op != Op::Data && self.len != 0 {
            return Err(PacketError::UnexpectedPayload { op, len: self.len });
        }
        Ok(op)
    }

    fn operation(&self) -> Result<Op, PacketError> {
        const OPS: [Op; 7] = [
            Op::Request,
            Op::Response,
            Op::Reset,
            Op::Shutdown,
            Op::Data,
            Op::CreditUpdate,
            Op::CreditRequest,
        ];
        OPS.into_iter().find(|op| *op as u16 == self.op).ok_or(PacketError::Operation(self.op))
    }
}

/// Why a packet of the guest is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("vsock packet: src_cid {0} is not the guest's")]
    SourceCid(u64),
    #[error("vsock packet: dst_cid {0} is not the host (2)")]
    DestinationCid(u64),
    #[error("vsock packet: type {0} is not stream (1)")]
    Type(u16),
    #[error("vsock packet: op {0} is unknown")]
    Operation(u16),
    #[error("vsock packet: len {0} exceeds {MAX_PAYLOAD_BYTES} bytes")]
    TooLong(u32),
    #[error("vsock packet: len {len} but only {payload} bytes follow the header")]
    Truncated { len: u32, payload: usize },
    #[error("vsock packet: op {op} with {len} bytes of payload")]
    UnexpectedPayload { op: Op, len: u32 },
}

impl PacketError {
    /// Whether the sender is told by a reset. Who lies about its own address is not answered: the answer would go
    /// to somebody else.
    #[must_use]
    pub fn wants_reset(&self) -> bool {
        !matches!(self, PacketError::SourceCid(_))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The first `N` bytes; zeros when there are fewer, which the array sizes above rule out.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

fn put(rest: &mut &mut [u8], bytes: &[u8]) {
    if let Some((head, tail)) = std::mem::take(rest).split_at_mut_checked(bytes.len()) {
        head.copy_from_slice(bytes);
        *rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Header {
        Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: 2,
            kind: TYPE_STREAM,
            op: Op::Data as u16,
            len: 10,
            ..Header::default()
        }
    }

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header { flags: 0xdead_beef, buf_alloc: 7, fwd_cnt: u32::MAX, ..good() };
        assert_eq!(Header::decode(&header.encode()), header);
        // The layout of virtio 1.3, 5.10.6: len is at 24, op at 30.
        assert_eq!(header.encode()[24..32], [10, 0, 0, 0, 1, 0, 5, 0]);
    }

    #[test]
    fn every_broken_rule_has_its_name() {
        let cases = [
            (good(), 10, Ok(Op::Data)),
            (good(), 9, Err(PacketError::Truncated { len: 10, payload: 9 })),
            (Header { src_cid: 2, ..good() }, 10, Err(PacketError::SourceCid(2))),
            (Header { dst_cid: 1, ..good() }, 10, Err(PacketError::DestinationCid(1))),
            (Header { kind: 2, ..good() }, 10, Err(PacketError::Type(2))),
            (Header { op: 0, ..good() }, 10, Err(PacketError::Operation(0))),
            (Header { op: 8, ..good() }, 10, Err(PacketError::Operation(8))),
            (Header { len: 65_537, ..good() }, 1 << 20, Err(PacketError::TooLong(65_537))),
            (Header { len: u32::MAX, ..good() }, 10, Err(PacketError::TooLong(u32::MAX))),
            (
                Header { op: Op::Request as u16, ..good() },
                10,
                Err(PacketError::UnexpectedPayload { op: Op::Request, len: 10 }),
            ),
            (Header { op: Op::Request as u16, len: 0, ..good() }, 0, Ok(Op::Request)),
        ];
        for (header, payload, expected) in cases {
            assert_eq!(header.check(3, payload), expected, "{header:?}");
        }
    }
}
