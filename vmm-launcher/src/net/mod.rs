//! The guest's network: a user-mode network that needs no privilege, and a filter before it.
//!
//! passt(1) turns the guest's frames into ordinary sockets of this user. By itself it also maps the gateway's
//! address to the host's loopback, and it connects to whatever address a frame names. The guest runs untrusted
//! code, so every frame passes [`filter`] first: the host's own addresses are closed but for listed ports.

pub mod filter;
pub mod flows;
pub mod frame;
pub mod handshake;
mod host_addresses;
mod passt;
mod relay;
mod slirp;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{OwnedFd, RawFd};

pub use filter::Policy;
pub use relay::Counters;

use crate::devices::notes::Notes;

/// The guest's network is 198.19.255.0/24: of the range for benchmarks (RFC 2544), which no real network should use.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 2);
/// The gateway; also the host's loopback, on the ports that are let through.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
/// Where the guest asks for names; passt hands questions to the host's resolver, wherever that listens.
pub const DNS: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 3);
/// Bits of the network's prefix.
pub const PREFIX: u8 = 24;
/// The guest's address on the link. Each guest has a link of its own, so they may all have the same.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x6e, 0x61, 0x63, 0x72, 0x02];
/// Bytes of a packet: large, because passt ends every TCP connection itself and frames cost more than bytes.
pub const MTU: u16 = 65_520;
/// Published ports of one VM, and ports of the host that it may reach.
pub const MAX_PORTS: usize = 128;

/// What network a VM gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetConfig {
    /// No network device.
    #[default]
    None,
    User(UserNet),
}

/// A user-mode network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserNet {
    /// TCP ports of the host (its loopback and its own addresses) that the guest may connect to.
    pub host_tcp: Vec<u16>,
    /// Ports of the host that lead into the guest.
    pub publish: Vec<PublishedPort>,
    pub engine: Engine,
}

/// A port of the host that leads into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// The host's address to listen on, every one if unspecified.
    pub address: Ipv4Addr,
    pub host: u16,
    pub guest: u16,
    pub protocol: Transport,
}

/// What a port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Who carries the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// passt behind the filter. Missing passt is an error, not a reason to be less strict.
    #[default]
    Passt,
    /// QEMU's own, without a filter: the guest reaches every service on the host's loopback. Only on request.
    Slirp,
}

/// What the guest has to set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNet {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub dns: Vec<Ipv4Addr>,
    pub mtu: u16,
    /// Port N here is port N of the host's loopback, for the ports in [`UserNet::host_tcp`].
    pub host_loopback: Ipv4Addr,
}

impl GuestNet {
    /// As people and tools write it.
    #[must_use]
    pub fn mac_string(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The host's side of a VM's network. Dropping it ends passt and the relay.
pub struct Network {
    carrier: Carrier,
    guest: Option<GuestNet>,
}

enum Carrier {
    None,
    Passt { qemu_end: Option<OwnedFd>, relay: relay::Relay, _passt: passt::Passt },
    Slirp { netdev: String },
}

impl Network {
    /// Starts what the guest's network needs; returns once it answers.
    ///
    /// # Errors
    /// passt is missing or does not come up, for example because a published port is taken.
    pub fn start(config: &NetConfig, notes: &Notes) -> Result<Network, NetError> {
        let NetConfig::User(user) = config else {
            return Ok(Network { carrier: Carrier::None, guest: None });
        };
        user.check()?;
        let guest = GuestNet {
            mac: GUEST_MAC,
            address: GUEST_ADDRESS,
            prefix: PREFIX,
            gateway: GATEWAY,
            dns: vec![DNS],
            mtu: MTU,
            host_loopback: GATEWAY,
        };
        let carrier = match user.engine {
            Engine::Slirp => Carrier::Slirp { netdev: slirp::netdev(user) },
            Engine::Passt => {
                let (passt, passt_end) = passt::Passt::start(user)?;
                let (qemu_end, relay) = relay::Relay::start(user, passt_end, notes)?;
                Carrier::Passt { qemu_end: Some(qemu_end), relay, _passt: passt }
            }
        };
        Ok(Network { carrier, guest: Some(guest) })
    }

    /// What the guest has to set up; `None` without a network.
    #[must_use]
    pub fn guest(&self) -> Option<&GuestNet> {
        self.guest.as_ref()
    }

    /// A line for the user when the network is weaker than it should be.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        match self.carrier {
            Carrier::Slirp { .. } => Some(format!(
                "the guest can reach every service on this host's loopback (at {GATEWAY}): QEMU's own network has \
                 no filter"
            )),
            Carrier::None | Carrier::Passt { .. } => None,
        }
    }

    /// Frames so far; `None` where nobody counts.
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        match &self.carrier {
            Carrier::Passt { relay, .. } => Some(relay.counters()),
            Carrier::None | Carrier::Slirp { .. } => None,
        }
    }

    /// The VMM's end of a stream of frames, each behind its length; there once, and not for QEMU's own network.
    pub fn take_stream(&mut self) -> Option<OwnedFd> {
        match &mut self.carrier {
            Carrier::Passt { qemu_end, .. } => qemu_end.take(),
            Carrier::None | Carrier::Slirp { .. } => None,
        }
    }

    /// QEMU's `-netdev` without its id; `inherit` is given the descriptor that QEMU gets and returns its number.
    pub fn take_netdev(&mut self, mut inherit: impl FnMut(OwnedFd) -> RawFd) -> Option<String> {
        match &mut self.carrier {
            Carrier::None => None,
            Carrier::Slirp { netdev } => Some(netdev.clone()),
            Carrier::Passt { qemu_end, .. } => {
                let fd = inherit(qemu_end.take()?);
                Some(format!("stream,server=off,addr.type=fd,addr.str={fd}"))
            }
        }
    }
}

impl UserNet {
    fn check(&self) -> Result<(), NetError> {
        let count = self.host_tcp.len().max(self.publish.len());
        if count > MAX_PORTS {
            return Err(NetError::TooManyPorts(count));
        }
        if self.host_tcp.contains(&0) || self.publish.iter().any(|p| p.host == 0 || p.guest == 0) {
            return Err(NetError::PortZero);
        }
        for (index, port) in self.publish.iter().enumerate() {
            let same = |other: &&PublishedPort| {
                (other.host, other.protocol, other.address) == (port.host, port.protocol, port.address)
            };
            if self.publish.iter().take(index).any(|other| same(&other)) {
                return Err(NetError::PortTwice(port.host));
            }
        }
        Ok(())
    }
}

/// A network that does not come up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{0} ports exceed {MAX_PORTS}")]
    TooManyPorts(usize),
    #[error("port 0 can be neither published nor reached")]
    PortZero,
    #[error("port {0} of the host is published twice")]
    PortTwice(u16),
    #[error(
        "passt is not installed, which carries the guest's network; sudo apt install passt, or use --net none"
    )]
    NoPasst,
    #[error("cannot set up the network: {0}")]
    Setup(&'static str, #[source] io::Error),
    #[error("passt does not come up: {0}")]
    Passt(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_makes_no_sense_is_refused() {
        let port = |host| PublishedPort {
            address: Ipv4Addr::UNSPECIFIED,
            host,
            guest: 80,
            protocol: Transport::Tcp,
        };
        let publish = |publish| UserNet { publish, ..UserNet::default() };
        assert!(matches!(publish(vec![port(0)]).check(), Err(NetError::PortZero)));
        assert!(matches!(publish(vec![port(80), port(80)]).check(), Err(NetError::PortTwice(80))));
        assert!(matches!(publish((1..=129).map(port).collect()).check(), Err(NetError::TooManyPorts(129))));
        let udp = PublishedPort { protocol: Transport::Udp, ..port(80) };
        publish(vec![port(80), udp]).check().unwrap();
    }
}
