//! What the agent endures: peers that flood or never read, containers that flood, its own death, the puller's death.

mod support;

use nacre_agent::container::PROCESSES_MAX;
use nacre_protocols::agent_init::{Event, PullerEnd, PullerProcess, RequestBody};
use nacre_protocols::agent_puller::{
    self as edge, Credentials, ImageConfig, LayerToPull, PullFailure, PullFailureKind, PulledImage,
    PulledLayer, Reply, Request, Verdict,
};
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::kata::{self, health};
use nacre_protocols::host_agent::nacre::layer_state::Stage as LayerStage;
use nacre_protocols::host_agent::nacre::pull_state::Stage;
use nacre_protocols::host_agent::nacre::sandbox::*;
use nacre_protocols::host_agent::nacre::{self, failure};
use nacre_protocols::host_agent::ttrpc::{Code, Request as Frame, request_frame};
use nacre_protocols::init_launcher::{MountKind, Plan, Rootfs, StorageStep};
use nacre_protocols::names::{AGENT_UID, Sha256};
use std::io::Write;
use std::time::Duration;
use support::client::Client;
use support::init::FakePuller;
use support::{Sandbox, can_run, eventually};

/// How much the agent's memory may grow in any of these tests, in KiB: the queue of one connection that is not
/// read, with room for what the build with debug assertions needs on top.
const GROWTH_MAX: u64 = 10 * 1024;

fn seccomp() -> kata::LinuxSeccomp {
    let entry = kata::LinuxSyscall {
        names: vec!["socket".into()],
        action: "SCMP_ACT_ERRNO".into(),
        ..Default::default()
    };
    kata::LinuxSeccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        syscalls: vec![entry],
        ..Default::default()
    }
}

fn create_request(id: &str, storage: kata::Storage) -> kata::CreateContainerRequest {
    kata::CreateContainerRequest {
        container_id: id.into(),
        storages: vec![storage],
        oci: Some(kata::Spec {
            root: Some(kata::Root {
                path: format!("/run/kata-containers/shared/containers/{id}/rootfs"),
                readonly: false,
            }),
            process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
            linux: Some(kata::Linux { seccomp: Some(seccomp()), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn shm() -> kata::Storage {
    kata::Storage {
        driver: "ephemeral".into(),
        mount_point: "/run/kata-containers/sandbox/shm".into(),
        ..Default::default()
    }
}

fn image(reference: &str) -> kata::Storage {
    kata::Storage {
        driver: "image_guest_pull".into(),
        source: reference.into(),
        fstype: "overlay".into(),
        mount_point: "/run/kata-containers/c/rootfs".into(),
        ..Default::default()
    }
}

fn create_and_start(client: &mut Client, id: &str) {
    client.call::<CreateContainer>(&create_request(id, shm())).unwrap();
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: id.into() }).unwrap();
}

fn create_sandbox(client: &mut Client) {
    client.call::<CreateSandbox>(&kata::CreateSandboxRequest::default()).unwrap();
}

fn exec(client: &mut Client, container: &str, exec: &str) {
    let request = kata::ExecProcessRequest {
        container_id: container.into(),
        exec_id: exec.into(),
        process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
        ..Default::default()
    };
    client.call::<ExecProcess>(&request).unwrap();
}

fn read(container: &str, exec: &str, len: u32) -> kata::ReadStreamRequest {
    kata::ReadStreamRequest { container_id: container.into(), exec_id: exec.into(), len, received: None }
}

fn wait(container: &str, exec: &str) -> kata::WaitProcessRequest {
    kata::WaitProcessRequest { container_id: container.into(), exec_id: exec.into() }
}

/// Asks so much without reading that answers wait in the agent; not so much that it does not read any more.
fn fill(client: &mut Client) {
    for _ in 0..400 {
        client.send::<health::Version>(&kata::CheckRequest::default(), Duration::ZERO);
    }
}

fn read_all(client: &mut Client, exec: &str, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let data = client.call::<ReadStdout>(&read("c", exec, 1000)).unwrap().data;
        assert!(!data.is_empty(), "the stream ended after {} bytes", all.len());
        all.extend(data);
    }
    all
}

#[test]
fn what_was_read_and_not_sent_is_read_again() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    let request = kata::ExecProcessRequest {
        container_id: "c".into(),
        exec_id: "t".into(),
        process: Some(kata::Process { args: vec!["/bin/app".into()], terminal: true, ..Default::default() }),
        ..Default::default()
    };
    client.call::<ExecProcess>(&request).unwrap();
    let written: Vec<u8> = (0..300).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    for exec in ["", "t"] {
        let mut stdout = sandbox.init.stream("c", exec, |process| &process.stdout);
        stdout.write_all(&written).unwrap();
    }
    let expected = |exec: &str| match exec {
        "" => written.clone(),
        // As a terminal writes it.
        _ => String::from_utf8(written.clone()).unwrap().replace('\n', "\r\n").into_bytes(),
    };
    for (exec, dies) in [("", false), ("t", false), ("", true), ("t", true)] {
        let mut deaf = sandbox.connect();
        fill(&mut deaf);
        deaf.send::<ReadStdout>(&read("c", exec, 1000), Duration::ZERO);
        check(&mut sandbox.connect());
        std::thread::sleep(Duration::from_millis(100));
        if dies {
            sandbox.kill_agent();
            sandbox.start_agent();
        }
        drop(deaf);
        let mut client = sandbox.connect();
        let expected = expected(exec);
        if dies {
            let found = read_all(&mut client, exec, expected.len());
            assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(&expected), "{exec:?}");
        }
    }
}

fn check(client: &mut Client) {
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
}

#[test]
fn the_agent_has_no_right_left_and_refuses_to_run_with_one() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    check(&mut sandbox.connect());
    for (field, expected) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Groups", ""),
        ("Threads", "1"),
    ] {
        assert_eq!(sandbox.status(field), expected, "{field}");
    }
    let ids: Vec<String> = sandbox.status("Uid").split('\t').map(str::to_owned).collect();
    assert_eq!(ids, vec![AGENT_UID.to_string(); 4]);
    sandbox.kill_agent();
    assert_eq!(sandbox.run_agent_as(None), 1, "as root");
    assert_eq!(sandbox.run_agent_as(Some(AGENT_UID + 1)), 1, "as somebody else");
}

/// Figures to look at; the budgets are for the guest's own binary (`NACRE_AGENT`).
#[test]
fn memory_stays_within_its_budget() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    check(&mut client);
    eprintln!("idle: resident {} KiB, anonymous {} KiB", sandbox.resident(), sandbox.anonymous());
    let idle = sandbox.resident();
    for n in 0..50 {
        create_and_start(&mut client, &format!("c{n}"));
    }
    let each = sandbox.resident().saturating_sub(idle) / 50;
    eprintln!("50 containers: resident {} KiB, {each} KiB each", sandbox.resident());
    if std::env::var_os("NACRE_AGENT").is_some() {
        assert!(idle <= 1792, "{idle} KiB resident when idle, more than 1.75 MiB");
        assert!(each <= 16, "{each} KiB for each container");
    }
}

#[test]
fn a_container_that_floods_costs_nothing_while_nobody_reads() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    check(&mut client);
    let before = sandbox.anonymous();
    let mut stdout = sandbox.init.stream("c", "", |process| &process.stdout);
    let flood = std::thread::spawn(move || {
        let mut total = 0u64;
        while let Ok(count) = stdout.write(&[b'x'; 4096]) {
            total += count as u64;
            if total >= 64 << 20 {
                break;
            }
        }
        total
    });
    std::thread::sleep(Duration::from_millis(300));
    check(&mut client);
    let idle = sandbox.anonymous();
    assert!(idle <= before + 64, "anonymous memory went from {before} to {idle} KiB");
    // And little while somebody does.
    let mut total = 0;
    while total < 64 << 20 {
        let data = client.call::<ReadStdout>(&read("c", "", 1 << 20)).unwrap().data;
        assert!(!data.is_empty() && data.len() <= 64 << 10, "{}", data.len());
        total += data.len();
    }
    assert_eq!(flood.join().unwrap(), 64 << 20);
    let after = sandbox.anonymous();
    assert!(after <= before + 1024, "anonymous memory went from {before} to {after} KiB");
}

#[test]
fn a_peer_that_never_reads_is_bounded_and_hurts_nobody() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    let before = sandbox.resident();
    let mut deaf = sandbox.connect();
    deaf.socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let request = |stream, service: &str, method: &str| {
        let request = Frame { service: service.into(), method: method.into(), ..Default::default() };
        request_frame(stream, &request).unwrap()
    };
    // Answers that are long for what they ask, until the agent stops reading.
    let long_name = "x".repeat(60);
    let mut sent = 0;
    for stream in 0..2_000_000u32 {
        if deaf.socket.write_all(&request(stream * 2 + 1, "grpc.AgentService", &long_name)).is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 2_000_000, "the agent went on reading");
    let after = sandbox.resident();
    assert!(after <= before + GROWTH_MAX, "memory went from {before} to {after} KiB after {sent} requests");
    check(&mut client);

    // The same with output of a container that floods: it is not read for a peer that is deaf.
    let mut stdout = sandbox.init.stream("c", "", |process| &process.stdout);
    std::thread::spawn(move || while stdout.write_all(&[b'x'; 4096]).is_ok() {});
    let mut deaf = [sandbox.connect(), sandbox.connect()];
    for deaf in &mut deaf {
        for _ in 0..400 {
            deaf.send::<ReadStdout>(&read("c", "", 1 << 20), Duration::ZERO);
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    check(&mut client);
    let after = sandbox.resident();
    assert!(after <= before + 3 * GROWTH_MAX, "memory went from {before} to {after} KiB");
    drop(deaf);
    eventually("the memory is given back", || sandbox.resident() <= before + GROWTH_MAX);
}

#[test]
fn requests_beyond_the_limits_are_refused_and_checks_still_answered() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    let before = sandbox.resident();
    let mut greedy = sandbox.connect();
    let polls: Vec<u32> =
        (0..1300).map(|_| greedy.send::<GetOOMEvent>(&kata::GetOomEventRequest {}, Duration::ZERO)).collect();
    // The first ones wait; the others are refused.
    let refused = greedy.receive::<GetOOMEvent>(*polls.last().unwrap()).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted as i32);
    check(&mut greedy);
    check(&mut client);
    drop(greedy);
    eventually("the requests of a closed connection are given up", || {
        client.call_within::<ReadStdout>(&read("c", "", 1), Duration::from_millis(1)).unwrap_err().code
            == Code::DeadlineExceeded as i32
    });
    // Much data that no process takes.
    let mut greedy = sandbox.connect();
    let data = vec![0; 3 << 20];
    let writes: Vec<u32> = (0..8)
        .map(|_| {
            let request = kata::WriteStreamRequest {
                container_id: "c".into(),
                exec_id: String::new(),
                data: data.clone(),
            };
            greedy.send::<WriteStdin>(&request, Duration::ZERO)
        })
        .collect();
    let refused = greedy.receive::<WriteStdin>(*writes.last().unwrap()).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted as i32);
    let after = sandbox.resident();
    assert!(after <= before + 24 * 1024, "memory went from {before} to {after} KiB");
    sandbox.init.exit("c", "", 0, false);
    eventually("the memory is given back", || sandbox.resident() <= before + GROWTH_MAX);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_a_place_becomes_free_again() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut open: Vec<Client> = (0..16).map(|_| sandbox.connect()).collect();
    open.iter_mut().for_each(check);
    let mut beyond = sandbox.connect();
    assert!(beyond.next_response().is_err());
    open.truncate(15);
    eventually("a place is free", || sandbox.connect().try_check());
}

#[test]
fn processes_beyond_the_limit_are_refused_before_the_agent_runs_out_of_descriptors() {
    if !can_run() {
        return;
    }
    let files = rustix::process::Rlimit { current: Some(16384), maximum: Some(16384) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).unwrap();
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    for n in 1..PROCESSES_MAX {
        exec(&mut client, "c", &format!("e{n}"));
    }
    let request = kata::ExecProcessRequest {
        container_id: "c".into(),
        exec_id: "beyond".into(),
        process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(client.refused::<ExecProcess>(&request).0, Code::ResourceExhausted);
    eprintln!("{PROCESSES_MAX} processes: resident {} KiB", sandbox.resident());
    // The next agent takes them all back, and a place becomes free.
    sandbox.kill_agent();
    sandbox.start_agent();
    let mut client = sandbox.connect();
    assert_eq!(client.refused::<ExecProcess>(&request).0, Code::ResourceExhausted);
    sandbox.init.exit("c", "e1", 0, false);
    client.call::<WaitProcess>(&wait("c", "e1")).unwrap();
    eventually("a place is free", || client.call::<ExecProcess>(&request).is_ok());
}

#[test]
fn killing_the_agent_loses_no_container_no_exit_code_and_no_output() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    create_and_start(&mut client, "c");
    client.call::<CreateContainer>(&create_request("d", shm())).unwrap();
    exec(&mut client, "c", "ended");
    exec(&mut client, "c", "running");
    exec(&mut client, "c", "waited");
    sandbox.init.exit("c", "waited", 9, false);
    assert_eq!(client.call::<WaitProcess>(&wait("c", "waited")).unwrap().status, 9);
    let forgets = |body: &RequestBody| matches!(body, RequestBody::Forget { .. });
    sandbox.init.asked(forgets);
    sandbox.init.stream("c", "ended", |process| &process.stdout).write_all(b"before").unwrap();

    sandbox.kill_agent();
    sandbox.init.stream("c", "ended", |process| &process.stdout).write_all(b" and after").unwrap();
    sandbox.init.exit("c", "ended", 42, false);
    sandbox.start_agent();

    let mut client = sandbox.connect();
    let data = client.call::<ReadStdout>(&read("c", "ended", 100)).unwrap().data;
    assert_eq!(data, b"before and after");
    assert_eq!(client.call::<WaitProcess>(&wait("c", "ended")).unwrap().status, 42);
    assert_eq!(client.refused::<WaitProcess>(&wait("c", "waited")).0, Code::NotFound);
    // A running one is still there, with its end yet to come.
    let late = client.send::<WaitProcess>(&wait("c", "running"), Duration::ZERO);
    check(&mut client);
    sandbox.init.exit("c", "running", 7, false);
    assert_eq!(client.receive::<WaitProcess>(late).unwrap().status, 7);
    // What only the last agent knew: the container's filter, the sandbox, who uses which mount.
    exec(&mut client, "c", "later");
    let (_, first) = sandbox.init.asked(|body| matches!(body, RequestBody::CreateContainer { .. }));
    let (_, later) = sandbox
        .init
        .asked(|body| matches!(body, RequestBody::Exec { process, .. } if process.exec == "later"));
    let (Some(Plan::Create(first)), Some(Plan::Exec(later))) = (first, later) else { panic!("no plans") };
    assert!(first.process.seccomp.is_some());
    assert_eq!(first.process.seccomp, later.process.seccomp);
    create_sandbox(&mut client);
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: "d".into() }).unwrap();
    let unmounts = |sandbox: &Sandbox| {
        sandbox.init.steps().iter().filter(|step| matches!(step, StorageStep::Unmount { .. })).count()
    };
    let remove = |id: &str| kata::RemoveContainerRequest { container_id: id.into(), timeout: 0 };
    client.call::<RemoveContainer>(&remove("c")).unwrap();
    assert_eq!(unmounts(&sandbox), 0, "the other container uses it");
    client.call::<RemoveContainer>(&remove("d")).unwrap();
    assert_eq!(unmounts(&sandbox), 1);
}

#[test]
fn a_container_that_was_being_made_when_the_agent_died_is_given_up_and_can_be_made_again() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    sandbox.init.hold_back(|body| matches!(body, RequestBody::CreateContainer { .. }));
    client.send::<CreateContainer>(&create_request("c", shm()), Duration::ZERO);
    sandbox.init.asked(|body| matches!(body, RequestBody::CreateContainer { .. }));
    sandbox.kill_agent();
    sandbox.start_agent();
    sandbox.init.asked(|body| matches!(body, RequestBody::RemoveContainer { .. }));
    let unmounted = StorageStep::Unmount { mount_point: shm().mount_point };
    eventually("its mount is gone", || sandbox.init.steps().last() == Some(&unmounted));
    let mut client = sandbox.connect();
    eventually("it can be made again", || {
        client.call::<CreateContainer>(&create_request("c", shm())).is_ok()
    });
}

#[test]
fn killing_the_agent_over_and_over_keeps_the_container() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    create_and_start(&mut sandbox.connect(), "c");
    for round in 0..30u8 {
        sandbox.init.stream("c", "", |process| &process.stdout).write_all(&[round]).unwrap();
        sandbox.kill_agent();
        sandbox.start_agent();
        // Who says what he has misses nothing and gets nothing twice.
        let request = kata::ReadStreamRequest { received: Some(round.into()), ..read("c", "", 10) };
        for _ in 0..2 {
            assert_eq!(sandbox.connect().call::<ReadStdout>(&request).unwrap().data, [round]);
        }
    }
}

fn start_pull(id: &str, reference: &str) -> nacre::StartPullRequest {
    nacre::StartPullRequest {
        id: id.into(),
        reference: reference.into(),
        credentials: Some(nacre::Credentials {
            user: "u".into(),
            password: "p".into(),
            identity_token: String::new(),
        }),
        aliases: vec![nacre::HostAlias { host: "host".into(), address: "10.0.2.2".into() }],
        ..Default::default()
    }
}

fn watch(client: &mut Client, id: &str, after: u64) -> nacre::PullState {
    client.call::<WatchPull>(&nacre::WatchPullRequest { id: id.into(), after }).unwrap()
}

fn layers() -> Vec<LayerToPull> {
    vec![
        LayerToPull { digest: Sha256([1; 32]), size: 1000, present: false },
        LayerToPull { digest: Sha256([2; 32]), size: 50, present: true },
    ]
}

fn pulled(reference: &str) -> PulledImage {
    PulledImage {
        reference: format!("docker.io/library/{reference}"),
        manifest: Sha256([3; 32]),
        root: Sha256([4; 32]),
        config: Sha256([5; 32]),
        layers: vec![
            PulledLayer { diff_id: Sha256([6; 32]), compressed: 1000, tar: 4096 },
            PulledLayer { diff_id: Sha256([7; 32]), compressed: 50, tar: 1024 },
        ],
        process: ImageConfig {
            command: vec!["/from-image".into()],
            volumes: vec!["/data".into()],
            ..Default::default()
        },
        annotations: vec![("a".into(), "b".into())],
        verdict: Verdict::Unjudged,
    }
}

#[test]
fn the_first_policy_stays_and_every_pull_is_held_to_it() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    let with = |id: &str, policy: &str| nacre::StartPullRequest {
        policy: policy.into(),
        ..start_pull(id, "busybox")
    };
    let verdict = |verdict| PulledImage { verdict, ..pulled("busybox") };
    let listed = |byte| Verdict::Listed { scope: "docker.io".into(), digest: Sha256([byte; 32]) };
    // Pulled before there was a policy.
    client.call::<StartPull>(&start_pull("early", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    let finish = |id: &str, image: PulledImage, policy: &str| {
        let Some(Request::Pull { id: number, pull }) = puller.receive() else { panic!("no pull") };
        assert_eq!(pull.policy, policy, "{id}");
        puller.send(&Reply::Done { id: number, image: Box::new(image) });
    };
    finish("early", pulled("busybox"), "");
    let ended = |client: &mut Client, id: &str| loop {
        let state = watch(client, id, 0);
        match state.stage() {
            Stage::Done => break Ok(state.image.unwrap().policy_scope),
            Stage::Failed => break Err(state.failure.unwrap().kind()),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(ended(&mut client, "early"), Ok(String::new()));
    client.call::<StartPull>(&with("first", "P")).unwrap();
    finish("first", verdict(listed(3)), "P");
    assert_eq!(ended(&mut client, "first"), Ok("docker.io".into()));
    let other = client.refused::<StartPull>(&with("second", "Q"));
    assert_eq!(other.0, Code::FailedPrecondition);
    // Without one of its own, and with a verdict that is none or does not hold.
    for (id, image) in [("third", pulled("busybox")), ("fourth", verdict(listed(9)))] {
        client.call::<StartPull>(&start_pull(id, "busybox")).unwrap();
        finish(id, image, "P");
        assert_eq!(ended(&mut client, id), Err(nacre::failure::Kind::Policy), "{id}");
    }
    let too_long = client.refused::<StartPull>(&with("fifth", &"x".repeat(70_000)));
    assert_eq!(too_long.0, Code::InvalidArgument);
}

#[test]
fn a_pull_is_watched_to_its_end_and_its_layers_become_the_root() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let early = client.refused::<StartPull>(&start_pull("p", "busybox"));
    assert_eq!(early.0, Code::FailedPrecondition);
    create_sandbox(&mut client);
    let state = client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    assert_eq!(state.stage(), Stage::Resolving);
    let puller = sandbox.init.puller(0);
    let Some(Request::Pull { id, pull }) = puller.receive() else { panic!("no pull") };
    assert_eq!(pull.reference, "busybox");
    assert_eq!(pull.credentials, Credentials::Basic { user: "u".into(), password: "p".into() });
    assert_eq!((pull.platform.os.as_str(), pull.platform.architecture.as_str()), ("linux", "amd64"));
    assert_eq!(pull.aliases[0].host, "host");

    puller.send(&Reply::Layers { id, layers: layers() });
    let state = watch(&mut client, "p", state.version);
    assert_eq!(state.stage(), Stage::Fetching);
    assert_eq!((state.layers[0].size, state.layers[1].done), (1000, true));
    assert_eq!(state.layers[0].digest, format!("sha256:{}", "01".repeat(32)));
    let stages = |state: &nacre::PullState| [state.layers[0].stage(), state.layers[1].stage()];
    assert_eq!(stages(&state), [LayerStage::Waiting, LayerStage::Stored]);
    puller.send(&Reply::Stage { id, index: 0, stage: edge::LayerStage::Fetching });
    let state = watch(&mut client, "p", state.version);
    assert_eq!(stages(&state), [LayerStage::Fetching, LayerStage::Stored]);
    puller.send(&Reply::Progress { id, index: 0, fetched: 400 });
    let state = watch(&mut client, "p", state.version);
    assert_eq!(state.layers[0].fetched, 400);
    // Nonsense from the puller changes nothing.
    puller.send(&Reply::Progress { id, index: 99, fetched: 1 });
    puller.send(&Reply::Stage { id, index: 99, stage: edge::LayerStage::Checking });
    puller.send(&Reply::Progress { id: id + 5, index: 0, fetched: 1 });
    // A container of the same image joins the pull, and its deadline does not end it.
    let mut request = create_request("c", image("busybox"));
    request.oci.as_mut().unwrap().process.as_mut().unwrap().args.clear();
    let late = client.call_within::<CreateContainer>(&request, Duration::from_millis(30));
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded as i32);
    puller.send(&Reply::LayerDone { id, index: 0 });
    puller.send(&Reply::Done { id, image: Box::new(pulled("busybox")) });
    let mut state = watch(&mut client, "p", state.version);
    while state.stage() == Stage::Fetching {
        state = watch(&mut client, "p", state.version);
    }
    assert_eq!(state.stage(), Stage::Done);
    let described = state.image.unwrap();
    assert_eq!(described.reference, "docker.io/library/busybox");
    assert_eq!(described.layers[0].diff_id, format!("sha256:{}", "06".repeat(32)));
    assert_eq!(described.command, ["/from-image"]);
    client.call::<CreateContainer>(&request).unwrap();
    let (_, plan) = sandbox.init.asked(|body| matches!(body, RequestBody::CreateContainer { .. }));
    let Some(Plan::Create(plan)) = plan else { panic!("no plan") };
    assert_eq!(plan.rootfs, Rootfs::Layers(vec![Sha256([6; 32]), Sha256([7; 32])]));
    assert_eq!(plan.process.args, ["/from-image"]);
    assert_eq!((plan.mounts[0].destination.as_str(), &plan.mounts[0].kind), ("/data", &MountKind::Own));
    let mounted: Vec<_> = sandbox
        .init
        .steps()
        .into_iter()
        .filter_map(|step| match step {
            StorageStep::Layer { diff_id } => Some(diff_id),
            _ => None,
        })
        .collect();
    assert_eq!(mounted, [Sha256([6; 32]), Sha256([7; 32])]);
    // The next agent still knows the image.
    sandbox.kill_agent();
    sandbox.start_agent();
    let mut client = sandbox.connect();
    client.call::<CreateContainer>(&create_request("second", image("busybox"))).unwrap();
    assert_eq!(sandbox.init.count(|body| *body == RequestBody::ConnectPuller), 1);
}

#[test]
fn an_idle_puller_is_let_go_and_a_new_one_started() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    let Some(Request::Pull { id, .. }) = puller.receive() else { panic!("no pull") };
    let failure = PullFailure { kind: PullFailureKind::Unauthorized, message: "401 for busybox".into() };
    puller.send(&Reply::Failed { id, failure });
    let state = watch(&mut client, "p", 0);
    assert_eq!(state.failure.unwrap().kind(), failure::Kind::Unauthorized);
    assert!(puller.receive().is_none(), "the agent closes its end");
    client.call::<StartPull>(&start_pull("q", "busybox")).unwrap();
    assert!(matches!(sandbox.init.puller(1).receive(), Some(Request::Pull { .. })));
}

#[test]
fn a_puller_is_let_out_to_the_ports_of_its_pulls_and_to_no_others() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    let end = |puller: &FakePuller, id| {
        let failure = PullFailure { kind: PullFailureKind::NotFound, message: "no such image".into() };
        puller.send(&Reply::Failed { id, failure });
    };
    client.call::<StartPull>(&start_pull("p", "r.example:5000/busybox")).unwrap();
    let first = sandbox.init.puller(0);
    assert_eq!(first.ports, [53, 443, 5000]);
    let Some(Request::Pull { id: p, .. }) = first.receive() else { panic!("no pull") };
    // This one needs no other port; that one does, and waits until nothing goes on behind the first ones.
    client.call::<StartPull>(&start_pull("q", "busybox")).unwrap();
    let Some(Request::Pull { id: q, .. }) = first.receive() else { panic!("no pull") };
    let more = nacre::StartPullRequest { ports: vec![9000], ..start_pull("r", "s.example:5001/busybox") };
    client.call::<StartPull>(&more).unwrap();
    end(&first, p);
    watch(&mut client, "p", 0);
    assert_eq!(sandbox.init.count(|body| *body == RequestBody::ConnectPuller), 1);
    end(&first, q);
    let second = sandbox.init.puller(1);
    assert_eq!(second.ports, [53, 443, 5001, 9000]);
    assert!(matches!(second.receive(), Some(Request::Pull { .. })));
    assert!(first.receive().is_none(), "the agent closes its end");
    let wrong = nacre::StartPullRequest { ports: vec![65536], ..start_pull("s", "busybox") };
    assert_eq!(client.refused::<StartPull>(&wrong).0, Code::InvalidArgument);
}

#[test]
fn a_puller_that_dies_fails_its_pulls_and_the_next_pull_has_a_new_one() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    puller.receive();
    drop(puller);
    sandbox.init.drop_puller(0);
    // A pull that begins while init has not said yet how it ended is not lost with it.
    std::thread::sleep(Duration::from_millis(100));
    client.call::<StartPull>(&start_pull("q", "alpine")).unwrap();
    let puller = sandbox.init.puller(1);
    puller.receive();
    let end = PullerEnd { process: PullerProcess::Indexer, code: 137, out_of_memory: true };
    sandbox.init.tell(Event::PullerExited(end));
    let failure = watch(&mut client, "p", 0).failure.unwrap();
    assert_eq!(failure.kind(), failure::Kind::Limit);
    assert!(failure.message.contains("indexer reached its memory limit of 402653184"), "{}", failure.message);
    let goes_on = client.call::<StartPull>(&start_pull("q", "alpine")).unwrap();
    assert_eq!(goes_on.stage(), Stage::Resolving);
    // As init tells it first, before the socket closes.
    let end = PullerEnd { process: PullerProcess::Fetcher, code: 159, out_of_memory: false };
    sandbox.init.tell(Event::PullerExited(end));
    let failure = watch(&mut client, "q", 0).failure.unwrap();
    assert!(failure.message.contains("fetcher was killed by signal 31"), "{}", failure.message);
    // A container fails with it, and can be made by the next pull.
    let mut creating = sandbox.connect();
    let create = creating.send::<CreateContainer>(&create_request("c", image("busybox")), Duration::ZERO);
    let puller = sandbox.init.puller(2);
    let Some(Request::Pull { id, pull }) = puller.receive() else { panic!("no pull") };
    assert_eq!(pull.credentials, Credentials::Anonymous);
    let failure = PullFailure { kind: PullFailureKind::NotFound, message: "no such image".into() };
    puller.send(&Reply::Failed { id, failure });
    let status = creating.receive::<CreateContainer>(create).unwrap_err();
    assert_eq!((status.code, status.message.as_str()), (Code::NotFound as i32, "no such image"));
}

#[test]
fn a_pull_is_given_up_on_request() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_sandbox(&mut client);
    client.call::<StartPull>(&start_pull("p", "busybox")).unwrap();
    let puller = sandbox.init.puller(0);
    let Some(Request::Pull { id, .. }) = puller.receive() else { panic!("no pull") };
    let mut canceller = sandbox.connect();
    let cancel = canceller.send::<CancelPull>(&nacre::CancelPullRequest { id: "p".into() }, Duration::ZERO);
    assert!(matches!(puller.receive(), Some(Request::Cancel { id: of }) if of == id));
    let failure = PullFailure { kind: PullFailureKind::Cancelled, message: "given up".into() };
    puller.send(&Reply::Failed { id, failure });
    let state = canceller.receive::<CancelPull>(cancel).unwrap();
    assert_eq!(state.failure.unwrap().kind(), failure::Kind::Cancelled);
    assert_eq!(client.refused::<StartPull>(&start_pull("p", "other")).0, Code::AlreadyExists);
    let report = client.call::<GetReport>(&nacre::ReportRequest {}).unwrap();
    assert_eq!((report.agent_generation, report.boot.len()), (1, 1));
}
