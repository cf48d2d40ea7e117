//! The VM of a sandbox as a command asks its monitor for it; and the network that the guest is told to set up.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use nacre_protocols::host_agent::kata;
use serde::{Deserialize, Serialize};

use super::root::Place;
use crate::devices::fs::{Access, Share};
use crate::net::{Engine, GuestNet, NetConfig, PublishedPort, Transport, UserNet};
use crate::vmm::{Accel, Scratch, VmConfig, Vmm};

/// Every guest has the same vsock address: each has its own socket on the host.
const GUEST_CID: u32 = 3;
/// The interface in the guest.
const INTERFACE: &str = "eth0";
/// The scratch disk in the guest.
const SCRATCH_DEVICE: &str = "/dev/vdb";
const KEPT_DEVICE: &str = "kept:/dev/vdb";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineConfig {
    pub name: String,
    pub kernel: PathBuf,
    pub image: PathBuf,
    pub memory_mib: u32,
    pub vcpus: u8,
    /// What both may grow to, on our own VMM.
    pub memory_max_mib: Option<u32>,
    pub vcpus_max: Option<u8>,
    pub scratch: ScratchSetting,
    /// Most bytes that image layers may take.
    pub image_quota: Option<u64>,
    /// Words of the guest's manifest (`init/src/manifest.rs`), without their `nacre.`.
    pub bounds: Vec<String>,
    /// QEMU's own network, which does not filter, instead of passt's.
    pub unfiltered_network: bool,
    /// Shared as `vol0`, `vol1`, …
    pub shares: Vec<SharedDirectory>,
    pub publish: Vec<Publish>,
    /// TCP ports of the host's loopback that the guest may reach; the image server's is added.
    pub loopback_ports: Vec<u16>,
    pub vmm: VmmSetting,
    pub accel: AccelSetting,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharedDirectory {
    pub host: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScratchSetting {
    Disk {
        bytes: u64,
        directory: PathBuf,
    },
    /// The disk of a named store.
    Store {
        name: String,
        disk: PathBuf,
    },
    Tmpfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccelSetting {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmmSetting {
    Auto,
    Kvm,
    Qemu,
}

/// `-p`: a port of the host that leads into the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Of the host; 0.0.0.0 for every one.
    pub address: Ipv4Addr,
    pub host: u16,
    pub guest: u16,
    pub udp: bool,
}

/// What the guest has to set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestNetwork {
    pub mac: String,
    pub address: String,
    pub prefix: u8,
    pub gateway: String,
    pub mtu: u16,
    pub dns: Vec<String>,
    /// The host's loopback, on the ports that are let through.
    pub host_address: String,
}

impl MachineConfig {
    /// The VM of the sandbox at `place`, with the image server at `image_port` within the guest's reach.
    pub fn vm_config(&self, place: &Place, image_port: u16) -> VmConfig {
        let mut config = VmConfig::new(self.kernel.clone(), place.path().to_owned());
        config.image = Some(self.image.clone());
        config.memory_mib = self.memory_mib;
        config.vcpus = self.vcpus;
        config.memory_max_mib = self.memory_max_mib;
        config.vcpus_max = self.vcpus_max;
        config.guest_cid = GUEST_CID;
        config.console_log = Some(place.console_log());
        config.vmm = match self.vmm {
            VmmSetting::Auto => Vmm::Auto,
            VmmSetting::Kvm => Vmm::Kvm,
            VmmSetting::Qemu => Vmm::Qemu,
        };
        config.accel = match self.accel {
            AccelSetting::Auto => Accel::Auto,
            AccelSetting::Kvm => Accel::Kvm,
            AccelSetting::Tcg => Accel::Tcg,
        };
        let word = match &self.scratch {
            ScratchSetting::Disk { bytes, directory } => {
                config.scratch = Scratch::Disk { size_bytes: *bytes, dir: directory.clone() };
                SCRATCH_DEVICE
            }
            ScratchSetting::Store { disk, .. } => {
                config.scratch = Scratch::Kept { file: disk.clone() };
                KEPT_DEVICE
            }
            ScratchSetting::Tmpfs => "tmpfs",
        };
        config.cmdline.push(format!("nacre.scratch={word}"));
        config.cmdline.extend(self.image_quota.map(|bytes| format!("nacre.store_quota={bytes}")));
        config.cmdline.extend(self.bounds.iter().map(|bound| format!("nacre.{bound}")));
        config.shares = self.shares.iter().enumerate().map(|(index, share)| share.share(index)).collect();
        config.network = self.net_config(image_port);
        config
    }

    fn net_config(&self, image_port: u16) -> NetConfig {
        let publish = self.publish.iter().map(|port| PublishedPort {
            address: port.address,
            host: port.host,
            guest: port.guest,
            protocol: if port.udp { Transport::Udp } else { Transport::Tcp },
        });
        NetConfig::User(UserNet {
            host_tcp: self.loopback_ports.iter().copied().chain([image_port]).collect(),
            publish: publish.collect(),
            engine: if self.unfiltered_network { Engine::Slirp } else { Engine::Passt },
        })
    }
}

impl ScratchSetting {
    /// The name of a store.
    pub fn store(&self) -> Option<&str> {
        match self {
            Self::Store { name, .. } => Some(name),
            Self::Disk { .. } | Self::Tmpfs => None,
        }
    }
}

impl SharedDirectory {
    /// What the guest sees as `vol<index>` of `kataShared`.
    pub fn share(&self, index: usize) -> Share {
        let access = if self.read_only { Access::ReadOnly } else { Access::ReadWrite };
        Share { name: format!("vol{index}"), host: self.host.clone(), access }
    }
}

impl From<&GuestNet> for GuestNetwork {
    fn from(net: &GuestNet) -> Self {
        Self {
            mac: net.mac_string(),
            address: net.address.to_string(),
            prefix: net.prefix,
            gateway: net.gateway.to_string(),
            mtu: net.mtu,
            dns: net.dns.iter().map(Ipv4Addr::to_string).collect(),
            host_address: net.host_loopback.to_string(),
        }
    }
}

impl GuestNetwork {
    pub fn interface(&self) -> kata::Interface {
        kata::Interface {
            device: INTERFACE.into(),
            name: INTERFACE.into(),
            ip_addresses: vec![kata::IpAddress {
                family: kata::IpFamily::V4 as i32,
                address: self.address.clone(),
                mask: self.prefix.to_string(),
            }],
            mtu: self.mtu.into(),
            hw_addr: self.mac.clone(),
            ..Default::default()
        }
    }

    pub fn routes(&self) -> Vec<kata::Route> {
        vec![kata::Route { gateway: self.gateway.clone(), device: INTERFACE.into(), ..Default::default() }]
    }
}
