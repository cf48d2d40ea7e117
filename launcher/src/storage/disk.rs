//! Volumes of the host that are disks, and overlays of directories that are there.

use super::{STAGE, beneath};
use crate::disks;
use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, attach};
use crate::mounts::attribute_flags;
use crate::tree::Tree;
use nacre_protocols::init_launcher::{DiskAddress, MountAttributes, Overlay};
use nacre_protocols::names::KATA_RUN_DIR;
use rustix::fs::OFlags;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

pub fn mount(
    address: &DiskAddress,
    kind: &str,
    data: &[String],
    attributes: &MountAttributes,
    mount_point: &str,
) -> Result<()> {
    let attempt = || -> io::Result<()> {
        // Waits for it, and refuses one that the guest itself uses.
        let disks::Disk { path, file, .. } = disks::find(address, attributes.read_only)?;
        // The kernel claims it for itself.
        drop(file);
        let place = Tree::guest(KATA_RUN_DIR)?.make_directory(beneath(mount_point))?;
        let context = FilesystemContext::open(kind)?;
        context.set("source", &path)?;
        if attributes.read_only {
            context.option("ro")?;
        }
        data.iter().try_for_each(|option| context.option(option))?;
        attach(context.mount(attribute_flags(attributes))?, place)
    };
    attempt()
        .at(STAGE, || format!("mounting the disk {} with {kind} at {mount_point}", disks::shown(address)))
}

/// Every directory is found first, without following a link, and named by its descriptor: what a container does to the
/// paths meanwhile changes nothing.
pub fn overlay(overlay: &Overlay) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let tree = Tree::guest(KATA_RUN_DIR)?;
        let open = |path: &String| tree.open(beneath(path), OFlags::PATH | OFlags::DIRECTORY);
        let name = |directory: &OwnedFd| format!("/proc/self/fd/{}", directory.as_raw_fd());
        let place = tree.make_directory(beneath(&overlay.mount_point))?;
        let lower = overlay.lower.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let context = FilesystemContext::open("overlay")?;
        context.set("source", "overlay")?;
        for directory in &lower {
            context.set("lowerdir+", &name(directory))?;
        }
        let writable = match &overlay.writable {
            Some((upper, work)) => {
                Some((tree.make_directory(beneath(upper))?, tree.make_directory(beneath(work))?))
            }
            None => None,
        };
        if let Some((upper, work)) = &writable {
            context.set("upperdir", &name(upper))?;
            context.set("workdir", &name(work))?;
        }
        // As for a container's own root (`rootfs.rs`).
        for (key, value) in
            [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")]
        {
            context.set(key, value)?;
        }
        attach(context.mount(attribute_flags(&overlay.attributes))?, place)
    };
    attempt().at(STAGE, || format!("mounting an overlay at {}", overlay.mount_point))
}
