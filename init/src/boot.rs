//! The guest before its first process, and its end.

use crate::InitError;
use crate::console::say;
use nacre_protocols::names;
use rustix::fs::Mode;
use rustix::mount::{MountFlags, mount};
use std::ffi::CStr;
use std::os::fd::OwnedFd;

/// Boot stages with the time at which each ended.
pub struct Timeline(Vec<(String, u64)>);

impl Timeline {
    /// The kernel's part ends where init begins.
    pub fn start() -> Self {
        Self(vec![("kernel".to_owned(), microseconds_since_boot())])
    }

    pub fn end(&mut self, stage: &str) {
        self.0.push((stage.to_owned(), microseconds_since_boot()));
    }

    pub fn stages(&self) -> Vec<(String, u64)> {
        self.0.clone()
    }
}

fn microseconds_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

const HARD: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Target, type, flags, options. The root itself stays as it was mounted: read-only.
const EARLY_MOUNTS: [(&str, &str, MountFlags, Option<&CStr>); 8] = [
    ("/proc", "proc", HARD, None),
    ("/sys", "sysfs", HARD, None),
    ("/dev", "devtmpfs", MountFlags::NOSUID.union(MountFlags::NOEXEC), Some(c"mode=0755")),
    (
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        Some(c"mode=0620,ptmxmode=0666,gid=5"),
    ),
    ("/dev/shm", "tmpfs", HARD, Some(c"mode=1777,size=1m")),
    ("/sys/fs/cgroup", "cgroup2", HARD, Some(c"nsdelegate,memory_recursiveprot")),
    ("/run", "tmpfs", HARD, Some(c"mode=0755,size=16m")),
    ("/tmp", "tmpfs", HARD, Some(c"mode=1777,size=1m")),
];

/// Directories of /run, outermost first.
const DIRECTORIES: [&str; 7] = [
    "/run/nacre",
    names::LAYERS_DIR,
    names::SCRATCH_DIR,
    names::KATA_RUN_DIR,
    "/run/kata-containers/shared",
    names::SANDBOX_DIR,
    // The puller binds it; CreateSandbox puts the name servers there.
    names::RESOLVER_DIR,
];

pub fn mount_early() -> Result<(), InitError> {
    for (target, kind, flags, options) in EARLY_MOUNTS {
        if matches!(target, "/dev/pts" | "/dev/shm") {
            make_directory(target)?;
        }
        match mount(kind, target, kind, flags, options) {
            // The kernel may have mounted devtmpfs by itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(errno) => return Err(InitError::Mount { what: target, source: errno.into() }),
        }
    }
    for directory in DIRECTORIES {
        make_directory(directory)?;
    }
    Ok(())
}

fn make_directory(path: &'static str) -> Result<(), InitError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(InitError::Mount { what: path, source: errno.into() }),
    }
}

/// Settings of the kernel that its configuration cannot make the default. A kernel without one of them is no weaker for it.
const SETTINGS: [(&str, &str); 8] = [
    ("/proc/sys/kernel/kptr_restrict", "2"),
    ("/proc/sys/kernel/unprivileged_bpf_disabled", "1"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_fifos", "1"),
    ("/proc/sys/fs/protected_regular", "1"),
    // As container engines set it: ports below 1024 and ping need no privilege in a sandbox of one's own.
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

pub fn harden() {
    for (file, value) in SETTINGS {
        if let Err(error) = std::fs::write(file, value) {
            say(&format!("setting {file}: {error}"));
        }
    }
}

/// A sandbox without loopback still runs what needs no network.
pub fn network_up() {
    if let Err(error) = nacre_sys::link::bring_loopback_up() {
        say(&format!("loopback stays down: {error}"));
    }
}

/// The one vsock socket of the guest. Held to the end, so that nobody else can ever take the port.
pub fn listen() -> Result<OwnedFd, InitError> {
    nacre_sys::vsock::listen(names::AGENT_VSOCK_PORT)
        .map_err(InitError::io("listening on the agent's vsock port"))
}

/// A name that no other boot has, in hex: so that what was checked in an earlier one is not taken for checked.
pub fn name() -> Result<String, rustix::io::Errno> {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(bytes.as_mut_slice(), rustix::rand::GetRandomFlags::INSECURE)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Ends the VM. Without ACPI that is a reboot, which the VMM takes as the end. Nothing is synced: what a scratch disk holds
/// that goes with its sandbox can be fetched again.
pub fn power_off() -> ! {
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    // Not PID 1 of a VM, or no right to reboot: there is nothing left to serve.
    std::process::exit(1)
}
