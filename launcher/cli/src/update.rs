//! `update`: other limits for a container that is there.

use crate::args::{Words, unknown, unsupported, usage};
use crate::cgroup;
use crate::config::read_document;
use crate::create::controllers;
use crate::error::{Result, refused};
use crate::state::{Status, Store};
use nacre_plan::Place;
use nacre_plan::oci::{Cpu, Memory, Pids, Resources};
use std::path::Path;

pub fn command(store: &Store, words: Vec<String>) -> Result<u8> {
    let mut words = Words::new(words);
    let mut resources = Resources::default();
    while let Some(option) = words.option()? {
        let memory = resources.memory.take();
        let cpu = resources.cpu.take();
        let (mut new_memory, mut new_cpu) =
            (memory.clone().unwrap_or_default(), cpu.clone().unwrap_or_default());
        match option.as_str() {
            "--resources" | "-r" => {
                resources = read_document(Path::new(&words.value(&option)?))?;
                continue;
            }
            "--memory" => new_memory.limit = Some(bytes(&words.value(&option)?)?),
            "--memory-reservation" => new_memory.reservation = Some(bytes(&words.value(&option)?)?),
            "--memory-swap" => new_memory.swap = Some(bytes(&words.value(&option)?)?),
            "--cpu-quota" => new_cpu.quota = Some(words.number(&option)?),
            "--cpu-period" => new_cpu.period = Some(words.number(&option)?),
            "--cpu-share" => new_cpu.shares = Some(words.number(&option)?),
            "--cpu-burst" => new_cpu.burst = Some(words.number(&option)?),
            "--cpu-idle" => new_cpu.idle = Some(words.number(&option)?),
            "--cpuset-cpus" => new_cpu.cpus = words.value(&option)?,
            "--cpuset-mems" => new_cpu.mems = words.value(&option)?,
            "--pids-limit" => resources.pids = Some(Pids { limit: Some(words.number(&option)?) }),
            "--blkio-weight" => {
                resources.block_io.get_or_insert_default().weight = Some(words.number(&option)?)
            }
            "--kernel-memory"
            | "--kernel-memory-tcp"
            | "--cpu-rt-period"
            | "--cpu-rt-runtime"
            | "--l3-cache-schema"
            | "--mem-bw-schema" => return Err(unsupported(&option, "cgroup v2 has no such limit")),
            _ => return Err(unknown(&option)),
        }
        resources.memory = Some(new_memory).filter(|new| *new != Memory::default()).or(memory);
        resources.cpu = Some(new_cpu).filter(|new| *new != Cpu::default()).or(cpu);
    }
    let record = store.read(&words.only("the container's id")?)?;
    if matches!(record.status(), Status::Stopped | Status::Creating) {
        return Err(refused(format!("container {:?} is {}", record.id, record.status().word())));
    }
    if !resources.devices.is_empty() {
        return Err(refused("linux.resources.devices: the rules of a container that is there do not change"));
    }
    let limits = nacre_plan::limits(&resources, Place::Host).map_err(|error| refused(error.to_string()))?;
    let directory = cgroup::make(&record.cgroup, &controllers(&limits))?;
    nacre_launcher::cgroup::apply(&directory, &limits).map_err(|error| refused(error.message))?;
    Ok(0)
}

/// A number with one of the units k, m, g behind it, or -1 for no limit.
fn bytes(word: &str) -> Result<i64> {
    let digits = word.trim_end_matches(['b', 'B']);
    let (digits, factor) = match digits.chars().last().map(|unit| unit.to_ascii_lowercase()) {
        Some('k') => (digits.get(..digits.len() - 1), 1 << 10),
        Some('m') => (digits.get(..digits.len() - 1), 1 << 20),
        Some('g') => (digits.get(..digits.len() - 1), 1 << 30),
        _ => (Some(digits), 1),
    };
    digits
        .and_then(|digits| digits.parse::<i64>().ok()?.checked_mul(factor))
        .filter(|bytes| *bytes >= -1)
        .ok_or_else(|| usage(format!("{word:?} is not a number of bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (word, expected) in [
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("64M", Some(64 << 20)),
            ("2gb", Some(2 << 30)),
            ("-1", Some(-1)),
            ("-2", None),
            ("k", None),
            ("", None),
            ("9999999999g", None),
        ] {
            assert_eq!(bytes(word).ok(), expected, "{word}");
        }
    }
}
