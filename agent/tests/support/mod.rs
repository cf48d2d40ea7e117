//! The real agent, confined as in the guest, between a fake init, a fake puller and a client of the tests' own.
//!
//! Needs root, to drop to the agent's user.
#![allow(dead_code)]

pub mod client;
pub mod init;
pub mod requests;

use init::FakeInit;
use nacre_protocols::agent_init::{STATE_BYTES, agent_fd};
use nacre_protocols::names::AGENT_UID;
use nacre_sys::process::{PidNamespace, Program, Spawn, spawn};
use rustix::process::{Pid, Signal, WaitOptions};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// False, with a reason on stderr, where the agent cannot be run as in the guest; a failure in CI.
pub fn can_run() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "these tests need root, and CI must not skip them");
    eprintln!("skipped: needs root, to drop to the agent's user");
    false
}

/// The agent as cargo built it for the tests, or another one: `NACRE_AGENT` names the guest's own binary, say.
fn binary() -> PathBuf {
    std::env::var_os("NACRE_AGENT").unwrap_or_else(|| env!("CARGO_BIN_EXE_nacre-agent").into()).into()
}

/// A child that is born while another test copies its program holds that file open for writing until its exec, and the
/// other exec would be refused (ETXTBSY, execve(2)).
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// What init keeps over the life of several agents.
pub struct Sandbox {
    directory: tempfile::TempDir,
    listener: OwnedFd,
    state: OwnedFd,
    pub init: FakeInit,
    agent: Option<Agent>,
}

struct Agent {
    pid: Pid,
}

impl Sandbox {
    /// With a running agent.
    pub fn new() -> Self {
        let mut sandbox = Self::without_agent();
        sandbox.start_agent();
        sandbox
    }

    pub fn without_agent() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let program = directory.path().join("nacre-agent");
        let copying = ONE_AT_A_TIME.lock();
        std::fs::copy(binary(), &program).unwrap();
        drop(copying);
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap().into();
        let state = nacre_sys::memfd::fixed("state", STATE_BYTES).unwrap();
        Self { directory, listener, state, init: FakeInit::new(), agent: None }
    }

    pub fn start_agent(&mut self) {
        let socket = self.init.attach();
        self.agent = Some(Agent { pid: self.spawn(&socket, Some(AGENT_UID)) });
    }

    /// Kills the agent as the kernel would, and waits until it is gone.
    pub fn kill_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        rustix::process::kill_process(agent.pid, Signal::KILL).unwrap();
        rustix::process::waitpid(Some(agent.pid), WaitOptions::empty()).unwrap();
        self.init.detach();
    }

    /// After the agent has ended by itself and was reaped.
    pub fn agent_is_gone(&mut self) {
        self.agent = None;
        self.init.detach();
    }

    pub fn agent_pid(&self) -> i32 {
        self.agent.as_ref().unwrap().pid.as_raw_nonzero().get()
    }

    pub fn dial(&self) -> std::io::Result<std::os::unix::net::UnixStream> {
        std::os::unix::net::UnixStream::connect(self.directory.path().join("agent.sock"))
    }

    /// Runs an agent to its end, as this user; gives its exit code.
    pub fn run_agent_as(&mut self, user: Option<u32>) -> i32 {
        let socket = self.init.attach();
        let pid = self.spawn(&socket, user);
        let (_, status) = rustix::process::waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        status.exit_status().unwrap_or(-1)
    }

    fn spawn(&self, socket: &OwnedFd, user: Option<u32>) -> Pid {
        let program = CString::new(self.program().to_str().unwrap()).unwrap();
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let stderr = std::io::stderr();
        let _spawning = ONE_AT_A_TIME.lock();
        let child = spawn(&Spawn {
            program: Program::At(&program),
            args: &[c"nacre-agent"],
            env: &[],
            fds: &[
                (null.as_fd(), 0),
                (null.as_fd(), 1),
                (stderr.as_fd(), 2),
                (self.listener.as_fd(), agent_fd::LISTENER),
                (socket.as_fd(), agent_fd::INIT),
                (self.state.as_fd(), agent_fd::STATE),
            ],
            cgroup: None,
            pid_namespace: PidNamespace::Same,
            unprivileged: user,
        })
        .unwrap();
        Pid::from_raw(child.pid as i32).unwrap()
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("nacre-agent")
    }

    pub fn connect(&self) -> client::Client {
        client::Client::connect(&self.directory.path().join("agent.sock"))
    }

    /// A field of the agent's `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        let pid = self.agent.as_ref().unwrap().pid.as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
    }

    /// Resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        self.status("VmRSS").split(' ').next().unwrap().parse().unwrap()
    }

    pub fn anonymous(&self) -> u64 {
        self.status("RssAnon").split(' ').next().unwrap().parse().unwrap()
    }

    pub fn open_files(&self) -> usize {
        let pid = self.agent.as_ref().unwrap().pid.as_raw_nonzero();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    pub fn agent_is_alive(&self) -> bool {
        let pid = self.agent.as_ref().unwrap().pid;
        matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(None))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            let _ = rustix::process::kill_process(agent.pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(agent.pid), WaitOptions::empty());
        }
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
