//! `SOCK_SEQPACKET` pairs with descriptor passing (unix(7)): what the guest's own edges run over.
//!
//! One packet is one frame. Frames are never empty, so that an empty read is end-of-file.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors in one packet on any edge.
pub const FDS_MAX: usize = 8;

/// A connected pair, both ends close-on-exec and blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one frame and up to [`FDS_MAX`] descriptors, whole or not at all. A peer that is gone is `EPIPE`, not a signal.
pub fn send(socket: impl AsFd, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if frame.is_empty() || fds.len() > FDS_MAX {
        return Err(io::Error::from(rustix::io::Errno::INVAL));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(rustix::io::Errno::INVAL));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one frame into `buffer` and its descriptors (close-on-exec); `None` at end-of-file. A frame longer than the buffer, or
/// with more than [`FDS_MAX`] descriptors, is `EMSGSIZE`: its descriptors are closed.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    receive_flags(socket, buffer, RecvFlags::empty())
}

/// As [`receive`], but `WouldBlock` where nothing is there, whatever the socket's own mode.
pub fn try_receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    receive_flags(socket, buffer, RecvFlags::DONTWAIT)
}

fn receive_flags(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut *buffer)];
        rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from(rustix::io::Errno::MSGSIZE));
    }
    Ok(if received.bytes == 0 { None } else { Some((received.bytes, fds)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_frame_arrives_whole_with_its_descriptors() {
        let (left, right) = pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        send(&left, b"hello", &[writer.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (length, fds) = receive(&right, &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..length], b"hello");
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"x").unwrap();
        writer.write_all(b"y").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xy");
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_the_end_is_none() {
        let (left, right) = pair().unwrap();
        assert_eq!(try_receive(&right, &mut [0; 4]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send(&left, b"longer than four", &[]).unwrap();
        assert!(receive(&right, &mut [0; 4]).is_err());
        assert!(send(&left, b"", &[]).is_err());
        drop(left);
        assert!(receive(&right, &mut [0; 4]).unwrap().is_none());
        assert_eq!(send(&right, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
