//! A guest's Ethernet frame: judging it never panics, and never lets loopback or a foreign sender through.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use nacre::net::filter::{Decision, Host, Policy};
use nacre::net::flows::Flow;
use nacre::net::frame::{Body, read};
use nacre::net::handshake::completing_ack;
use nacre::net::{GUEST_ADDRESS, GUEST_MAC, UserNet};

struct Nobody;

impl Host for Nobody {
    fn owns(&mut self, _address: Ipv4Addr) -> bool {
        false
    }

    fn answers(&mut self, _flow: &Flow) -> bool {
        false
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = completing_ack(bytes);
    let policy = Policy::new(&UserNet { host_tcp: vec![5000], ..UserNet::default() });
    if policy.judge(bytes, &mut Nobody) != Decision::Allow {
        return;
    }
    let frame = read(bytes).expect("what is allowed was read");
    assert_eq!(frame.source_mac, GUEST_MAC);
    if let Body::Ipv4 { source, destination, .. } = frame.body {
        assert_eq!(source, GUEST_ADDRESS);
        assert!(!destination.is_loopback() && !destination.is_unspecified() && !destination.is_link_local());
    }
});
