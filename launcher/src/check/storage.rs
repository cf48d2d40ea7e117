//! The rules for storage steps.

use super::{CheckError, Origin, TMPFS_OPTIONS, count, length, options, path_beneath, require, unreserved};
use nacre_protocols::init_launcher::{
    COPY_PART_MAX, Copied, DiskAddress, FileCopy, LAYERS_MAX, LIST_MAX, Overlay, PATH_MAX, PCI_DEPTH_MAX,
    PCI_DEVICE_MAX, PCI_FUNCTION_MAX, READ_MAX, SCSI_LUN_MAX, StorageStep, storage as kinds,
};
use nacre_protocols::names::{KATA_RUN_DIR, SHARED_DIR, is_valid_id};

/// Longest tag of a virtio-fs device, in bytes (virtio 1.2, 5.11.4).
const TAG_MAX: usize = 36;
/// What a disk of the host may have on it, if the kernel has it; and options of theirs that only bound what they do.
const DISK_FILE_SYSTEMS: &[&str] = &["ext4", "xfs", "btrfs", "erofs"];
const DISK_OPTIONS: &[&str] =
    &["discard", "nodiscard", "noload", "norecovery", "errors", "data", "barrier", "commit"];
/// Longest name of a copy, in bytes: the file system's 255, less what it is called while it is written.
const NAME_MAX: usize = 240;
/// Most layers that one step keeps: what the containers of a sandbox use together.
const RELEASE_KEEP_MAX: usize = 4096;

pub(super) fn check(steps: &[StorageStep], kinds: u32) -> Result<(), CheckError> {
    count("storage steps", steps.len(), LIST_MAX)?;
    steps.iter().try_for_each(|step| {
        let (kind, name) = kind(step);
        allowed(kinds, kind, name)?;
        one(step)
    })
}

/// Refuses what the sandbox's manifest leaves out.
pub(super) fn allowed(kinds: u32, kind: u32, name: &'static str) -> Result<(), CheckError> {
    require(kinds & kind != 0, "by the sandbox's manifest", name)
}

fn kind(step: &StorageStep) -> (u32, &'static str) {
    match step {
        StorageStep::ScratchDisk { .. } => (kinds::SCRATCH, "a scratch disk"),
        StorageStep::ScratchTmpfs { .. } => (kinds::SCRATCH, "a scratch tmpfs"),
        StorageStep::RemoveWritable { .. } => (kinds::SCRATCH, "removing the files of a container"),
        StorageStep::Layer { .. } | StorageStep::ReleaseLayers { .. } => (kinds::LAYERS, "a layer"),
        StorageStep::VirtioFs { .. } | StorageStep::UnmountStale => (kinds::SHARES, "a share"),
        StorageStep::Watched { .. } => (kinds::SHARES, "a directory that is watched"),
        StorageStep::Tmpfs { .. } | StorageStep::ChangeTmpfs { .. } => (kinds::MEMORY, "a tmpfs"),
        StorageStep::HugePages { .. } => (kinds::MEMORY, "huge pages"),
        StorageStep::Disk { .. } => (kinds::DISKS, "a disk"),
        StorageStep::Grow { .. } => (kinds::DISKS, "a disk that grows"),
        StorageStep::Swap { .. } => (kinds::SWAP, "swap"),
        StorageStep::Overlay(_) => (kinds::OVERLAYS, "an overlay"),
        StorageStep::Directory { .. }
        | StorageStep::File { .. }
        | StorageStep::Copy(_)
        | StorageStep::Usage { .. }
        | StorageStep::Read { .. }
        | StorageStep::Unmount { .. } => (kinds::FILES, "a file"),
    }
}

fn one(step: &StorageStep) -> Result<(), CheckError> {
    match step {
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
        StorageStep::Grow { path, .. } => place("volume", path),
        StorageStep::Swap { address } => disk_address(address),
        StorageStep::Disk { address, file_system, data, mount_point, .. } => {
            disk_address(address)?;
            require(DISK_FILE_SYSTEMS.contains(&file_system.as_str()), "file system of a disk", file_system)?;
            options("option of a disk", data, DISK_OPTIONS)?;
            place("mount point", mount_point)
        }
        StorageStep::Overlay(it) => overlay(it),
        StorageStep::Watched { source, mount_point } => {
            place("watched directory", source)?;
            place("mount point", mount_point)
        }
    }
}

fn overlay(overlay: &Overlay) -> Result<(), CheckError> {
    count("lower directories", overlay.lower.len(), LAYERS_MAX)?;
    require(!overlay.lower.is_empty(), "an overlay of", "nothing")?;
    overlay.lower.iter().try_for_each(|path| place("lower directory", path))?;
    if let Some((upper, work)) = &overlay.writable {
        place("upper directory", upper)?;
        place("work directory", work)?;
    }
    place("mount point", &overlay.mount_point)
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

/// Numbers that there can be, from which the launcher makes names.
pub(super) fn disk_address(address: &DiskAddress) -> Result<(), CheckError> {
    match address {
        DiskAddress::Name(device) => require(is_virtio_disk(device), "disk", device),
        DiskAddress::Pci(way) => {
            count("way to a disk over PCI", way.len(), PCI_DEPTH_MAX)?;
            require(!way.is_empty(), "way to a disk over PCI", "of no device")?;
            way.iter().try_for_each(|it| {
                require(it.device <= PCI_DEVICE_MAX, "device of PCI", it.device)?;
                require(it.function <= PCI_FUNCTION_MAX, "function of PCI", it.function)
            })
        }
        DiskAddress::Scsi { lun, .. } => require(*lun <= SCSI_LUN_MAX, "unit of SCSI", lun),
    }
}

/// A whole virtio disk but the first, which is the guest image.
fn is_virtio_disk(device: &str) -> bool {
    matches!(device.strip_prefix("/dev/vd").map(str::as_bytes), Some([b'b'..=b'z']))
}
