//! Programs that run on a container's way (runtime specification, "POSIX-platform Hooks"): one after the other, each told the
//! state on standard input; the first that fails ends the way.

use crate::error::{Context, LaunchError, Result};
use nacre_protocols::init_launcher::{Hook, LaunchStage, StateText};
use nacre_sys::exec::{Command, default_sigpipe, leave_to_command};
use nacre_sys::fork::{Birth, fork};
use nacre_sys::memfd::sealed;
use nacre_sys::process::PidNamespace;
use nacre_sys::usage::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Hooks;
/// How much of what a failed hook wrote is shown, in bytes.
const SHOWN_MAX: usize = 512;
/// What a hook exits with that could not be executed.
const NOT_EXECUTED: u8 = 127;

/// Runs `hooks` in order. `kind` names them in errors; `prepare` runs in each one's process before its program.
pub fn run(
    kind: &str,
    hooks: &[Hook],
    state: &StateText,
    pid: u32,
    prepare: impl Fn() -> Result<()>,
) -> Result<()> {
    hooks.iter().try_for_each(|hook| {
        let about = || format!("hook {kind} {}", hook.path);
        let output = memfd_create("hook", MemfdFlags::CLOEXEC).at(STAGE, about)?;
        let code = run_one(hook, &text(state, pid), &output, &prepare).at(STAGE, about)?;
        match code {
            Some(0) => Ok(()),
            Some(code) => {
                let message = format!("{} ended with {code}{}", about(), shown(&output));
                Err(LaunchError::refused(STAGE, message))
            }
            None => {
                let seconds = hook.timeout.unwrap_or(0);
                let message = format!("{} took more than {seconds} s and was killed", about());
                Err(LaunchError::refused(STAGE, message))
            }
        }
    })
}

pub fn text(state: &StateText, pid: u32) -> String {
    state.0.join(&pid.to_string())
}

/// Its exit code, or `None` when its time was over.
fn run_one(
    hook: &Hook,
    state: &str,
    output: &OwnedFd,
    prepare: impl Fn() -> Result<()>,
) -> io::Result<Option<u8>> {
    // A file and no pipe: nobody has to wait for a hook that does not read.
    let state = sealed("state", state.as_bytes())?;
    let strings =
        |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<_, _>>();
    let command = Command::new(CString::new(hook.path.as_str())?, strings(&hook.args)?, strings(&hook.env)?);
    let birth = Birth {
        namespaces: UnshareFlags::empty(),
        pid_namespace: PidNamespace::Same,
        cgroup: None,
        sibling: false,
    };
    let child = fork(&birth, || {
        let attempt = || -> io::Result<()> {
            rustix::stdio::dup2_stdin(&state)?;
            rustix::stdio::dup2_stdout(output)?;
            rustix::stdio::dup2_stderr(output)?;
            default_sigpipe();
            leave_to_command(Vec::new(), 3)?;
            prepare().map_err(io::Error::other)?;
            Err(command.execute())
        };
        if let Err(error) = attempt() {
            let _ = rustix::io::write(output, error.to_string().as_bytes());
        }
        NOT_EXECUTED
    })?;
    let timeout = hook.timeout.map(|seconds| Timespec { tv_sec: seconds.into(), tv_nsec: 0 });
    let mut watched = [PollFd::new(&child.pidfd, PollFlags::IN)];
    let in_time = rustix::io::retry_on_intr(|| poll(&mut watched, timeout.as_ref()))? > 0;
    if !in_time {
        nacre_sys::process::signal(std::os::fd::AsFd::as_fd(&child.pidfd), nacre_sys::signals::SIGKILL)?;
    }
    let ended = wait(Some(child.pid))?.ok_or(Errno::CHILD)?;
    Ok(in_time.then_some(ended.code))
}

fn shown(output: &OwnedFd) -> String {
    let mut bytes = [0; SHOWN_MAX];
    let length = rustix::io::pread(output, &mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).trim().to_owned();
    if text.is_empty() { text } else { format!(": {text}") }
}
