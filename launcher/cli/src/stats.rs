//! `events`: what the container uses, in runc's form, and its ends for want of memory.

use crate::args::{Words, unknown, usage};
use crate::cgroup;
use crate::error::{Result, refused};
use crate::lifecycle::print_json;
use crate::state::{Record, Status, Store};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// How often, in seconds, when nobody says.
const INTERVAL_S: u64 = 5;

pub fn command(store: &Store, words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let (mut once, mut interval) = (false, INTERVAL_S);
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--stats" => once = words.flag(&option)?,
            "--interval" => {
                let value = words.value(&option)?;
                interval = value
                    .trim_end_matches('s')
                    .parse()
                    .ok()
                    .filter(|seconds| *seconds > 0)
                    .ok_or_else(|| usage(format!("--interval {value:?} is not a number of seconds")))?;
            }
            _ => return Err(unknown(&option)),
        }
    }
    let record = store.read(&words.only("the container's id")?)?;
    if record.status() == Status::Stopped {
        return Err(refused(format!("container {:?} is stopped", record.id)));
    }
    let mut kills = out_of_memory(&record);
    loop {
        print_json(&json!({"type": "stats", "id": record.id, "data": stats(&record.cgroup)}));
        if once {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_secs(interval));
        let now = out_of_memory(&record);
        if now > kills {
            kills = now;
            print_json(&json!({"type": "oom", "id": record.id}));
        }
        if !record.is_alive() {
            return Ok(0);
        }
    }
}

fn out_of_memory(record: &Record) -> u64 {
    cgroup::field(&record.cgroup, "memory.events", "oom_kill").unwrap_or(0)
}

/// What the cgroup has files of; a controller that is not there is left out, not 0.
fn stats(path: &str) -> Value {
    let mut data = Map::new();
    let field = |file: &str, key: &str| cgroup::field(path, file, key);
    if let Some(usage) = field("cpu.stat", "usage_usec") {
        const NANOSECONDS: u64 = 1000;
        let part = |key: &str| field("cpu.stat", key).unwrap_or(0) * NANOSECONDS;
        let mut cpu = json!({
            "usage": {"total": usage * NANOSECONDS, "kernel": part("system_usec"), "user": part("user_usec")},
        });
        if let (Some(periods), Some(cpu)) = (field("cpu.stat", "nr_periods"), cpu.as_object_mut()) {
            let throttling = json!({
                "periods": periods,
                "throttledPeriods": field("cpu.stat", "nr_throttled"),
                "throttledTime": part("throttled_usec"),
            });
            cpu.insert("throttling".to_owned(), throttling);
        }
        data.insert("cpu".to_owned(), cpu);
    }
    if let Some(usage) = number(path, "memory.current") {
        let memory = json!({
            "usage": {
                "usage": usage,
                "max": number(path, "memory.peak"),
                "limit": limit(path, "memory.max"),
                "failcnt": field("memory.events", "max").unwrap_or(0),
            },
            "cache": field("memory.stat", "file"),
            "raw": raw(path, "memory.stat"),
        });
        data.insert("memory".to_owned(), memory);
    }
    if let Some(current) = number(path, "pids.current") {
        data.insert("pids".to_owned(), json!({"current": current, "limit": limit(path, "pids.max")}));
    }
    if let Some(blkio) = io(path) {
        data.insert("blkio".to_owned(), blkio);
    }
    Value::Object(data)
}

fn text(path: &str, name: &str) -> Option<String> {
    std::fs::read_to_string(cgroup::file(path, name).ok()?).ok()
}

fn number(path: &str, name: &str) -> Option<u64> {
    text(path, name)?.trim().parse().ok()
}

/// `max` is the largest number, as runc has it.
fn limit(path: &str, name: &str) -> Option<u64> {
    let text = text(path, name)?;
    if text.trim() == "max" { Some(u64::MAX) } else { text.trim().parse().ok() }
}

fn raw(path: &str, name: &str) -> Value {
    let text = text(path, name).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), json!(value.parse::<u64>().ok()?)))
    });
    Value::Object(pairs.collect())
}

/// `major:minor rbytes=… wbytes=… rios=… wios=…` lines.
fn io(path: &str) -> Option<Value> {
    let text = text(path, "io.stat")?;
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse::<u64>(), minor.parse::<u64>()) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else { continue };
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            list.push(json!({"major": major, "minor": minor, "op": op, "value": value}));
        }
    }
    Some(json!({"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations}))
}
