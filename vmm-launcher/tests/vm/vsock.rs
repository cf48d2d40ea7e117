//! vsock from both sides: bulk, half-close, many connections, refusals.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nacre::devices::vsock::client;

use crate::support::{BOOT_LIMIT, Guest, parts};

/// Bytes of the bulk transfers.
const BULK: usize = 100 << 20;

#[test]
fn bulk_data_half_close_and_refusals_work_both_ways() {
    let Some(parts) = parts() else { return };
    let guest = Guest::boot(parts, |_| {});
    host_to_guest_and_back(&guest);
    half_close_lets_the_other_direction_go_on(&guest);
    guest_reaches_a_host_socket(&guest);
    a_port_without_listener_refuses(&guest);
    many_connections_at_once(&guest);
    clients_that_leave_at_once_do_no_harm(&guest);
    a_reader_that_stops_does_not_stop_the_others(&guest);
    assert_eq!(guest.vm.device_notes(), Vec::<String>::new());
}

fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(step).collect()
}

fn host_to_guest_and_back(guest: &Guest) {
    guest.serve("socat -t 600 -b 65536 VSOCK-LISTEN:5000,fork EXEC:cat", 5000);
    let stream = guest.vm.connect("echo", 5000, BOOT_LIMIT).unwrap();
    let data = pattern(BULK);
    let mut writer = stream.try_clone().unwrap();
    let start = Instant::now();
    let copy = data.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::with_capacity(BULK);
    (&stream).read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == data, "{} of {} bytes came back, or changed", back.len(), data.len());
    let seconds = start.elapsed().as_secs_f64();
    println!("echo of 100 MiB: {seconds:.2} s, {:.0} MB/s each way", BULK as f64 / seconds / 1e6);
}

fn half_close_lets_the_other_direction_go_on(guest: &Guest) {
    let sum =
        guest.run("exec 2>&1; dd if=/dev/zero bs=1M count=20 2>/dev/null | md5sum; sleep 0.2; echo late");
    assert!(sum.contains("8f4e33f3dc3e414ff94e5fb6905cba8c"), "{sum}");
    assert!(sum.ends_with("late\n"), "{sum}");
}

fn guest_reaches_a_host_socket(guest: &Guest) {
    let mut path = guest.vm.vsock_path().as_os_str().to_owned();
    path.push("_777");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("got {}", all.len()).as_bytes()).unwrap();
    });
    let start = Instant::now();
    let out =
        guest.run("dd if=/dev/zero bs=1M count=50 2>/dev/null | socat -b 65536 -t 60 - VSOCK-CONNECT:2:777");
    println!("guest to host, 50 MiB: {:?}", start.elapsed());
    assert_eq!(out, "got 52428800");
    serving.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    let refused = guest.run("socat - VSOCK-CONNECT:2:778 2>&1 </dev/null; echo code $?");
    assert!(refused.contains("code 1"), "{refused}");
}

fn a_port_without_listener_refuses(guest: &Guest) {
    let error = client::connect(guest.vm.vsock_path(), 4444, Duration::from_secs(20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn many_connections_at_once(guest: &Guest) {
    let connect = || guest.vm.connect("echo", 5000, BOOT_LIMIT).unwrap();
    let mut streams: Vec<_> = (0..60).map(|_| connect()).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("hello {n}\n").as_bytes()).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let expected = format!("hello {n}\n");
        let mut line = vec![0; expected.len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(String::from_utf8_lossy(&line), expected);
    }
}

fn clients_that_leave_at_once_do_no_harm(guest: &Guest) {
    use std::os::unix::net::UnixStream;
    for n in 0..200 {
        let mut stream = UnixStream::connect(guest.vm.vsock_path()).unwrap();
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"CONN").unwrap(),
            _ => stream.write_all(b"CONNECT 5000\n").unwrap(),
        }
    }
    assert_eq!(guest.run("echo alive"), "alive\n");
}

fn a_reader_that_stops_does_not_stop_the_others(guest: &Guest) {
    let mut lazy = guest.vm.connect("echo", 5000, BOOT_LIMIT).unwrap();
    lazy.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let chunk = vec![7; 1 << 20];
    let mut sent = 0;
    // Nobody reads what comes back, so at some point the chain of buffers is full and the write stops.
    while let Ok(n) = lazy.write(&chunk) {
        sent += n;
        assert!(sent < 64 << 20, "nothing held the writer back");
    }
    assert_eq!(guest.run("echo still alive"), "still alive\n");
    lazy.shutdown(Shutdown::Write).unwrap();
    lazy.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut back = Vec::new();
    lazy.read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), sent);
}
