//! The host's own IPv4 addresses: what is sent to them arrives at the host itself, past its firewall's outer door.

use std::collections::HashSet;
use std::io::Read;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The kernel's routing table, which lists every local address (Documentation/networking/fib_trie.rst).
const TABLE: &str = "/proc/net/fib_trie";
/// Bytes of it that are read.
const MAX_TABLE_BYTES: u64 = 4 << 20;
/// Addresses that come later (DHCP, a VPN) count after at most this long.
const REFRESH: Duration = Duration::from_secs(5);

/// A view of the host's addresses that is renewed now and then.
pub struct HostAddresses {
    known: HashSet<Ipv4Addr>,
    read_at: Instant,
}

impl HostAddresses {
    /// Reads them.
    pub fn new(now: Instant) -> HostAddresses {
        HostAddresses { known: read(), read_at: now }
    }

    /// Whether `address` is one of them.
    pub fn contains(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        if now.duration_since(self.read_at) > REFRESH {
            *self = HostAddresses::new(now);
        }
        self.known.contains(&address)
    }
}

fn read() -> HashSet<Ipv4Addr> {
    let mut text = String::new();
    let read =
        std::fs::File::open(TABLE).and_then(|file| file.take(MAX_TABLE_BYTES).read_to_string(&mut text));
    if read.is_err() { HashSet::new() } else { parse(&text) }
}

/// An address stands on a line `|-- a.b.c.d`, and what it is on the lines after it.
fn parse(text: &str) -> HashSet<Ipv4Addr> {
    let mut addresses = HashSet::new();
    let mut current: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            current = address.parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            addresses.extend(current);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found_in_the_kernels_table() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n  \
                    |-- 192.0.2.0\n              /24 link UNICAST\n           |-- 192.0.2.7\n              \
                    /32 host LOCAL\n        |-- 192.0.2.255\n           /32 link BROADCAST\n";
        assert_eq!(parse(text), HashSet::from([Ipv4Addr::new(192, 0, 2, 7)]));
        assert!(read().contains(&Ipv4Addr::LOCALHOST));
    }
}
