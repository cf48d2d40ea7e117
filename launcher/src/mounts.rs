//! The plan's mounts: each made detached, given its attributes, and attached to a target that is held by descriptor.

use crate::check::Origin;
use crate::copy_up::copy_up;
use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, attach, clone_mount};
use crate::namespaces::propagation_flags;
use crate::tree::{Tree, is_missing};
use nacre_protocols::init_launcher::{AccessTime, LaunchStage, Mount, MountAttributes, MountKind};
use nacre_protocols::names::KATA_RUN_DIR;
use nacre_sys::mounting::set_attributes;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Mounts;

/// Every attribute that a plan speaks of, and the access time's.
const ALL_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW)
    .union(MountAttrFlags::MOUNT_ATTR_NODIRATIME)
    .union(MountAttrFlags::MOUNT_ATTR__ATIME);

/// A tmpfs that becomes read-only when everything has been put into it.
pub struct Unfinished {
    mount: OwnedFd,
    destination: String,
}

/// Applies the mounts in order. What comes back is for [`finish`], after devices and links were made.
pub fn apply(mounts: &[Mount], root: &Tree, origin: Origin) -> Result<Vec<Unfinished>> {
    let mut unfinished = Vec::new();
    for mount in mounts {
        let mounted = apply_one(mount, root, origin)
            .at(STAGE, || format!("mounting {} at {}", kind_name(&mount.kind), mount.destination))?;
        if matches!(mount.kind, MountKind::Tmpfs { .. }) && mount.attributes.read_only {
            unfinished.push(Unfinished { mount: mounted, destination: mount.destination.clone() });
        }
    }
    Ok(unfinished)
}

pub fn finish(unfinished: &[Unfinished]) -> Result<()> {
    unfinished.iter().try_for_each(|it| {
        change(&it.mount, false, MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty())
            .at(STAGE, || format!("making {} read-only", it.destination))
    })
}

pub fn attribute_flags(attributes: &MountAttributes) -> MountAttrFlags {
    let mut flags = match attributes.access_time {
        AccessTime::Relative => MountAttrFlags::MOUNT_ATTR_RELATIME,
        AccessTime::Strict => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        AccessTime::Never => MountAttrFlags::MOUNT_ATTR_NOATIME,
    };
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.no_suid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.no_dev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.no_exec);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, attributes.no_symlinks);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODIRATIME, attributes.no_dir_access_time);
    flags
}

fn apply_one(mount: &Mount, root: &Tree, origin: Origin) -> io::Result<OwnedFd> {
    let attributes = attribute_flags(&mount.attributes);
    let writable = attributes - MountAttrFlags::MOUNT_ATTR_RDONLY;
    let path = mount.destination.as_str();
    let mounted = match &mount.kind {
        MountKind::Bind { source, recursive } => bind(source, *recursive, attributes, path, root, origin),
        MountKind::Tmpfs { data, copy_up } => tmpfs(data, *copy_up, writable, path, root),
        MountKind::Proc { data } => kernel_tree("proc", data, attributes, path, root),
        MountKind::Sysfs => kernel_tree("sysfs", &[], attributes, path, root),
        MountKind::Cgroup2 => kernel_tree("cgroup2", &[], attributes, path, root),
        MountKind::Devpts { data } => filesystem("devpts", data, attributes, path, root),
        MountKind::Mqueue => filesystem("mqueue", &[], attributes, path, root),
    }?;
    if let Some(propagation) = mount.propagation {
        let (flags, recursive) = propagation_flags(propagation);
        set_attributes(&mounted, recursive, MountAttrFlags::empty(), MountAttrFlags::empty(), flags)?;
    }
    Ok(mounted)
}

/// A part of the guest's tree. Attributes count for all mounts beneath where the bind is recursive.
fn bind(
    source: &str,
    recursive: bool,
    attributes: MountAttrFlags,
    destination: &str,
    root: &Tree,
    origin: Origin,
) -> io::Result<OwnedFd> {
    let source = open_source(source, origin)?;
    let is_directory = FileType::from_raw_mode(fstat(&source)?.st_mode) == FileType::Directory;
    let target = if is_directory { root.make_directory(destination)? } else { root.make_file(destination)? };
    let attributes = match origin {
        // Device nodes in a volume would be the guest's devices, whoever made them.
        Origin::Agent => attributes | MountAttrFlags::MOUNT_ATTR_NODEV,
        _ => attributes,
    };
    let mount = clone_mount(&source, recursive)?;
    change(&mount, recursive, attributes, ALL_ATTRIBUTES)?;
    attach(&mount, &target)?;
    Ok(mount)
}

/// Without following any link: a container with a writable volume could have left one in it that leads to the guest's
/// own files (CVE-2017-1002101).
fn open_source(source: &str, origin: Origin) -> io::Result<OwnedFd> {
    let (tree, path) = match (origin, source.strip_prefix(KATA_RUN_DIR)) {
        // The links of its own machine are root's business, as for mount(8).
        (Origin::Host, _) => return Tree::own_root()?.open(source, OFlags::PATH),
        (Origin::Init, _) => ("/", source),
        (_, Some(path)) => (KATA_RUN_DIR, path),
        (_, None) => return Err(io::ErrorKind::PermissionDenied.into()),
    };
    Tree::guest(tree)?.open_plain(path, OFlags::PATH)
}

fn tmpfs(
    data: &[String],
    copy_up_wanted: bool,
    attributes: MountAttrFlags,
    destination: &str,
    root: &Tree,
) -> io::Result<OwnedFd> {
    let place = root.make_directory(destination)?;
    let context = open_context("tmpfs")?;
    for option in data {
        context.option(option)?;
    }
    if !data.iter().any(|option| option.starts_with("mode=")) {
        // What a directory of the image allowed, a tmpfs over it allows.
        context.set("mode", &format!("{:o}", fstat(&place)?.st_mode & 0o7777))?;
    }
    let mount = context.mount(attributes)?;
    if copy_up_wanted {
        copy_up(&place, &mount)?;
    }
    attach(&mount, &place)?;
    Ok(mount)
}

/// File systems through which programs trust the kernel to answer: a link of the image must not place them elsewhere
/// (CVE-2019-19921).
fn kernel_tree(
    kind: &str,
    data: &[String],
    attributes: MountAttrFlags,
    destination: &str,
    root: &Tree,
) -> io::Result<OwnedFd> {
    match root.open_plain(destination, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if !is_missing(&error) => Err(error),
        _ => filesystem(kind, data, attributes, destination, root),
    }
}

fn filesystem(
    kind: &str,
    data: &[String],
    attributes: MountAttrFlags,
    destination: &str,
    root: &Tree,
) -> io::Result<OwnedFd> {
    let place = root.make_directory(destination)?;
    let context = open_context(kind)?;
    for option in data {
        context.option(option)?;
    }
    let mount = context.mount(attributes)?;
    attach(&mount, &place)?;
    Ok(mount)
}

/// With the source's name that programs know from `/proc/mounts`.
fn open_context(kind: &str) -> io::Result<FilesystemContext> {
    let context = FilesystemContext::open(kind)?;
    context.set("source", kind)?;
    Ok(context)
}

fn change(mount: &OwnedFd, recursive: bool, set: MountAttrFlags, clear: MountAttrFlags) -> io::Result<()> {
    // What is set must not be cleared as well, but for the access time, whose bits are one number.
    let clear = (clear - set) | (clear & MountAttrFlags::MOUNT_ATTR__ATIME);
    set_attributes(mount, recursive, set, clear, MountPropagationFlags::empty())
}

fn kind_name(kind: &MountKind) -> String {
    match kind {
        MountKind::Bind { source, .. } => source.clone(),
        MountKind::Proc { .. } => "proc".to_owned(),
        MountKind::Sysfs => "sysfs".to_owned(),
        MountKind::Tmpfs { .. } => "tmpfs".to_owned(),
        MountKind::Devpts { .. } => "devpts".to_owned(),
        MountKind::Mqueue => "mqueue".to_owned(),
        MountKind::Cgroup2 => "cgroup2".to_owned(),
    }
}
