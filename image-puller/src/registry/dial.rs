//! One TCP connection out of several addresses, in the manner of RFC 8305 ("happy eyeballs"): the next address is tried
//! when the last one failed or let some time pass, without giving up those that are still under way.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::transport::Cancel;

/// How long an address is tried alone (RFC 8305 section 5 recommends this).
const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(250);
/// Most connections that are tried at the same time.
const ATTEMPTS_MAX: usize = 8;
/// Longest wait between two looks at the cancel flag.
const WAIT_SLICE: Duration = Duration::from_millis(200);

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// The first refusal, which says more than the last one's lack of a route.
    Failed(SocketAddr, io::Error),
    NoAddress,
    Cancelled,
}

struct Attempt {
    address: SocketAddr,
    socket: OwnedFd,
}

/// Connects to the first of `addresses` that answers.
pub fn dial(
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
    cancel: &Cancel,
) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.iter().map(|&ip| SocketAddr::new(ip, port));
    let mut under_way: Vec<Attempt> = Vec::new();
    let mut failure: Option<(SocketAddr, io::Error)> = None;
    let mut next_at = Instant::now();
    loop {
        if cancel.is_set() {
            return Err(DialError::Cancelled);
        }
        let now = Instant::now();
        if (now >= next_at || under_way.is_empty())
            && under_way.len() < ATTEMPTS_MAX
            && let Some(address) = waiting.next()
        {
            next_at = now + NEXT_ADDRESS_DELAY;
            match begin(address) {
                Ok(socket) => under_way.push(Attempt { address, socket }),
                Err(error) => {
                    failure.get_or_insert((address, error));
                    continue;
                }
            }
        }
        let Some(first) = under_way.first() else {
            return Err(
                failure.map_or(DialError::NoAddress, |(address, error)| DialError::Failed(address, error))
            );
        };
        if now >= deadline {
            let (address, error) = failure.unwrap_or((first.address, io::ErrorKind::TimedOut.into()));
            return Err(DialError::Failed(address, error));
        }
        let until_next = if waiting.len() > 0 { next_at.saturating_duration_since(now) } else { WAIT_SLICE };
        let patience = until_next.min(WAIT_SLICE).min(deadline - now).max(Duration::from_millis(1));
        for at in ready(&under_way, patience).into_iter().rev() {
            let Attempt { address, socket } = under_way.remove(at);
            match finish(socket) {
                Ok(tcp) => return Ok(tcp),
                Err(error) => {
                    failure.get_or_insert((address, error));
                    next_at = now;
                }
            }
        }
    }
}

fn begin(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Which of them have come to an end, good or bad.
fn ready(attempts: &[Attempt], patience: Duration) -> Vec<usize> {
    let mut fds: Vec<_> =
        attempts.iter().map(|attempt| PollFd::new(&attempt.socket, PollFlags::OUT)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    // Whatever comes back, the caller asks again.
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
    fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(at, _)| at).collect()
}

fn finish(socket: OwnedFd) -> io::Result<TcpStream> {
    rustix::net::sockopt::socket_error(&socket)??;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(TcpStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_dead_address_costs_a_quarter_second_or_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Full backlog: further connects hang.
        let hanging = TcpListener::bind(("127.0.0.2", port)).unwrap();
        rustix::net::listen(&hanging, 0).unwrap();
        let fill: Vec<_> = (0..3).map(|_| begin(hanging.local_addr().unwrap())).collect();
        for (addresses, at_least) in [
            (&["127.0.0.3", "127.0.0.1"][..], Duration::ZERO),
            (&["127.0.0.2", "127.0.0.1"], NEXT_ADDRESS_DELAY),
        ] {
            let begun = Instant::now();
            let tcp = dial(&ips(addresses), port, soon(), &Cancel::default()).unwrap();
            assert_eq!(tcp.peer_addr().unwrap().ip(), ips(&["127.0.0.1"])[0]);
            assert!(begun.elapsed() >= at_least, "{addresses:?}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{addresses:?}");
        }
        drop(fill);
    }

    #[test]
    fn the_first_refusal_is_told() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let failed = dial(&ips(&["127.0.0.1", "127.0.0.2"]), port, soon(), &Cancel::default());
        match failed {
            Err(DialError::Failed(address, error)) => {
                assert_eq!(address.ip(), ips(&["127.0.0.1"])[0]);
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(dial(&[], port, soon(), &Cancel::default()), Err(DialError::NoAddress)));
        let cancel = Cancel::default();
        cancel.set();
        assert!(matches!(dial(&ips(&["127.0.0.1"]), port, soon(), &cancel), Err(DialError::Cancelled)));
    }
}
