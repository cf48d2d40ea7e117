//! Making a mount by the file system context calls (fsopen(2), fsconfig(2), fsmount(2)): no string of options to be
//! split wrongly, and the kernel's own words when it refuses.

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount,
    open_tree,
};
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Most messages read from a context's log.
const MESSAGES_MAX: usize = 4;
/// Longest message read, in bytes.
const MESSAGE_MAX: usize = 256;

pub struct FilesystemContext {
    fd: OwnedFd,
}

impl FilesystemContext {
    pub fn open(kind: &str) -> io::Result<Self> {
        Ok(Self { fd: fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)? })
    }

    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        fsconfig_set_string(&self.fd, key, value).map_err(|error| self.explain(error.into()))
    }

    /// `key=value`, or a flag.
    pub fn option(&self, option: &str) -> io::Result<()> {
        match option.split_once('=') {
            Some((key, value)) => self.set(key, value),
            None => fsconfig_set_flag(&self.fd, option).map_err(|error| self.explain(error.into())),
        }
    }

    /// Of the file system that is mounted at `root`.
    pub fn of(root: impl AsFd) -> io::Result<Self> {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        Ok(Self { fd: fspick(root, "", flags)? })
    }

    /// Gives a file system that is mounted the options that were set.
    pub fn reconfigure(&self) -> io::Result<()> {
        fsconfig_reconfigure(&self.fd).map_err(|error| self.explain(error.into()))
    }

    /// A mount that is attached nowhere yet.
    pub fn mount(&self, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
        fsconfig_create(&self.fd)
            .and_then(|()| fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes))
            .map_err(|error| self.explain(error.into()))
    }

    /// Adds what the kernel logged in the context. [`errno`] finds the number all the same.
    fn explain(&self, error: io::Error) -> io::Error {
        let mut text = String::new();
        let mut buffer = [0; MESSAGE_MAX];
        for _ in 0..MESSAGES_MAX {
            let Ok(length @ 1..) = rustix::io::read(&self.fd, &mut buffer) else { break };
            let message = buffer.get(..length).unwrap_or_default();
            let _ = write!(text, " ({})", String::from_utf8_lossy(message).trim_end());
        }
        if text.is_empty() { error } else { io::Error::new(error.kind(), Explained { error, text }) }
    }
}

/// An error of the kernel's with more words. [`errno`] finds the number all the same.
pub fn explained(errno: Errno, text: &str) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), Explained { error, text: text.to_owned() })
}

/// An error of the kernel with the kernel's explanation.
#[derive(Debug)]
struct Explained {
    error: io::Error,
    text: String,
}

impl std::fmt::Display for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.error, self.text)
    }
}

impl std::error::Error for Explained {}

/// The errno of an error, also of an explained one.
pub fn errno(error: &io::Error) -> i32 {
    let explained = error.get_ref().and_then(|inner| inner.downcast_ref::<Explained>());
    explained.map_or(error.raw_os_error(), |inner| inner.error.raw_os_error()).unwrap_or(0)
}

/// A copy of the mount at `place`, or of the part of it beneath, that is attached nowhere yet.
pub fn clone_mount(place: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(place, "", flags)?)
}

/// Attaches `mount` over exactly the file or directory that `place` is, whatever its path leads to by now.
pub fn attach(mount: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}
