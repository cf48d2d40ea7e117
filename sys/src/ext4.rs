//! Growing an ext4 that is mounted (`Documentation/filesystems/ext4/`, "EXT4_IOC_RESIZE_FS").

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// The file system of `file` has so many blocks then. Nothing to do when it has them already; it never shrinks.
pub fn resize(file: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the call reads one u64 at the address, which outlives it.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_does_not_know_the_call() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(resize(&file, 1).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
