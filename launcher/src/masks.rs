//! Paths that the container may not see (masked) or not change (read-only). A path that is not there needs neither.
//!
//! Done before the guest's tree is out of reach: files are masked with the guest's null device.

use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, attach, clone_mount};
use crate::tree::{Tree, is_missing};
use nacre_protocols::init_launcher::LaunchStage;
use nacre_sys::mounting::set_attributes;
use rustix::fs::{FileType, OFlags, fstat, makedev};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Mounts;

/// Lays an empty directory over directories and the null device over everything else.
pub fn mask(paths: &[String], root: &Tree) -> Result<()> {
    let null = open_null().at(STAGE, || "opening the null device".to_owned())?;
    paths.iter().try_for_each(|path| {
        let attempt = || -> io::Result<()> {
            let place = root.open(path, OFlags::PATH)?;
            let is_directory = FileType::from_raw_mode(fstat(&place)?.st_mode) == FileType::Directory;
            let cover = if is_directory { empty_directory()? } else { cover_of_null(&null)? };
            attach(&cover, &place)
        };
        unless_missing(attempt()).at(STAGE, || format!("masking {path}"))
    })
}

/// Binds each path over itself, read-only with all that is mounted beneath.
pub fn make_read_only(paths: &[String], root: &Tree) -> Result<()> {
    paths.iter().try_for_each(|path| {
        let attempt = || -> io::Result<()> {
            let place = root.open(path, OFlags::PATH)?;
            let copy = clone_mount(&place, true)?;
            set_read_only(&copy, MountAttrFlags::empty())?;
            attach(&copy, &place)
        };
        unless_missing(attempt()).at(STAGE, || format!("making {path} read-only"))
    })
}

/// Checked to be the real one: what an image has as `/dev/null` could be a link to anything (CVE-2025-31133).
fn open_null() -> io::Result<OwnedFd> {
    let null = Tree::guest("/dev")?.open("null", OFlags::PATH)?;
    let stat = fstat(&null)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && stat.st_rdev == makedev(1, 3) { Ok(null) } else { Err(Errno::NODEV.into()) }
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = FilesystemContext::open("tmpfs")?;
    context.set("size", "0")?;
    context.set("nr_inodes", "1")?;
    context.set("mode", "755")?;
    context.mount(
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// Read-only, so that the container cannot change the mode of the guest's node. Writing to a device is no change of the
/// file system that its node lies in.
fn cover_of_null(null: &OwnedFd) -> io::Result<OwnedFd> {
    let cover = clone_mount(null, false)?;
    set_read_only(&cover, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    Ok(cover)
}

fn set_read_only(mount: &OwnedFd, also: MountAttrFlags) -> io::Result<()> {
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY | also;
    set_attributes(mount, true, set, MountAttrFlags::empty(), MountPropagationFlags::empty())
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| {
        let gone = is_missing(&error) || error.raw_os_error() == Some(Errno::NOTDIR.raw_os_error());
        if gone { Ok(()) } else { Err(error) }
    })
}
