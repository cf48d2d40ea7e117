//! The rules for storage steps.

use super::{CheckError, TMPFS_OPTIONS, count, options, path_beneath, require};
use nacre_protocols::init_launcher::{LIST_MAX, StorageStep};
use nacre_protocols::names::{KATA_RUN_DIR, is_valid_id};

/// Longest tag of a virtio-fs device, in bytes (virtio 1.2, 5.11.4).
const TAG_MAX: usize = 36;
/// Most layers that one step keeps: what the containers of a sandbox use together.
const RELEASE_KEEP_MAX: usize = 4096;

pub(super) fn check(steps: &[StorageStep]) -> Result<(), CheckError> {
    count("storage steps", steps.len(), LIST_MAX)?;
    steps.iter().try_for_each(|step| match step {
        StorageStep::ScratchDisk { device, .. } => require(is_virtio_disk(device), "scratch disk", device),
        StorageStep::ScratchTmpfs { bytes } => require(*bytes > 0, "size of the scratch tmpfs", bytes),
        StorageStep::Layer { diff_id: _ } => Ok(()),
        StorageStep::ReleaseLayers { keep } => count("layers that stay", keep.len(), RELEASE_KEEP_MAX),
        StorageStep::VirtioFs { tag, mount_point, .. } => {
            let plain = !tag.is_empty() && tag.len() <= TAG_MAX && tag.bytes().all(|b| b.is_ascii_graphic());
            require(plain, "virtio-fs tag", tag)?;
            place("mount point", mount_point)
        }
        StorageStep::Tmpfs { mount_point, data, .. } => {
            options("option of tmpfs", data, TMPFS_OPTIONS)?;
            place("mount point", mount_point)
        }
        StorageStep::Directory { path, mode } => {
            require(mode & !0o3777 == 0, "mode of directory", path)?;
            place("directory", path)
        }
        StorageStep::File { path, .. } => place("file", path),
        StorageStep::Unmount { mount_point } => place("mount point", mount_point),
        StorageStep::RemoveWritable { container } => require(is_valid_id(container), "container", container),
    })
}

fn place(what: &'static str, value: &str) -> Result<(), CheckError> {
    path_beneath(what, value, KATA_RUN_DIR)
}

/// A whole virtio disk but the first, which is the guest image.
fn is_virtio_disk(device: &str) -> bool {
    matches!(device.strip_prefix("/dev/vd").map(str::as_bytes), Some([b'b'..=b'z']))
}
