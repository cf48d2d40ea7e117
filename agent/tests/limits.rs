//! What the agent may, and how much of anything: peers that flood or never read, containers that flood.

mod support;

use nacre_agent::container::PROCESSES_MAX;
use nacre_protocols::host_agent::kata;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::ttrpc::{Code, Request as Frame, request_frame};
use nacre_protocols::names::AGENT_UID;
use std::io::Write;
use std::time::Duration;
use support::client::Client;
use support::requests::*;
use support::{Sandbox, can_run, eventually};

/// How much the agent's memory may grow in any of these tests, in KiB: the queue of one connection that is not
/// read, with room for what the build with debug assertions needs on top.
const GROWTH_MAX: u64 = 10 * 1024;

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
