//! Addresses of an interface.

use super::netlink::{
    AF_INET6, NLM_F_CREATE, NLM_F_REPLACE, Request, Socket, address, address_bytes, attributes, family,
    u32_at,
};
use std::io;
use std::net::IpAddr;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// No duplicate address detection: the sandbox's network is point to point, and the address would be tentative for a second.
const IFA_F_NODAD: u8 = 2;
/// Size of `struct ifaddrmsg`, in bytes, and where its fields lie.
const FIXED: usize = 8;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
const PREFIX_AT: usize = 1;
const FLAGS_AT: usize = 2;
const SCOPE_AT: usize = 3;
const INDEX_AT: usize = 4;

pub fn list(socket: &mut Socket, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
    let mut found = Vec::new();
    socket.list(&Request::dump(RTM_GETADDR, &[0; FIXED]), |body| {
        if u32_at(body, INDEX_AT) == Some(index) {
            found.extend(parse(body));
        }
    })?;
    Ok(found)
}

/// Those that somebody gave the interface for good and for everybody: none that it made up itself or will lose.
pub fn list_permanent(socket: &mut Socket, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
    let mut found = Vec::new();
    socket.list(&Request::dump(RTM_GETADDR, &[0; FIXED]), |body| {
        let permanent = body.get(FLAGS_AT).is_some_and(|flags| flags & IFA_F_PERMANENT != 0);
        let global = body.get(SCOPE_AT) == Some(&RT_SCOPE_UNIVERSE);
        if u32_at(body, INDEX_AT) == Some(index) && permanent && global {
            found.extend(parse(body));
        }
    })?;
    Ok(found)
}

pub fn add(socket: &mut Socket, index: u32, new: &(IpAddr, u8)) -> io::Result<()> {
    let request = change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, new);
    let request = match broadcast(new) {
        Some(address) => request.attribute(IFA_BROADCAST, &address),
        None => request,
    };
    socket.apply(&request)
}

pub fn remove(socket: &mut Socket, index: u32, old: &(IpAddr, u8)) -> io::Result<()> {
    socket.apply(&change(RTM_DELADDR, 0, index, old))
}

fn change(kind: u16, flags: u16, index: u32, (address, bits): &(IpAddr, u8)) -> Request {
    let family = family(address);
    let mut fixed = vec![family, *bits, if family == AF_INET6 { IFA_F_NODAD } else { 0 }, 0];
    fixed.extend(index.to_ne_bytes());
    let bytes = address_bytes(address);
    Request::change(kind, flags, &fixed).attribute(IFA_LOCAL, &bytes).attribute(IFA_ADDRESS, &bytes)
}

/// The last address of an IPv4 network that has room for one.
fn broadcast((address, bits): &(IpAddr, u8)) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) if *bits < 31 => {
            let host = u32::MAX.checked_shr((*bits).into()).unwrap_or(0);
            Some((u32::from(*address) | host).to_be_bytes().to_vec())
        }
        _ => None,
    }
}

fn parse(body: &[u8]) -> Option<(IpAddr, u8)> {
    let bits = *body.get(PREFIX_AT)?;
    let attribute =
        |wanted| attributes(body, FIXED).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let bytes = attribute(IFA_LOCAL).or_else(|| attribute(IFA_ADDRESS))?;
    Some((address(bytes)?, bits))
}
