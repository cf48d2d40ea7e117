//! One run of a container, refused or killed at each of its system calls in turn (strace(1), "inject"): whatever is hit, nothing is
//! left, or what is left a delete takes away, and a second one has nothing to do.
//!
//! A call is named by what it is and the how-manieth of its process it is. Where launcher and container both make so many of
//! them, the launcher's is hit, which comes first; the calls that build the container are its own.
//!
//! Every eighth call in the usual run, all of them with `NACRE_TEST_ALL`. Needs root, a cgroup v2 hierarchy, Debian's
//! `busybox-static` and `strace`.

mod support;

use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Machine, NACRE, cgroup2};

const STRIDE: usize = 8;
/// How long a run may take that was hit.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
const GRACE: Duration = Duration::from_secs(5);
/// These undo: one that is refused leaves something for the delete that follows.
const UNDOING: [&str; 4] = ["rmdir", "unlink", "wait4", "openat"];

struct Bench {
    machine: Machine,
    bundle: PathBuf,
    id: String,
}

impl Bench {
    fn new() -> Option<Self> {
        let machine = Machine::new()?;
        if !Path::new("/usr/bin/strace").exists() {
            assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "cannot run: needs strace");
            println!("skipped: needs strace (Debian package strace)");
            return None;
        }
        let id = machine.id();
        let mut config = machine.config(&["true"]);
        config["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        config["process"]["oomScoreAdj"] = json!(100);
        config["mounts"].as_array_mut().unwrap().push(
            json!({"destination": "/bound", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]}),
        );
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}],
        });
        let bundle = machine.bundle(&config);
        Some(Self { machine, bundle, id })
    }

    /// A run under strace, with what is injected; its log, and whether it ended well. Where the launcher is killed, what it has
    /// started may wait for it: then a delete is all that can be done.
    fn run(&self, injection: &[&str]) -> (String, bool) {
        let log = self.machine.path("log");
        let mut child = Command::new("strace")
            .args(["-f", "-o", log.to_str().unwrap()])
            .args(injection)
            .args([NACRE, "--root", self.machine.path("state").to_str().unwrap(), "run", "--bundle"])
            .args([self.bundle.to_str().unwrap(), &self.id])
            // Cargo's, which would be searched for every library first.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if is_launcher_killed(&log) {
                self.delete();
            }
            if Instant::now() > end {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<_> = log.lines().rev().take(20).collect();
                let left = self.left();
                let _ = child.kill();
                let _ = child.wait();
                self.machine.call(&["delete", "--force", &self.id]);
                panic!("{injection:?}: does not end; last of all:\n{}\n{left:?}", last.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        (String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned(), status.success())
    }

    /// By name, the most calls that one process makes. Some runs wait for the kernel once more than others.
    fn calls(&self) -> BTreeMap<String, usize> {
        let mut all: Vec<_> = (0..3).map(|_| self.calls_of_one()).collect();
        all.sort_by_key(|calls| calls.values().sum::<usize>());
        all.swap_remove(0)
    }

    fn calls_of_one(&self) -> BTreeMap<String, usize> {
        let (log, well) = self.run(&[]);
        assert!(well, "{log}");
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for line in log.lines() {
            let Some((process, call)) = line.split_once(' ') else { continue };
            let name = call.trim_start().split('(').next().unwrap_or_default();
            if call.contains('(') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                *counts.entry((process, name)).or_default() += 1;
            }
        }
        let mut most = BTreeMap::new();
        for ((_, name), count) in counts {
            let entry = most.entry(name.to_owned()).or_insert(0);
            *entry = count.max(*entry);
        }
        // Nothing of ours happens before the first or after the last, and brk(2) has no errors: what is refused looks granted.
        most.retain(|name, _| !matches!(name.as_str(), "execve" | "exit_group" | "brk"));
        most
    }

    fn delete(&self) {
        self.machine.call(&["delete", "--force", &self.id]).ok();
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.machine.path("state")).into_iter().flatten().flatten() {
            left.push(format!("state {}", entry.file_name().display()));
        }
        let cgroup = cgroup2().join(&self.id);
        if cgroup.exists() {
            let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            left.push(format!("cgroup with {processes:?}"));
        }
        let place = self.machine.work.path().to_str().unwrap();
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

    fn assert_clean(&self, what: &str) {
        let end = Instant::now() + GRACE;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{what}: {left:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Hits every call but those of `never`, or every eighth; gives how many runs it made fail, of how many.
    fn hit_each(&self, how: &str, never: &[&str], after: impl Fn(&str, bool)) -> (usize, usize) {
        let all = std::env::var_os("NACRE_TEST_ALL").is_some();
        if !all {
            println!(
                "every eighth system call alone: each takes a run, and `cargo xtask test --all` hits all"
            );
        }
        let points: Vec<(String, usize)> = self
            .calls()
            .into_iter()
            .filter(|(name, _)| !never.contains(&name.as_str()))
            .flat_map(|(name, count)| (1..=count).map(move |number| (name.clone(), number)))
            .collect();
        assert!(points.len() > 250, "{} calls", points.len());
        let (mut failed, mut made) = (0, 0);
        for (name, number) in points.iter().step_by(if all { 1 } else { STRIDE }) {
            let injection = format!("inject={name}:{how}:when={number}");
            let (_, well) = self.run(&["-e", &format!("trace={name}"), "-e", &injection]);
            (failed, made) = (failed + usize::from(!well), made + 1);
            after(&injection, well || UNDOING.contains(&name.as_str()));
        }
        println!("{made} of {} calls hit, {failed} runs failed", points.len());
        (failed, made)
    }
}

/// The launcher is the first process of the log.
fn is_launcher_killed(log: &Path) -> bool {
    let text = fs::read_to_string(log).unwrap_or_default();
    let launcher = text.split(' ').next().unwrap_or_default();
    let killed = |line: &str| {
        line.split_once(' ').is_some_and(|(it, what)| it == launcher && what.contains("+++ killed"))
    };
    !launcher.is_empty() && text.lines().any(killed)
}

#[test]
fn a_run_that_is_refused_anything_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    // A close(2) that gives an error has closed all the same; one that strace refuses has not.
    let (failed, made) = bench.hit_each("error=EIO", &["close"], |what, may_leave| {
        if may_leave {
            bench.delete();
        }
        bench.assert_clean(what);
    });
    assert!(failed > made / 3, "only {failed} of {made} runs failed");
}

#[test]
fn a_run_that_is_killed_anywhere_can_be_deleted() {
    let Some(bench) = Bench::new() else { return };
    let (failed, made) = bench.hit_each("signal=KILL", &[], |what, _| {
        bench.delete();
        bench.assert_clean(what);
        // There is nothing left to do, and that is no error.
        bench.delete();
    });
    assert!(failed > made / 2, "only {failed} of {made} runs failed");
}
