//! Interfaces of the starter's that a container gets (runtime specification, "Network devices"): moved with their addresses,
//! renamed and brought up in its network namespace.

use crate::error::{Context, Result};
use crate::network::netlink::Socket;
use crate::network::{address, link};
use nacre_protocols::init_launcher::{LaunchStage, NetDevice};
use rustix::io::Errno;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

const STAGE: LaunchStage = LaunchStage::Network;

/// In the starter's network namespace; this process may be in another by the time the devices move.
pub struct Moving {
    socket: Socket,
    devices: Vec<Found>,
    /// They are in the container's namespace already.
    moved: bool,
}

struct Found {
    index: u32,
    inside: String,
    addresses: Vec<(IpAddr, u8)>,
}

impl Moving {
    /// Finds the devices. With a namespace given they go there now, while this process may still let go of them.
    pub fn start(wanted: &[NetDevice], namespace: Option<&OwnedFd>) -> Result<Option<Self>> {
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut socket = Socket::open().at(STAGE, || "opening a netlink socket".to_owned())?;
        let links = link::list(&mut socket).at(STAGE, || "listing interfaces".to_owned())?;
        let mut devices = Vec::with_capacity(wanted.len());
        for device in wanted {
            let attempt = |socket: &mut Socket| -> io::Result<Found> {
                let index = links.iter().find(|link| link.name == device.outside).ok_or(Errno::NODEV)?.index;
                let addresses = address::list_permanent(socket, index)?;
                let found = Found { index, inside: device.inside.clone(), addresses };
                if let Some(namespace) = namespace {
                    link::set_up(socket, index, false)?;
                    link::move_to(
                        socket,
                        index,
                        &found.inside,
                        link::Namespace::Descriptor(namespace.as_raw_fd()),
                    )?;
                }
                Ok(found)
            };
            devices.push(attempt(&mut socket).at(STAGE, || format!("network device {}", device.outside))?);
        }
        Ok(Some(Self { socket, devices, moved: namespace.is_some() }))
    }

    /// In the container's network namespace.
    pub fn finish(mut self) -> Result<()> {
        let own = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned();
        let mut inside = Socket::open().at(STAGE, || "opening a netlink socket".to_owned())?;
        for device in &self.devices {
            let mut attempt = || -> io::Result<()> {
                if !self.moved {
                    link::set_up(&mut self.socket, device.index, false)?;
                    let here = link::Namespace::OfProcess(own);
                    link::move_to(&mut self.socket, device.index, &device.inside, here)?;
                }
                // Its index may be another one here.
                let links = link::list(&mut inside)?;
                let index = links.iter().find(|link| link.name == device.inside).ok_or(Errno::NODEV)?.index;
                for address in &device.addresses {
                    address::add(&mut inside, index, address)?;
                }
                link::set_up(&mut inside, index, true)
            };
            attempt().at(STAGE, || format!("moving a network device to {}", device.inside))?;
        }
        Ok(())
    }
}
