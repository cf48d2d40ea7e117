//! Stands in for PID 1 in the guest image of one test: leaves a prober behind and becomes the real init.
//!
//! The prober is this program again, started before init lays its seccomp floor, so it keeps every right and can look
//! at every process. The real init executes in PID 1 as ever and knows of the prober only as one more child. Every
//! [`PERIOD`] the prober writes what it sees to the console, one JSON object per process, between two marks.
//!
//! Where the image has a file [`KILLER`], the prober kills the agent instead, again and again. Where it has one that names a
//! port, the prober does what a test asks there (`control.rs`).

mod control;
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Where `xtask image --extra` puts the real init.
const REAL_INIT: &str = "/sbin/nacre-init";
const OWN_PATH: &str = "/sbin/init";
const CONSOLE: &str = "/dev/console";
const PERIOD: Duration = Duration::from_millis(1500);
const PROBE: &str = "--probe";
/// Its text is the pause between two kills, in milliseconds.
const KILLER: &str = "/etc/nacre-test-kill-agent";
/// How often the agent is killed. Init gives up on an agent that dies too often in too short a time.
const KILLS: usize = 12;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(PROBE) {
        probe();
    }
    // By path: nobody has mounted /proc yet.
    if let Err(error) = Command::new(OWN_PATH).arg(PROBE).spawn() {
        eprintln!("nacre-test-init: cannot start the prober: {error}");
    }
    let error = Command::new(REAL_INIT).args(std::env::args_os().skip(1)).exec();
    eprintln!("nacre-test-init: cannot execute {REAL_INIT}: {error}");
}

fn probe() -> ! {
    if let Some(pause) = fs::read_to_string(KILLER).ok().and_then(|text| text.trim().parse().ok()) {
        kill_agents(Duration::from_millis(pause));
    }
    if let Some(port) = control::port() {
        let ended = control::serve(port);
        say(&format!("PROBE the port: {ended:?}\n"));
    }
    for round in 0u64.. {
        thread::sleep(PERIOD);
        let mut text = format!("\nPROBE BEGIN {round}\n");
        for pid in pids() {
            if let Some(found) = look_at(pid) {
                text.push_str(&format!("PROBE {found}\n"));
            }
        }
        text.push_str(&format!("PROBE END {round}\n"));
        say(&text);
    }
    unreachable!("the rounds do not end")
}

/// Each agent once, whatever it is doing, from the moment at which a container runs.
fn kill_agents(pause: Duration) {
    while !pids().into_iter().any(is_of_a_container) {
        thread::sleep(pause);
    }
    let mut killed = BTreeSet::new();
    while killed.len() < KILLS {
        thread::sleep(pause);
        let is_agent = |pid: &u32| {
            let executable = link(&Path::new("/proc").join(pid.to_string()).join("exe"));
            executable.is_some_and(|path| path.ends_with("/nacre-agent"))
        };
        for pid in pids().into_iter().filter(is_agent).filter(|pid| !killed.contains(pid)).collect::<Vec<_>>()
        {
            let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            if kill_process(target, Signal::KILL).is_ok() {
                killed.insert(pid);
                say(&format!("PROBE KILLED {pid}\n"));
            }
        }
    }
}

/// Neither one of the guest's own processes nor one of the puller's.
fn is_of_a_container(pid: u32) -> bool {
    let of = |pid: &str, name: &str| link(&Path::new("/proc").join(pid).join(name));
    let pid = pid.to_string();
    of(&pid, "ns/pid") != of("self", "ns/pid") && of(&pid, "exe").is_some_and(|path| !path.contains("nacre-"))
}

fn say(text: &str) {
    let console = fs::File::options().write(true).open(CONSOLE);
    let _ = console.and_then(|mut console| console.write_all(text.as_bytes()));
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// `None` for a kernel thread, and for what is gone.
fn look_at(pid: u32) -> Option<Value> {
    let proc = Path::new("/proc").join(pid.to_string());
    let executable = link(&proc.join("exe"))?;
    let arguments = fs::read(proc.join("cmdline")).ok()?;
    let arguments: Vec<_> = arguments
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let mut descriptors = BTreeMap::new();
    for entry in fs::read_dir(proc.join("fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        descriptors.insert(number, link(&entry.path()).unwrap_or_default());
    }
    let mut namespaces = BTreeMap::new();
    for name in ["net", "mnt", "pid", "ipc", "uts", "user", "cgroup"] {
        namespaces.insert(name, link(&proc.join("ns").join(name)).unwrap_or_default());
    }
    let devices = fs::read_to_string(proc.join("net/dev")).unwrap_or_default();
    let interfaces: Vec<_> =
        devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    Some(json!({
        "pid": pid,
        "exe": executable,
        "args": arguments,
        "fds": descriptors,
        "ns": namespaces,
        "interfaces": interfaces,
        "root": link(&proc.join("root")).unwrap_or_default(),
        "limits": limits(&proc),
        "status": fs::read_to_string(proc.join("status")).ok()?,
    }))
}

/// Of its cgroup, the one of version 2.
fn limits(proc: &Path) -> BTreeMap<&'static str, String> {
    let groups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let read = |name| fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join(name)).ok();
    let limit = |name| Some((name, read(name)?.trim().to_owned()));
    ["memory.max", "pids.max"].into_iter().filter_map(limit).collect()
}

fn link(path: &Path) -> Option<String> {
    fs::read_link(path).ok().map(|target| target.to_string_lossy().into_owned())
}
