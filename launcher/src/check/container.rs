//! The rules for a container's plan.

use super::process;
use super::{
    CheckError, Origin, TMPFS_OPTIONS, count, length, not_allowed, options, path, path_beneath, require,
    unreserved,
};
use nacre_protocols::init_launcher::{
    CgroupWrite, ContainerPlan, DEVICES_MAX, DeviceKind, DeviceNode, DeviceRule, LAYERS_MAX, LIST_MAX,
    MOUNTS_MAX, Mount, MountKind, Rootfs, fd,
};
use nacre_protocols::names::{KATA_RUN_DIR, is_valid_id};

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
    if let Some(hostname) = &plan.hostname {
        length("hostname", hostname, HOSTNAME_MAX)?;
        require(!hostname.is_empty() && !hostname.contains('\0'), "hostname", hostname)?;
    }
    rootfs(&plan.rootfs, origin)?;
    count("mounts", plan.mounts.len(), MOUNTS_MAX)?;
    plan.mounts.iter().try_for_each(|it| mount(it, origin))?;
    count("devices", plan.devices.len(), DEVICES_MAX)?;
    plan.devices.iter().try_for_each(|it| device(it, origin))?;
    count("device_rules", plan.device_rules.len(), DEVICES_MAX)?;
    plan.device_rules.iter().try_for_each(|it| device_rule(it, origin))?;
    count("masked_paths", plan.masked_paths.len(), LIST_MAX)?;
    plan.masked_paths.iter().try_for_each(|it| covered_path("masked path", it))?;
    count("readonly_paths", plan.readonly_paths.len(), LIST_MAX)?;
    plan.readonly_paths.iter().try_for_each(|it| covered_path("readonly path", it))?;
    count("cgroup", plan.cgroup.len(), LIST_MAX)?;
    plan.cgroup.iter().try_for_each(cgroup_write)?;
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
    match &mount.kind {
        MountKind::Bind { source, .. } => guest_path("bind source", source, origin),
        MountKind::Proc { data } => options("option of proc", data, &["hidepid", "gid", "subset"]),
        MountKind::Tmpfs { data, .. } => options("option of tmpfs", data, TMPFS_OPTIONS),
        MountKind::Devpts { data } => {
            options("option of devpts", data, &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"])
        }
        MountKind::Sysfs | MountKind::Mqueue | MountKind::Cgroup2 => Ok(()),
    }
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

fn cgroup_write(write: &CgroupWrite) -> Result<(), CheckError> {
    length("value for a cgroup file", &write.value, VALUE_MAX)?;
    let plain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'))
    };
    let allowed = match write.file.split_once('.') {
        Some(("cgroup", name)) => name.strip_prefix("max.").is_some_and(plain),
        Some((controller, name)) => CONTROLLERS.contains(&controller) && plain(name),
        None => false,
    };
    require(allowed, "cgroup file", &write.file)
}

fn sysctl(name: &str, value: &str, origin: Origin) -> Result<(), CheckError> {
    length("sysctl value", value, VALUE_MAX)?;
    let tree = SYSCTL_TREES.iter().any(|tree| name.strip_prefix(tree).is_some_and(|rest| !rest.is_empty()));
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && name.split('.').all(|part| !part.is_empty());
    let known = tree || origin == Origin::Host || SYSCTLS.contains(&name);
    require(plain && known, "sysctl", name)
}
