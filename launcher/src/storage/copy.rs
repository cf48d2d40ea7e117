//! Files that the host sends one by one, where it shares no directory: regular files in parts, directories, links.

use super::STAGE;
use crate::error::{Context, Result};
use crate::tree::{Tree, is_missing, open_child, split_last};
use nacre_protocols::init_launcher::{Copied, FileCopy};
use nacre_protocols::names::SHARED_DIR;
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fchown, fstat, mkdirat, openat, renameat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// What a file is called until all of it is there: this, then its name.
const PREFIX: &str = ".nacre-copy-";

pub fn apply(copy: &FileCopy) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let path = copy.path.strip_prefix(SHARED_DIR).unwrap_or(&copy.path);
        let (parent, name) = split_last(path).ok_or(Errno::INVAL)?;
        let parent = make_parents(parent, copy)?;
        match &copy.content {
            Copied::Directory => directory(&parent, name, copy),
            Copied::Link { target } => link(&parent, name, target, copy),
            Copied::Part { offset, size, data } => part(&parent, name, (*offset, *size, data), copy),
        }
    };
    attempt().at(STAGE, || format!("copying to {}", copy.path))
}

fn directory(parent: &OwnedFd, name: &str, copy: &FileCopy) -> io::Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // Not through a link, and nothing but a directory.
    let directory = open_child(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    fchown(&directory, uid(copy), gid(copy))?;
    Ok(fchmod(&directory, Mode::from_raw_mode(copy.mode))?)
}

fn link(parent: &OwnedFd, name: &str, target: &str, copy: &FileCopy) -> io::Result<()> {
    let fresh = format!("{PREFIX}{name}");
    forget(parent, &fresh)?;
    symlinkat(target, parent, &fresh)?;
    chownat(parent, &fresh, uid(copy), gid(copy), AtFlags::SYMLINK_NOFOLLOW)?;
    take_place(parent, &fresh, name)
}

fn part(
    parent: &OwnedFd,
    name: &str,
    (offset, size, data): (u64, u64, &[u8]),
    copy: &FileCopy,
) -> io::Result<()> {
    let fresh = format!("{PREFIX}{name}");
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = if offset == 0 {
        forget(parent, &fresh)?;
        openat(parent, &fresh, flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(0o600))?
    } else {
        openat(parent, &fresh, flags, Mode::empty())?
    };
    // A part that was sent again may lie before the end, none behind it.
    let length = fstat(&file)?.st_size.cast_unsigned();
    if offset > length {
        return Err(io::Error::other(format!("a part at {offset}, but {length} bytes are there")));
    }
    let file = File::from(file);
    file.write_all_at(data, offset)?;
    if offset + data.len() as u64 == size {
        fchown(&file, uid(copy), gid(copy))?;
        fchmod(&file, Mode::from_raw_mode(copy.mode))?;
        take_place(parent, &fresh, name)?;
    }
    Ok(())
}

/// In place of what is there, in one step; a directory stays, and that is an error.
fn take_place(parent: &OwnedFd, fresh: &str, name: &str) -> io::Result<()> {
    let renamed = renameat(parent, fresh, parent, name);
    if renamed.is_err() {
        forget(parent, fresh)?;
    }
    Ok(renamed?)
}

fn forget(parent: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The directory at `path` beneath the shared one; what is missing on the way is made as the host wants it.
fn make_parents(path: &str, copy: &FileCopy) -> io::Result<OwnedFd> {
    let mut here = Tree::guest(SHARED_DIR)?.open("/", OFlags::PATH | OFlags::DIRECTORY)?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        here = match open_child(&here, name, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if is_missing(&error) => make_parent(here.as_fd(), name, copy)?,
            found => found?,
        };
    }
    Ok(here)
}

fn make_parent(parent: impl AsFd, name: &str, copy: &FileCopy) -> io::Result<OwnedFd> {
    mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
    chownat(&parent, name, uid(copy), gid(copy), AtFlags::SYMLINK_NOFOLLOW)?;
    chmodat(&parent, name, Mode::from_raw_mode(copy.directory_mode), AtFlags::empty())?;
    open_child(parent, name, OFlags::PATH | OFlags::DIRECTORY)
}

fn uid(copy: &FileCopy) -> Option<Uid> {
    copy.uid.map(Uid::from_raw)
}

fn gid(copy: &FileCopy) -> Option<Gid> {
    copy.gid.map(Gid::from_raw)
}
