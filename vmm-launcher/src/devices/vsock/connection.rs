//! One stream between a host socket and the guest: half-closes, credit, and what the guest is to be told next.
//!
//! Flow control is virtio 1.3, 5.10.6.3: each side says how much it can buffer (`buf_alloc`) and how much it has
//! passed on (`fwd_cnt`). What the host socket does not take is kept here, up to [`BUF_ALLOC_BYTES`]; a guest that
//! sends more than that is cut off.

use std::collections::VecDeque;
use std::io;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use rustix::net::{Shutdown, shutdown};
use vm_memory::{Bytes, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::buffers::Buffers;
use super::packet::{HOST_CID, Header, MAX_PAYLOAD_BYTES, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Bytes that one connection may hold for a host socket that is not read.
pub const BUF_ALLOC_BYTES: u32 = 256 * 1024;
/// The guest is told of free space when this much has been passed on since it last heard.
const CREDIT_STEP_BYTES: u32 = BUF_ALLOC_BYTES / 2;

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// What becomes of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Lives,
    /// The guest knows of it no more, but bytes for the host are left.
    Detached,
    /// It is over.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host asked; the guest has not been asked yet.
    ToRequest,
    /// The guest was asked and has not answered.
    Requested,
    Open,
    /// The guest is out; what it sent last is still to be written.
    Detached,
}

/// A stream and its two directions.
pub struct Connection {
    pub key: Key,
    stream: UnixStream,
    phase: Phase,
    to_guest: ToGuest,
    to_host: ToHost,
    /// Control packets that are due, sent in the order of the fields.
    due: Due,
    /// In the device's list of connections that have something for the guest.
    pub scheduled: bool,
}

/// Host socket to guest.
struct ToGuest {
    /// The socket may have bytes (or end-of-file, or an error).
    readable: bool,
    /// The host will send no more, and the guest was or will be told.
    finished: bool,
    /// The guest will take no more.
    refused: bool,
    sent: Wrapping<u32>,
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    asked_for_credit: bool,
}

/// Guest to host socket.
struct ToHost {
    writable: bool,
    /// Received and not yet written; at most [`BUF_ALLOC_BYTES`].
    kept: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest last heard it.
    announced: Wrapping<u32>,
    /// The guest will send no more.
    finished: bool,
    /// The host will take no more: what comes is counted and thrown away.
    refused: bool,
    /// The socket was told that no more comes.
    closed: bool,
}

#[derive(Default)]
struct Due {
    reset: bool,
    response: bool,
    /// `Shutdown` flags that the guest has not been told.
    shutdown: u32,
    credit: bool,
}

impl Connection {
    /// A connection that the host asked for; the guest will be asked.
    #[must_use]
    pub fn from_host(key: Key, stream: UnixStream) -> Connection {
        Connection::new(key, stream, Phase::ToRequest)
    }

    /// A connection that the guest asked for with `request`; the guest will be told that it stands.
    #[must_use]
    pub fn from_guest(key: Key, stream: UnixStream, request: &Header) -> Connection {
        let mut connection = Connection::new(key, stream, Phase::Open);
        connection.due.response = true;
        connection.hear_credit(request);
        connection
    }

    fn new(key: Key, stream: UnixStream, phase: Phase) -> Connection {
        let to_guest = ToGuest {
            readable: true,
            finished: false,
            refused: false,
            sent: Wrapping(0),
            peer_buf_alloc: 0,
            peer_fwd_cnt: Wrapping(0),
            asked_for_credit: false,
        };
        let to_host = ToHost {
            writable: true,
            kept: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            finished: false,
            refused: false,
            closed: false,
        };
        Connection { key, stream, phase, to_guest, to_host, due: Due::default(), scheduled: false }
    }

    /// Whether the guest has not yet heard of it: it survives a reset of the guest's driver.
    #[must_use]
    pub fn is_unknown_to_guest(&self) -> bool {
        self.phase == Phase::ToRequest
    }

    /// The host socket became readable or writable, or its peer is gone altogether (`hung_up`).
    pub fn host_event(&mut self, readable: bool, writable: bool, hung_up: bool) -> Fate {
        self.to_guest.readable |= readable | hung_up;
        if writable {
            self.to_host.writable = true;
            self.flush();
        }
        if hung_up {
            match self.phase {
                Phase::ToRequest => return Fate::Over,
                Phase::Requested => return self.reset(),
                Phase::Open | Phase::Detached => self.host_refuses(),
            }
        }
        self.fate()
    }

    /// The guest accepted: from now on data flows. Any other phase makes it a fault of the guest.
    pub fn accepted(&mut self, header: &Header) -> Fate {
        if self.phase != Phase::Requested {
            return self.reset();
        }
        self.phase = Phase::Open;
        self.hear_credit(header);
        // Early data may have come, and its event gone, while nothing could be done with it.
        self.to_guest.readable = true;
        // `OK` is the first thing on this socket, so it always fits its buffer.
        let line = super::handshake::ok_line(self.key.host_port);
        self.keep_or_write(line.as_bytes());
        // The line is ours and not of the guest's count.
        self.to_host.forwarded = Wrapping(0);
        self.fate()
    }

    /// The guest gave up the connection at once.
    pub fn aborted(&mut self) -> Fate {
        // After both half-closes this is the guest's clean end: what it sent before is still owed to the host.
        if self.to_host.finished && !self.to_host.kept.is_empty() {
            self.phase = Phase::Detached;
            return Fate::Detached;
        }
        Fate::Over
    }

    /// The guest half-closes or closes.
    pub fn guest_shutdown(&mut self, header: &Header) -> Fate {
        if self.phase != Phase::Open {
            return self.reset();
        }
        self.hear_credit(header);
        if header.flags & SHUTDOWN_RECEIVE != 0 && !self.to_guest.refused {
            self.to_guest.refused = true;
            // The host writer learns it by EPIPE. Failing means that the host is gone already.
            let _ = shutdown(&self.stream, Shutdown::Read);
        }
        if header.flags & SHUTDOWN_SEND != 0 {
            self.to_host.finished = true;
        }
        self.flush();
        self.fate()
    }

    /// The guest says how much it can take, or asks how much we can.
    pub fn credit(&mut self, header: &Header, asked: bool) -> Fate {
        if self.phase != Phase::Open {
            return self.reset();
        }
        self.hear_credit(header);
        self.due.credit |= asked;
        self.fate()
    }

    /// Data of the guest.
    pub fn data(&mut self, header: &Header, payload: &Buffers<'_>) -> Fate {
        let outstanding = (self.to_host.received - self.to_host.forwarded).0;
        let fits = outstanding.checked_add(header.len).is_some_and(|sum| sum <= BUF_ALLOC_BYTES);
        if self.phase != Phase::Open || self.to_host.finished || !fits {
            return self.reset();
        }
        self.hear_credit(header);
        self.to_host.received += header.len;
        for slice in payload.first(header.len as usize) {
            self.keep_or_write_guest(slice);
        }
        self.note_progress();
        self.fate()
    }

    /// Ends the connection from our side; the guest will hear a reset.
    pub fn reset(&mut self) -> Fate {
        self.due = Due { reset: true, ..Due::default() };
        Fate::Lives
    }

    /// Whether [`Connection::next_packet`] has a packet.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Detached => false,
            Phase::ToRequest => true,
            Phase::Requested => self.due.reset,
            Phase::Open => {
                self.due.reset
                    || self.due.response
                    || self.due.shutdown != 0
                    || self.due.credit
                    || self.wants_to_read()
            }
        }
    }

    /// The next packet for the guest; its payload, if any, is put into `room`. The flag says that the connection
    /// is over with this packet.
    pub fn next_packet(&mut self, guest_cid: u64, room: &Buffers<'_>) -> Option<(Header, bool)> {
        let (op, flags, len, last) = self.choose(room)?;
        if op != Op::Request {
            self.to_host.announced = self.to_host.forwarded;
        }
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc: BUF_ALLOC_BYTES,
            fwd_cnt: self.to_host.forwarded.0,
        };
        Some((header, last))
    }

    fn choose(&mut self, room: &Buffers<'_>) -> Option<(Op, u32, u32, bool)> {
        if self.due.reset {
            return Some((Op::Reset, 0, 0, true));
        }
        if self.phase == Phase::ToRequest {
            self.phase = Phase::Requested;
            return Some((Op::Request, 0, 0, false));
        }
        if self.phase != Phase::Open {
            return None;
        }
        if std::mem::take(&mut self.due.response) {
            return Some((Op::Response, 0, 0, false));
        }
        if self.wants_to_read() {
            let credit = self.peer_free();
            if credit == 0 {
                self.to_guest.asked_for_credit = true;
                return Some((Op::CreditRequest, 0, 0, false));
            }
            let len = self.read_host(room, credit.min(MAX_PAYLOAD_BYTES) as usize);
            if len > 0 {
                self.to_guest.sent += len;
                self.due.credit = false;
                return Some((Op::Data, 0, len, false));
            }
        }
        if self.due.shutdown != 0 {
            return Some((Op::Shutdown, std::mem::take(&mut self.due.shutdown), 0, false));
        }
        std::mem::take(&mut self.due.credit).then_some((Op::CreditUpdate, 0, 0, false))
    }

    /// Whether a look at the host socket is useful now: with credit to read, or without to ask for it once.
    fn wants_to_read(&self) -> bool {
        let side = &self.to_guest;
        side.readable && !side.finished && !side.refused && (self.peer_free() > 0 || !side.asked_for_credit)
    }

    fn peer_free(&self) -> u32 {
        let outstanding = (self.to_guest.sent - self.to_guest.peer_fwd_cnt).0;
        self.to_guest.peer_buf_alloc.saturating_sub(outstanding)
    }

    fn hear_credit(&mut self, header: &Header) {
        self.to_guest.peer_buf_alloc = header.buf_alloc;
        self.to_guest.peer_fwd_cnt = Wrapping(header.fwd_cnt);
        if self.peer_free() > 0 {
            self.to_guest.asked_for_credit = false;
        }
    }

    /// Reads from the host socket straight into guest memory.
    fn read_host(&mut self, room: &Buffers<'_>, limit: usize) -> u32 {
        let mut total = 0;
        for mut slice in room.first(limit) {
            match retry(|| (&self.stream).read_volatile(&mut slice)) {
                Ok(0) => {
                    self.host_finished();
                    break;
                }
                Ok(n) => {
                    total += n;
                    if n < slice.len() {
                        break;
                    }
                }
                Err(error) if would_block(&error) => {
                    self.to_guest.readable = false;
                    break;
                }
                Err(_) => {
                    self.host_finished();
                    self.host_refuses();
                    break;
                }
            }
        }
        u32::try_from(total).unwrap_or(0)
    }

    /// The host will send no more.
    fn host_finished(&mut self) {
        self.to_guest.readable = false;
        if !self.to_guest.finished {
            self.to_guest.finished = true;
            self.due.shutdown |= SHUTDOWN_SEND;
        }
    }

    /// The host will take no more.
    fn host_refuses(&mut self) {
        if !self.to_host.refused {
            self.to_host.refused = true;
            self.due.shutdown |= SHUTDOWN_RECEIVE;
        }
        let kept = u32::try_from(self.to_host.kept.len()).unwrap_or(u32::MAX);
        self.to_host.forwarded += kept;
        self.to_host.kept = VecDeque::new();
    }

    fn keep_or_write_guest(&mut self, slice: VolatileSlice<'_>) {
        let mut done = 0;
        while self.to_host.writable
            && !self.to_host.refused
            && self.to_host.kept.is_empty()
            && done < slice.len()
        {
            let Ok(rest) = slice.offset(done) else { return };
            match retry(|| (&self.stream).write_volatile(&rest)) {
                Ok(n) => {
                    done += n;
                    self.to_host.forwarded += u32::try_from(n).unwrap_or(0);
                }
                Err(error) if would_block(&error) => self.to_host.writable = false,
                Err(_) => self.host_refuses(),
            }
        }
        let Ok(rest) = slice.offset(done) else { return };
        if self.to_host.refused {
            self.to_host.forwarded += u32::try_from(rest.len()).unwrap_or(0);
            return;
        }
        let mut copy = vec![0; rest.len()];
        // The slice is as long as the copy, so all of it is copied.
        let _ = rest.read(&mut copy, 0);
        self.to_host.kept.extend(copy);
    }

    fn keep_or_write(&mut self, bytes: &[u8]) {
        self.to_host.kept.extend(bytes);
        self.flush();
    }

    /// Writes what is kept, as far as the socket takes it.
    fn flush(&mut self) {
        while self.to_host.writable && !self.to_host.refused && !self.to_host.kept.is_empty() {
            let (front, _) = self.to_host.kept.as_slices();
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.stream, front)) {
                Ok(n) => {
                    self.to_host.kept.drain(..n.min(front.len()));
                    self.to_host.forwarded += u32::try_from(n).unwrap_or(0);
                }
                Err(rustix::io::Errno::AGAIN) => self.to_host.writable = false,
                Err(_) => self.host_refuses(),
            }
        }
        if self.to_host.kept.is_empty() {
            // Give back the memory of a burst.
            self.to_host.kept.shrink_to(0);
            if self.to_host.finished && !self.to_host.closed {
                self.to_host.closed = true;
                let _ = shutdown(&self.stream, Shutdown::Write);
            }
        }
        self.note_progress();
    }

    fn note_progress(&mut self) {
        if (self.to_host.forwarded - self.to_host.announced).0 >= CREDIT_STEP_BYTES {
            self.due.credit = true;
        }
    }

    fn fate(&mut self) -> Fate {
        let drained = self.to_host.kept.is_empty();
        if self.phase == Phase::Detached {
            return if drained { Fate::Over } else { Fate::Detached };
        }
        // Both directions closed by the guest: once all is written, a reset tells it that the ports are free.
        if self.to_guest.refused && self.to_host.finished && drained {
            return self.reset();
        }
        Fate::Lives
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, VolatileMemoryError>) -> Result<T, io::Error> {
    loop {
        match call() {
            Ok(value) => return Ok(value),
            Err(VolatileMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
