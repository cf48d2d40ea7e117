//! Disks of the host's that are meant for containers: found where the host says that they are, waited for, and never one that
//! the guest itself uses.

mod sysfs;
mod uevents;

use crate::error::{Context, Result};
use crate::filesystem::explained;
use nacre_protocols::init_launcher::{
    ContainerPlan, DeviceKind, DeviceNode, DeviceRule, DiskAddress, LaunchStage,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, minor, openat};
use rustix::io::Errno;
use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use sysfs::Look;
use uevents::Uevents;

/// How long a disk may take to appear, or to have the size that is asked for.
const PATIENCE: Duration = Duration::from_secs(3);
const SYSFS: &str = "/sys";

/// A disk that is there, opened exclusively.
pub struct Disk {
    /// Its node in the guest.
    pub path: String,
    pub major: u32,
    pub minor: u32,
    pub file: OwnedFd,
}

/// The plan with the nodes of its disks, and the rules to use them, by the numbers that they have in this guest.
pub fn resolve(plan: &ContainerPlan) -> Result<Cow<'_, ContainerPlan>> {
    if plan.disks.is_empty() {
        return Ok(Cow::Borrowed(plan));
    }
    let mut plan = plan.clone();
    for disk in std::mem::take(&mut plan.disks) {
        let Disk { major, minor, .. } = find(&disk.address, !disk.write)
            .at(LaunchStage::Devices, || format!("finding the disk {}", shown(&disk.address)))?;
        let kind = DeviceKind::Block;
        let (mode, uid, gid) = (disk.mode, disk.uid, disk.gid);
        plan.devices.retain(|node| node.path != disk.path);
        plan.devices.push(DeviceNode { path: disk.path, kind, major, minor, mode, uid, gid });
        plan.device_rules.push(DeviceRule {
            allow: true,
            kind: Some(kind),
            major: Some(major),
            minor: Some(minor),
            read: true,
            write: disk.write,
            mknod: true,
        });
    }
    Ok(Cow::Owned(plan))
}

/// A disk that nobody has mounted, once it is there: who mounts one claims it, and it cannot be opened exclusively then
/// (open(2), O_EXCL).
pub fn find(address: &DiskAddress, read_only: bool) -> io::Result<Disk> {
    let mut waiting: Option<Uevents> = None;
    loop {
        if let Some(disk) = look(address, read_only)? {
            return Ok(disk);
        }
        go_on(&mut waiting)
            .map_err(|error| explained(error, ": it has not appeared, though it was waited for"))?;
    }
}

/// The size of a disk in bytes, once it is `bytes` or more.
pub fn size_when(major: u32, minor: u32, bytes: u64) -> io::Result<u64> {
    let mut waiting: Option<Uevents> = None;
    loop {
        let size = sysfs::size(Path::new(SYSFS), major, minor)?;
        if size >= bytes {
            return Ok(size);
        }
        go_on(&mut waiting)
            .map_err(|error| explained(error, &format!(": {bytes} bytes are asked for, it has {size}")))?;
    }
}

/// The kernel's events are listened to before the second look, so that nothing comes between a look and the wait.
fn go_on(waiting: &mut Option<Uevents>) -> Result<(), Errno> {
    match waiting {
        None => *waiting = Some(Uevents::open(PATIENCE)?),
        Some(events) => events.wait()?,
    }
    Ok(())
}

fn look(address: &DiskAddress, read_only: bool) -> io::Result<Option<Disk>> {
    let (path, number) = match address {
        DiskAddress::Name(path) => (path.clone(), None),
        DiskAddress::Pci(_) | DiskAddress::Scsi { .. } => match sysfs::look(Path::new(SYSFS), address)? {
            Look::Here { name, number } => (format!("/dev/{name}"), Some(number)),
            Look::NotYet => return Ok(None),
            Look::NoBus(bus) => {
                return Err(explained(Errno::OPNOTSUPP, &format!(": this guest has no bus of {bus}")));
            }
        },
    };
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(CWD, &path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NXIO) => return Ok(None),
        opened => opened?,
    };
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return Err(io::Error::other("it is no disk"));
    }
    let (major, minor) = (major(found.st_rdev), minor(found.st_rdev));
    // Another one may have got the name since.
    let is_it = number.is_none_or(|number| number == (major, minor));
    Ok(is_it.then_some(Disk { path, major, minor, file }))
}

/// An address as the host writes it.
pub fn shown(address: &DiskAddress) -> String {
    match address {
        DiskAddress::Name(path) => path.clone(),
        DiskAddress::Pci(way) => {
            let parts: Vec<String> =
                way.iter().map(|it| format!("{:02x}.{:x}", it.device, it.function)).collect();
            format!("at PCI {}", parts.join("/"))
        }
        DiskAddress::Scsi { target, lun } => format!("at SCSI {target}:{lun}"),
    }
}
