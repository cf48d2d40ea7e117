//! A child that goes on in this program: clone3(2) straight into namespaces and a cgroup, without an exec in between.

use crate::process::{Child, PidNamespace, enter_pid_namespace, set_children_namespace};
use rustix::thread::UnshareFlags;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `linux/sched.h`; the constant of the libc crate overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Where a child is born.
#[derive(Clone, Copy)]
pub struct Birth<'a> {
    /// Fresh namespaces, besides the one that `pid_namespace` may ask for.
    pub namespaces: UnshareFlags,
    pub pid_namespace: PidNamespace<'a>,
    /// Directory of a cgroup v2.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The child is this process's sibling: its end is told to this process's parent (CLONE_PARENT).
    pub sibling: bool,
}

/// Runs `life` in a child, which ends with the exit code that comes back from it. `Busy` for a process of several threads: in
/// the child, a lock that another thread held would never be released.
pub fn fork(birth: &Birth<'_>, life: impl FnOnce() -> u8) -> io::Result<Child> {
    if birth.namespaces.contains(UnshareFlags::FILES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    require_one_thread()?;
    let own = match birth.pid_namespace {
        PidNamespace::Of(target) => Some(enter_pid_namespace(target)?),
        _ => None,
    };
    let born = clone(birth, life);
    if let Some(own) = own {
        set_children_namespace(own.as_raw_fd())?;
    }
    born
}

/// unshare(2) refuses CLONE_VM to a process of several threads, and does nothing in one of a single thread.
fn require_one_thread() -> io::Result<()> {
    // SAFETY: no pointers; changes nothing, see above.
    if unsafe { libc::unshare(libc::CLONE_VM) } == 0 {
        Ok(())
    } else {
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

fn clone(birth: &Birth<'_>, life: impl FnOnce() -> u8) -> io::Result<Child> {
    let mut flags = libc::CLONE_PIDFD as u64 | u64::from(birth.namespaces.bits());
    if matches!(birth.pid_namespace, PidNamespace::New) {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if birth.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let mut pidfd: i32 = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.pidfd = (&raw mut pidfd) as u64;
    args.cgroup = birth.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    if birth.sibling {
        flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    args.flags = flags;
    // SAFETY: without CLONE_VM the child has a copy of this address space and returns here as from fork(2). This process has
    // one thread (checked above), so no lock is held that the child could wait for.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let code = life();
        // SAFETY: ends the child at once, running none of the parent's exit handlers.
        unsafe { libc::_exit(code.into()) }
    }
    // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: pid as u32, pidfd })
}
