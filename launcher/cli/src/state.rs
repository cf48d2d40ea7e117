//! The record of a container: one JSON file in `--root`, which appears, changes and goes at once.
//!
//! What the kernel knows better is not in it: whether the process lives, waits at its gate or is frozen is asked each time,
//! so a record cannot be wrong about it, whoever crashed.

use crate::error::{CliError, Context, Result, refused};
use nacre_plan::oci;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Longest record, in bytes.
const RECORD_MAX: u64 = 4 * 1024 * 1024;

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
    /// Personality and memory policy, which count for every process; nothing else.
    pub linux: oci::Linux,
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

    /// Writes the record of a container that has none yet.
    pub fn add(&self, record: &Record) -> Result<()> {
        self.write(record, RenameFlags::NOREPLACE).map_err(|error| match error {
            Errno::EXIST => refused(format!("container {:?} exists already", record.id)),
            error => self.failed("writing the state of", &record.id, error),
        })
    }

    pub fn replace(&self, record: &Record) -> Result<()> {
        self.write(record, RenameFlags::empty())
            .map_err(|error| self.failed("writing the state of", &record.id, error))
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
        serde_json::from_slice(&text).map_err(|error| refused(format!("the state of {id}: {error}")))
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

    fn write(&self, record: &Record, flags: RenameFlags) -> std::result::Result<(), Errno> {
        let text = serde_json::to_vec(record).map_err(|_| Errno::INVAL)?;
        // Two writers at once have two files, and the last to rename has written.
        let draft = self.0.join(format!(".{}.{}", record.id, std::process::id()));
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = match open(&draft, create, Mode::from_raw_mode(0o600)) {
            Err(Errno::NOENT) => {
                std::fs::create_dir_all(&self.0).map_err(errno)?;
                open(&draft, create, Mode::from_raw_mode(0o600))?
            }
            file => file?,
        };
        std::fs::File::from(file).write_all(&text).map_err(errno)?;
        let renamed = renameat_with(CWD, &draft, CWD, self.path(&record.id), flags);
        if renamed.is_err() {
            let _ = rustix::fs::unlink(&draft);
        }
        renamed
    }

    fn failed(&self, doing: &str, id: &str, error: Errno) -> CliError {
        CliError::System { doing: format!("{doing} {id} in {}", self.0.display()), source: error.into() }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
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
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold any character but is followed by the last of them.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // Field 22; the state is field 3.
    let born = fields.nth(18)?.parse().ok()?;
    Some((born, !matches!(state, "Z" | "X")))
}
