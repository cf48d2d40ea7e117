//! OCI bundles of busybox with what docker gives a container: namespaces, mounts, masks, capabilities, seccomp profile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

/// The table of the host program's default profile. Data alone, and nothing else of that program is wanted here.
#[path = "../../vmm-launcher/src/sandbox/spec/seccomp_table.rs"]
#[allow(dead_code)]
mod seccomp_table;

const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Makes the root file system: busybox and the directories of an image.
pub fn make_rootfs(rootfs: &Path) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
        for applet in ["cat", "echo", "id", "ls", "sh", "sleep", "true"] {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
    };
    make().with_context(|| format!("cannot make {}", rootfs.display()))
}

/// A bundle in `directory` that runs `command` in `rootfs`.
pub fn write(directory: &Path, rootfs: &Path, command: &[&str]) -> anyhow::Result<Value> {
    let config = config(rootfs, command);
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(directory.join("config.json"), config.to_string()))
        .with_context(|| format!("cannot write the bundle {}", directory.display()))?;
    Ok(config)
}

fn config(rootfs: &Path, command: &[&str]) -> Value {
    let namespaces: Vec<Value> = ["cgroup", "ipc", "mount", "network", "pid", "uts"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs},
        "hostname": "bench",
        "mounts": mounts(),
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "seccomp": seccomp(),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ])
}

/// The profile that `nacre run` gives a container with docker's capabilities.
fn seccomp() -> Value {
    use seccomp_table::{AF_VSOCK, ALLOWED, CLONE_NAMESPACES, PERSONALITIES, WITH_CAPABILITY};
    const ALLOW: &str = "SCMP_ACT_ALLOW";
    let mut names: Vec<&str> = ALLOWED.iter().flat_map(|group| group.calls).copied().collect();
    for (capability, calls) in WITH_CAPABILITY {
        if CAPABILITIES.contains(capability) {
            names.extend(*calls);
        }
    }
    names.sort_unstable();
    names.dedup();
    let only = |name: &str, op: &str, value: u64, second: u64| json!({"names": [name], "action": ALLOW, "args": [{"index": 0, "value": value, "valueTwo": second, "op": op}]});
    let mut syscalls = vec![json!({"names": names, "action": ALLOW})];
    syscalls.extend(PERSONALITIES.iter().map(|value| only("personality", "SCMP_CMP_EQ", *value, 0)));
    syscalls.push(only("socket", "SCMP_CMP_NE", AF_VSOCK, 0));
    syscalls.push(only("clone", "SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES, 0));
    syscalls.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": syscalls})
}
