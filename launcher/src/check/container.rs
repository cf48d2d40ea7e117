//! The rules for a container's plan.

use super::process;
use super::{
    CheckError, Origin, TMPFS_OPTIONS, count, length, not_allowed, options, path, path_beneath, require,
    unreserved,
};
use nacre_protocols::init_launcher::{
    ARGS_MAX, CgroupLimits, ContainerPlan, DEVICES_MAX, DeviceKind, DeviceNode, DeviceRule, Disk, HOOKS_MAX,
    Hooks, IdMapping, IdMappings, LAYERS_MAX, LIST_MAX, MAPPINGS_MAX, MOUNTS_MAX, Missing, Mount, MountKind,
    MountMapping, Namespace, Namespaces, Rootfs, fd,
};
use nacre_protocols::names::{KATA_RUN_DIR, RESERVED_UIDS, is_valid_id};

/// `__NEW_UTS_LEN`, in bytes.
const HOSTNAME_MAX: usize = 64;
/// Longest value written to a cgroup file or a sysctl, in bytes.
const VALUE_MAX: usize = 4096;

/// Character devices that a container may read and write: they hold nothing of the guest's.
/// Memory devices, the controlling terminal and the pty multiplexer, tun, fuse (`Documentation/admin-guide/devices.txt`).
const DEVICES: &[(u32, u32)] =
    &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200), (10, 229)];
/// Pseudo-terminals: any minor, since each container sees only its own devpts.
const PTY_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

/// Controllers whose files a plan may write.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "memory", "io", "pids", "hugetlb", "misc", "rdma"];

/// Kernel settings that belong to a namespace of the sandbox or the container (namespaces(7)).
const SYSCTLS: &[&str] = &[
    "kernel.domainname",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
const SYSCTL_TREES: &[&str] = &["net.", "fs.mqueue."];

pub(super) fn check(plan: &ContainerPlan, origin: Origin, ceiling: u64) -> Result<(), CheckError> {
    require(is_valid_id(&plan.id), "id", &plan.id)?;
    for (what, name) in [("hostname", &plan.hostname), ("domainname", &plan.domainname)] {
        if let Some(name) = name {
            length(what, name, HOSTNAME_MAX)?;
            require(!name.is_empty() && !name.contains('\0'), what, name)?;
            // The starter's own name is not the container's to set.
            require(plan.namespaces.uts != Namespace::Shared, what, name)?;
        }
    }
    rootfs(&plan.rootfs, origin)?;
    count("mounts", plan.mounts.len(), MOUNTS_MAX)?;
    plan.mounts.iter().try_for_each(|it| mount(it, origin))?;
    count("devices", plan.devices.len(), DEVICES_MAX)?;
    plan.devices.iter().try_for_each(|it| device(it, origin))?;
    count("device_rules", plan.device_rules.len(), DEVICES_MAX)?;
    plan.device_rules.iter().try_for_each(|it| device_rule(it, origin))?;
    count("disks", plan.disks.len(), DEVICES_MAX)?;
    plan.disks.iter().try_for_each(|it| disk(it, origin))?;
    count("masked_paths", plan.masked_paths.len(), LIST_MAX)?;
    plan.masked_paths.iter().try_for_each(|it| covered_path("masked path", it))?;
    count("readonly_paths", plan.readonly_paths.len(), LIST_MAX)?;
    plan.readonly_paths.iter().try_for_each(|it| covered_path("readonly path", it))?;
    limits(&plan.cgroup)?;
    namespaces(&plan.namespaces, origin)?;
    hooks(&plan.hooks, origin)?;
    count("net_devices", plan.net_devices.len(), DEVICES_MAX)?;
    require(plan.net_devices.is_empty() || origin == Origin::Host, "a plan with", "network devices")?;
    count("sysctls", plan.sysctls.len(), LIST_MAX)?;
    plan.sysctls.iter().try_for_each(|(name, value)| sysctl(name, value, origin))?;
    let inherited_max = match origin {
        Origin::Agent => 0,
        Origin::Init => fd::INHERITED_MAX,
        Origin::Host => fd::PRESERVED_MAX,
    };
    count("inherited descriptors", plan.inherited.into(), inherited_max.into())?;
    process::check(&plan.process, origin, ceiling)
}

fn rootfs(rootfs: &Rootfs, origin: Origin) -> Result<(), CheckError> {
    match rootfs {
        Rootfs::Layers(layers) if layers.is_empty() => Err(CheckError::Missing("a layer of the rootfs")),
        Rootfs::Layers(layers) => count("layers", layers.len(), LAYERS_MAX),
        Rootfs::Guest(directory) => guest_path("rootfs", directory, origin),
        Rootfs::Puller => require(origin == Origin::Init, "rootfs", "puller"),
    }
}

/// The agent reaches what the Kata conventions place in the guest; init reaches all of it.
fn guest_path(what: &'static str, value: &str, origin: Origin) -> Result<(), CheckError> {
    match origin {
        Origin::Agent => path_beneath(what, value, KATA_RUN_DIR),
        Origin::Init | Origin::Host => path(what, value),
    }
}

fn mount(mount: &Mount, origin: Origin) -> Result<(), CheckError> {
    covered_path("mount destination", &mount.destination)?;
    if let Some(MountMapping { mappings: Some(mappings), .. }) = &mount.id_mapping {
        self::mappings(mappings, origin)?;
    }
    match &mount.kind {
        MountKind::Bind { source, .. } => guest_path("bind source", source, origin),
        MountKind::Proc { data } => options("option of proc", data, &["hidepid", "gid", "subset"]),
        MountKind::Tmpfs { data, .. } => options("option of tmpfs", data, TMPFS_OPTIONS),
        MountKind::Devpts { data } => {
            options("option of devpts", data, &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"])
        }
        MountKind::Filesystem { name, .. } => require(origin == Origin::Host, "file system", name),
        MountKind::Sysfs | MountKind::Mqueue | MountKind::Cgroup2 | MountKind::Remount | MountKind::Own => {
            Ok(())
        }
    }
}

/// Limits also of an update.
pub(super) fn limits(limits: &CgroupLimits) -> Result<(), CheckError> {
    count("cgroup", limits.writes.len(), LIST_MAX)?;
    limits.writes.iter().try_for_each(|write| {
        cgroup_write(&write.file, &write.value)?;
        match &write.missing {
            Missing::Instead { file, value } => cgroup_write(file, value),
            Missing::Fails | Missing::Passes => Ok(()),
        }
    })
}

/// A namespace of the guest's own is no container's to join; what a sandbox's containers share they share by being born
/// there.
fn namespaces(all: &Namespaces, origin: Origin) -> Result<(), CheckError> {
    let kinds = [&all.pid, &all.mount, &all.cgroup, &all.ipc, &all.network, &all.uts, &all.time, &all.user];
    for namespace in kinds {
        if let Namespace::At(at) = namespace {
            require(origin == Origin::Host, "namespace by path", at)?;
            path("namespace", at)?;
        }
    }
    require(all.mount == Namespace::Fresh, "mount namespace", "but a fresh one")?;
    require(origin == Origin::Host || all.cgroup == Namespace::Fresh, "cgroup namespace", "but a fresh one")?;
    count("clock offsets", all.time_offsets.len(), 2)?;
    require(
        all.time_offsets.is_empty() || all.time == Namespace::Fresh,
        "clock offset",
        "without a fresh time namespace",
    )?;
    mappings(&all.user_mappings, origin)?;
    let maps_root = |list: &[IdMapping]| list.iter().any(|it| it.inside == 0);
    require(
        all.user != Namespace::Fresh
            || maps_root(&all.user_mappings.users) && maps_root(&all.user_mappings.groups),
        "user namespace",
        "without a mapping of 0",
    )
}

fn mappings(mappings: &IdMappings, origin: Origin) -> Result<(), CheckError> {
    for (what, list) in [("mappings of users", &mappings.users), ("mappings of groups", &mappings.groups)] {
        count(what, list.len(), MAPPINGS_MAX)?;
        for it in list {
            let last = it.count.checked_sub(1).and_then(|more| it.outside.checked_add(more));
            let Some(last) = last else { return Err(not_allowed(what, "an empty range")) };
            let reserved = RESERVED_UIDS.start() <= &last && &it.outside <= RESERVED_UIDS.end();
            require(origin != Origin::Agent || !reserved, what, it.outside)?;
        }
    }
    Ok(())
}

/// A guest has no program that is not the container's own.
fn hooks(hooks: &Hooks, origin: Origin) -> Result<(), CheckError> {
    let own_alone = !hooks.pause && hooks.create_container.is_empty();
    require(own_alone || origin == Origin::Host, "a hook", "outside of the container")?;
    for list in [&hooks.create_container, &hooks.start_container] {
        count("hooks", list.len(), HOOKS_MAX)?;
        for hook in list {
            path("hook", &hook.path)?;
            count("arguments of a hook", hook.args.len(), ARGS_MAX)?;
            count("environment of a hook", hook.env.len(), ARGS_MAX)?;
        }
    }
    Ok(())
}

/// A path that something is laid over: anything but the root itself.
fn covered_path(what: &'static str, value: &str) -> Result<(), CheckError> {
    path(what, value)?;
    require(value.bytes().any(|byte| byte != b'/'), what, value)
}

fn device(device: &DeviceNode, origin: Origin) -> Result<(), CheckError> {
    covered_path("device", &device.path)?;
    require(device.mode & !0o777 == 0, "mode of device", &device.path)?;
    unreserved("owner of a device", device.uid, origin)?;
    unreserved("group of a device", device.gid, origin)?;
    let allowed = match device.kind {
        DeviceKind::Fifo => true,
        DeviceKind::Character => is_open_device(device.major, Some(device.minor)),
        DeviceKind::Block => false,
    };
    let allowed = allowed || origin == Origin::Host;
    require(allowed, "device", format_args!("{} ({}:{})", device.path, device.major, device.minor))
}

fn disk(disk: &Disk, origin: Origin) -> Result<(), CheckError> {
    super::storage::disk_address(&disk.address)?;
    covered_path("device", &disk.path)?;
    require(disk.mode & !0o777 == 0, "mode of device", &disk.path)?;
    unreserved("owner of a device", disk.uid, origin)?;
    unreserved("group of a device", disk.gid, origin)
}

/// Whether reading and writing this character device is harmless; without a minor, any of the major.
fn is_open_device(major: u32, minor: Option<u32>) -> bool {
    PTY_MAJORS.contains(&major) || minor.is_some_and(|minor| DEVICES.contains(&(major, minor)))
}

/// Denials are always allowed, and so is making nodes: a node gives nothing without the right to open it.
fn device_rule(rule: &DeviceRule, origin: Origin) -> Result<(), CheckError> {
    if rule.kind == Some(DeviceKind::Fifo) {
        return Err(not_allowed("device rule", "for a fifo"));
    }
    let opens = rule.allow && (rule.read || rule.write);
    let allowed = origin == Origin::Host
        || !opens
        || rule.kind == Some(DeviceKind::Character)
            && rule.major.is_some_and(|major| is_open_device(major, rule.minor));
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    require(allowed, "device rule", format_args!("{}:{}", number(rule.major), number(rule.minor)))
}

fn cgroup_write(file: &str, value: &str) -> Result<(), CheckError> {
    length("value for a cgroup file", value, VALUE_MAX)?;
    let plain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'))
    };
    let allowed = match file.split_once('.') {
        Some(("cgroup", name)) => name.strip_prefix("max.").is_some_and(plain),
        Some((controller, name)) => CONTROLLERS.contains(&controller) && plain(name),
        None => false,
    };
    require(allowed, "cgroup file", file)
}

fn sysctl(name: &str, value: &str, origin: Origin) -> Result<(), CheckError> {
    length("sysctl value", value, VALUE_MAX)?;
    let tree = SYSCTL_TREES.iter().any(|tree| name.strip_prefix(tree).is_some_and(|rest| !rest.is_empty()));
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && name.split('.').all(|part| !part.is_empty());
    let known = tree || origin == Origin::Host || SYSCTLS.contains(&name);
    require(plain && known, "sysctl", name)
}
