//! The same VM for our own VMM: what `nacre vmm` is given.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

use super::config::{Scratch, VmConfig};
use crate::devices::fs::{Access, TAG};
use crate::kvm::config::{
    Config, DiskConfig, NetworkConfig, Pages, ShareConfig, Source, VERSION, VsockDevice,
};
use crate::net::GuestNet;

/// The configuration; files and the network are inherited under these numbers.
pub fn machine(
    config: &VmConfig,
    cmdline: &str,
    (vsock, control): (&Path, &Path),
    root: Option<RawFd>,
    scratch: Option<RawFd>,
    network: Option<(RawFd, &GuestNet)>,
) -> Config {
    let root = root.map(|fd| DiskConfig { file: Source::Fd(fd), read_only: true, durable: false });
    let durable = matches!(config.scratch, Scratch::Kept { .. });
    let scratch = scratch.map(|fd| DiskConfig { file: Source::Fd(fd), read_only: false, durable });
    let share = |share: &crate::devices::fs::Share| ShareConfig {
        tag: TAG.to_owned(),
        name: share.name.clone(),
        path: share.host.clone(),
        read_only: share.access == Access::ReadOnly,
    };
    Config {
        version: VERSION,
        kernel: config.kernel.clone(),
        initrd: None,
        // The guest ends by the keyboard controller's reset line; a triple fault is then a crash.
        command_line: format!("{cmdline} reboot=k"),
        processors: config.vcpus,
        memory_mib: config.memory_mib,
        memory_max_mib: config.memory_max_mib,
        processors_max: config.vcpus_max,
        memory_pages: Pages::Latency,
        disks: root.into_iter().chain(scratch).collect(),
        vsock: Some(VsockDevice { guest_cid: config.guest_cid, socket: vsock.to_owned() }),
        shares: config.shares.iter().map(share).collect(),
        network: network.map(|(fd, guest)| NetworkConfig {
            fd: Some(fd),
            tap: None,
            mac: guest.mac,
            mtu: guest.mtu,
        }),
        balloon: true,
        virtio_console: false,
        control: Some(control.to_owned()),
    }
}

/// The configuration as a file that the VMM inherits.
pub fn as_file(machine: &Config) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("nacre-vmm", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(machine)?)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}
