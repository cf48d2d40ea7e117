//! Changes init's own mount tree, step by step. This process was born in init's mount namespace.

mod copy;
mod disk;
mod files;
mod kept;
mod layer;
mod remove;
mod scratch;
mod swap;
mod volume;
mod watched;

use crate::check::Checked;
use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, attach};
use crate::mounts::attribute_flags;
use crate::tree::Tree;
use nacre_protocols::init_launcher::{LaunchStage, Outcome, StorageStep};
use nacre_protocols::names::KATA_RUN_DIR;
use rustix::fs::Mode;
use rustix::mount::MountAttrFlags;
use std::io;

const STAGE: LaunchStage = LaunchStage::Storage;
/// The file system that the container's view of a directory is laid over is not the way to it: no set-user-ID program, no
/// device and no program is ever used through these mounts. Overlayfs takes none of these flags over from its layers, so
/// what an image has of them works where it is meant to.
const INERT: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Applies the steps in order; the first failure ends it, and what was done before stays.
pub fn apply(steps: &Checked<Vec<StorageStep>>) -> Result<Outcome> {
    // Modes of what is made here are meant as they are written.
    rustix::process::umask(Mode::empty());
    for step in steps.iter() {
        match step {
            StorageStep::Usage { path } => return volume::usage(path),
            StorageStep::Read { path, length } => return files::read(path, *length),
            step => apply_one(step)?,
        }
    }
    Ok(Outcome::Applied)
}

fn apply_one(step: &StorageStep) -> Result<()> {
    match step {
        // These end a plan.
        StorageStep::Usage { .. } | StorageStep::Read { .. } => Ok(()),
        StorageStep::ScratchDisk { device, kept: false } => scratch::disk(device),
        StorageStep::ScratchDisk { device, kept: true } => scratch::kept_disk(device),
        StorageStep::ScratchTmpfs { bytes } => scratch::tmpfs(*bytes),
        StorageStep::Layer { diff_id } => layer::mount(*diff_id),
        StorageStep::ReleaseLayers { keep } => layer::release_others(keep),
        StorageStep::VirtioFs { tag, mount_point, read_only } => {
            let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
            attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, *read_only);
            mount("virtiofs", &[format!("source={tag}")], attributes, mount_point)
        }
        StorageStep::Tmpfs { mount_point, data, attributes } => {
            mount("tmpfs", data, attribute_flags(attributes), mount_point)
        }
        StorageStep::HugePages { mount_point, data, attributes } => {
            mount("hugetlbfs", data, attribute_flags(attributes), mount_point)
        }
        StorageStep::Disk { address, file_system, data, attributes, mount_point } => {
            disk::mount(address, file_system, data, attributes, mount_point)
        }
        StorageStep::Overlay(overlay) => disk::overlay(overlay),
        StorageStep::Watched { source, mount_point } => watched::bring_up_to_date(source, mount_point),
        StorageStep::ChangeTmpfs { mount_point, data } => volume::change_tmpfs(mount_point, data),
        StorageStep::Directory { path, mode, group } => files::make_directory(path, *mode, *group),
        StorageStep::Copy(copy) => copy::apply(copy),
        StorageStep::Grow { path, bytes } => volume::grow(path, *bytes),
        StorageStep::Swap { address } => swap::add(address),
        StorageStep::UnmountStale => volume::unmount_stale(),
        StorageStep::File { path, content } => files::replace(path, content),
        StorageStep::Unmount { mount_point } => files::unmount(mount_point),
        StorageStep::RemoveWritable { container } => remove::writable(container),
    }
}

/// A file system at a directory beneath [`KATA_RUN_DIR`], which is made if it is missing.
fn mount(kind: &str, options: &[String], attributes: MountAttrFlags, mount_point: &str) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let place = Tree::guest(KATA_RUN_DIR)?.make_directory(beneath(mount_point))?;
        let context = FilesystemContext::open(kind)?;
        options.iter().try_for_each(|option| context.option(option))?;
        attach(context.mount(attributes)?, place)
    };
    attempt().at(STAGE, || format!("mounting {kind} at {mount_point}"))
}

/// The part of a checked path that lies beneath [`KATA_RUN_DIR`].
fn beneath(path: &str) -> &str {
    path.strip_prefix(KATA_RUN_DIR).unwrap_or(path)
}
