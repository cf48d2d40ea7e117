//! The sandbox's network: interfaces and routes, set by a launcher.

use super::{Context, method};
use crate::error::RpcError;
use nacre_protocols::agent_init::{InterfaceState, NetworkState, ReplyBody, RequestBody, RouteState};
use nacre_protocols::host_agent::kata::{
    self, AddArpNeighborsRequest, Empty, Interfaces, IpFamily, ListInterfacesRequest, ListRoutesRequest,
    Routes, UpdateInterfaceRequest, UpdateRoutesRequest, agent_service,
};
use nacre_protocols::init_launcher::{Interface, Neighbour, NetworkStep, Plan, Route};
use std::net::IpAddr;

/// Most addresses of an interface, and most routes of a request.
const ADDRESSES_MAX: usize = 64;
const ROUTES_MAX: usize = 256;
/// Most neighbours of a request.
const NEIGHBOURS_MAX: usize = 256;
/// Longest name of an interface, in bytes (IFNAMSIZ with its NUL).
const NAME_MAX: usize = 15;
const IFF_NOARP: u32 = 0x80;

method!(update_interface, agent_service::UpdateInterface, set_interface);
method!(update_routes, agent_service::UpdateRoutes, set_routes);
method!(list_interfaces, agent_service::ListInterfaces, interfaces);
method!(add_neighbours, agent_service::AddARPNeighbors, set_neighbours);
method!(list_routes, agent_service::ListRoutes, routes);

async fn set_interface(
    context: Context,
    request: UpdateInterfaceRequest,
) -> Result<kata::Interface, RpcError> {
    let wanted = request.interface.ok_or_else(|| RpcError::invalid("interface is missing"))?;
    let step = NetworkStep::Interface(interface(&wanted)?);
    apply(&context, vec![step]).await?;
    Ok(wanted)
}

async fn set_routes(context: Context, request: UpdateRoutesRequest) -> Result<Routes, RpcError> {
    let wanted = request.routes.unwrap_or_default().routes;
    if wanted.len() > ROUTES_MAX {
        return Err(RpcError::invalid(format!("routes: more than {ROUTES_MAX}")));
    }
    let routes = wanted.iter().map(route).collect::<Result<Vec<_>, _>>()?;
    // A gateway is reached by a route that has none.
    let (over_gateways, direct): (Vec<_>, Vec<_>) =
        routes.into_iter().partition(|route| route.gateway.is_some());
    let steps = direct.into_iter().chain(over_gateways).map(NetworkStep::Route).collect();
    let state = apply(&context, steps).await?;
    Ok(described(state))
}

async fn routes(context: Context, _: ListRoutesRequest) -> Result<Routes, RpcError> {
    Ok(described(apply(&context, Vec::new()).await?))
}

async fn interfaces(context: Context, _: ListInterfacesRequest) -> Result<Interfaces, RpcError> {
    let state = apply(&context, Vec::new()).await?;
    Ok(Interfaces { interfaces: state.interfaces.into_iter().map(described_interface).collect() })
}

async fn set_neighbours(context: Context, request: AddArpNeighborsRequest) -> Result<Empty, RpcError> {
    let wanted = request.neighbors.unwrap_or_default().arp_neighbors;
    if wanted.len() > NEIGHBOURS_MAX {
        return Err(RpcError::invalid(format!("neighbors: more than {NEIGHBOURS_MAX}")));
    }
    let steps = wanted.iter().map(neighbour).collect::<Result<Vec<_>, _>>()?;
    if !steps.is_empty() {
        apply(&context, steps.into_iter().map(NetworkStep::Neighbour).collect()).await?;
    }
    Ok(Empty {})
}

async fn apply(context: &Context, steps: Vec<NetworkStep>) -> Result<NetworkState, RpcError> {
    match context.agent.init.ask_with_plan(RequestBody::Network, &Plan::Network(steps)).await?.body {
        ReplyBody::Network(state) => Ok(state),
        _ => Err(RpcError::unfitting("Network")),
    }
}

fn interface(wanted: &kata::Interface) -> Result<Interface, RpcError> {
    if wanted.ip_addresses.len() > ADDRESSES_MAX {
        return Err(RpcError::invalid(format!("IPAddresses: more than {ADDRESSES_MAX}")));
    }
    let addresses = wanted.ip_addresses.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let mtu = u32::try_from(wanted.mtu)
        .map_err(|_| RpcError::invalid(format!("mtu {} is too large", wanted.mtu)))?;
    Ok(Interface {
        hardware_address: hardware_address(&wanted.hw_addr)?,
        name: device_name("name", &wanted.name)?,
        mtu,
        addresses,
        no_arp: wanted.raw_flags & IFF_NOARP != 0,
    })
}

fn address(wanted: &kata::IpAddress) -> Result<(IpAddr, u8), RpcError> {
    let invalid = || RpcError::invalid(format!("address {:?}/{:?}", wanted.address, wanted.mask));
    let address: IpAddr = wanted.address.parse().map_err(|_| invalid())?;
    let prefix: u8 = wanted.mask.parse().map_err(|_| invalid())?;
    if prefix > bits(address) { Err(invalid()) } else { Ok((address, prefix)) }
}

fn neighbour(wanted: &kata::ArpNeighbor) -> Result<Neighbour, RpcError> {
    let text = wanted.to_ip_address.as_ref().map_or("", |to| to.address.as_str());
    // Some shims write the prefix behind the address.
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    Ok(Neighbour {
        address: address
            .parse()
            .map_err(|_| RpcError::invalid(format!("toIPAddress {text:?} is no address")))?,
        device: device_name("device", &wanted.device)?,
        hardware_address: hardware_address(&wanted.lladdr)?,
        state: u16::try_from(wanted.state)
            .map_err(|_| RpcError::invalid(format!("state {} is none of a neighbour", wanted.state)))?,
        flags: u8::try_from(wanted.flags)
            .map_err(|_| RpcError::invalid(format!("flags {} are none of a neighbour", wanted.flags)))?,
    })
}

fn hardware_address(text: &str) -> Result<[u8; 6], RpcError> {
    let invalid = || RpcError::invalid(format!("hardware address {text:?} is not six bytes in hex"));
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| is_hex_byte(part)).ok_or_else(invalid)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
    }
    if parts.next().is_some() { Err(invalid()) } else { Ok(bytes) }
}

fn is_hex_byte(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn device_name(field: &str, name: &str) -> Result<String, RpcError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if name.is_empty() || name.len() > NAME_MAX || !plain || matches!(name, "." | "..") {
        return Err(RpcError::invalid(format!("{field} {name:?} is no name of an interface")));
    }
    Ok(name.to_owned())
}

fn route(wanted: &kata::Route) -> Result<Route, RpcError> {
    let optional = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => match text.parse::<IpAddr>() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(RpcError::invalid(format!("{field} {text:?} is no address"))),
        },
    };
    let destination = destination(&wanted.dest)?;
    let gateway = optional("gateway", &wanted.gateway)?;
    let ipv6 = wanted.family == i32::from(IpFamily::V6)
        || destination.is_some_and(|(address, _)| address.is_ipv6())
        || gateway.is_some_and(|address| address.is_ipv6());
    Ok(Route {
        destination,
        gateway,
        device: device_name("device", &wanted.device)?,
        source: optional("source", &wanted.source)?,
        scope: u8::try_from(wanted.scope)
            .map_err(|_| RpcError::invalid(format!("scope {} is above 255", wanted.scope)))?,
        ipv6,
        flags: wanted.flags,
        mtu: wanted.mtu,
    })
}

/// `None` for the default route; without a prefix it is one host.
fn destination(text: &str) -> Result<Option<(IpAddr, u8)>, RpcError> {
    if matches!(text, "" | "default") {
        return Ok(None);
    }
    let invalid = || RpcError::invalid(format!("dest {text:?} is no network"));
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, prefix)| (a, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let prefix = match prefix {
        Some(prefix) => prefix.parse().map_err(|_| invalid())?,
        None => bits(address),
    };
    match prefix {
        0 => Ok(None),
        prefix if prefix > bits(address) => Err(invalid()),
        prefix => Ok(Some((address, prefix))),
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn described(state: NetworkState) -> Routes {
    Routes { routes: state.routes.into_iter().map(described_route).collect() }
}

fn described_interface(state: InterfaceState) -> kata::Interface {
    let address = |(address, prefix): (IpAddr, u8)| kata::IpAddress {
        family: if address.is_ipv6() { IpFamily::V6 } else { IpFamily::V4 }.into(),
        address: address.to_string(),
        mask: prefix.to_string(),
    };
    let [a, b, c, d, e, f] = state.hardware_address;
    kata::Interface {
        device: state.name.clone(),
        name: state.name,
        ip_addresses: state.addresses.into_iter().map(address).collect(),
        mtu: state.mtu.into(),
        hw_addr: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        raw_flags: state.flags,
        ..Default::default()
    }
}

fn described_route(route: RouteState) -> kata::Route {
    let family = if route.ipv6 { IpFamily::V6 } else { IpFamily::V4 };
    kata::Route {
        dest: route.destination,
        gateway: route.gateway,
        device: route.device,
        source: route.source,
        scope: u32::from(route.scope),
        family: family.into(),
        flags: 0,
        mtu: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_read_from_texts() {
        let wanted = kata::Interface {
            name: "eth0".into(),
            hw_addr: "02:00:CA:fe:00:01".into(),
            mtu: 1500,
            raw_flags: IFF_NOARP,
            ip_addresses: vec![kata::IpAddress { address: "10.0.2.15".into(), mask: "24".into(), family: 0 }],
            ..Default::default()
        };
        let expected = Interface {
            hardware_address: [2, 0, 0xca, 0xfe, 0, 1],
            name: "eth0".into(),
            mtu: 1500,
            addresses: vec![("10.0.2.15".parse().unwrap(), 24)],
            no_arp: true,
        };
        assert_eq!(interface(&wanted), Ok(expected));
    }

    #[test]
    fn bad_texts_are_refused() {
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:+1", "0200:0:0:0:0:1"] {
            assert!(hardware_address(text).is_err(), "{text}");
        }
        for text in ["10.0.0.0/33", "ten", "::/129", "10.0.0.0/"] {
            assert!(destination(text).is_err(), "{text}");
        }
        for name in ["", "..", "a/b", "sixteen-letters-"] {
            assert!(device_name("name", name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_default_route_has_no_destination() {
        for text in ["", "default", "0.0.0.0/0", "::/0"] {
            assert_eq!(destination(text), Ok(None), "{text}");
        }
        assert_eq!(destination("10.0.2.2"), Ok(Some(("10.0.2.2".parse().unwrap(), 32))));
    }
}
