//! What init holds: containers, their processes, and everything of theirs that must outlive an agent.

use crate::cgroup::Cgroup;
use nacre_protocols::agent_init::{ExitStatus, HeldProcess, HeldState, ProcessRef};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Most containers of a sandbox, and most processes that one container may have by exec at a time.
pub const CONTAINERS_MAX: usize = 256;
pub const EXECS_MAX: usize = 512;

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
    /// Read ends; none with a terminal.
    pub output: Option<OwnedFd>,
    pub error: Option<OwnedFd>,
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
        })
    }

    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Exited(_))
    }
}
