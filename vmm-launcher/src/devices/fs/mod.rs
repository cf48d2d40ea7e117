//! virtio-fs: directories of the host, seen by the guest as sub-directories of one file system.
//!
//! The FUSE protocol and the access to the host's files are fuse-backend-rs; what the guest may do with them is
//! decided here:
//!
//! * A share is read-only or read-write; the host side enforces it.
//! * Every name is one component. `.` and `..` are refused, symbolic links are never followed on the host.
//! * The user who runs nacre is shown to the guest as root (uid 0), everybody else as nobody. What the guest
//!   creates belongs to that user. The same holds when nacre is run by root, whose thread then keeps only the
//!   capabilities that file access needs.
//! * No set-id bits, no device nodes, no extended attributes outside `user.`, no ioctl.
//! * What the guest can make the host hold (open files, known inodes) is limited.
//! * The threads are confined by landlock to the shared directories.

pub mod backend;
mod confine;
mod rules;
mod share;
mod shared_dirs;
mod tracker;

use std::io;
use std::path::PathBuf;

pub use backend::serve_fs;
pub use shared_dirs::SharedDirs;

use crate::devices::vhost_user::ServeError;

/// What the guest mounts: `mount -t virtiofs kataShared /dir`.
pub const TAG: &str = "kataShared";
/// Shares of one VM.
pub const MAX_SHARES: usize = 64;
/// Bytes of a share's name.
pub const MAX_NAME_BYTES: usize = 64;

/// A directory or a single file of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The sub-directory under which the guest sees it, such as `vol0`.
    pub name: String,
    /// The directory; or a file, which is then the only entry of the sub-directory, under its own name.
    pub host: PathBuf,
    pub access: Access,
}

/// What the guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

impl Share {
    /// Where the share is below the guest's mount point: `vol0`, or `vol0/file` for a single file.
    #[must_use]
    pub fn guest_path(&self) -> PathBuf {
        let base = PathBuf::from(&self.name);
        match (
            self.host.is_file(),
            self.host.canonicalize().ok().as_deref().and_then(std::path::Path::file_name),
        ) {
            (true, Some(file)) => base.join(file),
            _ => base,
        }
    }
}

/// Shares that cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("{0} shares exceed {MAX_SHARES}")]
    TooManyShares(usize),
    #[error("share name `{0}` is not one short path component of letters, digits, `-`, `_`")]
    Name(String),
    #[error("share name `{0}` is used twice")]
    NameTwice(String),
    #[error("cannot share {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot share {0}: it is neither a directory nor a regular file")]
    Kind(PathBuf),
    #[error("cannot share {0}: its path is not UTF-8")]
    NotUtf8(PathBuf),
    #[error("cannot confine the virtio-fs threads")]
    Confine(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Serve(#[from] ServeError),
}
