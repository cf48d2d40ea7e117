//! Two threads that carry frames between QEMU and passt, the guest's through the filter.
//!
//! Both sides speak the same form: each frame after its length, four bytes, big-endian.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::filter::{Decision, Host, Policy, Reason};
use super::flows::{Flow, Flows};
use super::frame::{Body, ETHERNET_BYTES, Payload, read};
use super::handshake::completing_ack;
use super::host_addresses::HostAddresses;
use super::{MTU, NetError, Transport, UserNet};
use crate::devices::notes::Notes;

/// Bytes of one frame.
const MAX_FRAME_BYTES: usize = MTU as usize + ETHERNET_BYTES + 4;
/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;
/// Bytes read at once: several of the largest frames.
const BUFFER_BYTES: usize = 512 * 1024;

/// Frames since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub from_guest: u64,
    pub to_guest: u64,
    /// To services of the host that are not listed.
    pub dropped_host: u64,
    /// For any other reason.
    pub dropped_other: u64,
}

/// The running relay. Dropping it closes both sides.
pub struct Relay {
    sockets: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    from_guest: AtomicU64,
    to_guest: AtomicU64,
    dropped_host: AtomicU64,
    dropped_other: AtomicU64,
    flows: Mutex<Flows>,
}

impl Relay {
    /// Starts to carry frames; returns QEMU's end.
    pub fn start(config: &UserNet, passt: UnixStream, notes: &Notes) -> Result<(OwnedFd, Relay), NetError> {
        let setup = |what| move |source| NetError::Setup(what, source);
        let (qemu, qemu_end) = UnixStream::pair().map_err(setup("cannot make a socket"))?;
        let clone = |socket: &UnixStream| socket.try_clone().map_err(setup("cannot copy a descriptor"));
        let shared = Arc::new(Shared::default());
        let mut relay = Relay {
            sockets: vec![clone(&qemu)?, clone(&passt)?],
            threads: Vec::new(),
            shared: shared.clone(),
        };
        // Two threads write whole frames to QEMU.
        let to_qemu = Arc::new(Mutex::new(qemu));
        let mut gate = Gate {
            policy: Policy::new(config),
            to_qemu: to_qemu.clone(),
            host: LiveHost { addresses: HostAddresses::new(Instant::now()), shared: shared.clone() },
            notes: notes.clone(),
        };
        let (from_qemu, to_passt) = (clone(&locked(&to_qemu))?, Arc::new(Mutex::new(clone(&passt)?)));
        relay.spawn("nacre-net-out", (from_qemu, to_passt), notes, move |frame| gate.passes(frame))?;
        let tracks = config.publish.iter().any(|port| port.protocol == Transport::Udp);
        relay.spawn("nacre-net-in", (passt, to_qemu), notes, move |frame| {
            shared.to_guest.fetch_add(1, Ordering::Relaxed);
            if tracks {
                shared.record(frame);
            }
            true
        })?;
        Ok((qemu_end.into(), relay))
    }

    /// The counts at this moment.
    pub fn counters(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            from_guest: load(&self.shared.from_guest),
            to_guest: load(&self.shared.to_guest),
            dropped_host: load(&self.shared.dropped_host),
            dropped_other: load(&self.shared.dropped_other),
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        (from, to): (UnixStream, Arc<Mutex<UnixStream>>),
        notes: &Notes,
        passes: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> Result<(), NetError> {
        let notes = notes.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = carry(&from, &to, passes);
            // One side gone is the end of the link for the other too.
            let _ = from.shutdown(Shutdown::Both);
            let _ = locked(&to).shutdown(Shutdown::Both);
            if let Err(error) = result
                && error.kind() == io::ErrorKind::InvalidData
            {
                notes.add(format_args!("network: {error}"));
            }
        });
        self.threads.push(thread.map_err(|e| NetError::Setup("cannot start a thread", e))?);
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Carries frames that `passes` says yes to, many with one write, until either side closes.
fn carry(
    mut from: &UnixStream,
    to: &Mutex<UnixStream>,
    mut passes: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        let space = buffer.get_mut(filled..).unwrap_or_default();
        match from.read(space) {
            Ok(0) => return Ok(()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let (kept, consumed) = sift(buffer.get_mut(..filled).unwrap_or_default(), &mut passes)?;
        locked(to).write_all(buffer.get(..kept).unwrap_or_default())?;
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
    }
}

/// Moves the whole frames that pass to the front. Returns their bytes, and the bytes of all whole frames.
fn sift(bytes: &mut [u8], passes: &mut impl FnMut(&[u8]) -> bool) -> io::Result<(usize, usize)> {
    let (mut kept, mut at) = (0, 0);
    while let Some(length) = bytes.get(at..).and_then(<[u8]>::first_chunk::<LENGTH_BYTES>) {
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME_BYTES {
            let text = format!("a frame of {length} bytes exceeds {MAX_FRAME_BYTES}; the link is closed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let end = at + LENGTH_BYTES + length;
        let Some(frame) = bytes.get(at + LENGTH_BYTES..end) else { break };
        if passes(frame) {
            bytes.copy_within(at..end, kept);
            kept += end - at;
        }
        at = end;
    }
    Ok((kept, at))
}

fn locked(socket: &Mutex<UnixStream>) -> MutexGuard<'_, UnixStream> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The filter with what it knows of the host, and its counts.
struct Gate {
    to_qemu: Arc<Mutex<UnixStream>>,
    policy: Policy,
    host: LiveHost,
    notes: Notes,
}

impl Gate {
    fn passes(&mut self, frame: &[u8]) -> bool {
        let shared = &self.host.shared;
        shared.from_guest.fetch_add(1, Ordering::Relaxed);
        match self.policy.judge(frame, &mut self.host) {
            Decision::Allow => {
                if let Some(answer) = completing_ack(frame) {
                    self.send_to_guest(&answer);
                }
                true
            }
            Decision::Drop(Reason::Host) => {
                self.host.shared.dropped_host.fetch_add(1, Ordering::Relaxed);
                self.notes.add("network: the guest tried to reach the host itself; dropped");
                false
            }
            Decision::Drop(_) => {
                self.host.shared.dropped_other.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }
}

impl Gate {
    fn send_to_guest(&self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        // A link that is gone is noticed where it is read.
        let _ = locked(&self.to_qemu).write_all(&[&length[..], frame].concat());
    }
}

struct LiveHost {
    addresses: HostAddresses,
    shared: Arc<Shared>,
}

impl Host for LiveHost {
    fn owns(&mut self, address: Ipv4Addr) -> bool {
        self.addresses.contains(address, Instant::now())
    }

    fn answers(&mut self, flow: &Flow) -> bool {
        let flows = self.shared.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.allows(flow, Instant::now())
    }
}

impl Shared {
    /// Remembers who sends the guest a datagram.
    fn record(&self, frame: &[u8]) {
        if let Ok(frame) = read(frame)
            && let Body::Ipv4 { source: peer, payload: Payload::Udp { source, destination }, .. } = frame.body
        {
            let flow = Flow { peer, peer_port: source, guest_port: destination };
            let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
            flows.record(flow, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(frames: &[&[u8]]) -> Vec<u8> {
        let each = |frame: &&[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        frames.iter().flat_map(each).collect()
    }

    #[test]
    fn frames_are_sifted_whole() {
        let mut bytes = framed(&[b"keep1", b"drop", b"", b"keep2"]);
        bytes.extend(framed(&[b"partial"]).split_last().unwrap().1);
        let whole = bytes.len() - 10;
        let mut seen = Vec::new();
        let (kept, consumed) = sift(&mut bytes, &mut |frame| {
            seen.push(frame.to_vec());
            frame.starts_with(b"keep")
        })
        .unwrap();
        assert_eq!(consumed, whole);
        assert_eq!(bytes[..kept], framed(&[b"keep1", b"keep2"]));
        assert_eq!(seen.len(), 4);
        let mut long = u32::MAX.to_be_bytes().to_vec();
        assert_eq!(sift(&mut long, &mut |_| true).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn frames_arrive_whatever_way_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> = (0..300_u32).map(|n| vec![n as u8; (n as usize * 991) % 60_000]).collect();
        let stream = framed(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (mut feed, from) = UnixStream::pair().unwrap();
        let (to, mut out) = UnixStream::pair().unwrap();
        let carrier = std::thread::spawn(move || carry(&from, &Mutex::new(to), |_| true));
        let expected = stream.clone();
        let feeder = std::thread::spawn(move || {
            for piece in stream.chunks(7777) {
                feed.write_all(piece).unwrap();
            }
        });
        let mut got = Vec::new();
        out.read_to_end(&mut got).unwrap();
        feeder.join().unwrap();
        carrier.join().unwrap().unwrap();
        assert!(got == expected);
    }
}
