//! The rules for network steps.

use super::{CheckError, count, require};
use nacre_protocols::init_launcher::{Interface, LIST_MAX, Neighbour, NetworkStep, Route};
use std::net::IpAddr;

/// `IFNAMSIZ` without its NUL, in bytes.
const NAME_MAX: usize = 15;
/// Largest MTU, in bytes: the longest IP packet.
const MTU_MAX: u32 = 65_535;
/// Smallest MTU, in bytes (RFC 791).
const MTU_MIN: u32 = 68;

pub(super) fn check(steps: &[NetworkStep]) -> Result<(), CheckError> {
    count("network steps", steps.len(), LIST_MAX)?;
    steps.iter().try_for_each(|step| match step {
        NetworkStep::Interface(it) => interface(it),
        NetworkStep::Route(it) => route(it),
        NetworkStep::Neighbour(it) => neighbour(it),
    })
}

fn interface(interface: &Interface) -> Result<(), CheckError> {
    name(&interface.name)?;
    mtu(interface.mtu)?;
    count("addresses", interface.addresses.len(), LIST_MAX)?;
    interface.addresses.iter().try_for_each(|address| prefix("address", address))
}

fn route(route: &Route) -> Result<(), CheckError> {
    name(&route.device)?;
    mtu(route.mtu)?;
    if let Some(destination) = &route.destination {
        prefix("route destination", destination)?;
        family("route destination", destination.0, route.ipv6)?;
    }
    for (what, address) in [("gateway", route.gateway), ("route source", route.source)] {
        if let Some(address) = address {
            family(what, address, route.ipv6)?;
        }
    }
    Ok(())
}

/// Of a state all bits but those that the kernel keeps for itself (`NUD_*`, linux/neighbour.h).
fn neighbour(neighbour: &Neighbour) -> Result<(), CheckError> {
    name(&neighbour.device)?;
    require(neighbour.state & !0xff == 0, "state of a neighbour", neighbour.state)
}

/// What the kernel takes as an interface's name (`dev_valid_name`).
fn name(name: &str) -> Result<(), CheckError> {
    let plain = (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    require(plain, "interface name", name)
}

fn mtu(mtu: u32) -> Result<(), CheckError> {
    require(mtu == 0 || (MTU_MIN..=MTU_MAX).contains(&mtu), "mtu", mtu)
}

fn prefix(what: &'static str, (address, bits): &(IpAddr, u8)) -> Result<(), CheckError> {
    let limit = if address.is_ipv6() { 128 } else { 32 };
    require(*bits <= limit, what, format_args!("{address}/{bits}"))
}

fn family(what: &'static str, address: IpAddr, ipv6: bool) -> Result<(), CheckError> {
    require(address.is_ipv6() == ipv6, what, address)
}
