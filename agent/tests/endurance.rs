//! What adds up: a peer that does all it can, thousands of containers, hundreds of deaths. `cargo xtask test --all` counts higher.

mod support;

use nacre_protocols::host_agent::kata;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::ttrpc::{Request as Frame, request_frame};
use std::io::Write;
use std::time::{Duration, Instant};
use support::requests::{check, create_and_start, exec as start_exec, read, wait};
use support::{Sandbox, can_run, eventually};

/// The one number for every day, the other with `--all`.
fn count(few: usize, all: usize) -> usize {
    if std::env::var_os("NACRE_TEST_ALL").is_some() { all } else { few }
}

#[test]
fn containers_that_come_and_go_leave_no_descriptor_and_no_memory() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let mut round = |number: usize| {
        let id = format!("c{number}");
        create_and_start(&mut client, &id);
        let kill = kata::SignalProcessRequest { container_id: id.clone(), exec_id: String::new(), signal: 9 };
        client.call::<SignalProcess>(&kill).unwrap();
        sandbox.init.exit(&id, "", 137, false);
        assert_eq!(client.call::<WaitProcess>(&wait(&id, "")).unwrap().status, 137);
        client
            .call::<RemoveContainer>(&kata::RemoveContainerRequest { container_id: id, timeout: 0 })
            .unwrap();
        // Only what is asked from here on is of interest.
        sandbox.init.world().asked.clear();
    };
    (0..100).for_each(&mut round);
    let before = (sandbox.open_files(), sandbox.anonymous());
    let rounds = count(400, 10_000);
    (100..100 + rounds).for_each(&mut round);
    let after = (sandbox.open_files(), sandbox.anonymous());
    eprintln!("{rounds} rounds: descriptors and anonymous KiB {before:?}, then {after:?}");
    assert_eq!(before.0, after.0, "descriptors");
    assert!(after.1 <= before.1 + 64, "anonymous memory went from {} to {} KiB", before.1, after.1);
    assert!(sandbox.init.world().processes.is_empty());
}

#[test]
fn many_deaths_lose_nothing_of_ten_containers() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let ids: Vec<String> = (0..10).map(|number| format!("c{number}")).collect();
    let mut client = sandbox.connect();
    ids.iter().for_each(|id| create_and_start(&mut client, id));
    let deaths = count(40, 1000);
    let mut stalls = Vec::new();
    for death in 0..deaths {
        let id = &ids[death % ids.len()];
        let exec = format!("e{death}");
        start_exec(&mut client, id, &exec);
        // Work of every kind is under way when it dies.
        client.send::<WaitProcess>(&wait(id, &exec), Duration::ZERO);
        client.send::<GetOOMEvent>(&kata::GetOomEventRequest {}, Duration::ZERO);
        sandbox.init.stream(id, &exec, |process| &process.stdout).write_all(exec.as_bytes()).unwrap();
        let start = Instant::now();
        sandbox.kill_agent();
        sandbox.init.exit(id, &exec, (death % 100) as u8, false);
        sandbox.start_agent();
        client = sandbox.connect();
        check(&mut client);
        stalls.push(start.elapsed());
        let read = kata::ReadStreamRequest { received: Some(0), ..read(id, &exec, 100) };
        assert_eq!(client.call::<ReadStdout>(&read).unwrap().data, exec.as_bytes());
        assert_eq!(client.call::<WaitProcess>(&wait(id, &exec)).unwrap().status, (death % 100) as i32);
    }
    stalls.sort();
    // Figures to look at: on a machine that does other things, too, they say little.
    eprintln!(
        "{deaths} deaths: stalls of {:?} (median), {:?} (99 %)",
        stalls[deaths / 2],
        stalls[deaths * 99 / 100]
    );
    for id in &ids {
        client
            .call::<RemoveContainer>(&kata::RemoveContainerRequest { container_id: id.clone(), timeout: 0 })
            .unwrap();
    }
    assert!(sandbox.init.world().processes.is_empty());
}

/// Everything that a peer can do at once: many connections, frames that are long, that stop in the middle, that are none, and never
/// a read. It costs the agent little, and nobody else his answers.
#[test]
fn a_hostile_peer_costs_little_memory_and_no_processor_time_when_it_is_still() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    create_and_start(&mut client, "c");
    check(&mut client);
    let before = sandbox.anonymous();
    let growth_max = 512;
    let within = |what: &str| {
        let after = sandbox.anonymous();
        eprintln!("{what}: anonymous {before} KiB, then {after} KiB");
        assert!(after <= before + growth_max, "{what}: anonymous memory went from {before} to {after} KiB");
    };
    let header =
        |length: u32| [length.to_be_bytes(), 1u32.to_be_bytes(), [1, 0, 0, 0]].concat()[..10].to_vec();

    for _ in 0..10_000 {
        drop(sandbox.dial().unwrap());
    }
    check(&mut client);
    within("10,000 connections");

    let hostile = || {
        let socket = sandbox.dial().unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    };
    let mut open = Vec::new();
    // A frame of 4 MiB for a method that takes no such, and one that is no message at all.
    for start in [&b"\x0a\x0bgrpc.Health\x12\x05Check\x1a"[..], &[0xff; 16]] {
        let mut socket = hostile();
        let mut frame = header(4 << 20);
        frame.extend(start);
        frame.resize(10 + (4 << 20), 0xff);
        let _ = socket.write_all(&frame);
        open.push(socket);
    }
    check(&mut client);
    within("frames of 4 MiB");

    // Half frames: one that a method would take, as far as it comes, and many that are only announced.
    for _ in 0..8 {
        let mut socket = hostile();
        let mut frame = header(4 << 20);
        frame.extend(b"\x0a\x11grpc.AgentService\x12\x0aWriteStdin");
        frame.resize(600, 0);
        let _ = socket.write_all(&frame);
        open.push(socket);
    }
    check(&mut client);
    within("half frames");

    // Requests without end, whose answers nobody reads.
    for _ in 0..3 {
        let mut socket = hostile();
        let frame = Frame { service: "grpc.Health".into(), method: "Version".into(), ..Default::default() };
        let frame = request_frame(1, &frame).unwrap();
        let many: Vec<u8> = frame.iter().copied().cycle().take(frame.len() * 4096).collect();
        while socket.write_all(&many).is_ok() {}
        open.push(socket);
    }
    check(&mut client);
    within("answers that are not read");

    // Now nothing moves, and nothing is done.
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sandbox.agent_pid())).unwrap();
        let fields =
            stat.rsplit(')').next().unwrap().split(' ').filter_map(|field| field.parse::<i64>().ok());
        // utime and stime, in hundredths of a second (proc(5)); the first number behind the name is field 4.
        fields.skip(10).take(2).sum::<i64>()
    };
    let start = used();
    std::thread::sleep(Duration::from_secs(3));
    assert!(used() - start <= 3, "{} hundredths of a second in 3 s", used() - start);
    drop(open);
    eventually("the places are free", || sandbox.connect().try_check());
}
