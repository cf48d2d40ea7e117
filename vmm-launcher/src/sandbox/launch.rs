//! Starting the monitor of a new sandbox.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::control::{Booted, Control, ControlError, FromMonitor, Problem, ToMonitor};
use super::machine::MachineConfig;
use super::root::{Place, SandboxDir};

/// A sandbox whose VM has started; the guest is about to boot.
pub struct Launched {
    pub place: Place,
    pub control: Control,
    pub booted: Booted,
    /// Ends by itself when nobody needs the sandbox.
    pub monitor: Child,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("start the monitor: {0}")]
    Spawn(#[from] io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{}: {}", .0.stage, .0.cause)]
    Failed(Problem),
}

/// Starts a monitor for the sandbox and waits until its VM runs.
pub async fn launch(directory: SandboxDir, config: MachineConfig) -> Result<Launched, LaunchError> {
    let (place, lock) = directory.into_parts();
    let (own, theirs) = UnixStream::pair()?;
    own.set_nonblocking(true)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(place.monitor_log())?;
    // This very program, even if its file was replaced since it was started.
    let monitor = Command::new("/proc/self/exe")
        .arg("monitor")
        .arg(place.path())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(lock))
        .stderr(Stdio::from(log))
        .current_dir("/")
        .spawn();
    let mut monitor = match monitor {
        Ok(monitor) => monitor,
        Err(error) => {
            let _ = place.remove();
            return Err(error.into());
        }
    };
    let control = Control::over(tokio::net::UnixStream::from_std(own)?);
    match control.ask(&ToMonitor::Boot(Box::new(config))).await {
        Ok(FromMonitor::Booted(booted)) => Ok(Launched { place, control, booted: *booted, monitor }),
        other => {
            let _ = monitor.kill();
            let _ = monitor.wait();
            let _ = place.remove();
            Err(match other {
                Ok(FromMonitor::Failed(problem)) => LaunchError::Failed(problem),
                Ok(_) => ControlError::Unexpected.into(),
                Err(error) => error.into(),
            })
        }
    }
}
