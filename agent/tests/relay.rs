//! Terminals whose streams are connections of the host's.

mod support;

use nacre_protocols::host_agent::kata;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::ttrpc::Code;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use support::{PATIENCE, Sandbox, can_run};

/// A container with one process at a terminal, and the host's ends of its input and output. The terminal changes nothing that
/// goes through it.
fn relayed() -> (Sandbox, [UnixStream; 2], File) {
    let mut sandbox = Sandbox::new();
    let mut client = sandbox.connect();
    let process = || kata::Process { args: vec!["/bin/app".into()], terminal: true, ..Default::default() };
    let spec = kata::Spec {
        root: Some(kata::Root { path: "/run/kata-containers/shared/containers/c".into(), readonly: true }),
        process: Some(process()),
        ..Default::default()
    };
    let create =
        kata::CreateContainerRequest { container_id: "c".into(), oci: Some(spec), ..Default::default() };
    client.call::<CreateContainer>(&create).unwrap();
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: "c".into() }).unwrap();
    let terminal = sandbox.init.stream("c", "", |process| &process.stdout);
    let mut settings = rustix::termios::tcgetattr(&terminal).unwrap();
    settings.make_raw();
    rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &settings).unwrap();
    // The agent that made it knows nothing of connections; the next does.
    sandbox.kill_agent();
    let ends = sandbox.init.relay("c", "");
    for end in &ends {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    sandbox.start_agent();
    (sandbox, ends, terminal)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|number| (number % 251) as u8).collect()
}

#[test]
fn what_is_said_at_a_terminal_goes_both_ways_to_its_end() {
    if !can_run() {
        return;
    }
    let (sandbox, [mut input, mut output], mut terminal) = relayed();
    input.write_all(b"heard").unwrap();
    let mut heard = [0; 5];
    terminal.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"heard");
    terminal.write_all(b"said").unwrap();
    let mut said = [0; 4];
    output.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"said");
    let mut client = sandbox.connect();
    // It is the host's, and there is nothing for anybody else to read; but its size is set as ever.
    let read = kata::ReadStreamRequest { container_id: "c".into(), len: 100, ..Default::default() };
    assert_eq!(client.call::<ReadStdout>(&read).unwrap().data, b"");
    let write =
        kata::WriteStreamRequest { container_id: "c".into(), data: b"x".into(), ..Default::default() };
    assert_eq!(client.refused::<WriteStdin>(&write).0, Code::Internal);
    let size =
        kata::TtyWinResizeRequest { container_id: "c".into(), row: 31, column: 97, ..Default::default() };
    client.call::<TtyWinResize>(&size).unwrap();
    let found = rustix::termios::tcgetwinsize(&terminal).unwrap();
    assert_eq!((found.ws_row, found.ws_col), (31, 97));
    // Its last words, then its end.
    terminal.write_all(b"last").unwrap();
    drop(terminal);
    sandbox.init.close_streams("c", "");
    sandbox.init.exit("c", "", 0, false);
    let mut last = Vec::new();
    output.read_to_end(&mut last).unwrap();
    assert_eq!(last, b"last");
}

#[test]
fn agents_that_die_lose_nothing_of_a_terminal() {
    if !can_run() {
        return;
    }
    const LENGTH: usize = 2_000_000;
    let (mut sandbox, [input, output], terminal) = relayed();
    let ways = |mut from: Box<dyn Write + Send>, mut to: Box<dyn Read + Send>, slow: bool| {
        let writer = std::thread::spawn(move || from.write_all(&pattern(LENGTH)).map(|()| from));
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut buffer) = (Vec::<u8>::new(), [0; 4096]);
            while bytes.len() < LENGTH {
                let count = to.read(&mut buffer)?;
                assert!(count > 0, "the end after {} bytes", bytes.len());
                bytes.extend(buffer.iter().take(count));
                // So that something is always under way.
                if slow && bytes.len() % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok::<_, std::io::Error>(bytes)
        });
        (writer, reader)
    };
    let to_host = ways(Box::new(terminal.try_clone().unwrap()), Box::new(output), true);
    let from_host = ways(Box::new(input), Box::new(terminal), false);
    let mut deaths = 0;
    while !to_host.1.is_finished() || !from_host.1.is_finished() || deaths < 5 {
        std::thread::sleep(Duration::from_millis(30));
        sandbox.kill_agent();
        sandbox.start_agent();
        deaths += 1;
        assert!(deaths < 1000, "it does not come to its end");
    }
    eprintln!("{deaths} deaths");
    for (writer, reader) in [to_host, from_host] {
        drop(writer.join().unwrap().unwrap());
        assert!(reader.join().unwrap().unwrap() == pattern(LENGTH), "the bytes came out otherwise");
    }
}
