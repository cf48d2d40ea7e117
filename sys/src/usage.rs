//! What a child has used, as the kernel counted it (wait4(2), getrusage(2)).

use std::io;
use std::time::Duration;

/// A child that was reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    pub pid: u32,
    /// Its exit code, or 128 plus the signal that killed it.
    pub code: u8,
    /// In user and kernel mode, with all descendants that it has reaped.
    pub processor_time: Duration,
    /// Most that it, or one descendant that it has reaped, ever had resident, in KiB.
    pub resident_kib: u64,
}

/// Waits for the child `pid`, or for any with `None`; `Ok(None)` when there is no child to wait for.
pub fn wait(pid: Option<u32>) -> io::Result<Option<Reaped>> {
    let wanted = pid.map_or(-1, |pid| pid.cast_signed());
    loop {
        let mut status = 0;
        // SAFETY: all-zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both places are live and of the types that wait4(2) fills.
        let pid = unsafe { libc::wait4(wanted, &raw mut status, 0, &raw mut usage) };
        if pid < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ECHILD) => return Ok(None),
                Some(libc::EINTR) => continue,
                _ => return Err(error),
            }
        }
        let code =
            if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        let duration = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec.unsigned_abs())
                + Duration::from_micros(time.tv_usec.unsigned_abs())
        };
        return Ok(Some(Reaped {
            pid: pid.cast_unsigned(),
            code: code as u8,
            processor_time: duration(usage.ru_utime) + duration(usage.ru_stime),
            resident_kib: usage.ru_maxrss.unsigned_abs(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_works_has_used_processor_time_and_memory() {
        let mut child = std::process::Command::new("/bin/sh");
        let child = child.args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 7"]);
        let reaped = wait(Some(child.spawn().unwrap().id())).unwrap().unwrap();
        assert_eq!(reaped.code, 7);
        assert!(reaped.processor_time > Duration::from_micros(100), "{reaped:?}");
        assert!(reaped.resident_kib > 100, "{reaped:?}");
        assert_eq!(wait(Some(reaped.pid)).unwrap(), None);
    }
}
