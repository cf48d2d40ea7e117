//! What rustix lacks of the mount API: mount_setattr(2).

use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Has the mount that `mount` is the root of, and with `recursive` all beneath it, show ids as `user_namespace` maps them. The
/// mount must not be attached yet.
pub fn map_ids(mount: impl AsFd, recursive: bool, user_namespace: impl AsFd) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let user_namespace = u64::from(user_namespace.as_fd().as_raw_fd().cast_unsigned());
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, user_namespace };
    set(mount, recursive, &attr)
}

/// Changes the mount that `mount` is the root of, and with `recursive` all beneath it: either all change or none.
pub fn set_attributes(
    mount: impl AsFd,
    recursive: bool,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    propagation: MountPropagationFlags,
) -> io::Result<()> {
    let attr = MountAttr {
        set: u64::from(set.bits()),
        clear: u64::from(clear.bits()),
        propagation: u64::from(propagation.bits()),
        user_namespace: 0,
    };
    self::set(mount, recursive, &attr)
}

fn set(mount: impl AsFd, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty NUL-terminated path and a live structure whose size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
