//! Signals as readable events: signalfd(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub const SIGCHLD: i32 = libc::SIGCHLD;
pub const SIGTERM: i32 = libc::SIGTERM;
pub const SIGINT: i32 = libc::SIGINT;
pub const SIGKILL: i32 = libc::SIGKILL;

/// Blocks every signal for the calling thread and gives a non-blocking descriptor that becomes readable when one of
/// `wanted` is pending.
pub fn descriptor(wanted: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: both sets are initialised by sigfillset and sigemptyset before use; the descriptor is new and ours.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()))?;
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in wanted {
            check(libc::sigaddset(&raw mut set, *signal))?;
        }
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The number of one pending signal, or `None`.
pub fn next(descriptor: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: all-zero is a valid signalfd_siginfo, and read(2) fills at most its size.
    let (read, info) = unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        (libc::read(descriptor.as_raw_fd(), (&raw mut info).cast(), size), info)
    };
    if read < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    Ok(Some(info.ssi_signo.cast_signed()))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
