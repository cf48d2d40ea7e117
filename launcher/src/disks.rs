//! Disks of the host's that are meant for containers: found by name, never one that the guest itself uses.

use crate::error::{Context, Result};
use nacre_protocols::init_launcher::{ContainerPlan, DeviceKind, DeviceNode, DeviceRule, LaunchStage};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, major, minor, openat};
use rustix::io::Errno;
use std::borrow::Cow;
use std::io;
use std::time::Duration;

/// How long a disk may take to appear.
const ATTEMPTS_MAX: u32 = 150;
const PAUSE: Duration = Duration::from_millis(20);

/// The plan with the nodes of its disks, and the rules to use them, by the numbers that they have in this guest.
pub fn resolve(plan: &ContainerPlan) -> Result<Cow<'_, ContainerPlan>> {
    if plan.disks.is_empty() {
        return Ok(Cow::Borrowed(plan));
    }
    let mut plan = plan.clone();
    for disk in std::mem::take(&mut plan.disks) {
        let (major, minor) = number(&disk.device, !disk.write)
            .at(LaunchStage::Devices, || format!("finding the disk {}", disk.device))?;
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

/// Major and minor of a disk that nobody has mounted: who mounts one claims it, and it cannot be opened exclusively then
/// (open(2), O_EXCL).
pub fn number(device: &str, read_only: bool) -> io::Result<(u32, u32)> {
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut attempts = 0;
    let disk = loop {
        match openat(CWD, device, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NXIO) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                std::thread::sleep(PAUSE);
            }
            opened => break opened?,
        }
    };
    let found = fstat(&disk)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return Err(io::Error::other("it is no disk"));
    }
    Ok((major(found.st_rdev), minor(found.st_rdev)))
}
