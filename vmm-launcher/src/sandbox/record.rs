//! `sandbox.json`: what a monitor tells other commands about its sandbox. Written whole and renamed into place.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::spec::ProcessDefaults;

const FILE: &str = "sandbox.json";
/// Goes up with every incompatible change.
const VERSION: u32 = 1;
/// Longest record, in bytes.
const RECORD_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The monitor's process id, for people; what counts is the lock.
    pub monitor: u32,
    /// QEMU's.
    pub vmm: Option<u32>,
    /// The host's side of the vsock device.
    pub vsock: Option<std::path::PathBuf>,
    /// The host's loopback as the sandbox reaches it.
    pub host_address: Option<String>,
    /// Port of the image server, and of loopback registries, that the network lets through.
    pub host_ports: Vec<u16>,
    /// The named store that it has.
    #[serde(default)]
    pub store: Option<String>,
    pub containers: Vec<ContainerRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Also its id with the agent.
    pub name: String,
    /// As it was written on the command line.
    pub image: String,
    pub command: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
    pub state: ContainerState,
    /// Its output goes to a log.
    pub detached: bool,
    /// The record and the log outlive it.
    pub keep: bool,
    /// Empty for SIGTERM.
    pub stop_signal: String,
    pub defaults: ProcessDefaults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "is")]
pub enum ContainerState {
    Created,
    Running,
    /// `at` in seconds since 1970.
    Exited {
        code: u8,
        at: u64,
    },
}

impl ContainerRecord {
    /// It has not ended yet.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, ContainerState::Exited { .. })
    }
}

impl Record {
    pub fn new(name: &str) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            created: now(),
            monitor: std::process::id(),
            vmm: None,
            vsock: None,
            host_address: None,
            host_ports: Vec::new(),
            store: None,
            containers: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &str, image: &str, keep: bool) -> &mut ContainerRecord {
        self.containers.retain(|container| container.name != name);
        self.containers.push(ContainerRecord {
            name: name.to_owned(),
            image: image.to_owned(),
            command: Vec::new(),
            created: now(),
            state: ContainerState::Created,
            detached: false,
            keep,
            stop_signal: String::new(),
            defaults: ProcessDefaults::default(),
        });
        let last = self.containers.len() - 1;
        &mut self.containers[last]
    }

    pub fn container(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn container_mut(&mut self, name: &str) -> Option<&mut ContainerRecord> {
        self.containers.iter_mut().find(|container| container.name == name)
    }

    /// True if the directory is to stay when the sandbox has ended.
    pub fn is_kept(&self) -> bool {
        self.containers.iter().any(|container| container.keep)
    }

    pub fn read(directory: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(directory.join(FILE)).ok()?;
        file.take(RECORD_MAX).read_to_end(&mut bytes).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.version == VERSION).then_some(record)
    }

    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let mut file = tempfile_in(directory)?;
        file.1.write_all(&serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&file.0, directory.join(FILE))
    }
}

fn tempfile_in(directory: &Path) -> io::Result<(std::path::PathBuf, std::fs::File)> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.join(".sandbox.json.new");
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    Ok((path, file))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_is_not_understood() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = Record::new("x");
        record.add("x", "image", false).state = ContainerState::Exited { code: 7, at: 2 };
        record.write(directory.path()).unwrap();
        let read = Record::read(directory.path()).unwrap();
        assert_eq!(read.container("x").unwrap().state, ContainerState::Exited { code: 7, at: 2 });
        record.version += 1;
        record.write(directory.path()).unwrap();
        assert!(Record::read(directory.path()).is_none());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
