//! Which frames of the guest go on. The default is no; every reason to say yes stands here.

use std::net::Ipv4Addr;

use super::flows::Flow;
use super::frame::{Body, Frame, Payload, Unreadable, read};
use super::{DNS, GATEWAY, GUEST_ADDRESS, GUEST_MAC, PREFIX, Transport, UserNet};

const DNS_PORT: u16 = 53;

/// What a guest may reach of the host.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    host_tcp: Vec<u16>,
    /// Ports of the guest that the host leads to: from these it answers.
    published_tcp: Vec<u16>,
}

/// What the filter needs to know about the host at this moment.
pub trait Host {
    /// Whether the address is one of the host's own.
    fn owns(&mut self, address: Ipv4Addr) -> bool;
    /// Whether the guest answers a datagram that came from there.
    fn answers(&mut self, flow: &Flow) -> bool;
}

/// Go on or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Drop(Reason),
}

/// Why a frame ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unreadable(Unreadable),
    /// Not the guest's own hardware or IPv4 address.
    Spoofed,
    /// A service of the host that is not on the list.
    Host,
    /// An address that leads nowhere but to the host or its link: loopback, link-local, multicast, reserved.
    Special,
    /// The guest's own network, in which there is nobody.
    OwnNetwork,
}

impl Policy {
    /// The policy of a configuration.
    #[must_use]
    pub fn new(config: &UserNet) -> Policy {
        let published = config.publish.iter().filter(|port| port.protocol == Transport::Tcp);
        Policy {
            host_tcp: config.host_tcp.clone(),
            published_tcp: published.map(|port| port.guest).collect(),
        }
    }

    /// Judges a frame that the guest sent.
    pub fn judge(&self, bytes: &[u8], host: &mut impl Host) -> Decision {
        let frame = match read(bytes) {
            Ok(frame) => frame,
            Err(fault) => return Decision::Drop(Reason::Unreadable(fault)),
        };
        match self.check(&frame, host) {
            Ok(()) => Decision::Allow,
            Err(reason) => Decision::Drop(reason),
        }
    }

    fn check(&self, frame: &Frame, host: &mut impl Host) -> Result<(), Reason> {
        if frame.source_mac != GUEST_MAC {
            return Err(Reason::Spoofed);
        }
        let (source, destination, payload) = match frame.body {
            // Zero: the guest asks whether its address is taken (RFC 5227).
            Body::ArpRequest { sender } if sender == GUEST_ADDRESS || sender.is_unspecified() => {
                return Ok(());
            }
            Body::ArpRequest { .. } => return Err(Reason::Spoofed),
            Body::Ipv4 { source, destination, payload } => (source, destination, payload),
        };
        if source != GUEST_ADDRESS {
            return Err(Reason::Spoofed);
        }
        if destination == DNS {
            let question = matches!(payload, Payload::Udp { destination: DNS_PORT, .. });
            return if question { Ok(()) } else { Err(Reason::OwnNetwork) };
        }
        if destination == GATEWAY {
            return self.check_host(destination, payload, host);
        }
        if in_guest_network(destination) {
            return Err(Reason::OwnNetwork);
        }
        if is_special(destination) {
            return Err(Reason::Special);
        }
        if host.owns(destination) {
            return self.check_host(destination, payload, host);
        }
        Ok(())
    }

    /// To the host itself: listed services, and answers to what the host began.
    fn check_host(&self, address: Ipv4Addr, payload: Payload, host: &mut impl Host) -> Result<(), Reason> {
        let allowed = match payload {
            Payload::Tcp { source, destination, acknowledges } => {
                // Only a segment without ACK can open a connection (RFC 9293, 3.5).
                self.host_tcp.contains(&destination) || (acknowledges && self.published_tcp.contains(&source))
            }
            Payload::Udp { source, destination } => {
                host.answers(&Flow { peer: address, peer_port: destination, guest_port: source })
            }
            Payload::IcmpEcho => false,
        };
        if allowed { Ok(()) } else { Err(Reason::Host) }
    }
}

fn in_guest_network(address: Ipv4Addr) -> bool {
    (u32::from(address) ^ u32::from(GUEST_ADDRESS)) >> (32 - PREFIX) == 0
}

/// 0.0.0.0/8 and 127.0.0.0/8 are the host to the host's own `connect`; 169.254.0.0/16 holds the credentials of
/// cloud machines; the rest are no single machine (RFC 6890).
fn is_special(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first == 0 || address.is_loopback() || address.is_link_local() || first >= 224
}

#[cfg(test)]
mod tests {
    use super::super::frame::arp_request;
    use super::super::frame::tests::{packet, tcp, udp};
    use super::super::{Engine, PublishedPort};
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;

    struct TestHost;

    impl Host for TestHost {
        fn owns(&mut self, address: Ipv4Addr) -> bool {
            address == OWN
        }

        fn answers(&mut self, flow: &Flow) -> bool {
            *flow == Flow { peer: GATEWAY, peer_port: 40_000, guest_port: 5353 }
        }
    }

    fn judge(frame: &[u8]) -> Decision {
        let published =
            PublishedPort { address: Ipv4Addr::UNSPECIFIED, host: 8080, guest: 80, protocol: Transport::Tcp };
        let config = UserNet { host_tcp: vec![5000], publish: vec![published], engine: Engine::Passt };
        let mut frame = frame.to_vec();
        if let Some(mac) = frame.get_mut(6..12)
            && mac == super::super::frame::tests::MAC
        {
            mac.copy_from_slice(&GUEST_MAC);
        }
        Policy::new(&config).judge(&frame, &mut TestHost)
    }

    fn to(destination: impl Into<Ipv4Addr>, protocol: u8, inner: &[u8]) -> Decision {
        judge(&packet(GUEST_ADDRESS.octets(), destination.into().octets(), protocol, inner))
    }

    #[test]
    fn the_host_is_closed_but_for_listed_ports_and_answers() {
        let host = Decision::Drop(Reason::Host);
        for address in [GATEWAY, OWN] {
            assert_eq!(to(address, 6, &tcp(1234, 5000, SYN)), Decision::Allow);
            assert_eq!(to(address, 6, &tcp(1234, 22, SYN)), host);
            assert_eq!(to(address, 6, &tcp(80, 22, SYN)), host);
            assert_eq!(to(address, 6, &tcp(80, 40_000, SYN_ACK)), Decision::Allow);
            assert_eq!(to(address, 6, &tcp(81, 40_000, SYN_ACK)), host);
            assert_eq!(to(address, 6, &tcp(80, 40_000, 0)), host);
            assert_eq!(to(address, 17, &udp(5353, 53)), host);
            assert_eq!(to(address, 1, &[8, 0, 0, 0, 0, 0, 0, 0]), host);
        }
        assert_eq!(to(GATEWAY, 17, &udp(5353, 40_000)), Decision::Allow);
        assert_eq!(to(GATEWAY, 17, &udp(5353, 40_001)), host);
    }

    #[test]
    fn the_world_is_open_and_special_addresses_are_not() {
        assert_eq!(to([93, 184, 216, 34], 6, &tcp(1, 443, SYN)), Decision::Allow);
        assert_eq!(to([10, 1, 2, 3], 17, &udp(1, 53)), Decision::Allow);
        assert_eq!(to([8, 8, 8, 8], 1, &[8, 0, 0, 0, 0, 0, 0, 0]), Decision::Allow);
        for address in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            let address: Ipv4Addr = address.parse().unwrap();
            assert_eq!(to(address, 6, &tcp(80, 5000, SYN)), Decision::Drop(Reason::Special), "{address}");
        }
    }

    #[test]
    fn names_are_asked_for_and_the_own_network_is_empty() {
        assert_eq!(to(DNS, 17, &udp(999, 53)), Decision::Allow);
        assert_eq!(to(DNS, 17, &udp(999, 54)), Decision::Drop(Reason::OwnNetwork));
        assert_eq!(to(DNS, 6, &tcp(999, 53, SYN)), Decision::Drop(Reason::OwnNetwork));
        assert_eq!(to([198, 19, 255, 77], 6, &tcp(1, 5000, SYN)), Decision::Drop(Reason::OwnNetwork));
        assert_eq!(to([198, 19, 255, 255], 17, &udp(68, 67)), Decision::Drop(Reason::OwnNetwork));
        assert_eq!(to([198, 19, 254, 1], 6, &tcp(1, 5000, SYN)), Decision::Allow);
    }

    #[test]
    fn another_sender_is_no_sender() {
        let spoofed = Decision::Drop(Reason::Spoofed);
        assert_eq!(judge(&packet([127, 0, 0, 1], [93, 184, 216, 34], 17, &udp(1, 2))), spoofed);
        assert_eq!(judge(&packet(OWN.octets(), GATEWAY.octets(), 6, &tcp(1, 5000, SYN))), spoofed);
        let mut other_mac = packet(GUEST_ADDRESS.octets(), [93, 184, 216, 34], 17, &udp(1, 2));
        other_mac[11] = 77;
        assert_eq!(judge(&other_mac), spoofed);
        assert_eq!(judge(&arp_request(GUEST_MAC, GUEST_ADDRESS, GATEWAY)), Decision::Allow);
        assert_eq!(judge(&arp_request(GUEST_MAC, GATEWAY, GATEWAY)), spoofed);
        let ipv6 = {
            let mut frame = packet(GUEST_ADDRESS.octets(), OWN.octets(), 6, &[]);
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame
        };
        assert_eq!(judge(&ipv6), Decision::Drop(Reason::Unreadable(Unreadable::EtherType)));
    }
}
