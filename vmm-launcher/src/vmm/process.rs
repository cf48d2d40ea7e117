//! A helper process (QEMU, passt): started, watched, ended; never left behind.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    Exited(i32),
    Killed { signal: i32 },
}

/// A child, killed when this is dropped or when this process dies.
pub struct Process {
    id: u32,
    handle: OwnedFd,
    end: Arc<(Mutex<Option<ProcessEnd>>, Condvar)>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`, which inherits `keep` besides its standard streams; see [`nacre_sys::spawn::isolate_child`].
    ///
    /// The kernel ties the child's life to the *thread* that makes it, so that is a thread which only waits for it.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(mut command: Command, keep: Vec<OwnedFd>) -> io::Result<Process> {
        nacre_sys::spawn::isolate_child(&mut command, keep);
        let end = Arc::new((Mutex::new(None), Condvar::new()));
        let shared = Arc::clone(&end);
        let (started, report) = std::sync::mpsc::sync_channel(1);
        let keeper = std::thread::Builder::new().name("nacre-keeper".to_owned()).spawn(move || {
            let spawned = command.spawn();
            // Closes this side's copies of the descriptors that the child got.
            drop(command);
            let mut child = match spawned {
                Ok(child) => child,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let handle = Pid::from_raw(child.id().cast_signed())
                .ok_or(rustix::io::Errno::SRCH)
                .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
            let failed = handle.is_err();
            let _ = started.send(handle.map(|handle| (child.id(), handle)).map_err(io::Error::from));
            if failed {
                let _ = child.kill();
            }
            let how = child.wait().map_or(ProcessEnd::Exited(-1), ProcessEnd::from);
            let (lock, changed) = &*shared;
            *lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
            changed.notify_all();
        })?;
        let (id, handle) =
            report.recv().unwrap_or_else(|_| Err(io::Error::other("the keeper thread ended")))?;
        Ok(Process { id, handle, end, keeper: Some(keeper) })
    }

    /// Its process id, for messages.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Waits for its end.
    pub fn wait(&self) -> ProcessEnd {
        loop {
            if let Some(end) = self.wait_for(Duration::from_secs(3600)) {
                return end;
            }
        }
    }

    /// Waits for its end, at most `limit`; zero asks only.
    pub fn wait_for(&self, limit: Duration) -> Option<ProcessEnd> {
        let until = Instant::now() + limit;
        let (lock, changed) = &*self.end;
        let mut end = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while end.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            end = changed.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *end
    }

    /// Kills it; it may have ended already.
    pub fn kill(&self) {
        // By its pidfd: never a process that got the same number later.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl From<ExitStatus> for ProcessEnd {
    fn from(status: ExitStatus) -> ProcessEnd {
        match (status.code(), status.signal()) {
            (Some(code), _) => ProcessEnd::Exited(code),
            (None, signal) => ProcessEnd::Killed { signal: signal.unwrap_or(0) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::spawn(command, Vec::new()).unwrap()
    }

    #[test]
    fn an_end_is_told_apart() {
        assert_eq!(sh("exit 7").wait(), ProcessEnd::Exited(7));
        assert_eq!(sh("kill -TERM $$").wait(), ProcessEnd::Killed { signal: 15 });
        let sleeper = sh("sleep 60");
        assert_eq!(sleeper.wait_for(Duration::from_millis(20)), None);
        sleeper.kill();
        assert_eq!(sleeper.wait(), ProcessEnd::Killed { signal: 9 });
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let id = sh("sleep 60").id();
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = Process::spawn(Command::new("/nonexistent/x"), Vec::new()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
