//! Routes of the main table.

use super::netlink::{
    AF_INET, AF_INET6, NLM_F_CREATE, NLM_F_REPLACE, Request, Socket, address, address_bytes, attributes,
    u32_at,
};
use nacre_protocols::init_launcher::{Route, RouteFound};
use std::io;
use std::net::IpAddr;

/// Most routes reported: what fits a status frame.
const ROUTES_MAX: usize = 128;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
/// Size of `struct rtmsg`, in bytes, and where its fields lie.
const FIXED: usize = 12;
const FAMILY_AT: usize = 0;
const BITS_AT: usize = 1;
const TABLE_AT: usize = 4;
const SCOPE_AT: usize = 6;
const TYPE_AT: usize = 7;
const FLAGS_AT: usize = 8;

/// Adds the route, in place of one that is there.
pub fn replace(socket: &mut Socket, index: u32, route: &Route) -> io::Result<()> {
    let family = if route.ipv6 { AF_INET6 } else { AF_INET };
    let bits = route.destination.map_or(0, |(_, bits)| bits);
    let mut fixed = vec![family, bits, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, route.scope, RTN_UNICAST];
    fixed.extend(route.flags.to_ne_bytes());
    let mut request = Request::change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &fixed)
        .attribute(RTA_OIF, &index.to_ne_bytes());
    let addresses = [
        (RTA_DST, route.destination.map(|(it, _)| it)),
        (RTA_GATEWAY, route.gateway),
        (RTA_PREFSRC, route.source),
    ];
    for (kind, address) in addresses {
        if let Some(address) = address {
            request = request.attribute(kind, &address_bytes(&address));
        }
    }
    if route.mtu != 0 {
        request = request.nested(RTA_METRICS, RTAX_MTU, &route.mtu.to_ne_bytes());
    }
    socket.apply(&request)
}

/// The main table of both families; `name` gives an interface's.
pub fn list(socket: &mut Socket, name: impl Fn(u32) -> Option<String>) -> io::Result<Vec<RouteFound>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut fixed = [0; FIXED];
        fixed[FAMILY_AT] = family;
        socket.list(&Request::dump(RTM_GETROUTE, &fixed), |body| {
            if found.len() < ROUTES_MAX {
                found.extend(parse(body, &name));
            }
        })?;
    }
    Ok(found)
}

fn parse(body: &[u8], name: impl Fn(u32) -> Option<String>) -> Option<RouteFound> {
    let byte = |at: usize| body.get(at).copied();
    let is_cached = u32_at(body, FLAGS_AT)? & RTM_F_CLONED != 0;
    if byte(TABLE_AT)? != RT_TABLE_MAIN || byte(TYPE_AT)? != RTN_UNICAST || is_cached {
        return None;
    }
    let attribute =
        |wanted| attributes(body, FIXED).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let address_of = |wanted| -> Option<IpAddr> { attribute(wanted).and_then(address) };
    let bits = byte(BITS_AT)?;
    Some(RouteFound {
        destination: address_of(RTA_DST).map(|address| (address, bits)),
        gateway: address_of(RTA_GATEWAY),
        device: name(u32_at(attribute(RTA_OIF)?, 0)?)?,
        source: address_of(RTA_PREFSRC),
        scope: byte(SCOPE_AT)?,
        ipv6: byte(FAMILY_AT)? == AF_INET6,
    })
}
