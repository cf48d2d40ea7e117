//! Registries on this host's loopback. Inside the sandbox `localhost` is the sandbox, so they are reached through the
//! network's address for the host, by an alias, and only on the port that the reference names.

use std::net::IpAddr;

/// The registry part of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryHost {
    /// Without port and brackets.
    pub host: String,
    pub port: Option<u16>,
}

impl RegistryHost {
    /// As it stands in the reference: `host[:port]`.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }
}

/// The registry that a reference names, or `None` if it names none and docker.io is meant. The rule is docker's: a
/// first component with a dot or a colon, or `localhost`, is a host.
pub fn registry_host(reference: &str) -> Option<RegistryHost> {
    let (first, _) = reference.split_once('/')?;
    if !first.contains(['.', ':']) && first != "localhost" {
        return None;
    }
    let (host, port) = match first.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => match first.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (first, None),
        },
    };
    Some(RegistryHost { host: host.to_owned(), port: port.and_then(|port| port.parse().ok()) })
}

/// The registry of a reference, if it is on this host's loopback.
pub fn loopback_registry(reference: &str) -> Option<RegistryHost> {
    registry_host(reference).filter(|registry| {
        registry.host == "localhost"
            || registry.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_on_the_loopback_are_recognised() {
        for (reference, expected) in [
            ("localhost/x", Some(("localhost", None))),
            ("localhost:5000/x/y:t", Some(("localhost", Some(5000)))),
            ("127.0.0.1:5000/x", Some(("127.0.0.1", Some(5000)))),
            ("127.1.2.3/x", Some(("127.1.2.3", None))),
            ("[::1]:5000/x", Some(("::1", Some(5000)))),
            ("localhost", None),
            ("localhost:5000", None),
            ("localhosts/x", None),
            ("docker.io/localhost", None),
            ("10.0.0.1:5000/x", None),
            ("ghcr.io/x", None),
            ("library/x", None),
        ] {
            let found = loopback_registry(reference);
            let found = found.as_ref().map(|registry| (registry.host.as_str(), registry.port));
            assert_eq!(found, expected, "{reference}");
        }
    }

    #[test]
    fn the_authority_is_written_as_in_the_reference() {
        for reference in ["localhost:5000/x", "[::1]:5000/x", "ghcr.io/x"] {
            let authority = registry_host(reference).unwrap().authority();
            assert_eq!(Some(authority.as_str()), reference.split('/').next());
        }
    }
}
