//! The record of a container: one file in `--root`, with a line of JSON when its id is taken and another when its process waits
//! at its gate. The last whole line counts, so whoever reads meanwhile, or after a crash, reads what was true before.
//!
//! What the kernel knows better is not in it: whether the process lives, waits at its gate or is frozen is asked each time,
//! so a record cannot be wrong about it, whoever crashed.

use crate::error::{CliError, Context, Result, refused};
use nacre_plan::oci;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Longest record, in bytes: two lines of what can be as long as a `config.json`.
const RECORD_MAX: u64 = 8 * 1024 * 1024;

/// The version of the specification that this launcher follows.
pub const OCI_VERSION: &str = "1.3.0";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    /// Of the first process; 0 while it is not born.
    pub pid: u32,
    /// When it was born, in clock ticks after boot: a number used again has another.
    pub born: u64,
    pub bundle: String,
    pub rootfs: String,
    /// RFC 3339.
    pub created: String,
    /// In the cgroup v2 hierarchy, from its root.
    pub cgroup: String,
    /// Whether the cgroup is ours to remove.
    pub cgroup_is_ours: bool,
    /// The pipe that the first process waits at: its number there, and what `/proc/PID/fd` says of it.
    pub gate: (i32, String),
    pub annotations: BTreeMap<String, String>,
    /// What an exec takes over where its caller says nothing.
    pub process: oci::Process,
    /// The container's seccomp program in hex, eight bytes an instruction, and the flags for loading it.
    pub seccomp: Option<(String, u32)>,
    pub hooks: Option<oci::Hooks>,
    /// These count for every process.
    pub personality: Option<oci::Personality>,
    pub memory_policy: Option<oci::MemoryPolicy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The directory of `--root`.
pub struct Store(PathBuf);

impl Store {
    pub fn new(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// Takes the id of a container that has no record yet.
    pub fn add(&self, record: &Record) -> Result<Entry> {
        let create = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
            open(self.path(&record.id), flags, Mode::from_raw_mode(0o600))
        };
        let made = match create() {
            Err(Errno::NOENT) => {
                let folder = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
                folder.doing(|| format!("making {}", self.0.display()))?;
                create()
            }
            made => made,
        };
        let file = match made {
            Err(Errno::EXIST) => return Err(refused(format!("container {:?} exists already", record.id))),
            made => made.doing(|| format!("taking the id {} in {}", record.id, self.0.display()))?,
        };
        let mut entry = Entry(File::from(file));
        match entry.write(record) {
            Ok(()) => Ok(entry),
            Err(error) => self.remove(&record.id).and(Err(error)),
        }
    }

    pub fn read(&self, id: &str) -> Result<Record> {
        require_id(id)?;
        let text = match std::fs::read(self.path(id)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CliError::NoSuchContainer(id.to_owned()));
            }
            text => text.doing(|| format!("reading the state of {id}"))?,
        };
        if text.len() as u64 > RECORD_MAX {
            return Err(refused(format!("the state of {id} is longer than {RECORD_MAX} bytes")));
        }
        match last_line(&text) {
            // Just taken, or by somebody who died at once: nothing of the container is there yet.
            None => Ok(Record { id: id.to_owned(), ..Record::default() }),
            Some(line) => {
                oci::from_json(line).map_err(|error| refused(format!("the state of {id}: {error}")))
            }
        }
    }

    /// Nothing to do if there is none.
    pub fn remove(&self, id: &str) -> Result<()> {
        match std::fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.doing(|| format!("removing the state of {id}")),
        }
    }

    /// Every container's, in the order of their ids. One that goes meanwhile is left out.
    pub fn all(&self) -> Result<Vec<Record>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing(|| format!("reading {}", self.0.display()))?,
        };
        let mut ids: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect();
        ids.sort_unstable();
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            match self.read(&id) {
                Err(CliError::NoSuchContainer(_)) => {}
                record => records.push(record?),
            }
        }
        Ok(records)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }
}

/// The open file of a record that is being made.
pub struct Entry(File);

impl Entry {
    /// Replaces what was true before.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|error| refused(error.to_string()))?;
        line.push(b'\n');
        self.0.write_all(&line).doing(|| format!("writing the state of {}", record.id))
    }
}

/// Of those that end; one that does not was never written whole.
fn last_line(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().rposition(|byte| *byte == b'\n')?;
    text.get(..end)?.rsplit(|byte| *byte == b'\n').next()
}

/// Ids become names of files.
pub fn require_id(id: &str) -> Result<()> {
    if nacre_protocols::names::is_valid_id(id) {
        Ok(())
    } else {
        Err(refused(format!(
            "{id:?} is no container id: letters, digits, `_`, `.` and `-`, the first a letter or digit"
        )))
    }
}

impl Record {
    pub fn status(&self) -> Status {
        if self.pid == 0 {
            return Status::Creating;
        }
        if !self.is_alive() {
            return Status::Stopped;
        }
        if self.waits_at_gate() {
            return Status::Created;
        }
        match crate::cgroup::is_frozen(&self.cgroup) {
            true => Status::Paused,
            false => Status::Running,
        }
    }

    /// Whether the first process is still the one that was born, and no zombie.
    pub fn is_alive(&self) -> bool {
        born_and_alive(self.pid).is_some_and(|(born, alive)| alive && born == self.born)
    }

    fn waits_at_gate(&self) -> bool {
        let (number, pipe) = &self.gate;
        let link = std::fs::read_link(format!("/proc/{}/fd/{number}", self.pid));
        link.is_ok_and(|link| link.to_str() == Some(pipe))
    }

    /// What `state` prints, and what hooks get.
    pub fn state(&self, status: Status) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status.word(),
            "pid": if status == Status::Stopped { 0 } else { self.pid },
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
            "owner": "",
        });
        if let (false, Some(state)) = (self.annotations.is_empty(), state.as_object_mut()) {
            state.insert("annotations".to_owned(), serde_json::json!(self.annotations));
        }
        state
    }
}

/// When a process was born, in clock ticks, and whether it has not ended (proc_pid_stat(5)).
pub fn born_and_alive(pid: u32) -> Option<(u64, bool)> {
    // Some fifty numbers; proc gives them at once.
    let mut buffer = [0; 2048];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut buffer).ok()?;
    let text = String::from_utf8_lossy(buffer.get(..length)?);
    // The name is in parentheses and may hold any character but is followed by the last of them.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // Field 22; the state is field 3.
    let born = fields.nth(18)?.parse().ok()?;
    Some((born, !matches!(state, "Z" | "X")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32) -> Record {
        Record { id: "box".into(), pid, cgroup: "/box".into(), ..Record::default() }
    }

    #[test]
    fn what_was_written_last_and_whole_counts() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&folder.path().join("made/on/demand"));
        assert!(matches!(store.read("box"), Err(CliError::NoSuchContainer(_))));
        let mut entry = store.add(&record(0)).unwrap();
        assert!(store.add(&record(0)).is_err_and(|error| error.to_string().contains("exists already")));
        assert_eq!(store.read("box").unwrap(), record(0));
        entry.write(&record(7)).unwrap();
        assert_eq!(store.read("box").unwrap(), record(7));
        // Somebody died while writing.
        entry.0.write_all(b"{\"id\":\"bo").unwrap();
        assert_eq!(store.read("box").unwrap(), record(7));
        std::fs::write(store.path("box"), "").unwrap();
        assert_eq!(store.read("box").unwrap(), Record { id: "box".into(), ..Record::default() });
        assert_eq!(store.all().unwrap().len(), 1);
        store.remove("box").unwrap();
        store.remove("box").unwrap();
        assert_eq!(store.all().unwrap(), []);
    }

    #[test]
    fn a_process_is_told_from_another_of_the_same_number() {
        let (born, alive) = born_and_alive(std::process::id()).unwrap();
        assert!(alive);
        let own = Record { pid: std::process::id(), born, ..Record::default() };
        assert!(own.is_alive());
        assert!(!Record { born: born + 1, ..own }.is_alive());
        assert_eq!(born_and_alive(0), None);
    }
}
