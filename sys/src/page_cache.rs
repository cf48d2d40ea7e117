//! How much of a file lies in the page cache: cachestat(2), Linux 6.5.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The number of the call on every architecture but alpha.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`; a length of 0 means up to the end.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat`, counts in pages.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of a file, or of a block device, that are in memory.
///
/// # Errors
/// `ENOSYS` before Linux 6.5.
pub fn cached_pages(file: impl AsFd) -> io::Result<u64> {
    let range = Range { offset: 0, length: 0 };
    let mut counts = Counts::default();
    // SAFETY: both pointers are to structures of the call's own layout that live until it returns; it reads the first and
    // writes the second. The flags must be 0.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            std::ptr::from_ref(&range),
            std::ptr::from_mut(&mut counts),
            0,
        )
    };
    if result == 0 { Ok(counts.cached) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_in_memory() {
        let path = std::env::temp_dir().join(format!("nacre-page-cache-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        match cached_pages(&file) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return,
            found => assert_eq!(found.unwrap(), 0),
        }
        file.write_all(&[1; 5 * 4096]).unwrap();
        assert_eq!(cached_pages(&file).unwrap(), 5);
    }
}
