//! Taps: network devices of the host whose frames a program reads and writes (linux/if_tun.h).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const TUN: &str = "/dev/net/tun";
/// What every frame goes behind: `struct virtio_net_hdr_v1`, in bytes.
pub const HEADER_BYTES: usize = 12;
/// Checksums may be left to whoever reads; needed for what follows.
pub const CHECKSUM: u32 = libc::TUN_F_CSUM;
/// Segments of TCP over IPv4 and IPv6 may be larger than the MTU.
pub const TSO4: u32 = libc::TUN_F_TSO4;
pub const TSO6: u32 = libc::TUN_F_TSO6;

/// Opens a tap that is there, or makes one, for which a capability is needed. Reads and writes do not block.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // Its last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains(['/', '\0']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of a network device"));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN)?;
    // SAFETY: reads and writes an ifreq, which `request` is.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(tun.into())
}

/// Makes a tap carry headers of [`HEADER_BYTES`].
///
/// # Errors
/// It is none, or was made without room for headers.
pub fn prepare(tap: &impl AsFd) -> io::Result<()> {
    let fd = tap.as_fd().as_raw_fd();
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: writes an ifreq, which `request` is.
    check(unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the call has just filled the flags in.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a tap with IFF_NO_PI and IFF_VNET_HDR"));
    }
    let bytes = HEADER_BYTES as libc::c_int;
    // SAFETY: reads an int.
    check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// What may come off the tap: [`CHECKSUM`], [`TSO4`], [`TSO6`].
pub fn set_offloads(tap: &impl AsFd, offloads: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tap_is_refused() {
        for name in ["", "a name that is far too long", "a/b", "a\0b"] {
            assert_eq!(open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert!(prepare(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
