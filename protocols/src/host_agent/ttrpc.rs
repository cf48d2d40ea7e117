//! The framing of ttrpc, pure: a header of 10 bytes, then a protobuf message.
//!
//! | bytes | field |
//! |---|---|
//! | 0–3 | length of the payload, big-endian |
//! | 4–7 | stream id, big-endian; odd, chosen by the client, not in use |
//! | 8 | type: 1 request, 2 response, 3 data |
//! | 9 | flags |
//!
//! Only unary calls are spoken here: one request frame, one response frame with the same stream id. Source: PROTOCOL.md of
//! containerd/ttrpc.

use prost::Message;

include!(concat!(env!("OUT_DIR"), "/ttrpc.rs"));

/// Length of a header, in bytes.
pub const HEADER_LEN: usize = 10;
/// Longest payload of a frame, in bytes.
pub const PAYLOAD_MAX: usize = 4 * 1024 * 1024;

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the payload, in bytes. [`Header::decode`] takes any; [`Header::check`] judges.
    pub length: u32,
    pub stream: u32,
    pub kind: FrameKind,
    pub flags: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    Request,
    Response,
    /// Streaming, which the Kata API does not use; and types of later versions.
    Other(u8),
}

/// Why a frame is refused, or cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The payload is longer than [`PAYLOAD_MAX`].
    TooLong { length: usize },
    /// A client's stream ids are odd.
    EvenStream { stream: u32 },
    /// The payload does not decode.
    Malformed,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong { length } => {
                write!(f, "message length {length} exceeds the maximum of {PAYLOAD_MAX} bytes")
            }
            Self::EvenStream { stream } => write!(f, "stream id {stream} is even"),
            Self::Malformed => write!(f, "message does not decode"),
        }
    }
}

impl std::error::Error for FrameError {}

impl Header {
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *bytes;
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: FrameKind::from(kind),
            flags,
        }
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, u8::from(self.kind), self.flags]
    }

    /// Judges length and stream id. After [`FrameError::TooLong`] the reader has [`Header::length`] bytes to throw away
    /// before the next header.
    pub fn check(&self) -> Result<(), FrameError> {
        let length = self.length as usize;
        if length > PAYLOAD_MAX {
            Err(FrameError::TooLong { length })
        } else if self.stream.is_multiple_of(2) {
            Err(FrameError::EvenStream { stream: self.stream })
        } else {
            Ok(())
        }
    }
}

impl From<u8> for FrameKind {
    fn from(byte: u8) -> Self {
        match byte {
            1 => Self::Request,
            2 => Self::Response,
            other => Self::Other(other),
        }
    }
}

impl From<FrameKind> for u8 {
    fn from(kind: FrameKind) -> u8 {
        match kind {
            FrameKind::Request => 1,
            FrameKind::Response => 2,
            FrameKind::Other(other) => other,
        }
    }
}

/// The whole frame of a request, head and payload.
pub fn request_frame(stream: u32, request: &Request) -> Result<Vec<u8>, FrameError> {
    frame(stream, FrameKind::Request, request)
}

/// The whole frame of a response.
pub fn response_frame(stream: u32, response: &Response) -> Result<Vec<u8>, FrameError> {
    frame(stream, FrameKind::Response, response)
}

fn frame(stream: u32, kind: FrameKind, message: &impl Message) -> Result<Vec<u8>, FrameError> {
    let length = message.encoded_len();
    if length > PAYLOAD_MAX {
        return Err(FrameError::TooLong { length });
    }
    let header = Header { length: length as u32, stream, kind, flags: 0 };
    let mut bytes = Vec::with_capacity(HEADER_LEN + length);
    bytes.extend_from_slice(&header.encode());
    message.encode(&mut bytes).map_err(|_| FrameError::Malformed)?;
    Ok(bytes)
}

/// Service and method that a payload begins with, if its first bytes have them: every client writes fields in the order of their
/// numbers. Names of more than 127 bytes are not looked for.
pub fn names(start: &[u8]) -> Option<(&str, &str)> {
    let field = |bytes: &'_ [u8], tag: u8| -> Option<(usize, usize)> {
        let [first, length, ..] = bytes else { return None };
        (*first == tag && *length < 0x80).then_some((2, 2 + usize::from(*length)))
    };
    let (from, to) = field(start, 0x0a)?;
    let service = start.get(from..to)?;
    let rest = start.get(to..)?;
    let (from, to) = field(rest, 0x12)?;
    let method = rest.get(from..to)?;
    Some((core::str::from_utf8(service).ok()?, core::str::from_utf8(method).ok()?))
}

impl Request {
    pub fn from_payload(payload: &[u8]) -> Result<Self, FrameError> {
        Self::decode(payload).map_err(|_| FrameError::Malformed)
    }
}

impl Response {
    pub fn from_payload(payload: &[u8]) -> Result<Self, FrameError> {
        Self::decode(payload).map_err(|_| FrameError::Malformed)
    }

    pub fn ok(message: &impl Message) -> Self {
        Self { status: None, payload: message.encode_to_vec() }
    }

    pub fn error(code: Code, message: impl Into<String>) -> Self {
        let status = Status { code: code as i32, message: message.into(), details: Vec::new() };
        Self { status: Some(status), payload: Vec::new() }
    }

    /// The payload, or the status that says why there is none.
    pub fn into_result(self) -> Result<Vec<u8>, Status> {
        match self.status {
            Some(status) if status.code != Code::Ok as i32 => Err(status),
            _ => Ok(self.payload),
        }
    }
}

/// The status codes of gRPC, which ttrpc shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// `None` for a number that is not of the list.
    pub fn from_number(number: i32) -> Option<Self> {
        const ALL: [Code; 17] = [
            Code::Ok,
            Code::Cancelled,
            Code::Unknown,
            Code::InvalidArgument,
            Code::DeadlineExceeded,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
            Code::Unauthenticated,
        ];
        ALL.into_iter().find(|code| *code as i32 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_ten_bytes_big_endian() {
        let bytes = [0, 0, 1, 2, 0, 0, 0, 7, 1, 0];
        let header = Header { length: 0x102, stream: 7, kind: FrameKind::Request, flags: 0 };
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(header.encode(), bytes);
        for kind in 0..=u8::MAX {
            assert_eq!(u8::from(FrameKind::from(kind)), kind);
        }
    }

    #[test]
    fn headers_beyond_the_limits_are_named() {
        let max = PAYLOAD_MAX as u32;
        for (length, stream, expected) in [
            (0, 1, Ok(())),
            (max, u32::MAX, Ok(())),
            (max + 1, 1, Err(FrameError::TooLong { length: PAYLOAD_MAX + 1 })),
            (u32::MAX, 1, Err(FrameError::TooLong { length: u32::MAX as usize })),
            (1, 2, Err(FrameError::EvenStream { stream: 2 })),
            (1, 0, Err(FrameError::EvenStream { stream: 0 })),
        ] {
            let header = Header { length, stream, kind: FrameKind::Request, flags: 0 };
            assert_eq!(header.check(), expected, "{header:?}");
        }
    }

    #[test]
    fn a_request_survives_the_way_to_bytes_and_back() {
        let request = Request {
            service: "grpc.Health".into(),
            method: "Check".into(),
            payload: vec![1, 2],
            timeout_nano: 5,
            metadata: vec![KeyValue { key: "k".into(), value: "v".into() }],
        };
        let bytes = request_frame(3, &request).unwrap();
        let (head, payload) = bytes.split_first_chunk().unwrap();
        let header = Header::decode(head);
        assert_eq!((header.kind, header.stream), (FrameKind::Request, 3));
        assert_eq!(header.length as usize, payload.len());
        assert_eq!(Request::from_payload(payload), Ok(request));
        assert_eq!(Request::from_payload(&[0xff]), Err(FrameError::Malformed));
    }

    #[test]
    fn a_response_beyond_the_limit_is_not_made() {
        let response = Response { status: None, payload: vec![0; PAYLOAD_MAX] };
        assert!(matches!(response_frame(1, &response), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_status_of_code_zero_is_success() {
        let ok = Response { status: Some(Status::default()), payload: vec![7] };
        assert_eq!(ok.into_result(), Ok(vec![7]));
        let error = Response::error(Code::Unimplemented, "no").into_result().unwrap_err();
        assert_eq!(Code::from_number(error.code), Some(Code::Unimplemented));
        assert_eq!(Code::from_number(17), None);
    }

    #[test]
    fn the_names_of_a_request_are_known_from_its_beginning() {
        let request = Request {
            service: "grpc.Health".into(),
            method: "Check".into(),
            payload: vec![7; 1000],
            timeout_nano: 5,
            ..Default::default()
        };
        let bytes = request.encode_to_vec();
        for (cut, expected) in [
            (20, Some(("grpc.Health", "Check"))),
            (bytes.len(), Some(("grpc.Health", "Check"))),
            (19, None),
            (1, None),
            (0, None),
        ] {
            assert_eq!(names(&bytes[..cut]), expected, "{cut} bytes");
        }
        for other in [&[0x12, 1, b'm', 0x0a, 1, b's'][..], &[0x0a, 1, 0xff, 0x12, 1, b'm'], &[0x0a, 0xff]] {
            assert_eq!(names(other), None, "{other:?}");
        }
    }
}
