//! Starting a launcher: one plan, its descriptors, and the status socket on which it answers.

use nacre_protocols::init_launcher::{Mode, fd};
use nacre_sys::process::{Child, PidNamespace, Program, Spawn, spawn};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

const LAUNCHER: &CStr = c"/usr/libexec/nacre/nacre-launcher";

/// A launcher that was started and has not closed its status socket.
pub struct Launch {
    pub child_pid: u32,
    pub status: OwnedFd,
    pub purpose: Purpose,
    /// A `Ready`, `Done` or `Failed` was seen.
    pub answered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Process { container: String, exec: String },
    Storage { tag: u32 },
    Network { tag: u32 },
    Update { tag: u32 },
    RemoveFiles { container: String },
    Helper { name: &'static str },
}

/// What a launcher gets; what is `None` its mode does not need.
pub struct Grant<'a> {
    pub mode: Mode,
    /// Of capabilities, and the kinds of storage.
    pub ceiling: u64,
    pub storage: u32,
    pub plan: BorrowedFd<'a>,
    /// Standard streams.
    pub stdio: [BorrowedFd<'a>; 3],
    pub gate: Option<BorrowedFd<'a>>,
    pub cgroup: Option<BorrowedFd<'a>>,
    pub target: Option<BorrowedFd<'a>>,
    pub inherited: &'a [BorrowedFd<'a>],
    pub pid_namespace: PidNamespace<'a>,
}

/// The two ends of a status socket. Ours is watched before there is a launcher: one that runs is never given up, since what it
/// does could not be taken back.
pub struct StatusSocket {
    pub ours: OwnedFd,
    pub theirs: OwnedFd,
    /// Under which ours is watched.
    pub number: u64,
}

/// Starts it, with this end of its status socket.
pub fn launch(grant: &Grant<'_>, status: BorrowedFd<'_>) -> io::Result<Child> {
    let mut fds: Vec<(BorrowedFd<'_>, i32)> = Vec::with_capacity(nacre_sys::process::FDS_MAX);
    for (number, stream) in (0..).zip(grant.stdio) {
        fds.push((stream, number));
    }
    fds.push((status, fd::STATUS));
    fds.push((grant.plan, fd::PLAN));
    fds.extend(grant.gate.map(|gate| (gate, fd::GATE)));
    fds.extend(grant.cgroup.map(|cgroup| (cgroup, fd::CGROUP)));
    fds.extend(grant.target.map(|target| (target, fd::TARGET)));
    fds.extend(grant.inherited.iter().copied().zip(fd::INHERITED..));
    let mode = mode_word(grant.mode);
    let hex = |number: u64| CString::new(format!("{number:x}")).unwrap_or_default();
    let (ceiling, storage) = (hex(grant.ceiling), hex(grant.storage.into()));
    spawn(&Spawn {
        program: Program::At(LAUNCHER),
        args: &[c"nacre-launcher", mode, &ceiling, &storage],
        env: &[],
        fds: &fds,
        // Who changes a container's limits must not be bound by them.
        cgroup: grant.cgroup.filter(|_| grant.mode != Mode::Update),
        pid_namespace: grant.pid_namespace,
        unprivileged: None,
    })
}

fn mode_word(mode: Mode) -> &'static CStr {
    match mode {
        Mode::Create => c"create",
        Mode::Exec => c"exec",
        Mode::Storage => c"storage",
        Mode::Network => c"network",
        Mode::Update => c"update",
        Mode::Helper => c"helper",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_edge() {
        for mode in Mode::ALL {
            assert_eq!(mode_word(mode).to_str().unwrap(), mode.word());
        }
    }
}
