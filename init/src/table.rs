//! What init holds: containers, their processes, and everything of theirs that must outlive an agent.

use crate::cgroup::Cgroup;
use nacre_protocols::agent_init::{ExitStatus, HeldProcess, HeldState, OutputStream, ProcessRef};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Most containers of a sandbox, and most processes that one container may have by exec at a time.
pub const CONTAINERS_MAX: usize = 256;
pub const EXECS_MAX: usize = 512;
/// Most bytes that are taken out of a stream in one step: what the largest pipe holds.
const TAKE_MAX: usize = 1024 * 1024;

pub struct Container {
    pub cgroup: Cgroup,
    /// Write end of the start gate, until it opens.
    pub gate: Option<OwnedFd>,
    /// By exec id; the first process has the empty one.
    pub processes: BTreeMap<String, Process>,
    /// Its processes are frozen: nothing can be started in it.
    pub frozen: bool,
    pub memory: MemoryWatch,
    /// Set when the container is to go: who asked, and when it began.
    pub removal: Option<Removal>,
}

/// Whether the kernel killed something in the container for want of memory.
pub struct MemoryWatch {
    /// `memory.events`, watched under this number.
    pub events: OwnedFd,
    pub number: u64,
    /// Kills that were seen, and whether an agent was told.
    pub kills: u64,
    pub untold: bool,
}

pub struct Removal {
    /// `None`: it never came to be, and nobody waits.
    pub tag: Option<u32>,
    pub since: Instant,
    /// The cgroup is gone, and a launcher removes the files.
    pub files: bool,
}

pub struct Process {
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub terminal: bool,
    pub stdio: Stdio,
    pub state: State,
}

/// The outer ends of a process's standard streams.
#[derive(Default)]
pub struct Stdio {
    /// Write end of stdin, or the pty's master.
    pub input: Option<OwnedFd>,
    /// Read ends. With a terminal both ends of one pipe: what an agent has taken out of the master and not sent is in it.
    pub output: Option<OwnedFd>,
    pub error: Option<OwnedFd>,
    /// Bytes that were taken out of either.
    pub taken: [u64; 2],
    /// Of a terminal whose streams are the host's connections.
    pub relay: Option<Relay>,
}

/// What comes from the host goes through a pipe, too, so that an agent which dies between two steps loses none of it.
pub struct Relay {
    /// Read end and write end.
    pub stage: (OwnedFd, OwnedFd),
    pub input: Option<OwnedFd>,
    pub output: Option<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The launcher is at work; `tag` waits for it.
    Launching {
        tag: u32,
    },
    /// At the start gate.
    Created,
    /// The gate is open, the exec not yet seen.
    Starting {
        tag: u32,
    },
    Running,
    Exited(ExitStatus),
}

impl Process {
    /// For an agent that asks what there is; `None` for what is not yet, or was never, a process of the container.
    pub fn held(&self, container: &str, exec: &str) -> Option<HeldProcess> {
        let state = match self.state {
            State::Launching { .. } => return None,
            State::Created => HeldState::Created,
            State::Starting { .. } | State::Running => HeldState::Running,
            State::Exited(status) => HeldState::Exited(status),
        };
        Some(HeldProcess {
            process: ProcessRef { container: container.to_owned(), exec: exec.to_owned() },
            pid: self.pid,
            terminal: self.terminal,
            state,
            stdin_open: self.stdio.input.is_some(),
            taken: self.stdio.taken,
            relayed: self
                .stdio
                .relay
                .as_ref()
                .map_or([false; 2], |relay| [relay.input.is_some(), relay.output.is_some()]),
        })
    }

    /// Takes bytes out of a stream, so that `upto` in all have been. The count is kept here, beside the bytes, so that it is
    /// true whoever dies.
    pub fn take(&mut self, stream: OutputStream, upto: u64, null: &OwnedFd) -> io::Result<()> {
        let Stdio { output, error, taken: [output_taken, error_taken], .. } = &mut self.stdio;
        let (pipe, taken) = match stream {
            OutputStream::Output => (output, output_taken),
            OutputStream::Error => (error, error_taken),
        };
        let pipe = pipe.as_ref().ok_or(io::ErrorKind::NotFound)?;
        while *taken < upto {
            let left = usize::try_from(upto - *taken).unwrap_or(TAKE_MAX).min(TAKE_MAX);
            match splice(pipe, None, null, None, left, SpliceFlags::NONBLOCK) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => *taken += count as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Exited(_))
    }
}
