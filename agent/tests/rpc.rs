//! The API as a Kata shim drives it, against the real, confined agent.

mod support;

use nacre_protocols::agent_init::{Event, FailureKind, ProcessRef, RequestBody};
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::kata::{self, health};
use nacre_protocols::host_agent::ttrpc::{Code, FrameKind, HEADER_LEN, Header, PAYLOAD_MAX};
use nacre_protocols::host_agent::{CommandFailure, Rpc};
use nacre_protocols::init_launcher::{NetworkStep, Plan, Rootfs, StorageStep};
use std::io::{Read, Write};
use std::time::Duration;
use support::client::Client;
use support::{Sandbox, can_run, eventually};

const SHARED: &str = "/run/kata-containers/shared/containers";

fn create_request(id: &str) -> kata::CreateContainerRequest {
    kata::CreateContainerRequest {
        container_id: id.into(),
        exec_id: id.into(),
        storages: vec![kata::Storage {
            driver: "ephemeral".into(),
            mount_point: "/run/kata-containers/sandbox/shm".into(),
            ..Default::default()
        }],
        oci: Some(kata::Spec {
            root: Some(kata::Root { path: format!("{SHARED}/{id}/rootfs"), readonly: true }),
            process: Some(process(false)),
            linux: Some(kata::Linux {
                seccomp: Some(kata::LinuxSeccomp {
                    default_action: "SCMP_ACT_ALLOW".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn process(terminal: bool) -> kata::Process {
    kata::Process { args: vec!["/bin/app".into()], terminal, ..Default::default() }
}

fn create(client: &mut Client, id: &str) {
    client.call::<CreateContainer>(&create_request(id)).unwrap();
}

fn create_and_start(client: &mut Client, id: &str) {
    create(client, id);
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: id.into() }).unwrap();
}

fn exec_request(container: &str, exec: &str, terminal: bool) -> kata::ExecProcessRequest {
    kata::ExecProcessRequest {
        container_id: container.into(),
        exec_id: exec.into(),
        process: Some(process(terminal)),
        ..Default::default()
    }
}

fn read_request(container: &str, exec: &str) -> kata::ReadStreamRequest {
    kata::ReadStreamRequest {
        container_id: container.into(),
        exec_id: exec.into(),
        len: 32768,
        received: None,
    }
}

fn wait_request(container: &str, exec: &str) -> kata::WaitProcessRequest {
    kata::WaitProcessRequest { container_id: container.into(), exec_id: exec.into() }
}

fn signal_request(container: &str, exec: &str, signal: u32) -> kata::SignalProcessRequest {
    kata::SignalProcessRequest { container_id: container.into(), exec_id: exec.into(), signal }
}

fn write_request(container: &str, exec: &str, data: &[u8]) -> kata::WriteStreamRequest {
    kata::WriteStreamRequest { container_id: container.into(), exec_id: exec.into(), data: data.into() }
}

fn remove_request(container: &str) -> kata::RemoveContainerRequest {
    kata::RemoveContainerRequest { container_id: container.into(), timeout: 0 }
}

#[test]
fn health_and_details_are_those_of_a_kata_agent() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let status = client.call::<health::Check>(&kata::CheckRequest::default()).unwrap().status;
    assert_eq!(status, i32::from(kata::health_check_response::ServingStatus::Serving));
    let version = client.call::<health::Version>(&kata::CheckRequest::default()).unwrap();
    assert_eq!(version.agent_version, env!("CARGO_PKG_VERSION"));
    let details = client.call::<GetGuestDetails>(&kata::GuestDetailsRequest::default()).unwrap();
    assert!(details.agent_details.unwrap().supports_seccomp);
}

#[test]
fn what_is_not_there_is_refused_with_the_codes_that_shims_know() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    for (service, method, code, text) in [
        ("grpc.Nothing", "Check", Code::InvalidArgument, "grpc.Nothing"),
        ("grpc.AgentService", "Nothing", Code::Unimplemented, "Nothing"),
        ("grpc.AgentService", "SetPolicy", Code::Unimplemented, "SetPolicy"),
    ] {
        let stream = client.send_raw(service, method, vec![], Duration::ZERO);
        let status = client.receive_raw(stream).into_result().unwrap_err();
        assert_eq!(Code::from_number(status.code), Some(code), "{service} {method}");
        assert!(status.message.contains(text), "{}", status.message);
    }
    let (code, _) =
        client.refused::<StartContainer>(&kata::StartContainerRequest { container_id: "c".into() });
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(client.refused::<RemoveContainer>(&remove_request("c")).0, Code::Internal);
    create_and_start(&mut client, "c");
    let (code, text) = client.refused::<WaitProcess>(&wait_request("c", "nobody"));
    assert_eq!(code, Code::NotFound);
    assert!(text.contains("InvalidExecId"), "{text}");
    let resize = kata::TtyWinResizeRequest { container_id: "c".into(), ..Default::default() };
    assert_eq!(client.refused::<TtyWinResize>(&resize).0, Code::Unavailable);
    client.call::<ExecProcess>(&exec_request("c", "e", false)).unwrap();
    assert_eq!(client.refused::<ExecProcess>(&exec_request("c", "e", false)).0, Code::Internal);
    assert_eq!(client.refused::<ExecProcess>(&exec_request("d", "e", false)).0, Code::InvalidArgument);
    let different = kata::CreateContainerRequest { sandbox_pidns: true, ..create_request("c") };
    assert_eq!(client.refused::<CreateContainer>(&different).0, Code::AlreadyExists);
}

#[test]
fn a_frame_beyond_the_limits_does_not_harm_its_connection() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let too_long = PAYLOAD_MAX + 1;
    for (header, length) in [
        (Header { length: too_long as u32, stream: 1, kind: FrameKind::Request, flags: 0 }, too_long),
        (Header { length: 3, stream: 2, kind: FrameKind::Request, flags: 0 }, 3),
        (Header { length: 3, stream: 3, kind: FrameKind::Request, flags: 0 }, 3),
    ] {
        client.socket.write_all(&header.encode()).unwrap();
        client.socket.write_all(&vec![0xff; length]).unwrap();
        let (stream, response) = client.next_response().unwrap();
        assert_eq!(stream, header.stream);
        assert_eq!(response.into_result().unwrap_err().code, Code::InvalidArgument as i32);
    }
    let data = Header { length: 0, stream: 5, kind: FrameKind::Other(3), flags: 0 };
    client.socket.write_all(&data.encode()).unwrap();
    let (_, response) = client.next_response().unwrap();
    assert_eq!(response.into_result().unwrap_err().code, Code::Unimplemented as i32);
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    // A method has a smaller limit of its own.
    let stream = client.send_raw(WaitProcess::SERVICE, WaitProcess::METHOD, vec![0; 1 << 20], Duration::ZERO);
    let status = client.receive_raw(stream).into_result().unwrap_err();
    assert!(status.message.contains("WaitProcess takes messages of at most 65536 bytes"), "{status:?}");
    // A frame that is cut off ends only its connection.
    let cut = Header { length: 100, stream: 7, kind: FrameKind::Request, flags: 0 };
    client.socket.write_all(&cut.encode()[..HEADER_LEN - 1]).unwrap();
    drop(client);
    sandbox.connect().call::<health::Check>(&kata::CheckRequest::default()).unwrap();
}

#[test]
fn a_containers_life_is_create_start_streams_wait_and_remove() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    let (_, plan) = init.asked(|body| matches!(body, RequestBody::CreateContainer { .. }));
    let Some(Plan::Create(plan)) = plan else { panic!("no plan") };
    assert_eq!(plan.rootfs, Rootfs::Guest(format!("{SHARED}/c/rootfs")));
    assert!(plan.rootfs_readonly);
    assert!(matches!(init.steps()[0], StorageStep::Tmpfs { .. }));

    // Both names of the first process.
    init.stream("c", "", |process| &process.stdout).write_all(b"out").unwrap();
    init.stream("c", "", |process| &process.stderr).write_all(b"err").unwrap();
    assert_eq!(client.call::<ReadStdout>(&read_request("c", "c")).unwrap().data, b"out");
    assert_eq!(client.call::<ReadStderr>(&read_request("c", "")).unwrap().data, b"err");
    client.call::<WriteStdin>(&write_request("c", "", b"in")).unwrap();
    let mut stdin = init.stream("c", "", |process| &process.stdin);
    let mut bytes = [0; 2];
    stdin.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"in");

    // A read and two waits that are there before the end, and waits that come after it.
    let mut others = [sandbox.connect(), sandbox.connect()];
    let waits = [
        others[0].send::<WaitProcess>(&wait_request("c", ""), Duration::ZERO),
        others[1].send::<WaitProcess>(&wait_request("c", "c"), Duration::ZERO),
    ];
    let read = client.send::<ReadStdout>(&read_request("c", ""), Duration::ZERO);
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    init.close_streams("c", "");
    init.exit("c", "", 128 + 9, false);
    assert!(client.receive::<ReadStdout>(read).unwrap().data.is_empty());
    for (other, stream) in others.iter_mut().zip(waits) {
        assert_eq!(other.receive::<WaitProcess>(stream).unwrap().status, 137);
    }
    init.asked(|body| matches!(body, RequestBody::Forget { .. }));
    assert_eq!(client.refused::<WaitProcess>(&wait_request("c", "")).0, Code::NotFound);
    // As shims end: the whole container is killed once more, and that is no error.
    client.call::<SignalProcess>(&signal_request("c", "", 9)).unwrap();
    client.call::<RemoveContainer>(&remove_request("c")).unwrap();
    let unmounted = StorageStep::Unmount { mount_point: "/run/kata-containers/sandbox/shm".into() };
    assert_eq!(init.steps().last(), Some(&unmounted));
    assert_eq!(client.refused::<RemoveContainer>(&remove_request("c")).0, Code::Internal);
}

#[test]
fn the_end_of_a_process_ends_its_streams_whoever_still_holds_them() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    client.call::<ExecProcess>(&exec_request("c", "e", false)).unwrap();
    // A grandchild: the write end stays open for the whole test.
    let mut grandchild = init.stream("c", "e", |process| &process.stdout);
    grandchild.write_all(b"last words").unwrap();
    let mut waiting = sandbox.connect();
    let stderr = waiting.send::<ReadStderr>(&read_request("c", "e"), Duration::ZERO);
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    init.exit("c", "e", 3, false);
    // The read that was waiting, one that finds data, and one that is issued after the end.
    assert!(waiting.receive::<ReadStderr>(stderr).unwrap().data.is_empty());
    assert_eq!(client.call::<ReadStdout>(&read_request("c", "e")).unwrap().data, b"last words");
    assert!(client.call::<ReadStdout>(&read_request("c", "e")).unwrap().data.is_empty());
    assert!(client.call::<ReadStdout>(&read_request("c", "e")).unwrap().data.is_empty());
    // A grandchild that goes on writing does not keep the host reading for ever.
    let flood = std::thread::spawn(move || while grandchild.write_all(&[b'x'; 4096]).is_ok() {});
    let mut total = 0;
    loop {
        let data = client.call::<ReadStdout>(&read_request("c", "e")).unwrap().data;
        if data.is_empty() {
            break;
        }
        total += data.len();
        assert!(total < 8 << 20, "no end after {total} bytes");
    }
    assert_eq!(client.call::<WaitProcess>(&wait_request("c", "e")).unwrap().status, 3);
    assert_eq!(client.refused::<WaitProcess>(&wait_request("c", "e")).0, Code::NotFound);
    client.call::<RemoveContainer>(&remove_request("c")).unwrap();
    drop(sandbox);
    flood.join().unwrap();
}

#[test]
fn stdin_is_written_as_fast_as_the_process_reads_and_closed_both_ways() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    // More than a pipe holds, in two requests, whose order is kept.
    let first = vec![b'1'; 300_000];
    let second = vec![b'2'; 300_000];
    let writes = [
        client.send::<WriteStdin>(&write_request("c", "", &first), Duration::ZERO),
        client.send::<WriteStdin>(&write_request("c", "", &second), Duration::ZERO),
    ];
    let close = client.send::<CloseStdin>(
        &kata::CloseStdinRequest { container_id: "c".into(), exec_id: "c".into() },
        Duration::ZERO,
    );
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    let mut received = Vec::new();
    init.stream("c", "", |process| &process.stdin).read_to_end(&mut received).unwrap();
    assert_eq!(received, [first, second].concat());
    for stream in writes {
        assert_eq!(client.receive::<WriteStdin>(stream).unwrap().len, 300_000);
    }
    client.receive::<CloseStdin>(close).unwrap();
    assert_eq!(client.refused::<WriteStdin>(&write_request("c", "", b"x")).0, Code::Internal);

    // Without data a write is end-of-file, too.
    client.call::<ExecProcess>(&exec_request("c", "e", false)).unwrap();
    client.call::<WriteStdin>(&write_request("c", "e", b"")).unwrap();
    let mut stdin = init.stream("c", "e", |process| &process.stdin);
    assert_eq!(stdin.read(&mut [0]).unwrap(), 0);

    // Nobody will ever read: the write ends with the process.
    client.call::<ExecProcess>(&exec_request("c", "f", false)).unwrap();
    let _held = init.stream("c", "f", |process| &process.stdin);
    let write = client.send::<WriteStdin>(&write_request("c", "f", &vec![0; 200_000]), Duration::ZERO);
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    init.exit("c", "f", 0, false);
    assert!(client.receive::<WriteStdin>(write).is_err());
}

#[test]
fn a_terminal_is_resized_and_carries_both_ways() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    client.call::<ExecProcess>(&exec_request("c", "t", true)).unwrap();
    let slave = init.stream("c", "t", |process| &process.stdout);
    let resize =
        kata::TtyWinResizeRequest { container_id: "c".into(), exec_id: "t".into(), row: 33, column: 111 };
    client.call::<TtyWinResize>(&resize).unwrap();
    let size = rustix::termios::tcgetwinsize(&slave).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (33, 111));
    (&slave).write_all(b"hello").unwrap();
    assert_eq!(client.call::<ReadStdout>(&read_request("c", "t")).unwrap().data, b"hello");
    client.call::<WriteStdin>(&write_request("c", "t", b"typed\n")).unwrap();
    let mut line = [0; 6];
    (&slave).read_exact(&mut line).unwrap();
    assert_eq!(&line, b"typed\n");
    // What was written last is read before the end, and the end is no error.
    (&slave).write_all(b"bye").unwrap();
    drop(slave);
    init.close_streams("c", "t");
    init.exit("c", "t", 0, false);
    let mut all = Vec::new();
    loop {
        let data = client.call::<ReadStdout>(&read_request("c", "t")).unwrap().data;
        if data.is_empty() {
            break;
        }
        all.extend(data);
    }
    assert!(all.ends_with(b"bye"), "{:?}", String::from_utf8_lossy(&all));
    assert!(client.call::<ReadStderr>(&read_request("c", "t")).unwrap().data.is_empty());
}

#[test]
fn signals_go_to_whom_the_rules_say() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    client.call::<ExecProcess>(&exec_request("c", "e", false)).unwrap();
    for (exec, number, expected_exec, whole) in [
        ("", 9, "", true),
        ("c", 9, "", false),
        ("", 15, "", false),
        ("e", 9, "e", false),
        ("", 0, "", false),
    ] {
        client.call::<SignalProcess>(&signal_request("c", exec, number)).unwrap();
        let (last, _) = init.world().asked.last().unwrap().clone();
        let expected = RequestBody::Signal {
            process: ProcessRef { container: "c".into(), exec: expected_exec.into() },
            signal: number as u8,
            whole_container: whole,
        };
        assert_eq!(last, expected, "{exec:?} {number}");
    }
    assert_eq!(client.refused::<SignalProcess>(&signal_request("c", "", 65)).0, Code::InvalidArgument);
    assert_eq!(client.refused::<SignalProcess>(&signal_request("x", "", 9)).0, Code::InvalidArgument);
    assert_eq!(client.refused::<SignalProcess>(&signal_request("c", "x", 9)).0, Code::NotFound);
    // To one that has ended: who wanted it gone has what he wants.
    init.exit("c", "e", 0, false);
    client.call::<SignalProcess>(&signal_request("c", "e", 15)).unwrap();
    init.fail_next(|body| matches!(body, RequestBody::Signal { .. }), FailureKind::NotFound, "gone");
    client.call::<SignalProcess>(&signal_request("c", "", 9)).unwrap();
}

#[test]
fn a_missing_command_is_told_by_the_text_that_shims_know() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create(&mut client, "c");
    let start = kata::StartContainerRequest { container_id: "c".into() };
    let is_start: fn(&RequestBody) -> bool = |body| matches!(body, RequestBody::StartContainer { .. });
    init.fail_next(is_start, FailureKind::CommandNotFound, "execve: ENOENT");
    let (code, text) = client.refused::<StartContainer>(&start);
    assert_eq!(code, Code::Internal);
    assert!(text.starts_with("the file /bin/app was not found"), "{text}");
    assert_eq!(CommandFailure::read(&text), Some(CommandFailure::NotFound));
    client.call::<StartContainer>(&start).unwrap();
    let is_exec: fn(&RequestBody) -> bool = |body| matches!(body, RequestBody::Exec { .. });
    let files = sandbox.open_files();
    for _ in 0..20 {
        init.fail_next(is_exec, FailureKind::CommandNotExecutable, "execve: EACCES");
        let (code, text) = client.refused::<ExecProcess>(&exec_request("c", "e", false));
        assert_eq!(
            (code, CommandFailure::read(&text)),
            (Code::Internal, Some(CommandFailure::NotExecutable))
        );
    }
    assert_eq!(sandbox.open_files(), files, "failed execs leave nothing open");
    // The id is free again.
    client.call::<ExecProcess>(&exec_request("c", "e", false)).unwrap();
}

#[test]
fn a_container_that_is_not_created_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    let files = sandbox.open_files();
    let is_create: fn(&RequestBody) -> bool = |body| matches!(body, RequestBody::CreateContainer { .. });
    init.fail_next(is_create, FailureKind::System, "no such device");
    let (code, text) = client.refused::<CreateContainer>(&create_request("c"));
    assert_eq!((code, text.as_str()), (Code::Internal, "no such device"));
    let unmounted = StorageStep::Unmount { mount_point: "/run/kata-containers/sandbox/shm".into() };
    assert_eq!(init.steps().last(), Some(&unmounted));
    assert_eq!(init.count(|body| matches!(body, RequestBody::RemoveContainer { .. })), 1);
    assert_eq!(sandbox.open_files(), files);
    // Refused before anything is mounted or asked.
    let steps = init.steps().len();
    let mut bad = create_request("c");
    bad.oci.as_mut().unwrap().process.as_mut().unwrap().cwd = "relative".into();
    assert_eq!(client.refused::<CreateContainer>(&bad).0, Code::InvalidArgument);
    let device = kata::Device { id: "gpu0".into(), r#type: "vfio-pci".into(), ..Default::default() };
    let with_device = kata::CreateContainerRequest { devices: vec![device], ..create_request("c") };
    let (code, text) = client.refused::<CreateContainer>(&with_device);
    assert_eq!(code, Code::Unimplemented);
    assert!(text.contains("gpu0") && text.contains("vfio-pci"), "{text}");
    assert_eq!(init.steps().len(), steps);
    create_and_start(&mut client, "c");
}

#[test]
fn a_deadline_answers_but_the_work_goes_on_and_can_be_joined() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    init.hold_back(|body| matches!(body, RequestBody::CreateContainer { .. }));
    let late = client.call_within::<CreateContainer>(&create_request("c"), Duration::from_millis(30));
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded as i32);
    // The same request again, from another connection, and one that gives up by closing its connection.
    let mut gone = sandbox.connect();
    gone.send::<CreateContainer>(&create_request("c"), Duration::ZERO);
    drop(gone);
    let mut other = sandbox.connect();
    let again = other.send::<CreateContainer>(&create_request("c"), Duration::ZERO);
    other.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    init.let_go();
    other.receive::<CreateContainer>(again).unwrap();
    create(&mut client, "c");
    assert_eq!(init.count(|body| matches!(body, RequestBody::CreateContainer { .. })), 1);
    // A read that comes too late takes nothing with it.
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: "c".into() }).unwrap();
    let late = client.call_within::<ReadStdout>(&read_request("c", ""), Duration::from_millis(30));
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded as i32);
    init.stream("c", "", |process| &process.stdout).write_all(b"kept").unwrap();
    assert_eq!(client.call::<ReadStdout>(&read_request("c", "")).unwrap().data, b"kept");
}

#[test]
fn a_signal_and_a_check_never_queue_behind_slow_work() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    init.hold_back(|body| matches!(body, RequestBody::Exec { .. }));
    let mut busy = sandbox.connect();
    let execs: Vec<u32> = (0..40)
        .map(|n| busy.send::<ExecProcess>(&exec_request("c", &format!("e{n}"), false), Duration::ZERO))
        .collect();
    busy.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
    client.call::<SignalProcess>(&signal_request("c", "", 15)).unwrap();
    init.let_go();
    for stream in execs {
        busy.receive::<ExecProcess>(stream).unwrap();
    }
    assert!(sandbox.agent_is_alive());
}

#[test]
fn the_network_is_set_in_an_order_that_works_and_a_missing_link_is_named() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    let interface = kata::Interface {
        name: "eth0".into(),
        hw_addr: "02:00:00:00:00:01".into(),
        ip_addresses: vec![kata::IpAddress { address: "10.0.2.15".into(), mask: "24".into(), family: 0 }],
        ..Default::default()
    };
    let request = kata::UpdateInterfaceRequest { interface: Some(interface.clone()) };
    init.fail_next(|body| matches!(body, RequestBody::Network), FailureKind::LinkNotFound, "no device");
    let (_, text) = client.refused::<UpdateInterface>(&request);
    assert!(text.starts_with("Link not found"), "{text}");
    assert_eq!(client.call::<UpdateInterface>(&request).unwrap(), interface);

    let route = |dest: &str, gateway: &str| kata::Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: "eth0".into(),
        ..Default::default()
    };
    let routes = vec![route("", "10.0.2.2"), route("10.0.2.0/24", "")];
    let request = kata::UpdateRoutesRequest { routes: Some(kata::Routes { routes }) };
    client.call::<UpdateRoutes>(&request).unwrap();
    let Some((_, Some(Plan::Network(steps)))) = init.world().asked.last().cloned() else { panic!("no plan") };
    let gateways: Vec<bool> = steps
        .iter()
        .map(|step| matches!(step, NetworkStep::Route(route) if route.gateway.is_some()))
        .collect();
    assert_eq!(gateways, [false, true]);
}

#[test]
fn the_sandbox_is_made_once_and_ends_after_its_answer() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    let request = kata::CreateSandboxRequest {
        hostname: "pod".into(),
        dns: vec!["nameserver 10.0.2.3".into()],
        storages: vec![kata::Storage {
            driver: "virtio-fs".into(),
            source: "kataShared".into(),
            mount_point: SHARED.into(),
            ..Default::default()
        }],
        sandbox_id: "s".into(),
        ..Default::default()
    };
    for _ in 0..2 {
        client.call::<CreateSandbox>(&request).unwrap();
    }
    assert_eq!(init.count(|body| matches!(body, RequestBody::SetHostname { .. })), 1);
    let resolv_conf = init.steps().into_iter().find_map(|step| match step {
        StorageStep::File { path, content } if path.ends_with("/resolv.conf") => Some(content),
        _ => None,
    });
    assert_eq!(resolv_conf.unwrap(), b"nameserver 10.0.2.3\n");
    let mount =
        StorageStep::VirtioFs { tag: "kataShared".into(), mount_point: SHARED.into(), read_only: false };
    assert!(init.steps().contains(&mount));
    let other = kata::CreateSandboxRequest { sandbox_id: "t".into(), ..request };
    assert_eq!(client.refused::<CreateSandbox>(&other).0, Code::AlreadyExists);
    let clock = kata::SetGuestDateTimeRequest { sec: 1_800_000_000, usec: 5 };
    client.call::<SetGuestDateTime>(&clock).unwrap();
    init.asked(|body| *body == RequestBody::SetClock { seconds: 1_800_000_000, microseconds: 5 });
    client.call::<DestroySandbox>(&kata::DestroySandboxRequest {}).unwrap();
    init.asked(|body| *body == RequestBody::PowerOff);
}

#[test]
fn want_of_memory_is_told_to_who_polls() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let init = &sandbox.init;
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    let mut poller = sandbox.connect();
    let poll = poller.send::<GetOOMEvent>(&kata::GetOomEventRequest {}, Duration::ZERO);
    poller.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(poller.next_response().is_err(), "it blocks while there is nothing");
    let killed = || Event::OutOfMemory { container: "c".into() };
    init.tell(killed());
    assert_eq!(poller.receive::<GetOOMEvent>(poll).unwrap().container_id, "c");
    // One that happened while nobody polled is not lost.
    init.tell(killed());
    eventually("an event is kept", || {
        client.call_within::<GetOOMEvent>(&kata::GetOomEventRequest {}, Duration::from_millis(500)).is_ok()
    });
}
