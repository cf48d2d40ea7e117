//! Two network namespaces with a wire between them: a registry's, and that of a user who has a route to it.
//!
//! Loopback registries are exempt from many rules, as with docker; these addresses are nobody's.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::tool;

/// Where the registry's end of the wire is: of the block for documentation (RFC 5737).
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const USER_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Gone with its value.
pub struct Network {
    pub registry: String,
    pub user: String,
}

impl Network {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("nacre-test-{end}-{}-{number}", std::process::id());
        let network = Self { registry: name("registry"), user: name("user") };
        for name in [&network.registry, &network.user] {
            tool::run("ip", ["netns", "add", name]);
            tool::run("ip", ["-n", name, "link", "set", "lo", "up"]);
        }
        let link =
            ["-n", &network.registry, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns"];
        tool::run("ip", [&link[..], &[&network.user]].concat());
        for (name, address) in [(&network.registry, ADDRESS), (&network.user, USER_ADDRESS)] {
            tool::run("ip", ["-n", name, "address", "add", &format!("{address}/24"), "dev", "wire"]);
            tool::run("ip", ["-n", name, "link", "set", "wire", "up"]);
        }
        tool::run("ip", ["-n", &network.user, "route", "add", "default", "via", &ADDRESS.to_string()]);
        network
    }

    /// The user's `/etc/resolv.conf` names the registry's end of the wire (ip-netns(8) mounts this file for whom it leads in).
    pub fn resolve_there(&self) {
        fs::create_dir_all(self.configuration()).expect("cannot make a directory");
        fs::write(self.configuration().join("resolv.conf"), format!("nameserver {ADDRESS}\n"))
            .expect("cannot write resolv.conf");
    }

    /// The words that lead into one of the two.
    pub fn inside(name: &str) -> [&str; 4] {
        ["ip", "netns", "exec", name]
    }

    fn configuration(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.user)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.registry, &self.user] {
            let _ = tool::command("ip").args(["netns", "delete", name]).output();
        }
        let _ = fs::remove_dir_all(self.configuration());
    }
}
