//! The form of a frame on the guest's own edges: one postcard value, one packet, nothing behind it.

use serde::{Serialize, de::DeserializeOwned};

/// Why a frame was refused. The receiver ends the sender: there is no second try on these edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Longer than the edge's limit, in bytes.
    TooLong { limit: usize },
    /// Not a value of the edge's type.
    Malformed,
    /// A value with bytes behind it.
    Trailing,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong { limit } => write!(f, "frame longer than {limit} bytes"),
            Self::Malformed => write!(f, "frame does not decode"),
            Self::Trailing => write!(f, "frame has trailing bytes"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Encodes `value`; refuses what the receiver would refuse.
pub fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_stdvec(value).map_err(|_| FrameError::Malformed)?;
    if bytes.len() > limit { Err(FrameError::TooLong { limit }) } else { Ok(bytes) }
}

/// Decodes exactly one value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, FrameError> {
    if bytes.len() > limit {
        return Err(FrameError::TooLong { limit });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(FrameError::Trailing),
        Err(_) => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_one_value_within_the_limit() {
        let bytes = encode(&("name", 7u32), 64).unwrap();
        assert_eq!(decode::<(String, u32)>(&bytes, 64), Ok(("name".to_owned(), 7)));
        assert_eq!(encode(&"x".repeat(65), 64), Err(FrameError::TooLong { limit: 64 }));
        assert_eq!(decode::<String>(&[0; 65], 64), Err(FrameError::TooLong { limit: 64 }));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode::<(String, u32)>(&longer, 64), Err(FrameError::Trailing));
        assert_eq!(decode::<(String, u32)>(&bytes[..3], 64), Err(FrameError::Malformed));
        // A length that promises more than the frame has must not make the decoder allocate it.
        assert_eq!(decode::<Vec<u8>>(&[0xff, 0xff, 0xff, 0xff, 0x0f], 64), Err(FrameError::Malformed));
    }
}
