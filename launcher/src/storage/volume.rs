//! Volumes that are mounted: how full they are, other options for a tmpfs, and shares that the host has taken back.

use super::{STAGE, beneath};
use crate::disks;
use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, explained};
use crate::tree::Tree;
use nacre_protocols::init_launcher::{Outcome, Usage};
use nacre_protocols::names::{KATA_RUN_DIR, SHARED_DIR};
use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags, fstatfs, fstatvfs, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::io;

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: u64 = 0x0102_1994;
/// `EXT4_SUPER_MAGIC`.
const EXT4: u64 = 0xef53;
/// Most mounts that are looked at.
const MOUNTS_MAX: usize = 4096;

pub fn usage(path: &str) -> Result<Outcome> {
    let attempt = || -> io::Result<Outcome> {
        let place = Tree::guest(KATA_RUN_DIR)?.open(beneath(path), OFlags::PATH)?;
        let found = fstatvfs(place)?;
        let usage = |total: u64, free: u64, available: u64, unit: u64| Usage {
            total: total.saturating_mul(unit),
            used: total.saturating_sub(free).saturating_mul(unit),
            available: available.saturating_mul(unit),
        };
        Ok(Outcome::Usage {
            bytes: usage(found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize),
            inodes: usage(found.f_files, found.f_ffree, found.f_favail, 1),
        })
    };
    attempt().at(STAGE, || format!("looking how full {path} is"))
}

/// The disk may have just got its size: the kernel hears of it a little later than the host does.
pub fn grow(path: &str, bytes: u64) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let place = Tree::guest(KATA_RUN_DIR)?.open(beneath(path), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let found = statx(&place, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
        if !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(io::Error::other("nothing is mounted there"));
        }
        let file_system = fstatfs(&place)?;
        if file_system.f_type.cast_unsigned() != EXT4 {
            return Err(explained(Errno::OPNOTSUPP, ": it is no ext4, and nothing else grows"));
        }
        let size = disks::size_when(found.stx_dev_major, found.stx_dev_minor, bytes)?;
        let block_bytes = file_system.f_bsize.cast_unsigned().max(1);
        nacre_sys::ext4::resize(&place, size / block_bytes)
    };
    attempt().at(STAGE, || format!("growing the volume {path}"))
}

/// The kernel refuses what is no root of a mount.
pub fn change_tmpfs(mount_point: &str, options: &[String]) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let place =
            Tree::guest(KATA_RUN_DIR)?.open(beneath(mount_point), OFlags::PATH | OFlags::DIRECTORY)?;
        if fstatfs(&place)?.f_type.cast_unsigned() != TMPFS {
            return Err(io::Error::other("it is no tmpfs"));
        }
        let context = FilesystemContext::of(&place)?;
        options.iter().try_for_each(|option| context.option(option))?;
        context.reconfigure()
    };
    attempt().at(STAGE, || format!("changing the tmpfs at {mount_point}"))
}

/// Parts of a virtio-fs share become mounts of their own when they are so on the host; the host cannot take those back.
pub fn unmount_stale() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").at(STAGE, || "reading mounts".to_owned())?;
    for mount_point in mounts.lines().take(MOUNTS_MAX).filter_map(share) {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        if let Err(Errno::NOENT | Errno::STALE) = statx(CWD, &mount_point, flags, StatxFlags::TYPE) {
            match unmount(&mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // It went by itself.
                Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
                Err(error) => return Err(error).at(STAGE, || format!("unmounting {mount_point}")),
            }
        }
    }
    Ok(())
}

/// The mount point of a virtio-fs strictly beneath the shared directory, from a line of proc_pid_mountinfo(5).
fn share(line: &str) -> Option<String> {
    let (before, after) = line.split_once(" - ")?;
    let mount_point = before.split(' ').nth(4)?;
    let beneath = mount_point.strip_prefix(SHARED_DIR)?.strip_prefix('/')?;
    (after.starts_with("virtiofs ") && !beneath.is_empty()).then(|| unescaped(mount_point))
}

/// Spaces, tabs, newlines and backslashes are three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shares_beneath_the_shared_directory_can_be_stale() {
        let line = |place: &str, kind: &str| format!("40 30 0:35 / {place} rw,nodev - {kind} kataShared rw");
        for (place, kind, expected) in [
            ("/run/kata-containers/shared/containers/a\\040b", "virtiofs", Some("a b")),
            ("/run/kata-containers/shared/containers", "virtiofs", None),
            ("/run/kata-containers/shared/containers/x", "tmpfs", None),
            ("/run/kata-containers/sandbox/shm", "virtiofs", None),
        ] {
            let expected = expected.map(|name| format!("{SHARED_DIR}/{name}"));
            assert_eq!(share(&line(place, kind)), expected, "{place} {kind}");
        }
    }
}
