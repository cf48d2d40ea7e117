//! Copies what an image has at a tmpfs' destination into the tmpfs: directories, regular files and symbolic links with
//! owner and mode. Other files and extended attributes are left out, as in docker's `tmpfs` mounts.

use crate::tree::open_child;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fchown, fstat, mkdirat, openat,
    readlinkat, statat, symlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Most entries copied; their bytes are bounded by the size of the tmpfs and the memory of the container.
const ENTRIES_MAX: usize = 65_536;
/// Deepest directory.
const DEPTH_MAX: usize = 64;

pub fn copy_up(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut budget = ENTRIES_MAX;
    copy_directory(from, to, &mut budget, DEPTH_MAX)
}

fn copy_directory(from: impl AsFd, to: impl AsFd, budget: &mut usize, depth: usize) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let (from, to) = (from.as_fd(), to.as_fd());
    let list = openat(from, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&list)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        *budget = budget.checked_sub(1).ok_or(Errno::NOSPC)?;
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let directory = OFlags::PATH | OFlags::DIRECTORY;
                let made = open_child(to, name, directory)?;
                copy_directory(open_child(from, name, directory)?, made, budget, depth)?;
                chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
                chmodat(to, name, mode, AtFlags::empty())?;
            }
            FileType::RegularFile => {
                let mut source = File::from(open_child(from, name, OFlags::RDONLY)?);
                let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut target = File::from(openat(to, name, create, Mode::from_raw_mode(0o600))?);
                io::copy(&mut source, &mut target)?;
                fchown(&target, owner.0, owner.1)?;
                fchmod(&target, mode)?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {}
        }
    }
    let stat = fstat(from)?;
    chownat(
        to,
        ".",
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}
