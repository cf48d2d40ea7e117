//! Memory on disks (swapon(2)).

use std::ffi::CString;
use std::io;

/// Uses the block device at `path`, which mkswap(8) has prepared.
pub fn on(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: reads a string that ends with NUL and outlives the call.
    let result = unsafe { libc::swapon(path.as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(on("/dev/null").is_err());
        assert_eq!(on("/dev/a\0b").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
