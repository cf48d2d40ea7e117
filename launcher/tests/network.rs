//! Network plans in a network namespace of the test's own, on veth pairs. Needs `ip` (Debian package iproute2).

mod harness;

use harness::{ALL_CAPABILITIES, Guest};
use nacre_protocols::init_launcher::*;
use rustix::thread::UnshareFlags;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

const FIRST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A guest whose thread has a network of its own: a loopback that is up, `veth0` and `veth1`.
fn guest() -> Option<Guest> {
    let guest = Guest::new()?;
    nacre_sys::exec::unshare(UnshareFlags::NEWNET).unwrap();
    nacre_sys::link::bring_loopback_up().unwrap();
    ip("link add veth0 address 02:00:00:00:00:01 type veth peer name veth1 address 02:00:00:00:00:02");
    Some(guest)
}

fn ip(arguments: &str) -> String {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("ip (Debian package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn apply(guest: &Guest, steps: Vec<NetworkStep>) -> Result<Vec<RouteFound>, LaunchFailure> {
    apply_and_look(guest, steps).map(|(_, routes)| routes)
}

fn apply_and_look(
    guest: &Guest,
    steps: Vec<NetworkStep>,
) -> Result<(Vec<InterfaceFound>, Vec<RouteFound>), LaunchFailure> {
    match guest.launch(Mode::Network, &Plan::Network(steps)).next_status() {
        Some((Status::Done(Outcome::Network { interfaces, routes }), _)) => Ok((interfaces, routes)),
        Some((Status::Failed(failure), _)) => Err(failure),
        other => panic!("{other:?}"),
    }
}

fn interface(hardware_address: [u8; 6], name: &str, addresses: &[(&str, u8)]) -> Interface {
    let addresses = addresses.iter().map(|(address, bits)| (address.parse().unwrap(), *bits)).collect();
    Interface { hardware_address, name: name.to_owned(), mtu: 1400, addresses, no_arp: false }
}

fn route(destination: Option<(&str, u8)>, gateway: Option<&str>) -> Route {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let destination = destination.map(|(text, bits)| (address(text), bits));
    let gateway = gateway.map(address);
    let ipv6 = destination.map(|(it, _)| it).or(gateway).is_some_and(|it| it.is_ipv6());
    let scope = if gateway.is_none() && !ipv6 { 253 } else { 0 };
    Route { destination, gateway, device: "eth0".to_owned(), source: None, scope, ipv6, flags: 0, mtu: 0 }
}

#[test]
fn an_interface_gets_its_name_addresses_and_routes() {
    let Some(guest) = guest() else { return };
    ip("address add 192.0.2.77/24 dev veth0");
    ip("link set veth1 up");
    let steps = |address: &str| {
        vec![
            // In the order in which it cannot be applied: the gateway is not reachable yet.
            NetworkStep::Route(route(None, Some("10.9.9.1"))),
            NetworkStep::Route(route(None, Some("fd00:9::1"))),
            NetworkStep::Route(route(Some(("10.9.9.1", 32)), None)),
            NetworkStep::Interface(interface(FIRST, "eth0", &[(address, 24), ("fd00:9::2", 64)])),
        ]
    };
    let routes = apply(&guest, steps("10.0.2.15")).unwrap();
    let shown = ip("-o address show dev eth0");
    assert!(shown.contains("10.0.2.15/24 brd 10.0.2.255") && shown.contains("fd00:9::2/64"), "{shown}");
    assert!(!shown.contains("192.0.2.77") && shown.contains("global nodad"), "{shown}");
    assert!(ip("-o link show dev eth0").contains("mtu 1400"));
    let has = |destination: Option<(&str, u8)>, gateway: Option<&str>| {
        routes.iter().any(|found| {
            found.destination == destination.map(|(text, bits)| (text.parse().unwrap(), bits))
                && found.gateway == gateway.map(|text| text.parse().unwrap())
                && found.device == "eth0"
        })
    };
    assert!(has(None, Some("10.9.9.1")) && has(Some(("10.9.9.1", 32)), None), "{routes:?}");
    assert!(has(None, Some("fd00:9::1")) && has(Some(("10.0.2.0", 24)), None), "{routes:?}");
    // Again, with another address: replaced, not added.
    let again = apply(&guest, steps("10.0.2.16")).unwrap();
    // Those of link-local addresses come when the kernel is ready.
    let ours = |routes: &[RouteFound]| {
        let link_local = |it: &&RouteFound| it.destination != Some(("fe80::".parse().unwrap(), 64));
        routes.iter().filter(link_local).count()
    };
    assert_eq!(ours(&again), ours(&routes), "{again:?}");
    let shown = ip("-o -4 address show dev eth0");
    assert!(shown.contains("10.0.2.16/24") && !shown.contains("10.0.2.15"), "{shown}");
}

#[test]
fn interfaces_are_told_and_neighbours_set() {
    let Some(guest) = guest() else { return };
    let steps = |lladdr: [u8; 6]| {
        let neighbour = |address: &str, state| {
            NetworkStep::Neighbour(Neighbour {
                address: address.parse().unwrap(),
                device: "eth0".to_owned(),
                hardware_address: lladdr,
                state,
                flags: 0,
            })
        };
        let interface = interface(FIRST, "eth0", &[("10.0.2.15", 24), ("fd00:9::2", 64)]);
        vec![neighbour("10.0.2.1", 0x80), neighbour("fd00:9::1", 0), NetworkStep::Interface(interface)]
    };
    for lladdr in [[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 10]] {
        let (interfaces, _) = apply_and_look(&guest, steps(lladdr)).unwrap();
        let eth0 = interfaces.iter().find(|it| it.name == "eth0").unwrap();
        assert_eq!((eth0.hardware_address, eth0.mtu, eth0.flags & 1), (FIRST, 1400, 1));
        for (address, bits) in [("10.0.2.15", 24), ("fd00:9::2", 64)] {
            assert!(eth0.addresses.contains(&(address.parse().unwrap(), bits)), "{:?}", eth0.addresses);
        }
        assert!(interfaces.iter().any(|it| it.name == "lo"), "{interfaces:?}");
        let shown = ip("neighbour show dev eth0");
        let last = lladdr[5];
        assert!(shown.contains(&format!("10.0.2.1 lladdr 02:00:00:00:00:{last:02x} PERMANENT")), "{shown}");
        assert!(shown.contains(&format!("fd00:9::1 lladdr 02:00:00:00:00:{last:02x} PERMANENT")), "{shown}");
    }
}

#[test]
fn a_name_that_is_taken_is_swapped() {
    let Some(guest) = guest() else { return };
    ip("link set veth1 up");
    let steps = vec![NetworkStep::Interface(Interface { no_arp: true, ..interface(FIRST, "veth1", &[]) })];
    apply(&guest, steps).unwrap();
    let first = ip("-o link show dev veth1");
    assert!(
        first.contains("02:00:00:00:00:01") && first.contains("NOARP") && first.contains(",UP"),
        "{first}"
    );
    let second = ip("-o link show dev veth0");
    assert!(second.contains("02:00:00:00:00:02") && second.contains(",UP"), "{second}");
}

#[test]
fn a_device_that_does_not_come_is_link_not_found() {
    let Some(guest) = guest() else { return };
    let began = Instant::now();
    let steps = vec![NetworkStep::Interface(interface([2, 9, 9, 9, 9, 9], "eth0", &[]))];
    let failure = apply(&guest, steps).unwrap_err();
    assert_eq!((failure.stage, failure.errno), (LaunchStage::Network, 19), "{failure:?}");
    assert!(failure.message.contains("Link not found") && failure.message.contains("02:09:09:09:09:09"));
    assert!(began.elapsed() >= Duration::from_secs(3));
}

#[test]
fn a_device_may_come_late() {
    let Some(guest) = guest() else { return };
    let steps = vec![NetworkStep::Interface(interface([2, 0, 0, 0, 0, 3], "eth0", &[("10.0.2.15", 24)]))];
    let launched = guest.launch(Mode::Network, &Plan::Network(steps));
    std::thread::sleep(Duration::from_millis(300));
    ip("link add late0 address 02:00:00:00:00:03 type veth peer name late1");
    assert!(matches!(launched.next_status(), Some((Status::Done(_), _))));
    assert!(ip("-o address show dev eth0").contains("10.0.2.15/24"));
}

#[test]
fn what_the_kernel_refuses_is_named() {
    let Some(guest) = guest() else { return };
    let interface = NetworkStep::Interface(interface(SECOND, "eth0", &[("10.0.2.15", 24)]));
    let unreachable = NetworkStep::Route(route(Some(("10.1.0.0", 16)), Some("172.16.0.1")));
    let failure = apply(&guest, vec![interface, unreachable]).unwrap_err();
    assert_eq!((failure.stage, failure.errno), (LaunchStage::Network, 101), "{failure:?}");
    assert!(failure.message.contains("10.1.0.0/16 through eth0"), "{failure:?}");
    let nowhere =
        NetworkStep::Route(Route { device: "none0".to_owned(), ..route(Some(("10.1.0.0", 16)), None) });
    assert_eq!(apply(&guest, vec![nowhere]).unwrap_err().errno, 19);
}

#[test]
fn a_network_launcher_has_one_capability_and_a_filter() {
    let Some(guest) = guest() else { return };
    // It waits for a device that does not come: time to look at it.
    let steps = vec![NetworkStep::Interface(interface([2, 9, 9, 9, 9, 9], "eth0", &[]))];
    let launched = guest.launch_with(Mode::Network, &Plan::Network(steps), ALL_CAPABILITIES, None, &[]);
    std::thread::sleep(Duration::from_millis(500));
    let status = std::fs::read_to_string(format!("/proc/{}/status", launched.child.pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(field(set), "0000000000001000", "{set}");
    }
    assert_eq!(field("CapBnd"), "0000000000000000");
    assert_eq!(field("CapInh"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp:"), "2");
}
