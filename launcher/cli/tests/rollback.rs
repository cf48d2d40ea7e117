//! One create, refused or killed at each of its system calls in turn (strace(1), "inject"): whatever is hit, nothing is left, or
//! what is left a delete takes away, and a second one has nothing to do.
//!
//! Needs root, a cgroup v2 hierarchy, Debian's `busybox-static` and `strace`. What is missing is a printed reason to skip,
//! and a failure where `CI=true`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

const LAUNCHER: &str = env!("CARGO_BIN_EXE_nacre-launcher");
/// More than one process of a create makes.
const CALLS_MAX: usize = 2000;

struct Bench {
    directory: tempfile::TempDir,
    hierarchy: PathBuf,
    id: String,
}

impl Bench {
    fn new(name: &str) -> Option<Self> {
        let missing = if !rustix::process::geteuid().is_root() {
            "root"
        } else if !Path::new("/bin/busybox").exists() || !Path::new("/usr/bin/strace").exists() {
            "busybox-static and strace"
        } else if hierarchy().is_none() {
            "a cgroup v2 hierarchy"
        } else {
            ""
        };
        if !missing.is_empty() {
            assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "cannot run: needs {missing}");
            eprintln!("skipped: needs {missing}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&root).unwrap();
        fs::copy("/bin/busybox", root.join("busybox")).unwrap();
        let id = format!("rollback-{name}-{}", std::process::id());
        let config = CONFIG.replace("CGROUP", &format!("/nacre-{id}"));
        fs::write(directory.path().join("bundle/config.json"), config).unwrap();
        Some(Self { directory, hierarchy: hierarchy()?, id })
    }

    /// A create with something injected; whether the injection came to pass, and how the create ended.
    fn create(&self, injection: &str) -> (bool, ExitStatus) {
        let log = self.directory.path().join("log");
        let status = Command::new("strace")
            .args(["-f", "-o"])
            .arg(&log)
            .args(["-e", "trace=all", "-e", injection])
            .arg(LAUNCHER)
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .args(["create", "--bundle"])
            .arg(self.directory.path().join("bundle"))
            .arg(&self.id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let log = fs::read_to_string(log).unwrap();
        (log.contains("(INJECTED)") || log.contains("+++ killed by SIGKILL"), status)
    }

    fn delete(&self) {
        let output = Command::new(LAUNCHER)
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .args(["delete", "--force", &self.id])
            .output()
            .unwrap();
        assert!(output.status.success(), "delete: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.directory.path().join("state")).into_iter().flatten().flatten() {
            left.push(format!("state {}", entry.file_name().display()));
        }
        let cgroup = self.hierarchy.join(format!("nacre-{}", self.id));
        if cgroup.exists() {
            let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            left.push(format!("cgroup with {processes:?}"));
        }
        let place = self.directory.path().to_str().unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(place) {
                left.push(format!("process {}", entry.file_name().display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(place)).map(|line| format!("mount {line}")));
        left
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return self.delete();
        }
        let _ = Command::new(LAUNCHER)
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .args(["delete", "--force", &self.id])
            .output();
    }
}

fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    Some(line.split(' ').nth(1)?.into())
}

#[test]
fn a_create_that_is_refused_anything_leaves_nothing() {
    let Some(bench) = Bench::new("refused") else { return };
    let mut failed = 0;
    for number in 2..CALLS_MAX {
        let (hit, status) = bench.create(&format!("inject=all:error=EIO:when={number}"));
        if status.success() {
            bench.delete();
        } else {
            failed += 1;
        }
        assert_eq!(bench.left(), Vec::<String>::new(), "call {number}");
        if !hit {
            assert!(failed > 100, "only {failed} creates failed in {number}");
            return;
        }
    }
    panic!("a create makes more than {CALLS_MAX} calls");
}

#[test]
fn a_create_that_is_killed_anywhere_can_be_deleted() {
    let Some(bench) = Bench::new("killed") else { return };
    for number in 2..CALLS_MAX {
        let (hit, _) = bench.create(&format!("inject=all:signal=KILL:when={number}"));
        bench.delete();
        assert_eq!(bench.left(), Vec::<String>::new(), "call {number}");
        // There is nothing left to do, and that is no error.
        bench.delete();
        if !hit {
            assert!(number > 100, "only {number} calls");
            return;
        }
    }
    panic!("a create makes more than {CALLS_MAX} calls");
}

const CONFIG: &str = r#"{
    "ociVersion": "1.2.0",
    "process": {
        "user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", "true"], "cwd": "/", "noNewPrivileges": true,
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
    },
    "root": {"path": "rootfs"},
    "hostname": "rollback",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
        {"destination": "/bound", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]}
    ],
    "linux": {
        "cgroupsPath": "CGROUP",
        "namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}
        ],
        "maskedPaths": ["/proc/kcore", "/proc/scsi"],
        "readonlyPaths": ["/proc/sys"],
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]}
    }
}"#;
