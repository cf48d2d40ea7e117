//! Mounts a layer of the store: two files that the puller wrote, as loop devices, as one EROFS.
//!
//! Loop devices with direct I/O, so that pages of tar and index are cached once, as the layer's files, and not a second
//! time as theirs.

use super::{INERT, STAGE};
use crate::error::{Context, LaunchError, Result};
use crate::filesystem::{FilesystemContext, attach};
use crate::tree::{Tree, open_child};
use nacre_layer_check::{CheckLimits, check_index};
use nacre_protocols::names::{FETCHER_UID, LAYERS_DIR, STORE_DIR, Sha256};
use nacre_sys::lease::has_no_writer;
use nacre_sys::loop_device;
use rustix::fs::{
    Advice, AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, fadvise, fchmod, fchown, fstat, fstatfs, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use std::fs::File;
use std::io;
use std::time::Duration;

/// What the tar is made of, and the block size of the index, in bytes.
const BLOCK_BYTES: u32 = 512;
/// `EROFS_SUPER_MAGIC_V1` (`linux/magic.h`).
const EROFS_MAGIC: u64 = 0xe0f5_e1e2;
/// How long the puller may take to close a file that it has said is complete.
const CLOSING_ATTEMPTS: u32 = 100;
const CLOSING_PAUSE: Duration = Duration::from_millis(10);

pub fn mount(layer: Sha256) -> Result<()> {
    let place = Tree::guest("/").and_then(|root| root.make_directory(&format!("{LAYERS_DIR}/{layer}")));
    let place = place.at(STAGE, || format!("making the mount point of layer {layer}"))?;
    let already = fstatfs(&place).at(STAGE, || format!("looking at the mount point of layer {layer}"))?;
    // The width of f_type differs by architecture; the magic has 32 bits.
    if already.f_type as u64 & 0xffff_ffff == EROFS_MAGIC {
        return Ok(());
    }
    let tar = freeze(layer, "layer.tar")?;
    let index = freeze(layer, "index.erofs")?;
    check(layer, &tar, &index)?;
    let attempt = || -> io::Result<()> {
        let index = loop_device::attach(&index, BLOCK_BYTES)?;
        let tar = loop_device::attach(&tar, BLOCK_BYTES)?;
        let context = FilesystemContext::open("erofs")?;
        context.option("ro")?;
        context.set("source", &index.path)?;
        context.set("device", &tar.path)?;
        attach(context.mount(INERT | MountAttrFlags::MOUNT_ATTR_RDONLY)?, &place)
    };
    attempt().at(STAGE, || format!("mounting layer {layer}"))
}

/// Unmounts every layer but these. What a container has of one stays until its mounts are gone, and so do the loop devices.
pub fn release_others(keep: &[Sha256]) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let parent = Tree::guest(LAYERS_DIR)?;
        let listed = open_child(parent.fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let names: Vec<_> = Dir::read_from(&listed)?
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .collect();
        for name in names {
            let Some(layer) = Sha256::parse(&name) else { continue };
            if keep.contains(&layer) {
                continue;
            }
            rustix::process::fchdir(open_child(parent.fd(), &name, OFlags::PATH | OFlags::DIRECTORY)?)?;
            // From inside, as nothing else names it for certain. A directory where nothing is mounted says EINVAL.
            match unmount(".", UnmountFlags::DETACH) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::process::chdir("/")?;
            unlinkat(parent.fd(), &name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    };
    attempt().at(STAGE, || "unmounting layers that no container uses".to_owned())
}

/// Takes a file away from the puller, so that what was verified stays what is mounted: root's and read-only, and nobody
/// has it open for writing.
fn freeze(layer: Sha256, name: &str) -> Result<File> {
    let attempt = || -> io::Result<File> {
        let file = File::from(
            Tree::guest(STORE_DIR)?
                .open(&format!("layers/{layer}/{name}"), OFlags::RDONLY | OFlags::NONBLOCK)?,
        );
        let stat = fstat(&file)?;
        // One link: it is not a file of somebody else's that a store of ours has under another name.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(Errno::INVAL.into());
        }
        match stat.st_uid {
            FETCHER_UID => {
                fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT))?;
                fchmod(&file, Mode::from_raw_mode(0o444))?;
            }
            0 => {}
            _ => return Err(Errno::PERM.into()),
        }
        for _ in 0..CLOSING_ATTEMPTS {
            if has_no_writer(&file)? {
                return Ok(file);
            }
            std::thread::sleep(CLOSING_PAUSE);
        }
        Err(Errno::TXTBSY.into())
    };
    attempt().at(STAGE, || format!("taking {name} of layer {layer} over from the puller"))
}

/// What must hold before the kernel parses anything: sizes, and an index of the one form that the puller writes.
fn check(layer: Sha256, tar: &File, index: &File) -> Result<()> {
    let size = |file: &File| fstat(file).map(|stat| stat.st_size.unsigned_abs());
    let sizes = size(tar).and_then(|tar| Ok((tar, size(index)?)));
    let (tar_bytes, index_bytes) = sizes.at(STAGE, || format!("asking the sizes of layer {layer}"))?;
    let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES.into());
    if !whole(tar_bytes) || !whole(index_bytes) {
        let message =
            format!("layer {layer}: a tar of {tar_bytes} bytes with an index of {index_bytes} bytes");
        return Err(LaunchError::refused(STAGE, message));
    }
    let outcome = check_index(index, index_bytes, tar_bytes, &CheckLimits::default());
    // The mount has pages of its own for what it reads of the index: these were for the check alone.
    let _ = fadvise(index, 0, None, Advice::DontNeed);
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(LaunchError::refused(STAGE, format!("layer {layer} is not mounted: {error}"))),
    }
}
