//! The network from the guest: what it reaches, what it does not, and who reaches it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use nacre::net::{Engine, GATEWAY, NetConfig, PublishedPort, Transport, UserNet};
use nacre::vmm::{Vm, find_program};

use crate::support::{Guest, config, parts, skip};

/// Bytes of the bulk transfer.
const BULK: usize = 64 << 20;

#[test]
fn the_guest_reaches_what_is_allowed_and_is_reached_where_published() {
    let Some(parts) = parts() else { return };
    if find_program("passt").is_none() {
        return skip("passt is not installed");
    }
    let allowed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forbidden = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let secret = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let [open_port, closed_port] = [&allowed, &forbidden].map(|l| l.local_addr().unwrap().port());
    let udp_port = secret.local_addr().unwrap().port();
    let (web, echo) = (free_tcp_port(), free_udp_port());
    let publish =
        |host, guest, protocol| PublishedPort { address: Ipv4Addr::LOCALHOST, host, guest, protocol };
    let net = UserNet {
        host_tcp: vec![open_port],
        publish: vec![publish(web, 80, Transport::Tcp), publish(echo, 7, Transport::Udp)],
        engine: Engine::Passt,
    };
    let guest = Guest::boot(parts, |config| config.network = NetConfig::User(net));
    set_up(&guest);

    serve_greeting(allowed);
    assert_eq!(fetch(&guest, &GATEWAY.to_string(), open_port), "hello from the host\ncode 0\n");

    // The same host, another port: neither by the gateway, nor by any other name of the host.
    let own = own_address();
    let names = [GATEWAY.to_string(), "127.0.0.1".into(), "0.0.0.0".into(), own.to_string()];
    guest.run("ip route add 127.0.0.0/8 dev eth0 2>/dev/null; ip link set lo down");
    for name in names {
        assert_eq!(fetch(&guest, &name, closed_port), "code 1\n", "{name}");
        guest.run(&format!("echo leak | timeout 1 nc -u {name} {udp_port}"));
    }
    forbidden.set_nonblocking(true).unwrap();
    assert!(forbidden.accept().is_err(), "the guest reached a closed port of the host");
    secret.set_nonblocking(true).unwrap();
    assert!(secret.recv(&mut [0; 10]).is_err(), "the guest reached a UDP service of the host");
    let counters = guest.vm.net_counters().unwrap();
    assert!(counters.dropped_host > 0, "{counters:?}");
    println!("{counters:?}, {:?}", guest.vm.device_notes());

    let page = "socat TCP-LISTEN:80,fork,reuseaddr EXEC:'echo from the guest'";
    let udp = "socat UDP-RECVFROM:7,fork EXEC:cat";
    guest.run(&format!(
        "ip link set lo up; ({page}) >/dev/null 2>&1 </dev/null & ({udp}) >/dev/null 2>&1 </dev/null &"
    ));
    assert_eq!(read_from(web), "from the guest\n");
    assert_eq!(datagram(echo), b"ping?");
}

#[test]
fn bulk_data_passes_the_filter() {
    let Some(parts) = parts() else { return };
    if find_program("passt").is_none() {
        return skip("passt is not installed");
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let net = UserNet { host_tcp: vec![port], ..UserNet::default() };
    let guest = Guest::boot(parts, |config| config.network = NetConfig::User(net));
    set_up(&guest);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&vec![b'x'; BULK]).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    let start = Instant::now();
    let out = guest.run(&format!("socat -u -b 65536 TCP:{GATEWAY}:{port} - | md5sum"));
    println!("64 MiB from the host: {:?}", start.elapsed());
    assert!(out.starts_with(crate::fs::MD5_OF_BIG), "{out}");
    let start = Instant::now();
    guest.run(&format!(
        "dd if=/dev/zero bs=1M count=64 2>/dev/null | socat -u -b 65536 - TCP:{GATEWAY}:{port}"
    ));
    assert_eq!(server.join().unwrap(), BULK);
    println!("64 MiB to the host: {:?}", start.elapsed());
}

#[test]
fn a_taken_port_is_named() {
    let Some(parts) = parts() else { return };
    if find_program("passt").is_none() {
        return skip("passt is not installed");
    }
    let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let host = taken.local_addr().unwrap().port();
    let (_dir, mut config) = config(parts);
    let publish =
        vec![PublishedPort { address: Ipv4Addr::UNSPECIFIED, host, guest: 80, protocol: Transport::Tcp }];
    config.network = NetConfig::User(UserNet { publish, ..UserNet::default() });
    let error = Vm::start(config).err().expect("the port is taken").to_string();
    assert!(error.contains(&host.to_string()), "{error}");
}

#[test]
fn qemus_own_network_works_on_request_and_warns() {
    let Some(parts) = parts() else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let guest = Guest::boot(parts, |config| {
        config.network = NetConfig::User(UserNet { engine: Engine::Slirp, ..UserNet::default() });
    });
    set_up(&guest);
    serve_greeting(listener);
    assert_eq!(fetch(&guest, &GATEWAY.to_string(), port), "hello from the host\ncode 0\n");
    let notices = guest.vm.notices().join("\n");
    assert!(notices.contains("loopback"), "{notices}");
}

#[test]
fn without_a_network_there_is_no_interface() {
    let Some(parts) = parts() else { return };
    let guest = Guest::boot(parts, |_| {});
    assert_eq!(guest.vm.guest_net(), None);
    assert_eq!(guest.run("ls /sys/class/net"), "lo\n");
}

/// Sets the interface up as the agent would be told to.
fn set_up(guest: &Guest) {
    let net = guest.vm.guest_net().unwrap();
    let out = guest.run(&format!(
        "exec 2>&1; ip link set eth0 mtu {} up && ip addr add {}/{} dev eth0 && ip route add default via {} && \
         cat /sys/class/net/eth0/address",
        net.mtu, net.address, net.prefix, net.gateway
    ));
    assert_eq!(out.trim(), net.mac_string());
}

/// Connects from the guest and prints what comes. It sends no early end-of-file: passt of early 2023 sometimes
/// loses the answer's end then.
fn fetch(guest: &Guest, name: &str, port: u16) -> String {
    guest.run(&format!("socat -u TCP:{name}:{port},connect-timeout=2 - 2>/dev/null; echo code $?"))
}

fn serve_greeting(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"hello from the host\n");
        }
    });
}

fn read_from(port: u16) -> String {
    for _ in 0..30 {
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            if stream.read_to_string(&mut text).is_ok() && !text.is_empty() {
                return text;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    String::new()
}

fn datagram(port: u16) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = [0; 100];
    for _ in 0..30 {
        socket.send_to(b"ping?", (Ipv4Addr::LOCALHOST, port)).unwrap();
        if let Ok(n) = socket.recv(&mut answer) {
            return answer[..n].to_vec();
        }
    }
    Vec::new()
}

fn free_tcp_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn free_udp_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// An address of this host other than loopback; loopback where there is none.
fn own_address() -> Ipv4Addr {
    let out = Command::new("hostname").arg("-I").output().map(|out| out.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&out).into_owned();
    text.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(Ipv4Addr::LOCALHOST)
}
