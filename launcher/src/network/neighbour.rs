//! Neighbours: which hardware address an address on the link has (rtnetlink(7), RTM_NEWNEIGH).

use super::netlink::{NLM_F_CREATE, NLM_F_REPLACE, Request, Socket, address_bytes, family};
use nacre_protocols::init_launcher::Neighbour;
use std::io;

const RTM_NEWNEIGH: u16 = 28;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Entries that do not age: what a state of 0 stands for.
const NUD_PERMANENT: u16 = 0x80;

/// Adds the entry, in place of one that is there.
pub fn replace(socket: &mut Socket, index: u32, neighbour: &Neighbour) -> io::Result<()> {
    let state = if neighbour.state == 0 { NUD_PERMANENT } else { neighbour.state };
    // `struct ndmsg`: family and padding, index, state, flags, type.
    let mut fixed = vec![family(&neighbour.address), 0, 0, 0];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(state.to_ne_bytes());
    fixed.extend([neighbour.flags, 0]);
    let request = Request::change(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &fixed)
        .attribute(NDA_DST, &address_bytes(&neighbour.address))
        .attribute(NDA_LLADDR, &neighbour.hardware_address);
    socket.apply(&request)
}
