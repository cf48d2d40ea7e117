//! QEMU's built-in user-mode network, for hosts without passt. It has no filter; see [`super::Engine::Slirp`].

use super::{DNS, GATEWAY, GUEST_ADDRESS, PREFIX, Transport, UserNet};

/// The same addresses as with passt, as QEMU's `-netdev user` wants them.
pub fn netdev(config: &UserNet) -> String {
    let mask = u32::MAX << (32 - PREFIX);
    let network = std::net::Ipv4Addr::from(u32::from(GUEST_ADDRESS) & mask);
    let mut text =
        format!("user,ipv6=off,net={network}/{PREFIX},host={GATEWAY},dns={DNS},dhcpstart={GUEST_ADDRESS}");
    for port in &config.publish {
        let protocol = match port.protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        text.push_str(&format!(
            ",hostfwd={protocol}:{}:{}-{GUEST_ADDRESS}:{}",
            port.address, port.host, port.guest
        ));
    }
    text
}
