//! Directories, small files and mount points beneath the Kata directory.

use super::{STAGE, beneath};
use crate::error::{Context, Result};
use crate::tree::{Tree, is_missing, open_child};
use nacre_protocols::init_launcher::Outcome;
use nacre_protocols::names::KATA_RUN_DIR;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, chmodat, chownat, fchmod, fstat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount as unmount_path};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

/// Makes a directory, or gives the one that is there its mode.
pub fn make_directory(path: &str, mode: u32, group: Option<u32>) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let tree = Tree::guest(KATA_RUN_DIR)?;
        drop(tree.make_directory(beneath(path))?);
        let (parent, name) = tree.make_parent(beneath(path))?;
        if let Some(group) = group {
            // Before the mode: a change of owner takes set-group-ID away.
            let group = Some(Gid::from_raw(group));
            chownat(&parent, name, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(chmodat(&parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
    };
    attempt().at(STAGE, || format!("making the directory {path}"))
}

/// Written beside and renamed, so that nobody ever reads half of it.
pub fn replace(path: &str, content: &[u8]) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let (parent, name) = Tree::guest(KATA_RUN_DIR)?.make_parent(beneath(path))?;
        let fresh = format!(".new-{}", std::process::id());
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, &fresh, create, Mode::from_raw_mode(0o600))?);
        let written = file
            .write_all(content)
            .and_then(|()| Ok(fchmod(&file, Mode::from_raw_mode(0o644))?))
            .and_then(|()| Ok(renameat(&parent, &fresh, &parent, name)?));
        if written.is_err() {
            unlinkat(&parent, &fresh, AtFlags::empty())?;
        }
        written
    };
    attempt().at(STAGE, || format!("writing {} bytes to {path}", content.len()))
}

/// The first bytes of a regular file.
pub fn read(path: &str, length: u32) -> Result<Outcome> {
    let attempt = || -> io::Result<Outcome> {
        let file = Tree::guest(KATA_RUN_DIR)?.open(beneath(path), OFlags::RDONLY | OFlags::NONBLOCK)?;
        if !FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::new();
        File::from(file).take(length.into()).read_to_end(&mut bytes)?;
        Ok(Outcome::Content { bytes })
    };
    attempt().at(STAGE, || format!("reading {path}"))
}

/// Unmounts what is mounted there and removes the directory, or the file if something was mounted on one. Nothing to do where there
/// is none.
pub fn unmount(mount_point: &str) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let (parent, name) = match Tree::guest(KATA_RUN_DIR).and_then(|tree| open_parent(&tree, mount_point))
        {
            Err(error) if is_missing(&error) => return Ok(()),
            found => found?,
        };
        match open_child(&parent, name, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return unmount_file(&parent, name),
            found => rustix::process::fchdir(found?)?,
        }
        // From inside: no path that could lead elsewhere by now. What is no mount point says EINVAL.
        match unmount_path(".", UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        rustix::process::chdir("/")?;
        Ok(unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    };
    attempt().at(STAGE, || format!("unmounting {mount_point}"))
}

fn unmount_file(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let file = open_child(parent, name, OFlags::PATH)?;
    match unmount_path(format!("/proc/self/fd/{}", file.as_raw_fd()), UnmountFlags::DETACH) {
        Ok(()) => Ok(unlinkat(parent, name, AtFlags::empty())?),
        // A file that nobody has mounted anything on is not ours to remove.
        Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open_parent<'p>(tree: &Tree, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
    let (parent, name) = crate::tree::split_last(beneath(path)).ok_or(Errno::INVAL)?;
    Ok((tree.open(parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
}
