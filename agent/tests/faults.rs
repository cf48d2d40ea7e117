//! One system call of the agent fails, or kills it, while a container is made, used and removed: each call, each fault, one at a
//! time (strace(1), `inject`). Whatever becomes of the round, nothing hangs, and nothing of it is left after the next agent.

mod support;

use nacre_agent::confine::ALLOWED;
use nacre_protocols::agent_init::RequestBody;
use nacre_protocols::host_agent::Rpc;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::kata::{self, health};
use nacre_protocols::host_agent::ttrpc::{HEADER_LEN, Header, Request, Response, request_frame};
use nacre_protocols::init_launcher::StorageStep;
use prost::Message;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Sandbox, can_run, eventually};

const FAULTS: [&str; 5] = ["error=ENOMEM", "error=EIO", "error=ENOSPC", "error=EINTR", "signal=KILL"];
/// How long an answer may take; a call that fails is no reason to be silent.
const ANSWER: Duration = Duration::from_secs(10);
/// How often it is looked whether the agent is alive meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// Where in a round a call fails, at most: with `--all` every one of them, otherwise the first; and of [`STATE_CALL`] every one.
const EVERY: usize = 200;
const FEW: usize = 1;
/// What writes the state, by which the agent knows what there is to be taken away.
const STATE_CALL: &str = "pwrite64";

/// Answered, refused, or the connection ended; nothing else.
fn call<R: Rpc>(sandbox: &Sandbox, request: &R::Request) -> Result<R::Response, String> {
    let lost = |error: std::io::Error| {
        let in_time = !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(in_time, "{} was never answered", R::METHOD);
        error.to_string()
    };
    let mut socket = sandbox.dial().map_err(lost)?;
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let request = Request {
        service: R::SERVICE.into(),
        method: R::METHOD.into(),
        payload: request.encode_to_vec(),
        ..Default::default()
    };
    socket.write_all(&request_frame(1, &request).unwrap()).map_err(lost)?;
    // A connection that no agent has accepted waits for the next one.
    let start = Instant::now();
    while matches!(rustix::net::recv(&socket, &mut [0u8; 1], RecvFlags::PEEK), Err(Errno::AGAIN)) {
        assert!(start.elapsed() < ANSWER, "{} was never answered", R::METHOD);
        if !sandbox.agent_is_alive() {
            return Err("the agent died".to_owned());
        }
    }
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    let mut head = [0; HEADER_LEN];
    socket.read_exact(&mut head).map_err(lost)?;
    let mut payload = vec![0; Header::decode(&head).length as usize];
    socket.read_exact(&mut payload).map_err(lost)?;
    let result = Response::from_payload(&payload).unwrap().into_result();
    let payload = result.map_err(|status| {
        assert!(!status.message.is_empty(), "{} failed without a word", R::METHOD);
        status.message
    })?;
    Ok(R::Response::decode(&*payload).unwrap())
}

fn remove(sandbox: &Sandbox) -> Result<(), String> {
    let request = kata::RemoveContainerRequest { container_id: "c".into(), timeout: 0 };
    call::<RemoveContainer>(sandbox, &request).map(drop)
}

fn round(sandbox: &Sandbox) -> Result<(), String> {
    let process = || kata::Process { args: vec!["/bin/app".into()], ..Default::default() };
    let create = kata::CreateContainerRequest {
        container_id: "c".into(),
        storages: vec![kata::Storage {
            driver: "ephemeral".into(),
            mount_point: "/run/kata-containers/sandbox/shm".into(),
            ..Default::default()
        }],
        oci: Some(kata::Spec {
            root: Some(kata::Root { path: "/run/kata-containers/shared/c/rootfs".into(), readonly: false }),
            process: Some(process()),
            ..Default::default()
        }),
        ..Default::default()
    };
    call::<CreateContainer>(sandbox, &create)?;
    call::<StartContainer>(sandbox, &kata::StartContainerRequest { container_id: "c".into() })?;
    let exec = kata::ExecProcessRequest {
        container_id: "c".into(),
        exec_id: "e".into(),
        process: Some(process()),
        ..Default::default()
    };
    call::<ExecProcess>(sandbox, &exec)?;
    sandbox.init.stream("c", "e", |process| &process.stdout).write_all(b"said").unwrap();
    let stream =
        |len| kata::ReadStreamRequest { container_id: "c".into(), exec_id: "e".into(), len, received: None };
    call::<ReadStdout>(sandbox, &stream(100))?;
    let input =
        kata::WriteStreamRequest { container_id: "c".into(), exec_id: "e".into(), data: b"heard".to_vec() };
    call::<WriteStdin>(sandbox, &input)?;
    sandbox.init.exit("c", "e", 0, false);
    call::<WaitProcess>(
        sandbox,
        &kata::WaitProcessRequest { container_id: "c".into(), exec_id: "e".into() },
    )?;
    let kill = kata::SignalProcessRequest { container_id: "c".into(), exec_id: String::new(), signal: 9 };
    call::<SignalProcess>(sandbox, &kill)?;
    remove(sandbox)
}

/// strace at the agent, until it is dropped.
struct Injection(Child);

impl Injection {
    fn begin(sandbox: &Sandbox, call: &str, fault: &str, when: usize, log: &std::path::Path) -> Self {
        let strace = Command::new("strace")
            .args(["-q", "-e", &format!("trace={call}"), "-e", &format!("inject={call}:{fault}:when={when}")])
            .args(["-p", &sandbox.agent_pid().to_string(), "-o"])
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("no strace");
        // A kill may come as soon as it is there.
        let is_there = || !sandbox.agent_is_alive() || sandbox.status("TracerPid") != "0";
        eventually("strace is there", is_there);
        Self(strace)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        let strace = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(strace, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Mount points with one more mount than unmounts.
fn mounted(sandbox: &Sandbox) -> BTreeSet<String> {
    let mut mounted = BTreeSet::new();
    for step in sandbox.init.steps() {
        match step {
            StorageStep::Tmpfs { mount_point, .. } => drop(mounted.insert(mount_point)),
            StorageStep::Unmount { mount_point } => drop(mounted.remove(&mount_point)),
            _ => {}
        }
    }
    mounted
}

/// One fault, one round, and what is left. False when the round does not come to that call.
fn survives(call: &str, fault: &str, when: usize) -> bool {
    let mut sandbox = Sandbox::new();
    let log = tempfile::NamedTempFile::new().unwrap();
    assert!(self::call::<health::Check>(&sandbox, &kata::CheckRequest::default()).is_ok());
    let injection = Injection::begin(&sandbox, call, fault, when, log.path());
    let outcome = round(&sandbox);
    drop(injection);
    let injected = std::fs::read_to_string(log.path()).unwrap();
    // strace says it of an error; of a kill it may not come to say it.
    let is_kill = fault.starts_with("signal");
    if is_kill && outcome.is_err() {
        eventually("the killed agent is dead", || !sandbox.agent_is_alive());
    } else if !injected.contains("INJECTED") && sandbox.agent_is_alive() {
        assert_eq!(outcome, Ok(()), "{call} {fault} {when}: nothing was injected");
        return false;
    }
    // As a shim does that was told of a failure, or of nothing.
    eventually("the container is gone", || {
        // Init's part: it may have died of it only now.
        if !sandbox.agent_is_alive() {
            sandbox.agent_is_gone();
            sandbox.start_agent();
        }
        match remove(&sandbox) {
            Ok(()) => true,
            Err(message) => message.contains("Invalid container id"),
        }
    });
    eventually("nothing is left", || {
        sandbox.init.world().processes.is_empty() && mounted(&sandbox).is_empty()
    });
    assert_eq!(round(&sandbox), Ok(()), "{call} {fault} {when}: the next round");
    assert_eq!(sandbox.init.count(|body| matches!(body, RequestBody::PowerOff)), 0);
    true
}

#[test]
fn a_call_that_fails_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "this test needs strace, and CI must not skip it");
        eprintln!("skipped: needs strace");
        return;
    }
    let all = std::env::var_os("NACRE_TEST_ALL").is_some();
    let calls: BTreeSet<&str> = ALLOWED
        .iter()
        .filter_map(|(_, _, reason)| reason.split([':', ' ']).next())
        // Not met by a process that goes on.
        .filter(|call| !matches!(*call, "exit" | "exit_group" | "rt_sigreturn" | "sigaltstack"))
        .collect();
    let mut met = BTreeSet::new();
    let mut runs = 0;
    for call in calls {
        let places = if all || call == STATE_CALL { EVERY } else { FEW };
        for fault in FAULTS {
            for when in 1..=places {
                if !survives(call, fault, when) {
                    break;
                }
                met.insert(call);
                runs += 1;
            }
        }
    }
    eprintln!("{runs} faults, in {met:?}");
    for call in
        ["read", "write", "sendto", "recvfrom", "sendmsg", "recvmsg", "epoll_wait", "accept4", STATE_CALL]
    {
        assert!(met.contains(call), "{call} was never met");
    }
}
