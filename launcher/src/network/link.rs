//! Network interfaces.

use super::netlink::{Request, Socket, attributes, u32_at};
use std::io;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
/// Size of `struct ifinfomsg`, in bytes, and where its fields lie.
const FIXED: usize = 16;
const INDEX_AT: usize = 4;
const FLAGS_AT: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub hardware_address: [u8; 6],
    pub is_up: bool,
    /// `IFF_*`.
    pub flags: u32,
    /// In bytes.
    pub mtu: u32,
}

pub fn list(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    socket.list(&Request::dump(RTM_GETLINK, &[0; FIXED]), |body| links.extend(parse(body)))?;
    Ok(links)
}

pub fn set_up(socket: &mut Socket, index: u32, up: bool) -> io::Result<()> {
    set_flag(socket, index, IFF_UP, up)
}

pub fn set_arp(socket: &mut Socket, index: u32, arp: bool) -> io::Result<()> {
    set_flag(socket, index, IFF_NOARP, !arp)
}

pub fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> io::Result<()> {
    socket.apply(&change(index, 0, 0).attribute(IFLA_MTU, &mtu.to_ne_bytes()))
}

pub fn set_name(socket: &mut Socket, index: u32, name: &str) -> io::Result<()> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    socket.apply(&change(index, 0, 0).attribute(IFLA_IFNAME, &bytes))
}

/// Where a link goes.
#[derive(Debug, Clone, Copy)]
pub enum Namespace {
    OfProcess(u32),
    Descriptor(i32),
}

/// Moves the link, which is down, under a new name. The kernel takes its addresses away.
pub fn move_to(socket: &mut Socket, index: u32, name: &str, namespace: Namespace) -> io::Result<()> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    let request = change(index, 0, 0).attribute(IFLA_IFNAME, &bytes);
    socket.apply(&match namespace {
        Namespace::OfProcess(pid) => request.attribute(IFLA_NET_NS_PID, &pid.to_ne_bytes()),
        Namespace::Descriptor(fd) => request.attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes()),
    })
}

fn set_flag(socket: &mut Socket, index: u32, flag: u32, set: bool) -> io::Result<()> {
    socket.apply(&change(index, if set { flag } else { 0 }, flag))
}

fn change(index: u32, flags: u32, mask: u32) -> Request {
    // Family and type unspecified.
    let mut fixed = vec![0; INDEX_AT];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(mask.to_ne_bytes());
    Request::change(RTM_NEWLINK, 0, &fixed)
}

/// `None` for what is no link with a name; a link without an Ethernet address has zeros.
fn parse(body: &[u8]) -> Option<Link> {
    let index = u32_at(body, INDEX_AT)?;
    let flags = u32_at(body, FLAGS_AT)?;
    let attribute =
        |wanted| attributes(body, FIXED).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let name = attribute(IFLA_IFNAME)?.split(|byte| *byte == 0).next()?;
    let hardware_address =
        attribute(IFLA_ADDRESS).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    let mtu = attribute(IFLA_MTU).and_then(|bytes| u32_at(bytes, 0)).unwrap_or_default();
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some(Link { index, name, hardware_address, is_up: flags & IFF_UP != 0, flags, mtu })
}
