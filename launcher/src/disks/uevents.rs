//! What the kernel tells of its devices (`lib/kobject_uevent.c`), as a reason to look again: what a message says is not read.

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The group of the kernel's own messages.
const GROUP: u32 = 1;
/// Longest message of which anything is taken in, in bytes: none is read.
const MESSAGE_MAX: usize = 64;
/// Most messages that are one reason to look.
const MESSAGES_MAX: usize = 1024;
/// However silent it is, there is a look so often: in a network namespace of another user namespace nothing is told.
const SILENCE: Duration = Duration::from_millis(500);

pub struct Uevents {
    socket: OwnedFd,
    end: Instant,
}

impl Uevents {
    /// Listens from here on, for so long.
    pub fn open(patience: Duration) -> Result<Self, Errno> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        Ok(Self { socket, end: Instant::now() + patience })
    }

    /// Until something has changed since the last call, as far as the kernel tells.
    ///
    /// # Errors
    /// `ENOENT` when the time is over.
    pub fn wait(&self) -> Result<(), Errno> {
        let rest = self.end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(Errno::NOENT);
        }
        set_socket_timeout(&self.socket, Timeout::Recv, Some(rest.min(SILENCE)))?;
        let mut flags = RecvFlags::empty();
        for _ in 0..MESSAGES_MAX {
            let mut message = [0; MESSAGE_MAX];
            match recv(&self.socket, &mut message, flags) {
                // The rest of what is there is the same news. Messages that were lost (ENOBUFS) are news too.
                Ok(_) | Err(Errno::NOBUFS) => flags = RecvFlags::DONTWAIT,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_at_the_deadline() {
        let events = Uevents::open(Duration::from_millis(30)).unwrap();
        let start = Instant::now();
        while events.wait().is_ok() {}
        assert_eq!(events.wait(), Err(Errno::NOENT));
        assert!(start.elapsed() >= Duration::from_millis(30));
    }
}
