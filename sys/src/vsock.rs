//! `AF_VSOCK` stream sockets (vsock(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The host's context id.
pub const HOST_CID: u32 = libc::VMADDR_CID_HOST;
/// Connections that wait for accept.
const BACKLOG: i32 = 64;

/// A non-blocking listener on `port`, for any peer: who connects is checked after accept.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is new and ours.
    let socket = unsafe {
        let fd = check(libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        ))?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all-zero is a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    // SAFETY: `address` is a sockaddr_vm of the size given, alive for the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Who has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Context id.
    pub cid: u32,
    pub port: u32,
}

/// Accepts one connection, non-blocking and close-on-exec; gives the peer, or `None` when the listener is
/// of another family (a unix socket in tests, whose permissions say who may connect).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<Peer>)> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: `address` has room for `length` bytes of any family's address; the new descriptor is ours.
    let connection = unsafe {
        let fd = check(libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        ))?;
        OwnedFd::from_raw_fd(fd)
    };
    if i32::from(address.ss_family) != libc::AF_VSOCK {
        return Ok((connection, None));
    }
    // SAFETY: the family says that the storage holds a sockaddr_vm, which is smaller than it.
    let peer = unsafe { *(&raw const address).cast::<libc::sockaddr_vm>() };
    Ok((connection, Some(Peer { cid: peer.svm_cid, port: peer.svm_port })))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
