//! Changes the sandbox's interfaces and routes, with CAP_NET_ADMIN alone.

pub mod address;
pub mod link;
mod neighbour;
pub mod netlink;
mod route;

use crate::check::Checked;
use crate::error::{Context, LaunchError, Result};
use link::Link;
use nacre_protocols::init_launcher::{
    Interface, InterfaceFound, LaunchStage, Neighbour, NetworkStep, Route, RouteFound,
};
use netlink::Socket;
use rustix::io::Errno;
use std::io;
use std::time::Duration;

const STAGE: LaunchStage = LaunchStage::Network;
/// How long a device may take to appear.
const LINK_ATTEMPTS: u32 = 150;
const LINK_PAUSE: Duration = Duration::from_millis(20);
/// Most interfaces, and addresses of each, reported: with the routes they fit a status frame.
const INTERFACES_MAX: usize = 32;
const ADDRESSES_MAX: usize = 8;
/// What a link is called while it swaps its name with another.
const SWAP_NAME: &str = "nacre-swap";

/// Applies the steps: interfaces in order, then routes, those without a gateway first, since they make gateways reachable.
/// Neighbours come last. Gives what interfaces there are then, and the main table.
pub fn apply(steps: &Checked<Vec<NetworkStep>>) -> Result<(Vec<InterfaceFound>, Vec<RouteFound>)> {
    let mut socket = Socket::open().at(STAGE, || "opening a netlink socket".to_owned())?;
    for step in steps.iter() {
        if let NetworkStep::Interface(interface) = step {
            set_interface(&mut socket, interface)?;
        }
    }
    let routes = || {
        steps.iter().filter_map(|step| match step {
            NetworkStep::Route(route) => Some(route),
            NetworkStep::Interface(_) | NetworkStep::Neighbour(_) => None,
        })
    };
    let (direct, through_gateway): (Vec<_>, Vec<_>) = routes().partition(|route| route.gateway.is_none());
    for route in direct.into_iter().chain(through_gateway) {
        set_route(&mut socket, route)?;
    }
    for step in steps.iter() {
        if let NetworkStep::Neighbour(neighbour) = step {
            set_neighbour(&mut socket, neighbour)?;
        }
    }
    let interfaces = interfaces(&mut socket).at(STAGE, || "reading the interfaces".to_owned())?;
    Ok((interfaces, found(&mut socket).at(STAGE, || "reading the main routing table".to_owned())?))
}

fn set_interface(socket: &mut Socket, wanted: &Interface) -> Result<()> {
    let link = wait_for_link(socket, wanted)?;
    let mut attempt = || -> io::Result<()> {
        link::set_up(socket, link.index, false)?;
        for old in address::list(socket, link.index)? {
            address::remove(socket, link.index, &old)?;
        }
        rename(socket, &link, &wanted.name)?;
        link::set_arp(socket, link.index, !wanted.no_arp)?;
        if wanted.mtu != 0 {
            link::set_mtu(socket, link.index, wanted.mtu)?;
        }
        for new in &wanted.addresses {
            address::add(socket, link.index, new)?;
        }
        link::set_up(socket, link.index, true)
    };
    attempt().at(STAGE, || format!("setting up interface {}", wanted.name))
}

fn wait_for_link(socket: &mut Socket, wanted: &Interface) -> Result<Link> {
    for _ in 0..LINK_ATTEMPTS {
        let links = link::list(socket).at(STAGE, || "listing interfaces".to_owned())?;
        if let Some(link) = links.into_iter().find(|link| link.hardware_address == wanted.hardware_address) {
            return Ok(link);
        }
        std::thread::sleep(LINK_PAUSE);
    }
    let [a, b, c, d, e, f] = wanted.hardware_address;
    Err(LaunchError {
        stage: STAGE,
        errno: Errno::NODEV.raw_os_error(),
        // The words by which the agent's clients know that a device may still be on its way.
        message: format!("Link not found (hardware address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x})"),
    })
}

/// Swaps names with the link that has this one. The link itself is down.
fn rename(socket: &mut Socket, link: &Link, name: &str) -> io::Result<()> {
    if link.name == name {
        return Ok(());
    }
    let holder = link::list(socket)?.into_iter().find(|other| other.name == name);
    let Some(holder) = holder else {
        return link::set_name(socket, link.index, name);
    };
    if holder.is_up {
        link::set_up(socket, holder.index, false)?;
    }
    link::set_name(socket, holder.index, SWAP_NAME)?;
    link::set_name(socket, link.index, name)?;
    link::set_name(socket, holder.index, &link.name)?;
    if holder.is_up { link::set_up(socket, holder.index, true) } else { Ok(()) }
}

fn set_route(socket: &mut Socket, wanted: &Route) -> Result<()> {
    let mut attempt = || -> io::Result<()> {
        let index = index_of(socket, &wanted.device)?;
        route::replace(socket, index, wanted)
    };
    attempt().at(STAGE, || {
        let destination = match wanted.destination {
            Some((address, bits)) => format!("{address}/{bits}"),
            None => "default".to_owned(),
        };
        format!("setting the route to {destination} through {}", wanted.device)
    })
}

fn set_neighbour(socket: &mut Socket, wanted: &Neighbour) -> Result<()> {
    let mut attempt = || -> io::Result<()> {
        let index = index_of(socket, &wanted.device)?;
        neighbour::replace(socket, index, wanted)
    };
    attempt().at(STAGE, || format!("setting the neighbour {} of {}", wanted.address, wanted.device))
}

fn index_of(socket: &mut Socket, device: &str) -> io::Result<u32> {
    let link = link::list(socket)?.into_iter().find(|link| link.name == device);
    Ok(link.ok_or(Errno::NODEV)?.index)
}

fn interfaces(socket: &mut Socket) -> io::Result<Vec<InterfaceFound>> {
    let mut found = Vec::new();
    for link in link::list(socket)?.into_iter().take(INTERFACES_MAX) {
        let mut addresses = address::list(socket, link.index)?;
        addresses.truncate(ADDRESSES_MAX);
        let Link { name, hardware_address, mtu, flags, .. } = link;
        found.push(InterfaceFound { name, hardware_address, mtu, flags, addresses });
    }
    Ok(found)
}

fn found(socket: &mut Socket) -> io::Result<Vec<RouteFound>> {
    let links = link::list(socket)?;
    route::list(socket, |index| links.iter().find(|link| link.index == index).map(|link| link.name.clone()))
}
