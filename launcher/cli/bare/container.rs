//! A container by the shortest way: everything trusted, nothing checked.

use nacre_launcher::device_program;
use nacre_protocols::init_launcher::{DeviceKind, DeviceRule};
use nacre_sys::bpf::attach_device_program;
use nacre_sys::exec::Command;
use nacre_sys::fork::{Birth, fork};
use nacre_sys::link::bring_loopback_up;
use nacre_sys::process::PidNamespace;
use nacre_sys::seccomp::{self, Instruction};
use nacre_sys::usage::wait;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, open, symlink};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const DEVICES: &[(&str, u32, u32)] = &[
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
];
/// What docker gives (`CAP_CHOWN` … `CAP_AUDIT_WRITE`).
const CAPABILITIES: u64 = 0xa804_25fb;

pub fn run(rootfs: &str, cgroup: &str, filter: &str, command: &str, restrict: bool) -> io::Result<u8> {
    let filter = read_filter(filter)?;
    mkdirat(CWD, cgroup, Mode::from_raw_mode(0o755))?;
    let directory = open(cgroup, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let birth = Birth {
        namespaces: UnshareFlags::NEWNS
            | UnshareFlags::NEWCGROUP
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWNET,
        pid_namespace: PidNamespace::New,
        cgroup: Some(directory.as_fd()),
        sibling: false,
    };
    let restricted = restrict.then_some(&directory);
    let child = fork(&birth, || match become_container(rootfs, &filter, command, restricted) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("bare-container: {error}");
            125
        }
    })?;
    let ended = wait(Some(child.pid))?.ok_or(Errno::CHILD)?;
    rustix::fs::rmdir(cgroup)?;
    Ok(ended.code)
}

/// Comes back only with an error.
fn become_container(
    rootfs: &str,
    filter: &[Instruction],
    command: &str,
    restricted: Option<&OwnedFd>,
) -> io::Result<()> {
    bring_loopback_up()?;
    rustix::process::umask(Mode::empty());
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_bind_recursive(rootfs, rootfs)?;
    rustix::process::chdir(rootfs)?;
    file_systems()?;
    for (path, major, minor) in DEVICES {
        mknodat(CWD, *path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(*major, *minor))?;
    }
    for (target, path) in LINKS {
        symlink(*target, *path)?;
    }
    if let Some(cgroup) = restricted {
        attach_device_program(cgroup, &device_program::generate(&device_rules()))?;
    }
    covers()?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    rustix::system::sethostname(b"bare")?;
    rustix::process::setsid()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));

    for number in (0..=40).filter(|number| CAPABILITIES & 1 << number == 0) {
        remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))?;
    }
    let kept = CapabilitySet::from_bits_retain(CAPABILITIES);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    clear_ambient_capability_set()?;
    set_no_new_privs(true)?;
    let strings = |list: &[&str]| list.iter().map(|word| CString::new(*word)).collect::<Result<Vec<_>, _>>();
    let command = Command::new(CString::new(command)?, strings(&[command])?, strings(&["PATH=/bin"])?);
    seccomp::load(filter, 0)?;
    Err(command.execute())
}

fn file_systems() -> io::Result<()> {
    mount("proc", "proc", "proc", SAFE, None)?;
    mount("tmpfs", "dev", "tmpfs", MountFlags::NOSUID | MountFlags::STRICTATIME, c"mode=755,size=65536k")?;
    for directory in ["dev/pts", "dev/shm", "dev/mqueue"] {
        mkdirat(CWD, directory, Mode::from_raw_mode(0o755))?;
    }
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", "dev/pts", "devpts", terminals, c"newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mount("shm", "dev/shm", "tmpfs", SAFE, c"mode=1777,size=65536k")?;
    mount("mqueue", "dev/mqueue", "mqueue", SAFE, None)?;
    mount("sysfs", "sys", "sysfs", SAFE | MountFlags::RDONLY, None)?;
    mount("cgroup2", "sys/fs/cgroup", "cgroup2", SAFE | MountFlags::RDONLY, None)?;
    Ok(())
}

fn covers() -> io::Result<()> {
    for path in MASKED {
        let place = path.trim_start_matches('/');
        match mount_bind("/dev/null", place) {
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => mount("tmpfs", place, "tmpfs", SAFE | MountFlags::RDONLY, c"size=0")?,
            result => result?,
        }
    }
    for path in READ_ONLY {
        let place = path.trim_start_matches('/');
        match mount_bind_recursive(place, place) {
            Err(Errno::NOENT) => continue,
            result => result?,
        }
        mount_remount(place, MountFlags::BIND | MountFlags::RDONLY | SAFE, "")?;
    }
    Ok(())
}

/// Docker's: nodes may be made, and those of above and terminals used.
fn device_rules() -> Vec<DeviceRule> {
    let all = DeviceRule {
        allow: true,
        kind: Some(DeviceKind::Character),
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: true,
    };
    let own = DEVICES.iter().map(|(_, major, minor)| (*major, Some(*minor)));
    let used = own.chain([(5, Some(2)), (136, None)]);
    let mut rules = vec![DeviceRule { kind: None, read: false, write: false, ..all }];
    rules.extend(used.map(|(major, minor)| DeviceRule { major: Some(major), minor, ..all }));
    rules
}

/// `struct sock_filter`s, one behind the other, in this machine's byte order.
fn read_filter(path: &str) -> io::Result<Vec<Instruction>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes
        .chunks_exact(8)
        .filter_map(|chunk| {
            let chunk: [u8; 8] = chunk.try_into().ok()?;
            let [a, b, jt, jf, k @ ..] = chunk;
            Some(Instruction { code: u16::from_ne_bytes([a, b]), jt, jf, k: u32::from_ne_bytes(k) })
        })
        .collect())
}
