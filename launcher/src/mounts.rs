//! The plan's mounts: each made detached, given its attributes, and attached to a target that is held by descriptor.

use crate::check::Origin;
use crate::copy_up::copy_up;
use crate::error::{Context, LaunchError, Result};
use crate::filesystem::{FilesystemContext, attach, clone_mount};
use crate::namespaces::{self, propagation_flags};
use crate::procfs::Procfs;
use crate::tree::{Tree, is_missing};
use crate::user_namespace;
use nacre_protocols::init_launcher::{
    AccessTime, ContainerPlan, LaunchStage, Mount, MountAttributes, MountKind, Namespace,
};
use nacre_protocols::names::KATA_RUN_DIR;
use nacre_sys::mounting::set_attributes;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Mounts;

/// A tmpfs that becomes read-only when everything has been put into it.
pub struct Unfinished {
    mount: OwnedFd,
    destination: String,
}

/// Applies the mounts in order. What comes back is for [`finish`], after devices and links were made.
pub fn apply(
    mounts: &[Mount],
    root: &Tree,
    origin: Origin,
    mut ahead: Option<Ahead>,
) -> Result<Vec<Unfinished>> {
    let mut unfinished = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let detached = ahead.as_mut().and_then(|ahead| ahead.0.get_mut(index)?.take());
        let mounted = apply_one(mount, root, origin, detached)
            .at(STAGE, || format!("mounting {} at {}", kind_name(&mount.kind), mount.destination))?;
        if matches!(mount.kind, MountKind::Tmpfs { .. }) && mount.attributes.read_only {
            unfinished.push(Unfinished { mount: mounted, destination: mount.destination.clone() });
        }
    }
    Ok(unfinished)
}

/// Mounts that were made, and attached nowhere, with rights that this process has no more when it attaches them.
pub struct Ahead(Vec<Option<OwnedFd>>);

/// Before a user namespace is entered: parts of the starter's tree, mounts with mapped ids, and the proc file system of the
/// pid namespace, which belongs to the starter's users.
pub fn prepare(plan: &ContainerPlan, origin: Origin) -> Result<Ahead> {
    let one = |mount: &Mount| {
        let prepared = match &mount.kind {
            MountKind::Bind { source, recursive } => {
                open_source(source, origin).and_then(|source| clone_mount(&source, *recursive)).map(Some)
            }
            MountKind::Proc { data } => {
                file_system("proc", "proc", data, attribute_flags(&mount.attributes)).map(Some)
            }
            _ => Ok(None),
        };
        prepared.at(STAGE, || format!("preparing {} for {}", kind_name(&mount.kind), mount.destination))
    };
    let mut all = plan.mounts.iter().map(one).collect::<Result<Vec<_>>>()?;
    map_ids(plan, &mut all)?;
    Ok(Ahead(all))
}

/// The container's cgroup as what is mounted for cgroup2: from a cgroup namespace that has its root there, it looks as a mount of
/// its own would, and the kernel need not compare a new one with that of every other container. To be called before mounts are
/// entered; where the directory is of no mount here, the container gets one of its own.
pub fn see_cgroup(plan: &ContainerPlan, cgroup: &OwnedFd, ahead: Option<Ahead>) -> Option<Ahead> {
    let seen = |mount: &Mount| mount.kind == MountKind::Cgroup2 && mount.id_mapping.is_none();
    if plan.namespaces.cgroup != Namespace::Fresh || !plan.mounts.iter().any(seen) {
        return ahead;
    }
    let mut all = ahead.map_or_else(|| plan.mounts.iter().map(|_| None).collect(), |ahead| ahead.0);
    for (mount, detached) in plan.mounts.iter().zip(&mut all) {
        if seen(mount) {
            *detached = clone_mount(cgroup, false).ok();
        }
    }
    Some(Ahead(all))
}

/// Whether something must be made ahead though the container has the starter's users.
pub fn needs_preparation(plan: &ContainerPlan) -> bool {
    plan.mounts.iter().any(|mount| mount.id_mapping.is_some())
}

fn map_ids(plan: &ContainerPlan, prepared: &mut [Option<OwnedFd>]) -> Result<()> {
    let mut procfs = None;
    for (mount, detached) in plan.mounts.iter().zip(prepared) {
        let Some(mapping) = &mount.id_mapping else { continue };
        let about = || format!("mapping the ids of {}", mount.destination);
        let users = match (&mapping.mappings, &plan.namespaces.user) {
            (None, Namespace::At(path)) => namespaces::open(path)?,
            (None, Namespace::Shared) => {
                let why = format!("{}: the container has no user namespace of its own", about());
                return Err(LaunchError::refused(STAGE, why));
            }
            (own, _) => {
                let procfs = match &procfs {
                    Some(procfs) => procfs,
                    None => procfs.insert(Procfs::detached()?),
                };
                let mappings = own.as_ref().unwrap_or(&plan.namespaces.user_mappings);
                user_namespace::make(mappings, false, procfs)?.user
            }
        };
        if detached.is_none() {
            *detached = fresh(mount).at(STAGE, about)?;
        }
        let Some(detached) = detached else {
            return Err(LaunchError::refused(
                STAGE,
                format!("{}: nothing of its kind can be mapped", about()),
            ));
        };
        nacre_sys::mounting::map_ids(detached, mapping.recursive, &users).at(STAGE, about)?;
    }
    Ok(())
}

/// A fresh file system whose ids are to be mapped.
fn fresh(mount: &Mount) -> io::Result<Option<OwnedFd>> {
    let attributes = attribute_flags(&mount.attributes);
    match &mount.kind {
        MountKind::Filesystem { name, source, data } => file_system(name, source, data, attributes).map(Some),
        MountKind::Tmpfs { data, copy_up: false } => {
            file_system("tmpfs", "tmpfs", data, attributes).map(Some)
        }
        _ => Ok(None),
    }
}

pub fn finish(unfinished: &[Unfinished]) -> Result<()> {
    unfinished.iter().try_for_each(|it| {
        change(&it.mount, false, MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty())
            .at(STAGE, || format!("making {} read-only", it.destination))
    })
}

pub fn attribute_flags(attributes: &MountAttributes) -> MountAttrFlags {
    let mut flags = match attributes.access_time {
        AccessTime::Unchanged | AccessTime::Relative => MountAttrFlags::MOUNT_ATTR_RELATIME,
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

fn apply_one(mount: &Mount, root: &Tree, origin: Origin, detached: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let attributes = attribute_flags(&mount.attributes);
    let writable = attributes - MountAttrFlags::MOUNT_ATTR_RDONLY;
    let path = mount.destination.as_str();
    let mounted = match (&mount.kind, detached) {
        (MountKind::Bind { source, recursive }, detached) => {
            bind(source, *recursive, detached, mount, root, origin)
        }
        (MountKind::Proc { .. }, Some(proc)) => {
            refuse_links(path, root)?;
            place(proc, path, root)
        }
        (MountKind::Cgroup2, Some(cgroup)) => {
            refuse_links(path, root)?;
            let private = MountPropagationFlags::PRIVATE;
            set_attributes(&cgroup, false, attributes, MountAttrFlags::MOUNT_ATTR__ATIME, private)?;
            place(cgroup, path, root)
        }
        (_, Some(detached)) => place(detached, path, root),
        (MountKind::Tmpfs { data, copy_up }, None) => tmpfs(data, *copy_up, writable, path, root),
        (MountKind::Proc { data }, None) => kernel_tree("proc", data, attributes, path, root),
        (MountKind::Sysfs, None) => kernel_tree("sysfs", &[], attributes, path, root),
        (MountKind::Cgroup2, None) => kernel_tree("cgroup2", &[], attributes, path, root),
        (MountKind::Devpts { data }, None) => {
            place(file_system("devpts", "devpts", data, attributes)?, path, root)
        }
        (MountKind::Mqueue, None) => place(file_system("mqueue", "mqueue", &[], attributes)?, path, root),
        (MountKind::Filesystem { name, source, data }, None) => {
            place(file_system(name, source, data, attributes)?, path, root)
        }
        (MountKind::Own, None) => {
            let place = root.make_directory(path)?;
            let own = clone_mount(&place, false)?;
            changed(&own, mount, false)?;
            attach(&own, &place)?;
            Ok(own)
        }
        (MountKind::Remount, None) => {
            let mounted = root.open(path, OFlags::PATH)?;
            changed(&mounted, mount, false)?;
            Ok(mounted)
        }
    }?;
    let changes = &mount.changes;
    change_recursively(&mounted, &changes.recursive, &changes.recursive_cleared)?;
    if let Some(propagation) = mount.propagation {
        let (flags, recursive) = propagation_flags(propagation);
        set_attributes(&mounted, recursive, MountAttrFlags::empty(), MountAttrFlags::empty(), flags)?;
    }
    Ok(mounted)
}

/// A part of the starter's tree. It keeps the attributes of its source but for those that the plan speaks of.
fn bind(
    source: &str,
    recursive: bool,
    detached: Option<OwnedFd>,
    mount: &Mount,
    root: &Tree,
    origin: Origin,
) -> io::Result<OwnedFd> {
    let bound = match detached {
        Some(bound) => bound,
        None => clone_mount(open_source(source, origin)?, recursive)?,
    };
    let is_directory = FileType::from_raw_mode(fstat(&bound)?.st_mode) == FileType::Directory;
    let destination = &mount.destination;
    let target = if is_directory { root.make_directory(destination)? } else { root.make_file(destination)? };
    changed(&bound, mount, origin == Origin::Agent)?;
    if origin == Origin::Agent && recursive {
        change(&bound, true, MountAttrFlags::MOUNT_ATTR_NODEV, MountAttrFlags::empty())?;
    }
    attach(&bound, &target)?;
    Ok(bound)
}

/// Sets and clears what the plan speaks of, on the mount alone. `no_devices`: device nodes in a volume would be the guest's
/// devices, whoever made them.
fn changed(mounted: &OwnedFd, mount: &Mount, no_devices: bool) -> io::Result<()> {
    let (mut set, mut clear) = masks(&mount.attributes, &mount.changes.cleared);
    if no_devices {
        set |= MountAttrFlags::MOUNT_ATTR_NODEV;
        clear -= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    if set.is_empty() && clear.is_empty() { Ok(()) } else { change(mounted, false, set, clear) }
}

fn change_recursively(mounted: &OwnedFd, set: &MountAttributes, cleared: &MountAttributes) -> io::Result<()> {
    let (set, clear) = masks(set, cleared);
    if set.is_empty() && clear.is_empty() { Ok(()) } else { change(mounted, true, set, clear) }
}

/// The access time's bits are one number: who sets it clears them first.
fn masks(set: &MountAttributes, cleared: &MountAttributes) -> (MountAttrFlags, MountAttrFlags) {
    let atime = MountAttrFlags::MOUNT_ATTR__ATIME;
    let (wanted, mut clear) = (attribute_flags(set), attribute_flags(cleared) - atime);
    if set.access_time == AccessTime::Unchanged {
        return (wanted - atime, clear);
    }
    clear |= atime;
    (wanted, clear)
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
    let context = open_context("tmpfs", "tmpfs")?;
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
    refuse_links(destination, root)?;
    place(file_system(kind, kind, data, attributes)?, destination, root)
}

fn refuse_links(destination: &str, root: &Tree) -> io::Result<()> {
    match root.open_plain(destination, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Attached nowhere yet. Kernel file systems have the source's name that programs know from `/proc/mounts`.
fn file_system(kind: &str, source: &str, data: &[String], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = open_context(kind, source)?;
    for option in data {
        context.option(option)?;
    }
    context.mount(attributes)
}

fn place(mount: OwnedFd, destination: &str, root: &Tree) -> io::Result<OwnedFd> {
    attach(&mount, root.make_directory(destination)?)?;
    Ok(mount)
}

fn open_context(kind: &str, source: &str) -> io::Result<FilesystemContext> {
    let context = FilesystemContext::open(kind)?;
    if !source.is_empty() {
        context.set("source", source)?;
    }
    Ok(context)
}

fn change(mount: &OwnedFd, recursive: bool, set: MountAttrFlags, clear: MountAttrFlags) -> io::Result<()> {
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
        MountKind::Filesystem { name, .. } => name.clone(),
        MountKind::Remount => "the same again".to_owned(),
        MountKind::Own => "the image's volume".to_owned(),
    }
}
