//! `spec`: a `config.json` to begin with.

use crate::args::{Words, unknown, unsupported};
use crate::error::{Context, Result, refused};
use crate::state::OCI_VERSION;
use serde_json::{Value, json};
use std::path::PathBuf;

const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

pub fn command(words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let mut bundle = PathBuf::from(".");
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--bundle" | "-b" => bundle = words.value(&option)?.into(),
            "--rootless" => return Err(unsupported("--rootless", "this launcher needs root")),
            _ => return Err(unknown(&option)),
        }
    }
    words.end()?;
    let path = bundle.join("config.json");
    if path.exists() {
        return Err(refused(format!("{} is there already", path.display())));
    }
    std::fs::write(&path, format!("{:#}\n", config())).doing(|| format!("writing {}", path.display()))?;
    Ok(0)
}

pub fn config() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let safe = ["nosuid", "noexec", "nodev"];
    let namespaces: Vec<_> = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "nacre",
        "mounts": [
            mount("/proc", "proc", "proc", &safe),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &[&safe[..], &["mode=1777", "size=65536k"]].concat()),
            mount("/dev/mqueue", "mqueue", "mqueue", &safe),
            mount("/sys", "sysfs", "sysfs", &[&safe[..], &["ro"]].concat()),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &[&safe[..], &["ro"]].concat()),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
