//! What is done to a container that is there: start, state, kill, delete, pause, resume, ps, list.

use crate::args::{Words, unknown, usage};
use crate::error::{CliError, Context, Result, refused};
use crate::signal_names::number;
use crate::state::{Record, Status, Store};
use crate::{cgroup, hooks};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;
use serde_json::json;
use std::os::fd::{AsFd, OwnedFd};

/// How long an opened gate may take to be passed, in seconds.
const START_MAX: i64 = 10;
/// How long a killed process may take to end, in seconds.
const END_MAX: i64 = 10;

/// The id alone, without options.
fn only_id(store: &Store, words: Vec<String>) -> Result<Record> {
    let mut words = Words::new(words);
    if let Some(option) = words.option()? {
        return Err(unknown(&option));
    }
    store.read(&words.only("the container's id")?)
}

pub fn state(store: &Store, words: Vec<String>) -> Result<u8> {
    let record = only_id(store, words)?;
    print_json(&record.state(record.status()));
    Ok(0)
}

/// Opens the gate by way of the process that waits at it, and waits until it is through: then the command was executed, or
/// could not be.
pub fn start(store: &Store, words: Vec<String>) -> Result<u8> {
    let record = only_id(store, words)?;
    match record.status() {
        Status::Created => {}
        other => return Err(refused(format!("container {:?} is {}, not created", record.id, other.word()))),
    }
    let path = format!("/proc/{}/fd/{}", record.pid, record.gate.0);
    let gate = open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("opening the start gate {path}"))?;
    rustix::io::write(&gate, b"g").doing(|| "opening the start gate".to_owned())?;
    // The last reader closes it when it executes the command.
    wait_on(&gate, PollFlags::empty(), START_MAX);
    hooks::after_start(&record);
    Ok(0)
}

pub fn kill(store: &Store, words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let mut all = false;
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--all" | "-a" => all = words.flag(&option)?,
            _ => return Err(unknown(&option)),
        }
    }
    let id = words.next().ok_or_else(|| usage("the container's id is missing".to_owned()))?;
    let word = words.next().unwrap_or_else(|| "SIGTERM".to_owned());
    words.end()?;
    let signal = number(&word).ok_or_else(|| usage(format!("{word:?} is no signal")))?;
    let record = store.read(&id)?;
    let status = record.status();
    if all {
        if signal == nacre_sys::signals::SIGKILL {
            return cgroup::kill(&record.cgroup).map(|()| 0);
        }
        for pid in cgroup::processes(&record.cgroup)? {
            // One that has ended needs no signal.
            drop(signal_process(pid, signal));
        }
        return Ok(0);
    }
    match status {
        Status::Created | Status::Running | Status::Paused => signal_first(&record, signal).map(|()| 0),
        Status::Creating | Status::Stopped => Err(refused(format!(
            "container {:?} is {}: there is no process to signal",
            record.id,
            status.word()
        ))),
    }
}

fn signal_first(record: &Record, signal: i32) -> Result<()> {
    let doing = || format!("sending signal {signal} to process {}", record.pid);
    let target = open_process(record.pid).doing(doing)?;
    // The number may have been used again between looking and opening.
    if !record.is_alive() {
        return Err(refused(format!("container {:?} has just ended", record.id)));
    }
    nacre_sys::process::signal(target.as_fd(), signal).doing(doing)
}

fn signal_process(pid: u32, signal: i32) -> std::io::Result<()> {
    nacre_sys::process::signal(open_process(pid)?.as_fd(), signal)
}

fn open_process(pid: u32) -> Result<OwnedFd, rustix::io::Errno> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(rustix::io::Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
}

pub fn delete(store: &Store, words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let mut force = false;
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--force" | "-f" => force = words.flag(&option)?,
            _ => return Err(unknown(&option)),
        }
    }
    let id = words.only("the container's id")?;
    let record = match store.read(&id) {
        Err(CliError::NoSuchContainer(_)) if force => return Ok(0),
        record => record?,
    };
    match record.status() {
        Status::Running | Status::Paused if !force => Err(refused(format!(
            "container {id:?} is {}; kill it first, or delete with --force",
            record.status().word()
        ))),
        _ => destroy(store, &record).map(|()| 0),
    }
}

/// Kills what is left, removes the cgroup, and last the record: whoever is interrupted can do it again.
pub fn destroy(store: &Store, record: &Record) -> Result<()> {
    if record.pid != 0 && record.is_alive() {
        let target = open_process(record.pid);
        if let (Ok(target), true) = (target, record.is_alive()) {
            let _ = nacre_sys::process::signal(target.as_fd(), nacre_sys::signals::SIGKILL);
            wait_on(&target, PollFlags::IN, END_MAX);
        }
    }
    let is_there = record.cgroup_is_ours && !record.cgroup.is_empty();
    // At once in the usual case: the container is gone, and made no cgroups.
    if is_there && !cgroup::remove_empty(&record.cgroup)? {
        if cgroup::field(&record.cgroup, "cgroup.events", "populated") == Some(1) {
            cgroup::kill(&record.cgroup)?;
        }
        // Killed processes that nobody has reaped yet are no members.
        let _ = nacre_sys::process::reap();
        cgroup::remove(&record.cgroup)?;
    }
    store.remove(&record.id)?;
    hooks::after_delete(record);
    Ok(())
}

/// Until an event (or an error, which is always told) or the end of `seconds`.
fn wait_on(fd: &OwnedFd, events: PollFlags, seconds: i64) {
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(fd, events)], Some(&timeout));
}

pub fn pause(store: &Store, words: Vec<String>) -> Result<u8> {
    let record = only_id(store, words)?;
    match record.status() {
        Status::Running | Status::Created => cgroup::freeze(&record.cgroup, true).map(|()| 0),
        other => Err(refused(format!("container {:?} is {}, not running", record.id, other.word()))),
    }
}

pub fn resume(store: &Store, words: Vec<String>) -> Result<u8> {
    let record = only_id(store, words)?;
    if record.status() == Status::Paused || (record.is_alive() && cgroup::is_frozen(&record.cgroup)) {
        cgroup::freeze(&record.cgroup, false).map(|()| 0)
    } else {
        Err(refused(format!("container {:?} is {}, not paused", record.id, record.status().word())))
    }
}

pub fn ps(store: &Store, words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let mut json = false;
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--format" | "-f" => json = is_json(&words.value(&option)?)?,
            _ => return Err(unknown(&option)),
        }
    }
    let id = words.next().ok_or_else(|| usage("the container's id is missing".to_owned()))?;
    let options = words.rest();
    let record = store.read(&id)?;
    let pids = cgroup::processes(&record.cgroup)?;
    if json {
        print_json(&json!(pids));
        return Ok(0);
    }
    let options = if options.is_empty() { vec!["-ef".to_owned()] } else { options };
    let output =
        std::process::Command::new("ps").args(&options).output().doing(|| "running ps".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| refused(format!("ps {} prints no column PID", options.join(" "))))?;
    println!("{title}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid: u32| pids.binary_search(&pid).is_ok()) {
            println!("{line}");
        }
    }
    Ok(0)
}

pub fn list(store: &Store, words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let (mut json, mut quiet) = (false, false);
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--format" | "-f" => json = is_json(&words.value(&option)?)?,
            "--quiet" | "-q" => quiet = words.flag(&option)?,
            _ => return Err(unknown(&option)),
        }
    }
    words.end()?;
    let records = store.all()?;
    if quiet {
        records.iter().for_each(|record| println!("{}", record.id));
    } else if json {
        let states: Vec<_> = records.iter().map(|record| record.state(record.status())).collect();
        print_json(&json!(states));
    } else {
        println!("{:<24} {:<10} {:<10} {:<31} BUNDLE", "ID", "PID", "STATUS", "CREATED");
        for record in &records {
            let status = record.status();
            let pid = if status == Status::Stopped { 0 } else { record.pid };
            println!(
                "{:<24} {pid:<10} {:<10} {:<31} {}",
                record.id,
                status.word(),
                record.created,
                record.bundle
            );
        }
    }
    Ok(0)
}

fn is_json(word: &str) -> Result<bool> {
    match word {
        "json" => Ok(true),
        "table" => Ok(false),
        _ => Err(usage(format!("--format {word:?} is neither json nor table"))),
    }
}

pub fn print_json(value: &serde_json::Value) {
    println!("{value}");
}
