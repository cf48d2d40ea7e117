//! One share: the host's files behind it, and whether it is one file only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::FsOptions;
use fuse_backend_rs::api::filesystem::{FileSystem, ROOT_ID};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use super::rules::errno;
use super::{Access, FsError, Share};

/// How long the guest may believe names and attributes without asking. The host may change the files meanwhile.
const CACHE_TIME: Duration = Duration::from_secs(1);

/// A share that is open.
pub struct OpenShare {
    pub name: CString,
    pub files: PassthroughFs,
    access: Access,
    /// The one file of the directory that the guest may see.
    only: Option<CString>,
    /// What landlock has to allow: the directory, or the file.
    pub allowed: PathBuf,
}

impl OpenShare {
    /// Opens the directory (or that of the file) for good: what happens to its path later does not matter.
    pub fn open(share: &Share) -> Result<OpenShare, FsError> {
        let failed = |source| FsError::Open { path: share.host.clone(), source };
        let allowed = share.host.canonicalize().map_err(failed)?;
        let kind = std::fs::metadata(&allowed).map_err(failed)?.file_type();
        let (root, only) = match (kind.is_dir(), kind.is_file(), allowed.parent(), allowed.file_name()) {
            (true, ..) => (allowed.as_path(), None),
            (_, true, Some(parent), Some(name)) => {
                let name = CString::new(name.as_bytes()).map_err(|e| failed(e.into()))?;
                (parent, Some(name))
            }
            _ => return Err(FsError::Kind(share.host.clone())),
        };
        let files = open_files(root).map_err(failed)?;
        let files = files.ok_or_else(|| FsError::NotUtf8(share.host.clone()))?;
        let name = CString::new(share.name.as_str()).map_err(|_| FsError::Name(share.name.clone()))?;
        Ok(OpenShare { name, files, access: share.access, only, allowed })
    }

    /// Whether the guest may change anything.
    pub fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Refuses changes to a read-only share.
    pub fn check_writable(&self) -> io::Result<()> {
        if self.is_writable() { Ok(()) } else { Err(errno(libc::EROFS)) }
    }

    /// Refuses changes to the entries of a directory: of any in a read-only share, of the one around a single file.
    pub fn check_directory(&self, directory: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check_not_around_a_file(directory)
    }

    /// Refuses changes to the directory around a single file.
    pub fn check_not_around_a_file(&self, inode: u64) -> io::Result<()> {
        if self.is_around_a_file(inode) { Err(errno(libc::EROFS)) } else { Ok(()) }
    }

    /// Refuses names that the guest may not know: all but the one around a single file.
    pub fn check_shown(&self, directory: u64, name: &CStr) -> io::Result<()> {
        match &self.only {
            Some(only) if directory == ROOT_ID && only.as_c_str() != name => Err(errno(libc::ENOENT)),
            _ => Ok(()),
        }
    }

    /// Whether this share is of a single file.
    pub fn is_single_file(&self) -> bool {
        self.only.is_some()
    }

    /// Whether this is the directory around a single file. It is never opened on the host: landlock does not let
    /// it be, and its other entries are nobody's business.
    pub fn is_around_a_file(&self, inode: u64) -> bool {
        inode == ROOT_ID && self.only.is_some()
    }

    /// Its one entry, if the file is there.
    pub fn only_entry(&self) -> Option<(&CStr, u64)> {
        let only = self.only.as_deref()?;
        let context = super::shared_dirs::host_context();
        let entry = self.files.lookup(&context, ROOT_ID, only).ok()?;
        self.files.forget(&context, entry.inode, 1);
        Some((only, entry.inode))
    }
}

fn open_files(root: &Path) -> io::Result<Option<PassthroughFs>> {
    let Some(root_dir) = root.to_str() else { return Ok(None) };
    let config = Config {
        root_dir: root_dir.to_owned(),
        entry_timeout: CACHE_TIME,
        attr_timeout: CACHE_TIME,
        cache_policy: CachePolicy::Auto,
        xattr: true,
        // Descriptors, not handles: those need a capability, and would reach beyond the directory.
        inode_file_handles: false,
        // Otherwise every inode ever seen stays in a map.
        use_host_ino: true,
        allow_direct_io: false,
        ..Config::default()
    };
    let files = PassthroughFs::new(config)?;
    // Opens the root directory. No option is offered, so none of them is on whatever the guest says later.
    files.init(FsOptions::empty())?;
    Ok(Some(files))
}
