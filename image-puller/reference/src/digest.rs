//! Content digests: `sha256:` and 64 lower-case hexadecimal digits.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Length of a sha256 in bytes.
pub const SHA256_BYTES: usize = 32;

/// The sha256 of something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; SHA256_BYTES]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("has no ':' between algorithm and value")]
    NoSeparator,
    #[error("uses the algorithm {0:?}; only sha256 is supported")]
    Algorithm(String),
    #[error("has {0} digits after sha256:, not 64")]
    Length(usize),
    #[error("has a character after sha256: that is not one of 0-9 a-f")]
    NotHex,
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub const fn from_bytes(bytes: [u8; SHA256_BYTES]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; SHA256_BYTES] {
        &self.0
    }

    /// Reads `sha256:<hex>` as the OCI image specification (descriptor.md, "Digests") writes it.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::NoSeparator)?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm(algorithm.chars().take(32).collect()));
        }
        Self::from_hex(hex)
    }

    /// Reads the 64 digits alone.
    pub fn from_hex(hex: &str) -> Result<Self, DigestError> {
        if hex.len() != 2 * SHA256_BYTES {
            return Err(DigestError::Length(hex.len()));
        }
        let mut bytes = [0; SHA256_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = pair.iter().try_fold(0, |value, &digit| match digit {
                b'0'..=b'9' => Ok(value << 4 | (digit - b'0')),
                b'a'..=b'f' => Ok(value << 4 | (digit - b'a' + 10)),
                _ => Err(DigestError::NotHex),
            })?;
        }
        Ok(Self(bytes))
    }

    /// The 64 digits alone, as names in the store have them.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(2 * SHA256_BYTES), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A sha256 under way.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_reads_back_as_it_was_written() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY), Ok(Digest::of(b"")));
        let mut hasher = Hasher::default();
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn anything_but_lower_case_sha256_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for (text, error) in [
            ("", DigestError::NoSeparator),
            ("sha256", DigestError::NoSeparator),
            ("sha256:", DigestError::Length(0)),
            (&EMPTY[..70], DigestError::Length(63)),
            ("sha512:00", DigestError::Algorithm("sha512".into())),
            (&upper, DigestError::NotHex),
            (&EMPTY.replace('b', "é")[..], DigestError::Length(70)),
        ] {
            assert_eq!(Digest::parse(text), Err(error), "{text}");
        }
    }
}
