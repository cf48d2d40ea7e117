//! The container's root: made, attached, and in the end the only tree there is (pivot_root(2)).

use crate::error::{Context, Result};
use crate::filesystem::{FilesystemContext, attach, clone_mount};
use crate::namespaces::propagation_flags;
use crate::tree::{Tree, open_child};
use nacre_protocols::init_launcher::{LaunchStage, Propagation, Rootfs};
use nacre_protocols::names::{LAYERS_DIR, Sha256, UPPER_DIR};
use nacre_sys::mounting::set_attributes;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, openat};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, unmount};
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Rootfs;
/// The tree of the puller in the guest image.
const PULLER_DIR: &str = "/usr/libexec/nacre/puller";
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Builds and attaches the root of container `id`, in this process's mount namespace.
pub fn build(rootfs: &Rootfs, id: &str) -> Result<Tree> {
    match rootfs {
        Rootfs::Layers(layers) => overlay(layers, id),
        Rootfs::Guest(directory) => bind(directory, true),
        Rootfs::Puller => bind(PULLER_DIR, false),
    }
    .map(Tree::container)
}

/// The same root in a mount namespace that was made since, by the working directory that this process had in it: copies of
/// mounts are fast in a user namespace, so it becomes one of that namespace's own.
pub fn rebind() -> Result<Tree> {
    let attempt = || -> io::Result<OwnedFd> {
        let here = openat(rustix::fs::CWD, ".", DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mount = clone_mount(&here, true)?;
        attach(&mount, &here)?;
        Ok(mount)
    };
    attempt().map(Tree::container).at(STAGE, || "taking the root file system along".to_owned())
}

/// Makes `root` the root of this process and lets go of the guest's tree, the two in place of each other so that the
/// container needs no directory for it (pivot_root(2), "pivot_root(".", ".")").
pub fn pivot(root: &Tree, propagation: Propagation) -> Result<()> {
    let at = |doing: &'static str| move || doing.to_owned();
    rustix::process::fchdir(root.fd()).at(STAGE, at("entering the root file system"))?;
    rustix::process::pivot_root(".", ".").at(STAGE, at("changing the root file system"))?;
    unmount(".", UnmountFlags::DETACH).at(STAGE, at("letting go of the guest's tree"))?;
    rustix::process::chdir("/").at(STAGE, at("entering /"))?;
    let (flags, recursive) = propagation_flags(propagation);
    set_attributes(root.fd(), recursive, MountAttrFlags::empty(), MountAttrFlags::empty(), flags)
        .at(STAGE, at("setting the propagation of the root file system"))
}

/// Makes the root read-only, what is mounted in it not.
pub fn make_read_only(root: &Tree) -> Result<()> {
    set_attributes(
        root.fd(),
        false,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        MountAttrFlags::empty(),
        MountPropagationFlags::empty(),
    )
    .at(STAGE, || "making the root file system read-only".to_owned())
}

fn bind(directory: &str, recursive: bool) -> Result<OwnedFd> {
    let place = Tree::guest(directory).at(STAGE, || format!("opening {directory}"))?;
    clone_mount(place.fd(), recursive)
        .and_then(|mount| attach(&mount, place.fd()).map(|()| mount))
        .at(STAGE, || format!("binding {directory}"))
}

/// Layers, lowest first, beneath a fresh writable directory.
fn overlay(layers: &[Sha256], id: &str) -> Result<OwnedFd> {
    let top = layers.last().map(|layer| format!("{LAYERS_DIR}/{layer}")).unwrap_or_default();
    let place = make_writable(id, &top)?;
    let context = FilesystemContext::open("overlay").at(STAGE, || "opening overlayfs".to_owned())?;
    // Topmost first. One call a layer: no length limit and no separator in a path to be escaped.
    for layer in layers.iter().rev() {
        context
            .set("lowerdir+", &format!("{LAYERS_DIR}/{layer}"))
            .at(STAGE, || format!("adding layer {layer}"))?;
    }
    let options = [
        ("source", "overlay".to_owned()),
        ("upperdir", format!("{UPPER_DIR}/{id}/upper")),
        ("workdir", format!("{UPPER_DIR}/{id}/work")),
        // Redirects and metadata copies are extended attributes, which an image could bring along to reach
        // another file of a layer: neither made nor followed.
        ("redirect_dir", "nofollow".to_owned()),
        ("metacopy", "off".to_owned()),
        // The rest are the kernel's defaults, whatever it was configured with. Without xino, inode numbers stay
        // those of the layers, which 32-bit programs can hold.
        ("index", "off".to_owned()),
        ("nfs_export", "off".to_owned()),
        ("xino", "off".to_owned()),
    ];
    for (key, value) in &options {
        context.set(key, value).at(STAGE, || format!("setting overlay option {key}={value}"))?;
    }
    // The writable layer does not outlive the sandbox, so nothing has to reach the disk. (Whiteouts are devices 0:0 and
    // opaque directories `trusted.overlay.opaque`, as puller and kernel write them: no `userxattr`.)
    context.option("volatile").at(STAGE, || "setting overlay option volatile".to_owned())?;
    context
        .mount(MountAttrFlags::empty())
        .and_then(|mount| attach(&mount, &place).map(|()| mount))
        .at(STAGE, || format!("mounting the overlay of {} layers", layers.len()))
}

/// `upper`, `work` and the mount point of a new container. The root directory of an overlay is its upper one, so that
/// takes owner and mode of the topmost layer's.
fn make_writable(id: &str, top: &str) -> Result<OwnedFd> {
    let top = Tree::guest(top).and_then(|tree| Ok(rustix::fs::fstat(tree.fd())?));
    let top = top.at(STAGE, || "looking at the topmost layer".to_owned())?;
    let make = |parent: &OwnedFd, name: &str, mode| -> io::Result<OwnedFd> {
        mkdirat(parent, name, Mode::from_raw_mode(mode))?;
        open_child(parent, name, DIRECTORY)
    };
    let attempt = || -> io::Result<OwnedFd> {
        let parent = openat(Tree::guest(UPPER_DIR)?.fd(), ".", DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Fails if it exists: a new container never sees an old one's files.
        let own = make(&parent, id, 0o711)?;
        make(&own, "upper", 0o700)?;
        make(&own, "work", 0o700)?;
        chownat(
            &own,
            "upper",
            Some(Uid::from_raw(top.st_uid)),
            Some(Gid::from_raw(top.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        chmodat(&own, "upper", Mode::from_raw_mode(top.st_mode & 0o7777), AtFlags::empty())?;
        make(&own, "root", 0o700)
    };
    attempt().at(STAGE, || format!("making the writable layer of {id}"))
}
