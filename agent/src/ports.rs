//! What a pull may connect to: the TCP ports that the puller's fetcher confines itself to before it meets the network.
//!
//! They are taken from the order, never from an answer. A registry may lead elsewhere (a token server, a blob store) on
//! https's port; to any other only where the order says so.

use nacre_protocols::agent_puller::{Mirror, PORTS_MAX, Pull as Order};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What a fetcher may connect to, or a pull has to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports(BTreeSet<u16>);

const DNS: u16 = 53;
const HTTP: u16 = 80;
const HTTPS: u16 = 443;
const SOCKS: u16 = 1080;

impl Ports {
    /// `None` if there are more than a fetcher takes. What cannot be read is for the fetcher to refuse.
    pub fn of(order: &Order) -> Option<Self> {
        let mut ports = BTreeSet::from([DNS, HTTPS]);
        let own = if order.location.is_empty() { &order.reference } else { &order.location };
        let mirrors = order.mirrors.iter().map(|Mirror { location, .. }| location);
        for place in mirrors.chain([own]) {
            // What is before the first slash is a host, or a part of the name, which has no port; before none is a tag.
            let Some((host, _)) = place.split_once('/') else { continue };
            // Loopback is spoken to by plain http where it does not speak https.
            let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let plain = host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            ports.extend(written_port(host).or(plain.then_some(HTTP)));
        }
        // Another host than the registry may be among them, that its answers lead to.
        ports.extend(order.insecure.iter().map(|host| written_port(host).unwrap_or(HTTP)));
        let proxies = [&order.proxy.http, &order.proxy.https];
        ports.extend(proxies.into_iter().filter(|url| !url.is_empty()).map(|url| proxy_port(url)));
        ports.extend(&order.ports);
        ports.remove(&0);
        (ports.len() <= PORTS_MAX).then_some(Self(ports))
    }

    pub fn cover(&self, others: &Self) -> bool {
        others.0.is_subset(&self.0)
    }

    pub fn list(&self) -> Vec<u16> {
        self.0.iter().copied().collect()
    }
}

/// Of `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT][/…]`.
fn proxy_port(url: &str) -> u16 {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    written_port(host).unwrap_or(match scheme.to_ascii_lowercase().as_str() {
        "https" => HTTPS,
        "http" => HTTP,
        _ => SOCKS,
    })
}

/// Of `HOST:PORT` or `[ADDRESS]:PORT`.
fn written_port(host: &str) -> Option<u16> {
    let (front, port) = host.rsplit_once(':')?;
    let is_address = front.contains(':') && !front.ends_with(']');
    port.parse().ok().filter(|_| !is_address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulls::native_platform;
    use nacre_protocols::agent_puller::{Credentials, Proxy};

    fn order(reference: &str) -> Order {
        Order::anonymous(reference, native_platform())
    }

    #[test]
    fn a_pull_may_connect_to_what_its_order_names() {
        let mirror =
            |location: &str| Mirror { location: location.into(), credentials: Credentials::Anonymous };
        for (what, order, more) in [
            ("a name alone", order("debian"), &[][..]),
            ("no reference", order("UPPER"), &[]),
            ("a port", order("r.example:5000/a"), &[5000]),
            ("an IPv6 address", order("[fd00::1]:5001/a"), &[5001]),
            ("loopback", order("localhost/a"), &[80]),
            ("loopback of IPv6", order("[::1]/a"), &[80]),
            ("a tag that is a number", order("debian:12"), &[]),
            ("loopback with a port", order("127.0.0.1:5000/a"), &[5000]),
            (
                "another location",
                Order { location: "new.example:7000/x".into(), ..order("old.example:6000/a") },
                &[7000],
            ),
            (
                "mirrors",
                Order { mirrors: vec![mirror("m.example:1/a"), mirror("n.example/a")], ..order("a") },
                &[1],
            ),
            (
                "insecure registries",
                Order { insecure: vec!["r.example".into(), "s.example:81".into()], ..order("a") },
                &[80, 81],
            ),
            (
                "proxies",
                Order {
                    proxy: Proxy {
                        http: "p.example:3128".into(),
                        https: "socks5h://u:p%40@[fd00::1]/".into(),
                        exceptions: vec!["e.example:9".into()],
                    },
                    ..order("a")
                },
                &[1080, 3128],
            ),
            ("more of them", Order { ports: vec![9000, 0], ..order("a") }, &[9000]),
        ] {
            let expected: Vec<u16> =
                more.iter().copied().chain([53, 443]).collect::<BTreeSet<_>>().into_iter().collect();
            assert_eq!(Ports::of(&order).map(|ports| ports.list()), Some(expected), "{what}");
        }
        let many = Order { ports: (1..=PORTS_MAX as u16 + 1).collect(), ..order("a") };
        assert_eq!(Ports::of(&many), None);
    }

    #[test]
    fn fewer_ports_are_covered_and_others_are_not() {
        let of = |ports: &[u16]| Ports(ports.iter().copied().collect());
        assert!(of(&[443, 5000]).cover(&of(&[443])) && of(&[443]).cover(&Ports::default()));
        assert!(!of(&[443, 5000]).cover(&of(&[443, 5001])));
    }
}
