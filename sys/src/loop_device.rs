//! Loop devices (loop(4), `linux/loop.h`): files as read-only block devices, without caching their pages twice.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// How often another process may take the free device that was found, before this gives up.
const ATTEMPTS_MAX: usize = 64;

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`, of which only the flags are set.
#[repr(C)]
struct LoopInfo {
    before_flags: [u64; 5],
    numbers: [u32; 3],
    flags: u32,
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// A loop device that goes away with its last user: with this descriptor, or with the file system mounted from it.
pub struct LoopDevice {
    pub path: String,
    /// Holds the device until it is mounted.
    pub fd: OwnedFd,
}

/// Attaches `file`, read-only, with blocks of `block_size` bytes and direct I/O where its file system can do it.
pub fn attach(file: impl AsFd, block_size: u32) -> io::Result<LoopDevice> {
    let control = openat(CWD, "/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = format!("/dev/loop{number}");
        let fd = openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        match configure(&fd, file.as_fd().as_raw_fd(), block_size) {
            Ok(()) => return Ok(LoopDevice { path, fd }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn configure(device: &OwnedFd, file: i32, block_size: u32) -> io::Result<()> {
    let config = LoopConfig {
        fd: file as u32,
        block_size,
        info: LoopInfo {
            before_flags: [0; 5],
            numbers: [0; 3],
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            names: [0; 160],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one loop_config, whose layout and size are checked above.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
