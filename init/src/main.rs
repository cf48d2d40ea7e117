//! PID 1 of the sandbox. It mounts what the guest needs, opens the vsock listener, lays the seccomp floor under
//! everything that comes after, starts the agent, and then serves the agent's requests, reaps, and holds what must
//! outlive an agent: pidfds or exit codes, cgroups, the ends of every standard stream.
//!
//! It reads its kernel command line, frames of its two edges, and a few numbers of `/proc` and cgroupfs; nothing rich.

mod agent;
mod boot;
mod cgroup;
mod cmdline;
mod console;
mod debug_console;
mod files;
mod floor;
mod hardware;
mod launch;
mod manifest;
mod ports;
mod progress;
mod puller;
mod report;
mod requests;
mod serve;
mod table;

use std::convert::Infallible;

fn main() {
    let Err(error) = run();
    console::say(&format!("fatal: {}", console::chain(&error)));
    boot::power_off();
}

fn run() -> Result<Infallible, InitError> {
    let mut timeline = boot::Timeline::start();
    boot::mount_early()?;
    let cmdline = cmdline::read()?;
    boot::harden();
    boot::network_up();
    // The agent's own port is the last: who reaches it finds the others open.
    let listeners = cmdline.ports.listen(cmdline.manifest.console)?;
    let listener = boot::listen()?;
    let cgroups = cgroup::Hierarchy::prepare()?;
    floor::lay()?;
    timeline.end("init");
    let mut init = serve::Init::new((listener, listeners), cgroups, timeline, cmdline.manifest.clone())?;
    init.mount_scratch(&cmdline)?;
    init.start_agent()?;
    init.serve()
}

/// What ends the sandbox: the VM powers off, and the console says why.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{what}")]
    System { what: &'static str, source: std::io::Error },
    #[error("mounting {what}")]
    Mount { what: &'static str, source: std::io::Error },
    #[error("the word {word:?} of the command line is not understood")]
    Manifest { word: String },
    #[error("no scratch space: {message}")]
    Scratch { message: String },
    #[error("the agent ended {times} times in {seconds} s; its last exit code was {code}")]
    AgentKeepsDying { times: usize, seconds: u64, code: u8 },
}

impl InitError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System { what, source: errno.into() }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
