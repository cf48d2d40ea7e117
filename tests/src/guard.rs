//! One directory and one cgroup per test, and the watch over both: after a test nothing of it may be left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long processes that were told to end may take, before they count as left behind.
const GRACE: Duration = Duration::from_secs(5);

/// Serialises those who make and sweep directories; who removes a lock file takes it from under the next one.
const STAYS: &str = "nacre/.lock";

/// Where a test's sandboxes live: home, runtime and temporary directory, and a cgroup that no child can leave by
/// forking, so that every process is found.
pub struct Guard {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    interfaces: BTreeSet<String>,
    checked: bool,
}

impl Guard {
    /// # Panics
    /// Without root or without a cgroup v2 mount.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("nt-").tempdir().expect("no temporary directory");
        for name in ["home", "run", "tmp", "share"] {
            fs::create_dir(folder.path().join(name)).expect("no directory");
        }
        let run = folder.path().join("run");
        fs::set_permissions(run, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("no permissions");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroup_mount().join(format!("nacre-test-{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).unwrap_or_else(|error| panic!("cannot make {}: {error}", cgroup.display()));
        Self { folder, cgroup, interfaces: interfaces(), checked: false }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub fn runtime(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn temporary(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Every process of this test, with its command line.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| !is_zombie(*pid))
            .map(|pid: u32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                (pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned())
            })
            .collect()
    }

    /// Kills all that is left of the test; returns when it is gone, and what it had open is closed.
    pub fn kill_all(&self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let until = Instant::now() + GRACE;
        while self.is_populated() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A process that is ending is listed no more while it still has its files open; this tells when it has not.
    fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Fails when a process, socket, file, mount or network interface of the test is still there.
    ///
    /// # Panics
    /// Then, with the list.
    pub fn check(&mut self) {
        self.checked = true;
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }

    fn leftovers(&self) -> Vec<String> {
        let until = Instant::now() + GRACE;
        while !self.processes().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
        let mut left: Vec<String> =
            self.processes().into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect();
        let mut files = Vec::new();
        for folder in [self.runtime(), self.temporary()] {
            files_below(&folder, &mut files);
        }
        let stays = self.runtime().join(STAYS);
        left.extend(
            files.iter().filter(|file| **file != stays).map(|file| format!("file {}", file.display())),
        );
        let own = self.folder.path().to_string_lossy().into_owned();
        for (what, table) in [("socket", "/proc/net/unix"), ("mount", "/proc/self/mountinfo")] {
            let text = fs::read_to_string(table).unwrap_or_default();
            left.extend(text.lines().filter(|line| line.contains(&own)).map(|line| format!("{what} {line}")));
        }
        let made = interfaces().difference(&self.interfaces).cloned().collect::<Vec<_>>();
        left.extend(
            made.into_iter().filter(|name| name.starts_with("tap")).map(|name| format!("interface {name}")),
        );
        left
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A test that already failed shall not hide its reason behind what it left.
        let left = if self.checked || thread::panicking() { Vec::new() } else { self.leftovers() };
        self.kill_all();
        let until = Instant::now() + GRACE;
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

/// Everything below a directory that is not itself a directory.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), found),
            _ => found.push(entry.path()),
        }
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn interfaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .find_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .expect("cgroup v2 is not mounted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn whatever_is_left_behind_is_found() {
        crate::require!(root);
        let mut guard = Guard::new();
        assert_eq!(guard.leftovers(), Vec::<String>::new());
        fs::write(guard.runtime().join("file"), "").unwrap();
        let socket = std::os::unix::net::UnixListener::bind(guard.folder().join("socket")).unwrap();
        let script = "echo 0 > \"$1\"/cgroup.procs; setsid sleep 1000 & exit";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(guard.cgroup()).stdout(Stdio::null()).stderr(Stdio::null());
        shell.status().unwrap();
        let left = guard.leftovers().join("\n");
        for what in ["sleep 1000", "run/file", "/socket"] {
            assert!(left.contains(what), "{what} is not in:\n{left}");
        }
        guard.kill_all();
        drop(socket);
        fs::remove_file(guard.runtime().join("file")).unwrap();
        guard.check();
    }
}
