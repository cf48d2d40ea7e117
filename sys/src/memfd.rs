//! Sealed memory files (memfd_create(2)): a message that its sender can no longer change.

use rustix::fs::{MemfdFlags, SealFlags};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Every seal that makes the content final.
const FINAL: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A memfd that holds `content` and can never be changed.
pub fn sealed(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    rustix::fs::fcntl_add_seals(&file, FINAL)?;
    Ok(file.into())
}

/// True when nobody can change the content any more and it has at most `limit` bytes.
pub fn is_sealed(fd: impl AsFd, limit: u64) -> io::Result<bool> {
    let seals = rustix::fs::fcntl_get_seals(&fd)?;
    let size = rustix::fs::fstat(&fd)?.st_size;
    Ok(seals.contains(FINAL) && u64::try_from(size).is_ok_and(|size| size <= limit))
}

/// The whole content of a sealed memfd of at most `limit` bytes; `InvalidData` for one that is not.
pub fn read_sealed(fd: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    if !is_sealed(&fd, limit)? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a sealed memfd within the limit"));
    }
    let mut file = std::fs::File::from(fd);
    file.rewind()?;
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// A writable memfd of exactly `size` bytes, whose size is final.
pub fn fixed(name: &str, size: u64) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, size)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_final_message_is_read() {
        assert_eq!(read_sealed(sealed("plan", b"content").unwrap(), 7).unwrap(), b"content");
        assert!(read_sealed(sealed("plan", b"content").unwrap(), 6).is_err());
        assert!(read_sealed(fixed("state", 7).unwrap(), 7).is_err());
    }
}
