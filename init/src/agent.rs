//! The agent's process: born without a right, restarted when it dies, given up when it keeps dying.

use crate::InitError;
use nacre_protocols::agent_init::{self, Event, FRAME_MAX, Failure, FromInit, ReplyBody, agent_fd};
use nacre_protocols::{frame, names};
use nacre_sys::process::{PidNamespace, Program, Spawn, spawn};
use nacre_sys::seqpacket;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// More deaths than this within [`DEATHS_WINDOW`] end the sandbox.
const DEATHS_MAX: usize = 8;
const DEATHS_WINDOW: Duration = Duration::from_secs(10);

/// A running agent and our end of its socket.
pub struct Agent {
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub socket: OwnedFd,
    pub generation: u32,
    pub phase: Phase,
    /// Tags of requests that have no reply yet.
    pub outstanding: BTreeSet<u32>,
    /// Of the program that it was given with an upgrade.
    pub upgraded: bool,
    /// It has taken over all that init holds.
    pub settled: bool,
    /// It ends because another program takes its place.
    pub leaving: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Only Hello is allowed.
    Born,
    Greeted,
    /// Killed by us, not yet reaped: nothing of it is read or written any more.
    Condemned,
}

impl Agent {
    pub fn start(
        generation: u32,
        program: Option<BorrowedFd<'_>>,
        listener: BorrowedFd<'_>,
        state: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Self, InitError> {
        let start = || -> io::Result<Self> {
            let (socket, theirs) = seqpacket::pair()?;
            // An agent that does not read must not stop PID 1.
            rustix::io::ioctl_fionbio(&socket, true)?;
            let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
            let console = std::io::stderr();
            let fds = [
                (null.as_fd(), 0),
                (null.as_fd(), 1),
                (console.as_fd(), 2),
                (listener, agent_fd::LISTENER),
                (theirs.as_fd(), agent_fd::INIT),
                (state, agent_fd::STATE),
            ];
            let child = spawn(&Spawn {
                program: program.map_or(Program::At(c"/usr/libexec/nacre/nacre-agent"), Program::File),
                args: &[c"nacre-agent"],
                env: &[],
                fds: &fds,
                cgroup: Some(cgroup),
                pid_namespace: PidNamespace::Same,
                unprivileged: Some(names::AGENT_UID),
            })?;
            Ok(Self {
                pid: child.pid,
                pidfd: child.pidfd,
                socket,
                generation,
                phase: Phase::Born,
                outstanding: BTreeSet::new(),
                upgraded: program.is_some(),
                settled: false,
                leaving: false,
            })
        };
        start().map_err(InitError::io("starting the agent"))
    }

    /// Answers one request. A tag that no agent waits for (it was the last one's) is no answer to anybody.
    pub fn reply(&mut self, tag: u32, result: Result<ReplyBody, Failure>, fds: &[BorrowedFd<'_>]) {
        if self.outstanding.remove(&tag) {
            self.send(&FromInit::Reply { tag, result }, fds);
        }
    }

    pub fn tell(&mut self, event: Event) {
        if self.phase == Phase::Greeted {
            self.send(&FromInit::Event(event), &[]);
        }
    }

    /// Ends an agent that broke the rules of the edge. Its successor finds everything that init holds.
    pub fn condemn(&mut self, why: &str) {
        crate::console::say(&format!("killing the agent: {why}"));
        self.phase = Phase::Condemned;
        let _ = nacre_sys::process::signal(self.pidfd.as_fd(), nacre_sys::signals::SIGKILL);
    }

    fn send(&mut self, message: &FromInit, fds: &[BorrowedFd<'_>]) {
        if self.phase == Phase::Condemned {
            return;
        }
        let sent = match frame::encode(message, FRAME_MAX) {
            Ok(bytes) => seqpacket::send(&self.socket, &bytes, fds),
            Err(error) => Err(io::Error::other(error)),
        };
        match sent {
            Ok(()) => {}
            // It died; reaping it says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => self.condemn(&format!("it does not take its replies: {error}")),
        }
    }
}

/// Decides whether a dead agent is worth another start.
#[derive(Default)]
pub struct Deaths(VecDeque<Instant>);

impl Deaths {
    pub fn record(&mut self, code: u8) -> Result<(), InitError> {
        let now = Instant::now();
        self.0.push_back(now);
        while self.0.front().is_some_and(|first| now.duration_since(*first) > DEATHS_WINDOW) {
            self.0.pop_front();
        }
        if self.0.len() > DEATHS_MAX {
            let (times, seconds) = (self.0.len(), DEATHS_WINDOW.as_secs());
            return Err(InitError::AgentKeepsDying { times, seconds, code });
        }
        Ok(())
    }
}

/// A failure in the words of the edge, cut to its limit.
pub fn failure(kind: agent_init::FailureKind, message: impl Into<String>) -> Failure {
    let mut message: String = message.into();
    if message.len() > agent_init::MESSAGE_MAX {
        let mut end = agent_init::MESSAGE_MAX;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
    Failure { kind, message }
}
