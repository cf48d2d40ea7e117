//! The kernel's random numbers (random(4)).

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('R', 3, int[2])` and `_IO('R', 7)`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// Most bytes added at once.
const BYTES_MAX: usize = 4096;

/// `struct rand_pool_info`, with room for all that is added at once.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    data: [u8; BYTES_MAX],
}

/// Mixes `bytes` in, counts them as unpredictable, and reseeds from them. Needs CAP_SYS_ADMIN.
pub fn add(bytes: &[u8]) -> io::Result<()> {
    let random = openat(CWD, "/dev/random", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    for part in bytes.chunks(BYTES_MAX) {
        let length = part.len() as i32;
        let mut info = PoolInfo { entropy_bits: length * 8, bytes: length, data: [0; BYTES_MAX] };
        info.data.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        // SAFETY: the call reads the two numbers, then as many bytes behind them as the second says, which are there.
        check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    }
    // SAFETY: the call has no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
