//! Giving birth to a process in its place: clone3(2) straight into a cgroup and a pid namespace, descriptors at agreed
//! numbers, rights dropped, then execve(2).
//!
//! For single-threaded callers that do not mind their own address space being copied: PID 1 and tests.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors given to a child.
pub const FDS_MAX: usize = 16;
/// How often, and after which pause, the way back from another pid namespace is tried.
const COME_BACK_TRIES: usize = 50;
const COME_BACK_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
/// Highest number at which a child may get a descriptor.
pub const FD_NUMBER_MAX: i32 = 63;
/// `linux/sched.h`; the constant of the libc crate overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Most arguments, and most environment entries.
const STRINGS_MAX: usize = 16;

/// What a child is born with.
pub struct Spawn<'a> {
    pub program: Program<'a>,
    pub args: &'a [&'a CStr],
    pub env: &'a [&'a CStr],
    /// Descriptor and the number that it gets; all others are closed on exec.
    pub fds: &'a [(BorrowedFd<'a>, i32)],
    /// Directory of the cgroup v2 that it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    pub pid_namespace: PidNamespace<'a>,
    /// Drop to this user and group, with no capability in any set and no way to get one back.
    pub unprivileged: Option<u32>,
}

#[derive(Clone, Copy)]
pub enum Program<'a> {
    At(&'a CStr),
    /// An open file, which is closed on exec.
    File(BorrowedFd<'a>),
}

#[derive(Clone, Copy)]
pub enum PidNamespace<'a> {
    /// The caller's.
    Same,
    /// A fresh one, whose PID 1 the child is.
    New,
    /// That of the process behind this pidfd.
    Of(BorrowedFd<'a>),
}

#[derive(Debug)]
pub struct Child {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// Starts the child. An error that comes after the clone (a bad descriptor, no such program) is the child's exit code 127.
pub fn spawn(spawn: &Spawn<'_>) -> io::Result<Child> {
    if spawn.fds.len() > FDS_MAX || spawn.args.len() >= STRINGS_MAX || spawn.env.len() >= STRINGS_MAX {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let own = match spawn.pid_namespace {
        PidNamespace::Of(target) => Some(enter_pid_namespace(target)?),
        _ => None,
    };
    let born = clone_and_exec(spawn);
    if let Some(own) = own {
        come_back(&own);
    }
    born
}

/// Later children belong to the caller's own pid namespace again. It cannot be refused, but the kernel may be short of memory for a
/// moment. A caller whose children would be born among a container's processes must not go on.
fn come_back(own: &OwnedFd) {
    for _ in 0..COME_BACK_TRIES {
        match set_children_namespace(own.as_raw_fd()) {
            Ok(()) => return,
            Err(error) => eprintln!("back to the own pid namespace: {error}"),
        }
        std::thread::sleep(COME_BACK_PAUSE);
    }
    eprintln!("fatal: no way back to the own pid namespace");
    std::process::abort();
}

/// Sends `signal` to the process behind `pidfd`.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no pointer but a null siginfo, which pidfd_send_signal(2) takes as "as if by kill(2)".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// A child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: u32,
    /// Its exit code, or 128 plus the signal that killed it.
    pub code: u8,
}

/// Reaps one child that has ended, whoever it is; `None` when there is none now.
pub fn reap() -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid == 0 {
        return Ok(None);
    }
    if pid < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    Ok(Some(Ended { pid: pid.cast_unsigned(), code: code as u8 }))
}

/// Makes later children be born in the target's pid namespace; gives back the caller's own.
pub(crate) fn enter_pid_namespace(target: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let own = rustix::fs::open(
        "/proc/self/ns/pid",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    set_children_namespace(target.as_raw_fd())?;
    Ok(own)
}

pub(crate) fn set_children_namespace(fd: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setns, fd, libc::CLONE_NEWPID) }).map(drop)
}

fn clone_and_exec(spawn: &Spawn<'_>) -> io::Result<Child> {
    let argv = pointers(spawn.args);
    let envp = pointers(spawn.env);
    let mut pidfd: i32 = -1;
    let mut flags = libc::CLONE_PIDFD as u64;
    if matches!(spawn.pid_namespace, PidNamespace::New) {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if spawn.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = spawn.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: without CLONE_VM the child has a copy of this address space and returns here as from fork(2). The caller is
    // single-threaded, so no lock is held by a thread that the child lacks; the child makes system calls on
    // memory prepared above and then executes or exits.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        let error = become_child(spawn, &argv, &envp);
        // SAFETY: ends the child at once, running none of the parent's exit handlers.
        unsafe { libc::_exit(if error == libc::ENOENT { 127 } else { 126 }) }
    }
    // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: pid as u32, pidfd })
}

/// In the child: descriptors, rights, exec. Comes back with the errno of what failed. Allocates nothing.
fn become_child(spawn: &Spawn<'_>, argv: &[*const i8], envp: &[*const i8]) -> i32 {
    let attempt = || -> io::Result<()> {
        let program = match spawn.program {
            Program::At(path) => (libc::AT_FDCWD, path, 0),
            // Out of the way of the numbers below.
            Program::File(file) => (duplicate_above(file)?, c"", libc::AT_EMPTY_PATH),
        };
        place_descriptors(spawn.fds)?;
        reset_signals()?;
        if let Some(id) = spawn.unprivileged {
            drop_rights(id)?;
        }
        // SAFETY: NUL-terminated strings and null-terminated arrays of them, alive until the exec.
        check(unsafe {
            let (directory, path, flags) = program;
            libc::syscall(libc::SYS_execveat, directory, path.as_ptr(), argv.as_ptr(), envp.as_ptr(), flags)
        })
        .map(drop)
    };
    match attempt() {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Moves every descriptor out of the way first, so that no target overwrites a source.
fn place_descriptors(fds: &[(BorrowedFd<'_>, i32)]) -> io::Result<()> {
    let mut moved = [-1i32; FDS_MAX];
    for (slot, (source, target)) in moved.iter_mut().zip(fds) {
        if !(0..=FD_NUMBER_MAX).contains(target) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        *slot = duplicate_above(*source)?;
    }
    // SAFETY: no pointers; marks, closes nothing.
    check(unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    for (source, (_, target)) in moved.iter().zip(fds) {
        // SAFETY: no pointers. dup3 without flags leaves the target open across exec.
        check(unsafe { libc::syscall(libc::SYS_dup3, *source, *target, 0) })?;
    }
    Ok(())
}

/// A copy above every number that a child is given, closed on exec.
fn duplicate_above(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: no pointers.
    let copy =
        unsafe { libc::syscall(libc::SYS_fcntl, fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FD_NUMBER_MAX + 1) };
    check(copy).map(|fd| fd as i32)
}

/// The parent blocks signals to read them from a signalfd; a child starts with none blocked and SIGPIPE as it was born.
fn reset_signals() -> io::Result<()> {
    let empty = 0u64;
    // SAFETY: the set is 8 bytes, the size that the kernel has on every architecture of ours.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const empty,
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    })?;
    // SAFETY: SIG_DFL is no function of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    Ok(())
}

/// Highest capability number that the kernel may know (the sets have 64 bits).
const CAPABILITIES: u64 = 64;

/// Bounding set first: it needs CAP_SETPCAP, which the change of user takes away (capabilities(7)).
fn drop_rights(id: u32) -> io::Result<()> {
    for capability in 0..CAPABILITIES {
        // SAFETY: no pointers.
        match check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result.map(drop)?,
        }
    }
    // SAFETY: an empty list has no bytes to read.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })?;
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    // SAFETY: version 3 of capset(2) reads a header of 8 bytes and two sets of 12 bytes.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

fn pointers(strings: &[&CStr]) -> [*const i8; STRINGS_MAX] {
    let mut pointers = [std::ptr::null(); STRINGS_MAX];
    for (slot, string) in pointers.iter_mut().zip(strings) {
        *slot = string.as_ptr();
    }
    pointers
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    /// Test threads are not single-threaded processes; the child only makes system calls, which is enough here.
    #[test]
    fn a_child_gets_its_descriptors_at_their_numbers_and_no_others() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let child = spawn(&Spawn {
            program: Program::At(c"/bin/sh"),
            args: &[c"sh", c"-c", c"echo to seven >&7; ls /proc/self/fd | tr '\\n' ' ' >&7"],
            env: &[c"PATH=/bin:/usr/bin"],
            fds: &[(null.as_fd(), 0), (null.as_fd(), 1), (null.as_fd(), 2), (writer.as_fd(), 7)],
            cgroup: None,
            pid_namespace: PidNamespace::Same,
            unprivileged: None,
        })
        .unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "to seven\n0 1 2 3 7 ");
        assert!(child.pid > 1);
    }

    #[test]
    fn a_program_that_is_not_there_is_exit_code_127() {
        let child = spawn(&Spawn {
            program: Program::At(c"/nowhere"),
            args: &[c"nowhere"],
            env: &[],
            fds: &[],
            cgroup: None,
            pid_namespace: PidNamespace::Same,
            unprivileged: None,
        })
        .unwrap();
        let mut status = 0;
        // SAFETY: `status` is a valid place for an int.
        unsafe { libc::waitpid(child.pid as i32, &raw mut status, 0) };
        assert_eq!(libc::WEXITSTATUS(status), 127);
    }
}
