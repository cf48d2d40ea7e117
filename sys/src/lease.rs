//! File leases (fcntl(2), F_SETLEASE), for the one question that only they answer: has anybody a file open for writing?

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// True when no descriptor and no mapping anywhere can write to `file`, a regular file that is open for reading only. With
/// permissions that let nobody open it for writing, it stays so.
pub fn has_no_writer(file: impl AsFd) -> io::Result<bool> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EAGAIN) { Ok(false) } else { Err(error) };
    }
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_writer_is_seen_until_it_closes() {
        let path = std::env::temp_dir().join(format!("nacre-lease-{}", std::process::id()));
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!has_no_writer(&reader).unwrap());
        drop(writer);
        assert!(has_no_writer(&reader).unwrap());
    }
}
