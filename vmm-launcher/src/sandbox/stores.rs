//! Named stores: disks of this user that outlive the sandboxes that have them, so that layers need not be fetched again.
//!
//! A store is one sparse file, `NAME.disk`, in the user's data directory. Only one sandbox has it at a time: the file is
//! locked (flock(2)) by an open file that QEMU inherits. What is on it is the guest's business; this side never reads it.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nacre_protocols::names::is_valid_id;
use rustix::fs::FlockOperation;

use super::NAME_MAX;

/// Overrides every other place.
pub const STORES_VARIABLE: &str = "NACRE_STORES_DIR";
const SUFFIX: &str = ".disk";
/// Most stores that are looked at.
const STORES_MAX: usize = 4096;
/// What the guest's formatter takes, less its journal and tables, in bytes.
const MIN_BYTES: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    #[error("there is no home directory; set {STORES_VARIABLE}")]
    NoHome,
    #[error(
        "{name:?} is not a name: 1 to {NAME_MAX} of A-Z a-z 0-9 _ . - beginning with a letter or a digit"
    )]
    Name { name: String },
    #[error("a store of {bytes} bytes is too small; the least is {MIN_BYTES}")]
    Size { bytes: u64 },
    #[error("there is no store {name:?}")]
    Missing { name: String },
    #[error("the store {name:?} exists")]
    Exists { name: String },
    #[error("the store {name:?} is in use by a sandbox")]
    InUse { name: String },
    #[error("{action} {path:?}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// One store; sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    pub name: String,
    pub size: u64,
    /// What it takes of the host's disk.
    pub taken: u64,
    pub in_use: bool,
}

/// The directory of this user's stores.
#[derive(Debug, Clone)]
pub struct Stores {
    path: PathBuf,
}

impl Stores {
    /// `$XDG_DATA_HOME/nacre/stores`, else `~/.local/share/nacre/stores`.
    pub fn open() -> Result<Self, StoresError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = variable(STORES_VARIABLE)
            .or_else(|| variable("XDG_DATA_HOME").map(|data| data.join("nacre/stores")))
            .or_else(|| variable("HOME").map(|home| home.join(".local/share/nacre/stores")));
        Ok(Self::at(path.ok_or(StoresError::NoHome)?))
    }

    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file of a store that is there.
    pub fn disk(&self, name: &str) -> Result<PathBuf, StoresError> {
        let path = self.file(name)?;
        if path.is_file() { Ok(path) } else { Err(StoresError::Missing { name: name.to_owned() }) }
    }

    /// Makes a blank disk. The guest formats it when it is first used; it takes no more than is written to it.
    pub fn create(&self, name: &str, bytes: u64) -> Result<(), StoresError> {
        if bytes < MIN_BYTES {
            return Err(StoresError::Size { bytes });
        }
        let path = self.file(name)?;
        let directory = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        directory.map_err(failed("make", &self.path))?;
        let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoresError::Exists { name: name.to_owned() });
            }
            file => file.map_err(failed("make", &path))?,
        };
        file.set_len(bytes / 4096 * 4096).map_err(|error| {
            let _ = std::fs::remove_file(&path);
            failed("make", &path)(error)
        })
    }

    /// By name.
    pub fn list(&self) -> Result<Vec<Store>, StoresError> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("read", &self.path))?,
        };
        let mut stores = Vec::new();
        for entry in entries.take(STORES_MAX) {
            let entry = entry.map_err(failed("read", &self.path))?;
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(name) = name.filter(|name| is_valid_id(name)) else { continue };
            let found = entry.metadata().map_err(failed("look at", &entry.path()))?;
            stores.push(Store {
                name: name.to_owned(),
                size: found.len(),
                taken: found.blocks() * 512,
                in_use: lock(&entry.path())?.is_none(),
            });
        }
        stores.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(stores)
    }

    /// Removes one that no sandbox has.
    pub fn remove(&self, name: &str) -> Result<(), StoresError> {
        let path = self.disk(name)?;
        // Held while it is removed: a sandbox that comes now finds no file, or is found here.
        match lock(&path)? {
            None => Err(StoresError::InUse { name: name.to_owned() }),
            Some(_held) => std::fs::remove_file(&path).map_err(failed("remove", &path)),
        }
    }

    fn file(&self, name: &str) -> Result<PathBuf, StoresError> {
        if !is_valid_id(name) || name.len() > NAME_MAX {
            return Err(StoresError::Name { name: name.to_owned() });
        }
        Ok(self.path.join(format!("{name}{SUFFIX}")))
    }
}

/// `None` while a sandbox has it.
fn lock(path: &Path) -> Result<Option<std::fs::File>, StoresError> {
    let file = std::fs::File::open(path).map_err(failed("open", path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed("lock", path)(error.into())),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoresError {
    let path = path.to_owned();
    move |source| StoresError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::{ConfigError, Scratch};

    #[test]
    fn a_store_is_one_sandboxs_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let stores = Stores::at(directory.path().join("stores"));
        assert_eq!(stores.list().unwrap(), []);
        assert!(matches!(stores.disk("web"), Err(StoresError::Missing { .. })));
        stores.create("web", 64 << 20).unwrap();
        assert!(matches!(stores.create("web", 64 << 20), Err(StoresError::Exists { .. })));
        let found = stores.list().unwrap();
        assert_eq!((found.len(), found[0].size, found[0].in_use), (1, 64 << 20, false));
        assert!(found[0].taken < 1 << 20, "it is sparse");
        let held = Scratch::open_kept(&stores.disk("web").unwrap()).unwrap();
        assert!(stores.list().unwrap()[0].in_use);
        assert!(matches!(stores.remove("web"), Err(StoresError::InUse { .. })));
        let second = Scratch::open_kept(&stores.disk("web").unwrap());
        assert!(matches!(second, Err(ConfigError::KeptInUse { .. })));
        drop(held);
        stores.remove("web").unwrap();
        assert_eq!(stores.list().unwrap(), []);
    }

    #[test]
    fn odd_names_and_sizes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let stores = Stores::at(directory.path().to_owned());
        for name in ["", ".", "..", "a/b", "-x", &"x".repeat(64)] {
            assert!(matches!(stores.create(name, 64 << 20), Err(StoresError::Name { .. })), "{name:?}");
        }
        assert!(matches!(stores.create("x", 1 << 20), Err(StoresError::Size { .. })));
        // A link leads nowhere.
        std::os::unix::fs::symlink("/dev/null", directory.path().join("link.disk")).unwrap();
        assert!(Scratch::open_kept(&directory.path().join("link.disk")).is_err());
    }
}
