//! Where the sandboxes of this user are: one directory each, held by the lock of its monitor.
//!
//! A directory whose lock is free belongs to nobody. If its record says that it was kept on purpose it stays; else the
//! monitor was killed, and whoever comes by next removes it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nacre_protocols::names::is_valid_id;
use rustix::fs::FlockOperation;

use super::record::Record;

/// Overrides every other place; for tests, and for hosts with ideas of their own.
pub const ROOT_VARIABLE: &str = "NACRE_RUNTIME_DIR";
/// Longest name of a sandbox or container, in bytes; a host name is not longer (RFC 1035).
pub const NAME_MAX: usize = 63;
/// Longest path of a sandbox's directory, in bytes: sockets in it must fit into `sockaddr_un` (unix(7)), and [`crate::vmm`]
/// wants the same.
const PATH_MAX: usize = 80;
/// Most sandboxes of one user that are looked at.
const SANDBOXES_MAX: usize = 4096;
/// Serialises making and sweeping directories.
const ROOT_LOCK: &str = ".lock";
const LOCK: &str = "lock";
/// The monitor's control socket.
const CONTROL: &str = "control";

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the directory for sandboxes, {path:?}: {source}")]
    Root { path: PathBuf, source: io::Error },
    #[error(
        "the directory for sandboxes, {path:?}, {problem}; remove it, or set {ROOT_VARIABLE} to another place"
    )]
    Unsafe { path: PathBuf, problem: String },
    #[error(
        "{name:?} is not a name: 1 to {NAME_MAX} of A-Z a-z 0-9 _ . - beginning with a letter or a digit"
    )]
    Name { name: String },
    #[error("the name {name:?} is taken; choose another, or `nacre rm {name}`")]
    Taken { name: String },
    #[error(
        "{path:?} would be {length} bytes long, the limit for sockets is {PATH_MAX}; use a shorter --name, or set {ROOT_VARIABLE}"
    )]
    TooLong { path: PathBuf, length: usize },
    #[error("{action} {path:?}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// The directory of this user's sandboxes.
#[derive(Debug, Clone)]
pub struct StateRoot {
    path: PathBuf,
}

impl StateRoot {
    /// The usual place, made if it is missing: `$XDG_RUNTIME_DIR/nacre`, else `/run/nacre-UID`, else `/tmp/nacre-UID`.
    pub fn open() -> Result<Self, StateError> {
        if let Some(path) = std::env::var_os(ROOT_VARIABLE).filter(|path| !path.is_empty()) {
            return Self::at(Path::new(&path));
        }
        let uid = rustix::process::geteuid().as_raw();
        if let Some(path) = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
            return Self::at(&Path::new(&path).join("nacre"));
        }
        match Self::at(Path::new(&format!("/run/nacre-{uid}"))) {
            Err(StateError::Root { .. }) => Self::at(Path::new(&format!("/tmp/nacre-{uid}"))),
            result => result,
        }
    }

    /// A place of the caller's choosing. It must be, or become, a directory of this user that nobody else may enter.
    pub fn at(path: &Path) -> Result<Self, StateError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(|source| StateError::Root { path: path.to_owned(), source })?,
        }
        // Not through a link: in /tmp somebody else may have been here first.
        let metadata = std::fs::symlink_metadata(path)
            .map_err(|source| StateError::Root { path: path.to_owned(), source })?;
        let uid = rustix::process::geteuid().as_raw();
        let problem = if !metadata.is_dir() {
            Some("is not a directory".to_owned())
        } else if metadata.uid() != uid {
            Some(format!("belongs to user {}, not {uid}", metadata.uid()))
        } else if metadata.mode() & 0o077 != 0 {
            Some(format!("is open to others (mode {:o})", metadata.mode() & 0o7777))
        } else {
            None
        };
        match problem {
            Some(problem) => Err(StateError::Unsafe { path: path.to_owned(), problem }),
            None => Ok(Self { path: path.to_owned() }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory of a new sandbox and holds it.
    pub fn create(&self, name: &str) -> Result<SandboxDir, StateError> {
        if !is_valid_id(name) || name.len() > NAME_MAX {
            return Err(StateError::Name { name: name.to_owned() });
        }
        let path = self.path.join(name);
        if path.as_os_str().len() > PATH_MAX {
            return Err(StateError::TooLong { length: path.as_os_str().len(), path });
        }
        let _serial = self.lock()?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StateError::Taken { name: name.to_owned() });
            }
            result => result.map_err(failed("make", &path))?,
        }
        let lock_path = path.join(LOCK);
        let held = open_lock(&lock_path)
            .and_then(|lock| {
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
                Ok(lock)
            })
            .map_err(failed("lock", &lock_path));
        match held {
            Ok(lock) => Ok(SandboxDir { place: Place { path }, lock }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    /// Every sandbox, by name. Directories that a killed monitor left are removed on the way.
    pub fn list(&self) -> Result<Vec<Found>, StateError> {
        let _serial = self.lock()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed("read", &self.path))?.take(SANDBOXES_MAX) {
            let entry = entry.map_err(failed("read", &self.path))?;
            let Some(name) = entry.file_name().to_str().filter(|name| is_valid_id(name)).map(str::to_owned)
            else {
                continue;
            };
            let place = Place { path: entry.path() };
            let alive = place.is_held().map_err(failed("lock", &place.path))?;
            match place.record() {
                Some(record) if alive || record.is_kept() => {
                    found.push(Found { name, place, record: Some(record), alive });
                }
                // Being made right now: its monitor has not written the record yet.
                None if alive => found.push(Found { name, place, record: None, alive }),
                _ => place.remove()?,
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn lock(&self) -> Result<File, StateError> {
        let path = self.path.join(ROOT_LOCK);
        let lock = open_lock(&path).map_err(failed("open", &path))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|errno| StateError::Io {
            action: "lock",
            path,
            source: errno.into(),
        })?;
        Ok(lock)
    }
}

/// A sandbox of [`StateRoot::list`].
#[derive(Debug)]
pub struct Found {
    pub name: String,
    pub place: Place,
    pub record: Option<Record>,
    /// Its monitor lives.
    pub alive: bool,
}

/// A sandbox's directory, held by this process.
#[derive(Debug)]
pub struct SandboxDir {
    place: Place,
    lock: File,
}

impl SandboxDir {
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The directory, and the lock to be handed to the monitor: the sandbox lives as long as a copy of it is open.
    pub fn into_parts(self) -> (Place, File) {
        (self.place, self.lock)
    }
}

/// The paths of one sandbox.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    pub fn monitor_log(&self) -> PathBuf {
        self.path.join("monitor.log")
    }

    /// Output of a detached container.
    pub fn container_log(&self, container: &str) -> PathBuf {
        self.path.join(format!("{container}.log"))
    }

    /// What the monitor last wrote; `None` if there is nothing that can be understood.
    pub fn record(&self) -> Option<Record> {
        Record::read(&self.path)
    }

    pub fn remove(&self) -> Result<(), StateError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }

    /// True if `lock` is an open copy of this sandbox's lock.
    pub fn is_held_by(&self, lock: &impl std::os::fd::AsFd) -> io::Result<bool> {
        let held = rustix::fs::fstat(lock)?;
        match std::fs::symlink_metadata(self.path.join(LOCK)) {
            Ok(own) => Ok((own.dev(), own.ino()) == (held.st_dev, held.st_ino)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True while a monitor, or a command that is about to start one, holds the lock.
    fn is_held(&self) -> io::Result<bool> {
        let lock = match OpenOptions::new().read(true).open(self.path.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            result => result?,
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::record::{ContainerState, Record};

    fn root() -> (tempfile::TempDir, StateRoot) {
        let directory = tempfile::tempdir().unwrap();
        let root = StateRoot::at(&directory.path().join("nacre")).unwrap();
        (directory, root)
    }

    fn names(root: &StateRoot) -> Vec<String> {
        root.list().unwrap().into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn a_directory_without_a_living_monitor_is_swept() {
        let (_directory, root) = root();
        let held = root.create("held").unwrap();
        let dead = root.create("dead").unwrap();
        std::os::unix::fs::symlink("/etc", dead.place().path().join("link")).unwrap();
        Record::new("dead").write(dead.place().path()).unwrap();
        drop(dead);
        std::fs::create_dir(root.path().join("unlocked")).unwrap();
        assert_eq!(names(&root), ["held"]);
        assert!(!root.path().join("dead").exists() && !root.path().join("unlocked").exists());
        assert!(Path::new("/etc/passwd").exists());
        let (place, lock) = held.into_parts();
        let copy = lock.try_clone().unwrap();
        drop(lock);
        assert_eq!(names(&root), ["held"], "a copy of the lock is enough");
        drop(copy);
        assert!(names(&root).is_empty() && !place.path().exists());
    }

    #[test]
    fn a_kept_sandbox_outlives_its_monitor() {
        let (_directory, root) = root();
        let kept = root.create("kept").unwrap();
        let mut record = Record::new("kept");
        record.add("kept", "image", true);
        record.container_mut("kept").unwrap().state = ContainerState::Exited { code: 3, at: 1 };
        record.write(kept.place().path()).unwrap();
        drop(kept);
        let found = root.list().unwrap();
        assert_eq!((found.len(), found[0].alive), (1, false));
        found[0].place.remove().unwrap();
        assert!(names(&root).is_empty());
    }

    #[test]
    fn names_are_unique_and_plain() {
        let (_directory, root) = root();
        let _first = root.create("web").unwrap();
        assert!(matches!(root.create("web"), Err(StateError::Taken { .. })));
        for name in ["", "..", "a/b", ".lock", &"x".repeat(64)] {
            assert!(matches!(root.create(name), Err(StateError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(StateRoot::at(&open), Err(StateError::Unsafe { .. })));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(matches!(StateRoot::at(&link), Err(StateError::Unsafe { .. })));
    }
}
