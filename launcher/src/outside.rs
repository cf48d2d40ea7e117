//! What a container's process must know of the world that it leaves, for those that it will tell: hooks and a seccomp agent.

use crate::error::{Context, Result};
use crate::hooks;
use nacre_protocols::init_launcher::{ContainerPlan, LaunchStage, Process};
use rustix::fs::{CWD, readlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::os::fd::OwnedFd;

/// Connected to whoever decides about system calls, with what to tell.
pub struct Listener {
    pub socket: OwnedFd,
    pub message: String,
}

pub struct Outside {
    /// This process's number where it was started; 0 where nobody asks.
    pub pid: u32,
    pub listener: Option<Listener>,
}

impl Outside {
    pub fn of(plan: &ContainerPlan) -> Result<Self> {
        let hooks = &plan.hooks;
        let told = !hooks.create_container.is_empty() || !hooks.start_container.is_empty();
        let mut outside = Self::of_process(&plan.process)?;
        if told && outside.pid == 0 {
            outside.pid = own_number()?;
        }
        Ok(outside)
    }

    pub fn of_process(process: &Process) -> Result<Self> {
        let Some(wanted) = process.seccomp.as_ref().and_then(|seccomp| seccomp.listener.as_ref()) else {
            return Ok(Self { pid: 0, listener: None });
        };
        let pid = own_number()?;
        let attempt = || -> io::Result<OwnedFd> {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            connect(&socket, &SocketAddrUnix::new(wanted.path.as_str())?)?;
            Ok(socket)
        };
        let socket = attempt()
            .at(LaunchStage::Rights, || format!("connecting to the seccomp agent at {}", wanted.path))?;
        let message = hooks::text(&wanted.message, pid);
        Ok(Self { pid, listener: Some(Listener { socket, message }) })
    }
}

/// As the proc file system of who started this process has it.
fn own_number() -> Result<u32> {
    let attempt = || -> io::Result<u32> {
        let link = readlinkat(CWD, "/proc/self", Vec::new())?;
        let number = link.to_str().ok().and_then(|text| text.parse().ok());
        Ok(number.ok_or(Errno::SRCH)?)
    };
    attempt().at(LaunchStage::Hooks, || "asking the starter's /proc for this process's number".to_owned())
}
