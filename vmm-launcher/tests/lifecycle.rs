//! Processes of the host: whoever dies, nothing is left behind. QEMU is a script here, so that this needs neither a guest
//! nor a fast machine; the same with real guests is tested end to end.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long something may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

struct Host {
    directory: tempfile::TempDir,
    image: String,
}

impl Host {
    /// A host whose QEMU is this shell script.
    fn new(qemu: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("nacre").tempdir_in("/tmp").unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["bin", "scratch", "layout"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let program = path("bin/qemu-system-x86_64");
        std::fs::write(&program, format!("#!/bin/sh\n{qemu}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(path("vmlinux"), "kernel").unwrap();
        std::fs::write(path("guest.erofs"), "image").unwrap();
        let index = format!(r#"{{"manifests":[{{"digest":"sha256:{}"}}]}}"#, "0".repeat(64));
        std::fs::write(path("layout/index.json"), index).unwrap();
        let image = format!("oci:{}", path("layout").display());
        Self { directory, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn nacre(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
        command
            .args(args)
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()))
            .env("NACRE_RUNTIME_DIR", self.path("run"))
            .env("NACRE_SCRATCH_DIR", self.path("scratch"))
            .env("NACRE_KERNEL", self.path("vmlinux"))
            .env("NACRE_IMAGE", self.path("guest.erofs"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A run that waits for a guest which never comes up.
    fn start(&self) -> Running {
        // QEMU's own network: passt is not needed for this.
        let args =
            ["run", "--name", "victim", "--accel", "tcg", "--net", "slirp", self.image.as_str(), "true"];
        let command = self.nacre(&args).spawn().unwrap();
        let record = eventually("a record", || {
            let bytes = std::fs::read(self.path("run/victim/sandbox.json")).ok()?;
            let record: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            // Held: the command is past the boot of the monitor.
            record["containers"].as_array().is_some_and(|list| !list.is_empty()).then_some(record)
        });
        let pid = |name: &str| record[name].as_i64().unwrap() as i32;
        Running { command, monitor: pid("monitor"), vmm: pid("vmm") }
    }

    fn assert_nothing_is_left(&self, running: &Running) {
        eventually("every process to be gone", || {
            (!alive(running.monitor) && !alive(running.vmm)).then_some(())
        });
        eventually("the directory to be empty", || names(&self.path("run")).is_empty().then_some(()));
        assert!(names(&self.path("scratch")).is_empty());
    }
}

struct Running {
    command: Child,
    monitor: i32,
    vmm: i32,
}

impl Running {
    fn signal(pid: i32, number: i32) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let signal = rustix::process::Signal::from_named_raw(number).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn command_pid(&self) -> i32 {
        self.command.id() as i32
    }

    fn ended(&mut self) -> (ExitStatus, String) {
        let status = eventually("the command to end", || self.command.try_wait().unwrap());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.command.stderr.take().unwrap(), &mut text).unwrap();
        (status, text)
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A zombie has ended: whoever should have waited for it is dead.
fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".lock")
        .collect()
}

const SLEEPS: &str = "exec /bin/sleep 1000";

#[test]
fn a_killed_command_takes_its_sandbox_along() {
    let host = Host::new(SLEEPS);
    let mut running = host.start();
    assert!(alive(running.vmm) && alive(running.monitor));
    Running::signal(running.command_pid(), libc::SIGKILL);
    assert_eq!(running.ended().0.signal(), Some(libc::SIGKILL));
    host.assert_nothing_is_left(&running);
}

#[test]
fn an_interrupted_command_takes_its_sandbox_along() {
    for (number, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let host = Host::new(SLEEPS);
        let mut running = host.start();
        Running::signal(running.command_pid(), number);
        let (status, text) = running.ended();
        assert_eq!(status.code(), Some(code), "{text}");
        assert!(!alive(running.monitor) && !alive(running.vmm), "gone before the command is");
        host.assert_nothing_is_left(&running);
    }
}

#[test]
fn a_killed_monitor_takes_the_vm_along_and_is_swept() {
    let host = Host::new(SLEEPS);
    let mut running = host.start();
    Running::signal(running.monitor, libc::SIGKILL);
    let (status, text) = running.ended();
    assert_eq!(status.code(), Some(125), "{text}");
    assert!(text.contains("monitor was killed"), "{text}");
    host.assert_nothing_is_left(&running);
}

#[test]
fn when_command_and_monitor_are_killed_the_next_command_sweeps() {
    let host = Host::new(SLEEPS);
    let mut running = host.start();
    Running::signal(running.command_pid(), libc::SIGKILL);
    // The monitor may have ended by itself already.
    if alive(running.monitor) {
        let pid = rustix::process::Pid::from_raw(running.monitor).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    running.ended();
    eventually("the VM to be gone", || (!alive(running.vmm) && !alive(running.monitor)).then_some(()));
    let listed = host.nacre(&["ps", "-a", "-q"]).output().unwrap();
    assert!(listed.status.success() && listed.stdout.is_empty());
    host.assert_nothing_is_left(&running);
}

#[test]
fn a_killed_qemu_is_an_error_with_its_reason() {
    let host = Host::new("echo 'last words of the kernel'; exec /bin/sleep 1000");
    let mut running = host.start();
    Running::signal(running.vmm, libc::SIGKILL);
    let (status, text) = running.ended();
    assert_eq!(status.code(), Some(125), "{text}");
    for part in ["the VMM was killed by signal 9", "last words of the kernel", "next: "] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    host.assert_nothing_is_left(&running);
}

#[test]
fn a_qemu_that_gives_up_says_why() {
    let host = Host::new("echo 'qemu: no such machine' >&2; exit 1");
    let args = ["run", "--accel", "tcg", "--net", "slirp", host.image.as_str(), "true"];
    let output = host.nacre(&args).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("qemu: no such machine") && text.contains("next: "), "{text}");
    assert!(names(&host.path("run")).is_empty());
}

#[test]
fn a_guest_that_never_comes_up_is_given_up() {
    let host = Host::new("echo 'booting slowly'; exec /bin/sleep 1000");
    let args =
        ["run", "--accel", "tcg", "--net", "slirp", "--boot-timeout", "1", host.image.as_str(), "true"];
    let output = host.nacre(&args).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{text}");
    for part in ["nacre: boot: no agent within 1 s", "booting slowly", "--boot-timeout"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(names(&host.path("run")).is_empty());
}

#[test]
fn what_is_wrong_on_the_line_is_said_before_anything_starts() {
    let host = Host::new("echo started >> \"$0.log\"; exit 1");
    let missing = format!("{}:/x", host.path("nowhere").display());
    for (args, code, text) in [
        (vec!["run", "oci:/nowhere/at/all", "true"], 125, "/nowhere/at/all"),
        (vec!["run", "-v", missing.as_str(), host.image.as_str()], 125, "nowhere"),
        (vec!["run", "--kernel", "/nowhere", host.image.as_str()], 125, "kernel"),
        (vec!["run", "-it", host.image.as_str()], 125, "not a terminal"),
        (vec!["run", "--name", "a/b", host.image.as_str()], 125, "is not a name"),
        (vec!["run", "--in", "nobody", host.image.as_str()], 125, "nobody"),
        (vec!["run", "--security-opt", "seccomp=/nowhere", host.image.as_str()], 125, "seccomp"),
        (vec!["run", "--frobnicate"], 125, "--frobnicate"),
        (vec!["run", "-q", "--frobnicate", host.image.as_str()], 125, "--frobnicate"),
        (vec!["exec", "--frobnicate", "x", "y"], 125, "--frobnicate"),
        (vec!["exec", "nobody", "true"], 125, "nobody"),
        (vec!["logs", "nobody"], 1, "nobody"),
        (vec!["stop", "nobody"], 1, "nobody"),
        (vec!["kill", "nobody"], 1, "nobody"),
        (vec!["rm", "nobody"], 1, "nobody"),
    ] {
        let output = host.nacre(&args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(text), "{args:?}: {error}");
    }
    assert!(names(&host.path("run")).is_empty());
    assert_eq!(names(&host.path("bin")), ["qemu-system-x86_64"]);
}

#[test]
fn a_running_sandbox_is_listed_and_its_name_is_taken() {
    let host = Host::new(SLEEPS);
    let mut running = host.start();
    let listed = host.nacre(&["ps"]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains("victim") && text.contains("starting"), "{text}");
    let again = host.nacre(&["run", "--name", "victim", host.image.as_str()]).output().unwrap();
    assert_eq!(again.status.code(), Some(125));
    assert!(String::from_utf8(again.stderr).unwrap().contains("is taken"));
    let removed = host.nacre(&["rm", "victim"]).output().unwrap();
    assert_eq!(removed.status.code(), Some(1));
    Running::signal(running.command_pid(), libc::SIGTERM);
    running.ended();
    host.assert_nothing_is_left(&running);
}

#[test]
fn a_monitor_that_is_started_by_hand_touches_nothing() {
    let host = Host::new(SLEEPS);
    let precious = host.path("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("lock"), "").unwrap();
    let (stdin, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(peer);
    let mut command = host.nacre(&["monitor", precious.to_str().unwrap()]);
    let output = command.stdin(std::os::fd::OwnedFd::from(stdin)).output().unwrap();
    assert!(!output.status.success());
    assert!(precious.join("lock").exists());
}
