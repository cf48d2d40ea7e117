//! Small directories of the host's that containers watch: an inotify(7) watch on a share never says anything, so what is there is
//! copied into a tmpfs, and the agent asks for it again now and then.
//!
//! What a container reads is never half of something: files and links get their names by a rename, links after files and
//! directories, and what the source has no more goes last. That is the order in which Kubernetes changes its volumes, too.

use super::{STAGE, beneath};
use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, attach, clone_mount};
use crate::tree::{Tree, open_child};
use nacre_protocols::init_launcher::{WATCHED_BYTES_MAX, WATCHED_FILES_MAX};
use nacre_protocols::names::KATA_RUN_DIR;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid,
    chownat, fchmod, fchown, fstat, fstatfs, futimens, mkdirat, openat, readlinkat, renameat, statat, statx,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

/// `TMPFS_MAGIC` (`linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Of the tmpfs: room for what may be there, and for one file more while it is replaced.
const TMPFS_OPTIONS: [(&str, &str); 4] =
    [("source", "watched"), ("size", "3m"), ("nr_inodes", "256"), ("mode", "755")];
/// Deepest directory in another.
const DEPTH_MAX: usize = 8;
/// What is being written. A source's file of this name is not shown.
const FRESH: &CStr = c".nacre-new";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

pub fn bring_up_to_date(source: &str, mount_point: &str) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let tree = Tree::guest(KATA_RUN_DIR)?;
        let from = tree.open(beneath(source), OFlags::PATH)?;
        if file_type(&fstat(&from)?) != FileType::Directory {
            let place = tree.make_file(beneath(mount_point))?;
            return if is_mounted(&place)? { Ok(()) } else { bind(&from, &place) };
        }
        let from = open_child(&from, ".", DIRECTORY)?;
        let place = tree.make_directory(beneath(mount_point))?;
        let (at, of) = (fstat(&place)?, fstat(&from)?);
        if (at.st_dev, at.st_ino) == (of.st_dev, of.st_ino) {
            // Bound when it was too large: it shows what is there.
            return Ok(());
        }
        let is_small = Measure::default().takes(&from, DEPTH_MAX)?;
        match (is_mounted(&place)?, is_small) {
            (true, true) if is_tmpfs(&place)? => copy(&from, &open_child(&place, ".", DIRECTORY)?, DEPTH_MAX),
            (true, _) => Err(io::Error::other(format!(
                "it has more than {WATCHED_FILES_MAX} entries or {WATCHED_BYTES_MAX} bytes by now"
            ))),
            (false, false) => bind(&from, &place),
            (false, true) => {
                let context = FilesystemContext::open("tmpfs")?;
                TMPFS_OPTIONS.iter().try_for_each(|(key, value)| context.set(key, value))?;
                let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
                let mount = context.mount(flags)?;
                // Whole before anybody sees it.
                copy(&from, &open_child(&mount, ".", DIRECTORY)?, DEPTH_MAX)?;
                attach(mount, place)
            }
        }
    };
    attempt().at(STAGE, || format!("showing {source} at {mount_point}"))
}

fn bind(from: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    attach(clone_mount(from, false)?, place)
}

fn is_mounted(place: &OwnedFd) -> io::Result<bool> {
    let found = statx(place, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_tmpfs(place: &OwnedFd) -> io::Result<bool> {
    // The width of f_type differs by architecture; the magic has 32 bits.
    Ok(fstatfs(place)?.f_type as u64 & 0xffff_ffff == TMPFS_MAGIC)
}

/// What a directory has in it, beneath included.
#[derive(Default)]
struct Measure {
    entries: usize,
    bytes: u64,
}

impl Measure {
    /// False as soon as it is too much.
    fn takes(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<bool> {
        for (name, found) in list(directory)? {
            self.entries += 1;
            self.bytes = self.bytes.saturating_add(found.st_size.unsigned_abs());
            if self.entries > WATCHED_FILES_MAX || self.bytes > WATCHED_BYTES_MAX {
                return Ok(false);
            }
            if file_type(&found) == FileType::Directory {
                let Some(deeper) = depth.checked_sub(1) else { return Ok(false) };
                if !self.takes(&open_directory(directory, &name)?, deeper)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Makes `to` what `from` is: files, directories and symbolic links, with owners, modes and times of files.
fn copy(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    let wanted = list(from)?;
    let of = |kind| wanted.iter().filter(move |(_, found)| file_type(found) == kind);
    for (name, found) in of(FileType::Directory) {
        let deeper = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
        let there = look(to, name)?;
        if there.is_none_or(|there| file_type(&there) != FileType::Directory) {
            remove(to, name, DEPTH_MAX)?;
            mkdirat(to, name, Mode::from_raw_mode(0o700))?;
        }
        let directory = open_directory(to, name)?;
        copy(&open_directory(from, name)?, &directory, deeper)?;
        own(&directory, found)?;
    }
    for (name, found) in of(FileType::RegularFile) {
        let there = look(to, name)?;
        let same = |there: &Stat| {
            let of =
                |it: &Stat| (it.st_mode, it.st_uid, it.st_gid, it.st_size, it.st_mtime, it.st_mtime_nsec);
            of(there) == of(found)
        };
        if !there.as_ref().is_some_and(same) {
            make_room(to, name, there.as_ref())?;
            copy_file(from, to, name, found)?;
        }
    }
    for (name, found) in of(FileType::Symlink) {
        let target = readlinkat(from, name, Vec::new())?;
        let there = look(to, name)?;
        let is_link = there.as_ref().is_some_and(|there| file_type(there) == FileType::Symlink);
        if !is_link || readlinkat(to, name, Vec::new())? != target {
            make_room(to, name, there.as_ref())?;
            symlinkat(&target, to, FRESH)?;
            let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
            chownat(to, FRESH, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            renameat(to, FRESH, to, name)?;
        }
    }
    let names: BTreeSet<&CString> = wanted.iter().map(|(name, _)| name).collect();
    for (name, _) in list(to)?.iter().filter(|(name, _)| !names.contains(name)) {
        remove(to, name, DEPTH_MAX)?;
    }
    Ok(())
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr, found: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut content = Vec::new();
    let source = File::from(openat(from, name, flags, Mode::empty())?);
    source.take(WATCHED_BYTES_MAX).read_to_end(&mut content)?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(to, FRESH, create, Mode::from_raw_mode(0o600))?);
    file.write_all(&content)?;
    let file = OwnedFd::from(file);
    own(&file, found)?;
    let time = Timespec { tv_sec: found.st_mtime, tv_nsec: found.st_mtime_nsec as _ };
    futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
    Ok(renameat(to, FRESH, to, name)?)
}

/// Owner first: a change of it takes set-user-ID bits away, and those are not meant to be here at all.
fn own(file: &OwnedFd, like: &Stat) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))?;
    Ok(fchmod(file, Mode::from_raw_mode(like.st_mode & 0o7777))?)
}

/// Nothing is left of an attempt that was broken off, and no directory is where a rename would put something else.
fn make_room(to: &OwnedFd, name: &CStr, there: Option<&Stat>) -> io::Result<()> {
    remove(to, FRESH, DEPTH_MAX)?;
    match there {
        Some(there) if file_type(there) == FileType::Directory => remove(to, name, DEPTH_MAX),
        _ => Ok(()),
    }
}

/// Nothing to do where it is not there.
fn remove(parent: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let deeper = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let directory = open_directory(parent, name)?;
    for (child, _) in list(&directory)? {
        remove(&directory, &child, deeper)?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn look(directory: &OwnedFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is in a directory, and what it is; one entry more than there may be, at most.
fn list(directory: &OwnedFd) -> io::Result<Vec<(CString, Stat)>> {
    let mut all = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." || name == FRESH {
            continue;
        }
        // What has gone since is not there.
        if let Some(found) = look(directory, name)? {
            all.push((name.to_owned(), found));
        }
        if all.len() > WATCHED_FILES_MAX {
            break;
        }
    }
    Ok(all)
}

fn open_directory(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn file_type(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}
