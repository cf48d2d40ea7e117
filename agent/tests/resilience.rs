//! What the agent endures: its own death, at any moment.

mod support;

use nacre_protocols::agent_init::{FailureKind, RequestBody};
use nacre_protocols::host_agent::kata;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::{Plan, StorageStep};
use std::io::Write;
use std::time::Duration;
use support::client::Client;
use support::requests::*;
use support::{Sandbox, can_run, eventually};

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
fn a_container_that_cannot_be_rolled_back_at_once_can_be_removed_or_made_anew() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let remove = kata::RemoveContainerRequest { container_id: "c".into(), timeout: 0 };
    let start = kata::StartContainerRequest { container_id: "c".into() };
    let is_left = || {
        let (mut mounts, mut unmounts) = (0, 0);
        for step in sandbox.init.steps() {
            match step {
                StorageStep::Tmpfs { .. } => mounts += 1,
                StorageStep::Unmount { .. } => unmounts += 1,
                _ => {}
            }
        }
        mounts - unmounts
    };
    for is_made_anew in [false, true] {
        let fails = |picks| sandbox.init.fail_next(picks, FailureKind::System, "no memory");
        fails(|body| matches!(body, RequestBody::CreateContainer { .. }));
        fails(|body| matches!(body, RequestBody::RemoveContainer { .. }));
        let request = create_request("c", shm());
        assert_eq!(client.refused::<CreateContainer>(&request).1, "no memory");
        assert_eq!(is_left(), 1, "its mount");
        assert_eq!(client.refused::<StartContainer>(&start).0, Code::FailedPrecondition);
        if is_made_anew {
            client.call::<CreateContainer>(&request).unwrap();
            client.call::<StartContainer>(&start).unwrap();
        }
        // What the fake has is a container only where it was made.
        let removed = client.call::<RemoveContainer>(&remove);
        assert!(removed.is_ok(), "{removed:?}");
        assert_eq!(is_left(), 0);
        assert!(client.refused::<RemoveContainer>(&remove).1.contains("Invalid container id"));
    }
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
