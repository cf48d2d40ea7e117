//! Removes a container's writable layer, which holds whatever the container made of it: any depth, any number.
//!
//! Nothing is followed, and the work needs the same few descriptors and bytes however deep the tree is: directories are
//! moved up to the top one by one, emptied of everything but directories, and removed.

use super::STAGE;
use crate::error::{Context, Result};
use crate::tree::{Tree, is_missing, open_child};
use nacre_protocols::names::{ROOTS, STORE_DIR, UPPER_DIR};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Idempotent.
pub fn writable(container: &str) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let parent = Tree::guest(UPPER_DIR)?;
        let top = match open_child(parent.fd(), container, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if is_missing(&error) => return Ok(()),
            found => found?,
        };
        empty(&top)?;
        Ok(unlinkat(parent.fd(), container, AtFlags::REMOVEDIR)?)
    };
    attempt().at(STAGE, || format!("removing the writable layer of {container}"))
}

/// Of every container: what an earlier boot has left on a kept disk.
pub fn all_writable() -> Result<()> {
    let attempt = || -> io::Result<()> {
        let parent = Tree::guest(UPPER_DIR)?;
        empty(&open_child(parent.fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY)?)
    };
    attempt().at(STAGE, || "removing writable layers of an earlier boot".to_owned())
}

/// What the fetcher of an earlier boot said of images.
pub fn all_roots() -> Result<()> {
    let attempt = || -> io::Result<()> {
        match Tree::guest(STORE_DIR)?.open(ROOTS, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if is_missing(&error) => Ok(()),
            found => empty(&found?),
        }
    };
    attempt().at(STAGE, || "removing the images of an earlier boot".to_owned())
}

/// Ends: every round removes all directories that it found, and each one moves up once.
fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved = 0u64;
    loop {
        let mut found = false;
        for_each_entry(top, |name| {
            found = true;
            if !remove_file(top, name)? {
                remove_directory(top, name, &mut moved)?;
            }
            Ok(())
        })?;
        if !found {
            return Ok(());
        }
    }
}

fn remove_directory(top: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    let directory = openat(
        top,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for_each_entry(&directory, |child| {
        if !remove_file(&directory, child)? {
            // Names at the top are ours alone, and `.` is in none of them but those of an attempt that was broken off.
            while let Err(error) =
                renameat_with(&directory, child, top, format!(".{moved}"), RenameFlags::NOREPLACE)
            {
                if error != Errno::EXIST {
                    return Err(error.into());
                }
                *moved += 1;
            }
            *moved += 1;
        }
        Ok(())
    })?;
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

/// False for a directory.
fn remove_file(directory: impl AsFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn for_each_entry(directory: &OwnedFd, mut act: impl FnMut(&CStr) -> io::Result<()>) -> io::Result<()> {
    // A listing of its own each time: one that begins at the beginning.
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            act(entry.file_name())?;
        }
    }
    Ok(())
}
