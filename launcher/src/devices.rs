//! Device nodes and the usual links of `/dev`, and what the container may do with devices.

use crate::device_program;
use crate::error::{Context, Result};
use crate::filesystem::{attach, clone_mount};
use crate::tree::Tree;
use nacre_protocols::init_launcher::{
    ContainerPlan, DeviceKind, DeviceNode, DeviceRule, LaunchStage, Mount, MountKind,
};
use nacre_sys::bpf::attach_device_program;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, makedev, mknodat, statat, symlinkat,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Devices;

/// Links that programs expect (OCI runtime specification, "Dev symbolic links").
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// The nodes of the starter that stand for the plan's: no user namespace but the first can make any.
pub struct Nodes(Vec<Option<OwnedFd>>);

/// Finds them where the plan has them, attached nowhere yet.
pub fn prepare(plan: &ContainerPlan) -> Result<Nodes> {
    let outside = Tree::own_root().at(STAGE, || "opening the starter's root".to_owned())?;
    let one = |device: &DeviceNode| {
        if device.kind == DeviceKind::Fifo {
            return Ok(None);
        }
        let find = || -> io::Result<OwnedFd> {
            let node = outside.open(&device.path, OFlags::PATH)?;
            let found = fstat(&node)?;
            let is_it = FileType::from_raw_mode(found.st_mode) == file_type(device.kind)
                && found.st_rdev == makedev(device.major, device.minor);
            if is_it { clone_mount(&node, false) } else { Err(Errno::NXIO.into()) }
        };
        find().map(Some).at(STAGE, || format!("finding device {} for a user namespace", device.path))
    };
    plan.devices.iter().map(one).collect::<Result<_>>().map(Nodes)
}

/// Makes the plan's nodes, and the links where `/dev` is the container's own tmpfs. The umask is 0.
pub fn populate(plan: &ContainerPlan, root: &Tree, nodes: Option<Nodes>) -> Result<()> {
    let mut nodes = nodes.map(|nodes| nodes.0).unwrap_or_default().into_iter();
    for device in &plan.devices {
        let made = match nodes.next().flatten() {
            Some(node) => root.make_file(&device.path).and_then(|place| attach(node, place)),
            None => make_node(device, root),
        };
        made.at(STAGE, || format!("making device {}", device.path))?;
    }
    if has_mount(&plan.mounts, "/dev", |kind| matches!(kind, MountKind::Tmpfs { .. })) {
        let multiplexer =
            has_mount(&plan.mounts, "/dev/pts", |kind| matches!(kind, MountKind::Devpts { .. }))
                .then_some(("ptmx", "pts/ptmx"));
        for (name, target) in LINKS.iter().copied().chain(multiplexer) {
            make_link(name, target, root).at(STAGE, || format!("linking /dev/{name}"))?;
        }
    }
    Ok(())
}

/// Lays the device program on the cgroup; from here on the rules count for this process as well.
pub fn restrict(rules: &[DeviceRule], cgroup: &OwnedFd) -> Result<()> {
    attach_device_program(cgroup, &device_program::generate(rules))
        .at(LaunchStage::Cgroup, || format!("attaching {} device rules", rules.len()))
}

fn has_mount(mounts: &[Mount], destination: &str, is_kind: impl Fn(&MountKind) -> bool) -> bool {
    mounts.iter().any(|mount| mount.destination.trim_end_matches('/') == destination && is_kind(&mount.kind))
}

fn make_node(device: &DeviceNode, root: &Tree) -> io::Result<()> {
    let (directory, name) = root.make_parent(&device.path)?;
    let file_type = file_type(device.kind);
    let mode = Mode::from_raw_mode(device.mode);
    let number = match device.kind {
        DeviceKind::Fifo => 0,
        _ => makedev(device.major, device.minor),
    };
    match mknodat(&directory, name, file_type, mode, number) {
        Err(Errno::EXIST) => {
            // The image may have it already; anything else of that name is not what the plan wants.
            let found = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(found.st_mode) != file_type || found.st_rdev != number {
                return Err(Errno::EXIST.into());
            }
            chmodat(&directory, name, mode, AtFlags::empty())?;
        }
        made => made?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    Ok(chownat(&directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn file_type(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    }
}

/// Something of that name that a mount or device of the plan has put there stays.
fn make_link(name: &str, target: &str, root: &Tree) -> io::Result<()> {
    let directory = root.make_directory("/dev")?;
    match symlinkat(target, &directory, name) {
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}
