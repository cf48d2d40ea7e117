//! The guest's cgroup v2 tree: `agent`, `puller/{fetcher,indexer}`, `containers/<id>`; init stays in the root.

use crate::InitError;
use crate::console::say;
use nacre_protocols::names::{FETCHER_MEMORY, INDEXER_MEMORY, OWN_PROCESSES};
use rustix::fs::{Mode, OFlags, open};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "/sys/fs/cgroup/containers";
/// Deepest nesting that a container's own cgroups may have, in levels, for init to remove them.
const DEPTH_MAX: usize = 16;

pub struct Hierarchy {
    pub agent: OwnedFd,
    pub fetcher: OwnedFd,
    pub indexer: OwnedFd,
}

/// Longest `memory.events`, in bytes: six short lines.
const EVENTS_TEXT_MAX: usize = 512;

/// What the agent may use, in bytes.
const AGENT_MEMORY: u64 = 64 << 20;

impl Hierarchy {
    pub fn prepare() -> Result<Self, InitError> {
        let prepare = || -> io::Result<Self> {
            delegate(Path::new(ROOT))?;
            std::fs::create_dir(CONTAINERS)?;
            delegate(Path::new(CONTAINERS))?;
            let puller = Path::new(ROOT).join("puller");
            std::fs::create_dir(&puller)?;
            delegate(&puller)?;
            Ok(Self {
                agent: limited(Path::new(ROOT).join("agent"), AGENT_MEMORY)?,
                fetcher: limited(puller.join("fetcher"), FETCHER_MEMORY)?,
                indexer: limited(puller.join("indexer"), INDEXER_MEMORY)?,
            })
        };
        prepare().map_err(InitError::io("preparing the cgroup tree"))
    }

    /// How many processes the kernel killed in the fetcher's and in the indexer's cgroup for want of memory.
    pub fn puller_out_of_memory_kills(&self) -> [u64; 2] {
        ["fetcher", "indexer"].map(|name| out_of_memory_kills(&Path::new(ROOT).join("puller").join(name)))
    }

    /// On a tmpfs scratch the layers themselves count as the puller's memory, and the tmpfs has its own limit.
    pub fn lift_puller_limit(&self) {
        for name in ["fetcher", "indexer"] {
            if let Err(error) = std::fs::write(format!("{ROOT}/puller/{name}/memory.max"), "max") {
                say(&format!("lifting the puller's memory limit: {error}"));
            }
        }
    }
}

/// A container's cgroup.
pub struct Cgroup {
    path: PathBuf,
    pub directory: OwnedFd,
}

impl Cgroup {
    /// `id` was checked to be one plain path component.
    pub fn create(id: &str) -> io::Result<Self> {
        let path = Path::new(CONTAINERS).join(id);
        std::fs::create_dir(&path)?;
        match open_directory(&path) {
            Ok(directory) => Ok(Self { path, directory }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// SIGKILL to every process in it, whatever namespaces it made. One that is gone has none.
    pub fn kill(&self) -> io::Result<()> {
        unless_gone(std::fs::write(self.path.join("cgroup.kill"), "1"))
    }

    /// How many processes the kernel killed in it for want of memory.
    pub fn out_of_memory_kills(&self) -> u64 {
        out_of_memory_kills(&self.path)
    }

    /// `cgroup.freeze`; the processes stop on their way back from the kernel, and `cgroup.events` says when all have.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        std::fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// A descriptor that is ready, as an exception, when [`out_of_memory_kills_in`] may tell more than before.
    pub fn memory_events(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, "memory.events", flags, Mode::empty())?)
    }

    /// `EBUSY` while processes are left. A removal that was broken off behind this is gone through again: then there is nothing
    /// to remove.
    pub fn remove(&self) -> io::Result<()> {
        unless_gone(remove_tree(&self.path, DEPTH_MAX))
    }
}

fn out_of_memory_kills(cgroup: &Path) -> u64 {
    kills(&std::fs::read_to_string(cgroup.join("memory.events")).unwrap_or_default())
}

/// The same, of the descriptor of a `memory.events`; reading is what makes it unready.
pub fn out_of_memory_kills_in(events: &OwnedFd) -> u64 {
    let mut text = [0; EVENTS_TEXT_MAX];
    let length = rustix::io::pread(events, &mut text, 0).unwrap_or(0);
    kills(text.get(..length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default())
}

fn kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

/// A container may have made cgroups of its own beneath its own.
fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    if let Some(deeper) = depth.checked_sub(1) {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove_tree(&entry.path(), deeper)?;
            }
        }
    }
    unless_gone(std::fs::remove_dir(path))
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Every controller that the parent has goes down to the children.
fn delegate(path: &Path) -> io::Result<()> {
    let controllers = std::fs::read_to_string(path.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

fn limited(path: PathBuf, memory: u64) -> io::Result<OwnedFd> {
    std::fs::create_dir(&path)?;
    std::fs::write(path.join("memory.max"), memory.to_string())?;
    std::fs::write(path.join("pids.max"), OWN_PROCESSES.to_string())?;
    open_directory(&path)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
