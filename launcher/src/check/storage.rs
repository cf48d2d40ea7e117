//! The rules for storage steps.

use super::{CheckError, Origin, TMPFS_OPTIONS, count, length, options, path_beneath, require, unreserved};
use nacre_protocols::init_launcher::{
    COPY_PART_MAX, Copied, FileCopy, LIST_MAX, PATH_MAX, READ_MAX, StorageStep,
};
use nacre_protocols::names::{KATA_RUN_DIR, SHARED_DIR, is_valid_id};

/// Longest tag of a virtio-fs device, in bytes (virtio 1.2, 5.11.4).
const TAG_MAX: usize = 36;
/// Longest name of a copy, in bytes: the file system's 255, less what it is called while it is written.
const NAME_MAX: usize = 240;
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
        StorageStep::HugePages { mount_point, data, .. } => {
            options("option of hugetlbfs", data, &["pagesize", "size", "mode", "uid", "gid"])?;
            place("mount point", mount_point)
        }
        StorageStep::ChangeTmpfs { mount_point, data } => {
            options("option of tmpfs", data, TMPFS_OPTIONS)?;
            place("mount point", mount_point)
        }
        StorageStep::Directory { path, mode, group } => {
            require(mode & !0o3777 == 0, "mode of directory", path)?;
            owner("group of directory", *group)?;
            place("directory", path)
        }
        StorageStep::Copy(it) => copy(it),
        StorageStep::UnmountStale => Ok(()),
        StorageStep::Usage { path } => place("volume", path),
        StorageStep::Read { path, length } => {
            require(*length as usize <= READ_MAX, "bytes to read", length)?;
            place("file", path)
        }
        StorageStep::File { path, .. } => place("file", path),
        StorageStep::Unmount { mount_point } => place("mount point", mount_point),
        StorageStep::RemoveWritable { container } => require(is_valid_id(container), "container", container),
    })
}

/// Set-user-ID bits are the host's to give: the files are its own.
fn copy(copy: &FileCopy) -> Result<(), CheckError> {
    path_beneath("copy", &copy.path, SHARED_DIR)?;
    let name = copy.path.rsplit('/').next().unwrap_or_default();
    length("name of a copy", name, NAME_MAX)?;
    require(copy.mode & !0o7777 == 0, "mode of a copy", &copy.path)?;
    require(copy.directory_mode & !0o7777 == 0, "mode of directory", &copy.path)?;
    owner("owner of a copy", copy.uid)?;
    owner("group of a copy", copy.gid)?;
    match &copy.content {
        Copied::Directory => Ok(()),
        Copied::Link { target } => {
            length("target of a link", target, PATH_MAX)?;
            require(!target.is_empty() && !target.contains('\0'), "target of a link", target)
        }
        Copied::Part { offset, size, data } => {
            count("bytes of a part", data.len(), COPY_PART_MAX)?;
            let fits = offset.checked_add(data.len() as u64).is_some_and(|end| end <= *size);
            require(fits, "part of a copy", format_args!("{} at {offset} of {size}", data.len()))
        }
    }
}

fn owner(what: &'static str, id: Option<u32>) -> Result<(), CheckError> {
    unreserved(what, id.unwrap_or_default(), Origin::Agent)
}

fn place(what: &'static str, value: &str) -> Result<(), CheckError> {
    path_beneath(what, value, KATA_RUN_DIR)
}

/// A whole virtio disk but the first, which is the guest image.
fn is_virtio_disk(device: &str) -> bool {
    matches!(device.strip_prefix("/dev/vd").map(str::as_bytes), Some([b'b'..=b'z']))
}
