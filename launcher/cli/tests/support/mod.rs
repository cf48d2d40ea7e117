//! Bundles of busybox and the runtimes that they are given to: ours, Debian's crun and runc, and the bare container.
//!
//! Needs root, Debian's `busybox-static`, and a cgroup v2 hierarchy. What is missing is a printed reason to skip, and a
//! failure where `CI=true`.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const NACRE: &str = env!("CARGO_BIN_EXE_nacre-launcher");
pub const BARE: &str = env!("CARGO_BIN_EXE_bare-container");
const APPLETS: &str = "sh cat ls id env pwd stat test sleep true false echo mount umount grep readlink ulimit tty touch mkdir rm \
                       hostname head tail wc sort tr cut kill ps mknod dd chmod find seq ip nproc";
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A second cgroup v2 mount in front of what is there: on hybrid machines the peers refuse to work otherwise.
const PLACE: &str =
    "[ \"$(stat -f -c %T /sys/fs/cgroup)\" = cgroup2fs ] || mount -t cgroup2 none /sys/fs/cgroup
exec \"$0\" \"$@\"";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Nacre,
    Crun,
    Runc,
}

#[derive(Debug, Clone)]
pub struct Output {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

/// A working directory with a root file system, and the containers that a test makes.
pub struct Machine {
    pub work: TempDir,
    pub runtime: Runtime,
    number: AtomicU32,
}

impl Machine {
    /// `None`, with the reason printed, where this machine cannot run the test.
    pub fn new() -> Option<Self> {
        Self::of(Runtime::Nacre)
    }

    pub fn of(runtime: Runtime) -> Option<Self> {
        match Self::try_new(runtime) {
            Ok(machine) => Some(machine),
            Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("cannot run: {reason}"),
            Err(reason) => {
                println!("skipped: {reason}");
                None
            }
        }
    }

    fn try_new(runtime: Runtime) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        if !Path::new("/bin/busybox").exists() {
            return Err("needs /bin/busybox (Debian package busybox-static)".to_owned());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
            return Err("needs a cgroup v2 hierarchy".to_owned());
        }
        let work = TempDir::new().map_err(|error| error.to_string())?;
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))
            .map_err(|error| error.to_string())?;
        let machine = Self { work, runtime, number: AtomicU32::new(0) };
        machine.make_rootfs("rootfs");
        Ok(machine)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// A root file system with every applet that tests use.
    pub fn make_rootfs(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "work"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/work:/bin/sh\n")
            .unwrap();
        root
    }

    /// An id that no other test has.
    pub fn id(&self) -> String {
        static ALL: AtomicU32 = AtomicU32::new(0);
        self.number.fetch_add(1, Ordering::Relaxed);
        format!("nacre-test-{}-{}", std::process::id(), ALL.fetch_add(1, Ordering::Relaxed))
    }

    /// What `spec` says, with a command and docker's usual capabilities, without a terminal.
    pub fn config(&self, args: &[&str]) -> Value {
        let folder = tempfile::tempdir_in(self.work.path()).unwrap();
        let status = Command::new(NACRE).args(["spec", "--bundle"]).arg(folder.path()).status().unwrap();
        assert!(status.success());
        let mut config: Value =
            serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
        config["ociVersion"] = json!("1.0.2");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["root"] = json!({"path": self.path("rootfs")});
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(DOCKERS);
        }
        config
    }

    pub fn shell(&self, script: &str) -> Value {
        self.config(&["sh", "-c", script])
    }

    pub fn bundle(&self, config: &Value) -> PathBuf {
        let bundle = self.path(&format!("bundle-{}", self.id()));
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    /// The runtime's command, as far as this machine can run it.
    pub fn command(&self, words: &[&str]) -> Command {
        let root = self.path("state");
        let mut command = match self.runtime {
            Runtime::Nacre => Command::new(NACRE),
            Runtime::Crun | Runtime::Runc => {
                let name = if self.runtime == Runtime::Crun { "crun" } else { "runc" };
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", PLACE, BARE, "peer", name]);
                command
            }
        };
        command.arg("--root").arg(root).args(words).stdin(Stdio::null());
        command
    }

    pub fn call(&self, words: &[&str]) -> Output {
        finish(self.command(words), self.work.path())
    }

    /// `run`, with the id that it had.
    pub fn run(&self, config: &Value) -> Output {
        let (bundle, id) = (self.bundle(config), self.id());
        let output = self.call(&["run", "--bundle", bundle.to_str().unwrap(), &id]);
        if output.code != 0 {
            // Where the peers leave something behind.
            self.call(&["delete", "--force", &id]);
        }
        output
    }

    /// A container that was created, and is deleted in the end.
    pub fn create(&self, config: &Value) -> Container<'_> {
        let (bundle, id) = (self.bundle(config), self.id());
        self.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]).ok();
        Container { machine: self, id }
    }

    pub fn start(&self, config: &Value) -> Container<'_> {
        let container = self.create(config);
        container.call("start", &[]).ok();
        container
    }

    /// The bare container, which believes everything.
    pub fn bare(&self, rootfs: &Path, command: &str) -> Command {
        let cgroup = cgroup2().join(self.id());
        let filter = self.path("allow");
        // BPF_RET | BPF_K, SECCOMP_RET_ALLOW.
        fs::write(&filter, [6, 0, 0, 0, 0, 0, 0xff, 0x7f]).unwrap();
        let mut bare = Command::new(BARE);
        bare.arg("run").arg(rootfs).arg(cgroup).arg(filter).arg(command).stdin(Stdio::null());
        bare
    }
}

pub struct Container<'m> {
    pub machine: &'m Machine,
    pub id: String,
}

impl Container<'_> {
    /// `command [options] ID [rest]`: `words` before a `--` go in front of the id.
    pub fn call(&self, command: &str, words: &[&str]) -> Output {
        let at = words.iter().position(|word| *word == "--");
        let (front, back) = at.map_or((&[][..], words), |at| (&words[..at], &words[at + 1..]));
        self.machine.call(&[&[command], front, &[self.id.as_str()], back].concat())
    }

    pub fn exec(&self, script: &str) -> Output {
        self.call("exec", &["sh", "-c", script])
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.call("state", &[]).ok()).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn pid(&self) -> i64 {
        self.state()["pid"].as_i64().unwrap()
    }

    #[track_caller]
    pub fn wait_for(&self, status: &str) {
        eventually(|| self.status() == status, || format!("{status}, not {}", self.status()));
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.machine.call(&["delete", "--force", &self.id]);
    }
}

pub const DOCKERS: [&str; 14] = [
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

/// Its output goes to files: a container holds its standard streams, and waiting for their end would be waiting for its.
pub fn finish(mut command: Command, folder: &Path) -> Output {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (out, err) = (folder.join(format!("out-{number}")), folder.join(format!("err-{number}")));
    let mut child =
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap()).spawn().unwrap();
    let code = wait(&mut child, || format!("{command:?}: {}", fs::read_to_string(&err).unwrap_or_default()));
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    Output { code, out: read(&out), err: read(&err) }
}

#[track_caller]
pub fn wait(child: &mut Child, what: impl Fn() -> String) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("does not end: {}", what());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
pub fn eventually(mut holds: impl FnMut() -> bool, what: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {}", what());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A script of this machine's shell, with an own mount namespace: what it mounts, nobody sees.
pub fn host(script: &str) -> Output {
    let output = Command::new("unshare").args(["--mount", "sh", "-ec", script]).output().unwrap();
    Output {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Where the version 2 hierarchy is.
pub fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    line.split(' ').nth(1).unwrap().into()
}
