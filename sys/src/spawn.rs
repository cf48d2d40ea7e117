//! What a helper process must and must not inherit from the host program.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Prepares `command` so that its process
///
/// * is killed when the thread that spawns it ends (prctl(2), `PR_SET_PDEATHSIG`; so spawn it from a thread that
///   lives as long as the child is wanted). A program that changes its credentials loses this, see the man page;
/// * is the leader of its own process group, so that a terminal's Ctrl-C does not reach it;
/// * writes no core file (it may hold guest memory);
/// * inherits, besides 0, 1 and 2, exactly the descriptors in `keep`, under the numbers they have here.
///
/// Returns nothing: the descriptors are closed in this process when `command` is dropped.
pub fn isolate_child(command: &mut Command, keep: Vec<OwnedFd>) {
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec of a possibly threaded process. It calls only prctl, getppid,
    // setrlimit, close_range and fcntl, which are system calls without locks or allocation, and reads a Vec that
    // was filled before the fork.
    unsafe {
        command.pre_exec(move || {
            die_with_parent(parent)?;
            forbid_core_files()?;
            inherit_only(&keep)
        });
    }
}

/// The number a kept descriptor has in the child as well.
#[must_use]
pub fn number(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // The parent may have died before the call above; then nobody would ever send the signal.
    // SAFETY: getppid has no preconditions.
    if unsafe { libc::getppid() } as u32 != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

fn forbid_core_files() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, initialised rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) })
}

fn inherit_only(keep: &[OwnedFd]) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC only sets flags; no descriptor that Rust owns is closed here.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) as libc::c_int
    })?;
    for fd in keep {
        // SAFETY: the descriptor is open, it is owned by `keep`; F_SETFD touches no memory.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) })?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::process::Stdio;

    #[test]
    fn a_child_inherits_only_what_is_kept() {
        let kept: OwnedFd = File::open("/dev/null").unwrap().into();
        let other = File::open("/dev/zero").unwrap();
        let number = kept.as_raw_fd();
        let mut command = Command::new("/bin/ls");
        command.arg("/proc/self/fd").stdout(Stdio::piped());
        isolate_child(&mut command, vec![kept]);
        let mut child = command.spawn().unwrap();
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert!(child.wait().unwrap().success());
        let fds: Vec<i32> = out.split_whitespace().map(|s| s.parse().unwrap()).collect();
        assert!(fds.contains(&number), "{fds:?}");
        // 0, 1, 2, the kept one, and the directory that ls reads.
        assert_eq!(fds.len(), 5, "{fds:?}");
        drop(other);
    }

    #[test]
    fn a_child_dies_with_the_thread_that_spawned_it() {
        let child = std::thread::spawn(|| {
            let mut command = Command::new("/bin/sleep");
            command.arg("60");
            isolate_child(&mut command, Vec::new());
            command.spawn().unwrap()
        });
        let mut child = child.join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
