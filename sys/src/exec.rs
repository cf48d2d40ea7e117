//! What a program does at its birth and at its end: taking over the descriptors it was born with, and giving its place
//! to another program (execve(2)).

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Descriptors that were taken over lie at this number or above, so that low numbers are free for what a command
/// inherits.
pub const OWN_FDS_START: RawFd = 64;

static TAKEN_OVER: AtomicBool = AtomicBool::new(false);

/// Takes over the descriptors of `wanted` at high numbers, close-on-exec, and closes every other one from 3 on. `None`
/// stands for a number at which nothing is open.
///
/// Works once in a process, and must come before the process opens anything: `AlreadyExists` the second time.
pub fn take_over(wanted: &[RawFd]) -> io::Result<Vec<Option<OwnedFd>>> {
    if TAKEN_OVER.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut taken = Vec::with_capacity(wanted.len());
    for number in wanted {
        // SAFETY: no pointers.
        let moved = unsafe { libc::fcntl(*number, libc::F_DUPFD_CLOEXEC, OWN_FDS_START) };
        match check(moved) {
            // SAFETY: fcntl has just made this descriptor, nobody else owns it.
            Ok(fd) => taken.push(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => taken.push(None),
            Err(error) => return Err(error),
        }
    }
    // SAFETY: no pointers. What lies here was inherited, and nothing in this process owns it: see above.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, OWN_FDS_START - 1, 0) } as i32)?;
    Ok(taken)
}

/// Puts `fds` at `first`, `first + 1`, …, open across exec, and marks every other descriptor above 2 close-on-exec. What
/// was open at those numbers is closed, so nothing that is still in use may lie there: the numbers end below
/// [`OWN_FDS_START`], and only what [`take_over`] gave is safe to use afterwards.
pub fn leave_to_command(fds: Vec<OwnedFd>, first: RawFd) -> io::Result<()> {
    let end = i32::try_from(fds.len()).ok().and_then(|count| first.checked_add(count));
    if first < 3 || end.is_none_or(|end| end > OWN_FDS_START) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: no pointers; marks, closes nothing.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } as i32)?;
    for (number, fd) in (first..).zip(fds) {
        // Kept open under both numbers: the old one closes on exec.
        let fd = fd.into_raw_fd();
        // SAFETY: no pointers. dup3 refuses equal numbers, which cannot be: taken descriptors lie higher.
        check(unsafe { libc::dup3(fd, number, 0) })?;
    }
    Ok(())
}

/// A command made ready, so that executing it allocates nothing.
pub struct Command {
    path: CString,
    args: Strings,
    env: Strings,
}

impl Command {
    pub fn new(path: CString, args: Vec<CString>, env: Vec<CString>) -> Self {
        Self { path, args: Strings::new(args), env: Strings::new(env) }
    }

    /// Replaces this process; comes back only with the error.
    pub fn execute(&self) -> io::Error {
        // SAFETY: a NUL-terminated string and two null-terminated arrays of such, all owned by `self`.
        unsafe { libc::execve(self.path.as_ptr(), self.args.pointers.as_ptr(), self.env.pointers.as_ptr()) };
        io::Error::last_os_error()
    }

    pub fn path(&self) -> &CStr {
        &self.path
    }
}

/// Strings and the null-terminated array of pointers to them. The bytes of a `CString` do not move with it.
struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(owned: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = owned.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { _owned: owned, pointers }
    }
}

/// Rust programs ignore SIGPIPE, and an ignored signal stays ignored across execve(2).
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is no function of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Sets one limit of this process (prlimit(2)); `resource` is the number of `asm-generic/resource.h`.
pub fn set_limit(resource: u8, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the new limit is a live rlimit64, the old one is not asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::c_uint::from(resource),
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(result as i32).map(drop)
}

/// Raises the hard limit to `hard` where it is lower, and leaves the soft one as it is.
pub fn raise_limit(resource: u8, hard: u64) -> io::Result<()> {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new limit; the old one goes to a live rlimit64.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::c_uint::from(resource),
            std::ptr::null::<libc::rlimit64>(),
            &raw mut now,
        )
    } as i32)?;
    if now.rlim_max >= hard { Ok(()) } else { set_limit(resource, now.rlim_cur, hard) }
}

/// Moves this process into fresh namespaces (unshare(2)). `flags` with CLONE_FILES is refused.
pub fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    if flags.contains(rustix::thread::UnshareFlags::FILES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: only an unshared descriptor table is unsafe, and that was refused.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
