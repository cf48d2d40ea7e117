//! The device: who is connected, what is due to the guest, and the two virtqueues.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::{EventfdFlags, epoll};
use rustix::net::{RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::buffers::{Buffers, Direction};
use super::connection::{BUF_ALLOC_BYTES, Connection, Fate, Key};
use super::handshake::{MAX_LINE_BYTES, parse_connect};
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, PacketError, TYPE_STREAM};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;

/// Connections at one time, those in their greeting included.
pub const MAX_CONNECTIONS: usize = 1024;
/// Resets waiting for room in the receive queue; at this many the transmit queue waits too.
const MAX_RESETS: usize = 256;
/// Packets of one queue that are handled before the other queue and the host have their turn.
const MAX_BATCH: usize = 256;
/// Host events fetched at once.
const MAX_EVENTS: usize = 128;
/// Clients that wait in the listener's queue.
const BACKLOG: i32 = 128;
/// Host ports of connections that the host asks for start here, above what programs choose by hand.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// The listener's number among the tokens of epoll.
const LISTENER: u64 = 0;
/// The number of [`Vsock::wake`].
const WAKE: u64 = 1;

/// How a device is set up.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// The guest's address, 3 or more.
    pub guest_cid: u32,
    /// The hybrid socket; it must not exist yet. The guest's connections go to `<path>_<port>`.
    pub path: PathBuf,
}

/// A device could not be set up, or lost its host side.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    #[error("vsock: guest CID {0} is reserved, the first free one is 3")]
    GuestCid(u32),
    #[error("vsock: cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("vsock: {0}")]
    Poll(&'static str, #[source] io::Error),
}

/// The device. It owns the host sockets; guest memory and queues are lent to it call by call.
pub struct Vsock {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    poll: OwnedFd,
    wake: OwnedFd,
    greetings: HashMap<u64, Greeting>,
    connections: HashMap<u64, Connection>,
    by_key: HashMap<Key, u64>,
    /// Connections that may have a packet for the guest, each at most once, served in turn.
    scheduled: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_token: u64,
    next_port: u32,
    notes: Notes,
    meter: Meter,
}

/// A client that has not said its line yet.
struct Greeting {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Vsock {
    /// Starts to listen.
    ///
    /// # Errors
    /// A reserved CID, or the socket cannot be made.
    pub fn new(config: VsockConfig, notes: Notes) -> Result<Vsock, VsockError> {
        if config.guest_cid < 3 || config.guest_cid == u32::MAX {
            return Err(VsockError::GuestCid(config.guest_cid));
        }
        let listen = |source: io::Error| VsockError::Listen { path: config.path.clone(), source };
        let listener = listen_on(&config.path).map_err(listen)?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| VsockError::Poll("cannot make an epoll", e.into()))?;
        epoll::add(&poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)
            .map_err(|e| VsockError::Poll("cannot watch the listener", e.into()))?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| VsockError::Poll("cannot make an eventfd", e.into()))?;
        epoll::add(&poll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)
            .map_err(|e| VsockError::Poll("cannot watch the eventfd", e.into()))?;
        Ok(Vsock {
            guest_cid: u64::from(config.guest_cid),
            path: config.path,
            listener,
            poll,
            wake,
            greetings: HashMap::new(),
            connections: HashMap::new(),
            by_key: HashMap::new(),
            scheduled: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: WAKE + 1,
            next_port: FIRST_HOST_PORT,
            notes,
            meter: Meter::default(),
        })
    }

    /// Counts the bytes of connections there.
    pub fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    /// Readable when [`Vsock::host_ready`] has something to do.
    #[must_use]
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// Makes [`Vsock::poll_fd`] readable: for work that no queue and no socket will announce again.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// The device's configuration space: the guest's CID (virtio 1.3, 5.10.4).
    #[must_use]
    pub fn config_space(&self) -> [u8; 8] {
        self.guest_cid.to_le_bytes()
    }

    /// The driver starts anew: what the guest knew of is gone. What the host asked for and the guest has not
    /// heard of yet stays.
    pub fn reset(&mut self) {
        self.resets.clear();
        self.connections.retain(|_, connection| connection.is_unknown_to_guest());
        let connections = &self.connections;
        self.by_key.retain(|_, token| connections.contains_key(token));
        self.scheduled.retain(|token| connections.contains_key(token));
    }

    /// Handles what happened on the host side; a bounded number of events per call. Returns whether any did.
    ///
    /// # Errors
    /// epoll itself fails.
    pub fn host_ready(&mut self) -> Result<bool, VsockError> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(VsockError::Poll("cannot wait for host sockets", error.into())),
        }
        for event in &events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == LISTENER {
                self.accept();
            } else if token == WAKE {
                // Only non-blocking reads of eight bytes; an empty one means that it was fetched before.
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            } else if self.greetings.contains_key(&token) {
                self.greet(token, flags);
            } else {
                self.host_event(token, flags);
            }
        }
        Ok(!events.is_empty())
    }

    /// Takes packets of the guest off the transmit queue; returns whether any descriptor was used.
    pub fn process_tx(&mut self, queue: &mut impl QueueT, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        for _ in 0..MAX_BATCH {
            if self.resets.len() >= MAX_RESETS {
                break;
            }
            let Some(chain) = queue.pop_descriptor_chain(memory) else { break };
            let head = chain.head_index();
            match Buffers::collect(memory, chain, Direction::FromGuest).and_then(Buffers::split_header) {
                Ok((header, payload)) => {
                    self.meter.from_guest(payload.byte_count() as u64);
                    self.packet(&Header::decode(&header.read_header()), &payload);
                }
                Err(error) => self.notes.add(format_args!("vsock transmit: {error}")),
            }
            used = true;
            self.give_back(queue, memory, head, 0);
        }
        used
    }

    /// Fills buffers of the receive queue while there is something to say; returns whether any was used.
    pub fn process_rx(&mut self, queue: &mut impl QueueOwnedT, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        for _ in 0..MAX_BATCH {
            if self.resets.is_empty() && self.scheduled.is_empty() {
                break;
            }
            let Some(chain) = queue.pop_descriptor_chain(memory) else { break };
            let head = chain.head_index();
            match Buffers::collect(memory, chain, Direction::ToGuest).and_then(Buffers::split_header) {
                Ok((room_for_header, room)) => {
                    let Some(header) = self.next_packet(&room) else {
                        queue.go_to_previous_position();
                        break;
                    };
                    room_for_header.write_header(&header.encode());
                    self.meter.to_guest(header.len.into());
                    self.give_back(queue, memory, head, HEADER_BYTES as u32 + header.len);
                }
                Err(error) => {
                    self.notes.add(format_args!("vsock receive: {error}"));
                    self.give_back(queue, memory, head, 0);
                }
            }
            used = true;
        }
        used
    }

    fn give_back(&mut self, queue: &mut impl QueueT, memory: &GuestMemoryMmap, head: u16, len: u32) {
        if let Err(error) = queue.add_used(memory, head, len) {
            self.notes.add(format_args!("vsock used ring: {error}"));
        }
    }

    // ---- the host side ----

    fn accept(&mut self) {
        // Level-triggered: what is left after one batch comes again.
        for _ in 0..BACKLOG {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.notes.add(format_args!("vsock accept: {error}"));
                    return;
                }
            };
            if self.is_full() {
                // Closing is the refusal: the client reads end-of-file instead of OK.
                self.notes
                    .add(format_args!("vsock: a client was refused, {MAX_CONNECTIONS} connections are open"));
                continue;
            }
            if let Some(token) = self.watch(&stream) {
                self.greetings.insert(token, Greeting { stream, received: Vec::new() });
            }
        }
    }

    fn is_full(&self) -> bool {
        self.greetings.len() + self.connections.len() >= MAX_CONNECTIONS
    }

    /// Makes the stream non-blocking and watches it, edge-triggered: connections remember what is ready.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        self.next_token += 1;
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| Ok(epoll::add(&self.poll, stream, epoll::EventData::new_u64(token), flags)?));
        match watched {
            Ok(()) => Some(token),
            Err(error) => {
                self.notes.add(format_args!("vsock: cannot watch a connection: {error}"));
                None
            }
        }
    }

    fn greet(&mut self, token: u64, flags: epoll::EventFlags) {
        let Some(greeting) = self.greetings.get_mut(&token) else { return };
        match greeting.read_line() {
            // A client that goes away is its own affair.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.greetings.remove(&token);
            }
            Ok(None) if !flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::RDHUP) => {}
            Ok(None) => {
                self.greetings.remove(&token);
            }
            Ok(Some(guest_port)) => {
                let Some(Greeting { stream, .. }) = self.greetings.remove(&token) else { return };
                let key = Key { host_port: self.free_host_port(guest_port), guest_port };
                self.insert(token, Connection::from_host(key, stream));
                self.host_event(token, flags);
            }
            Err(error) => {
                self.notes.add(error);
                self.greetings.remove(&token);
            }
        }
    }

    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        // Ends because there are at most MAX_CONNECTIONS taken ports.
        loop {
            let host_port = self.next_port;
            self.next_port = host_port.checked_add(1).filter(|p| *p != u32::MAX).unwrap_or(FIRST_HOST_PORT);
            if !self.by_key.contains_key(&Key { host_port, guest_port }) {
                return host_port;
            }
        }
    }

    fn insert(&mut self, token: u64, connection: Connection) {
        self.by_key.insert(connection.key, token);
        self.connections.insert(token, connection);
        self.schedule(token);
    }

    fn host_event(&mut self, token: u64, flags: epoll::EventFlags) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let readable = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
        let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let fate = connection.host_event(readable, flags.contains(epoll::EventFlags::OUT), hung_up);
        self.settle(token, fate);
    }

    fn settle(&mut self, token: u64, fate: Fate) {
        match fate {
            Fate::Lives => self.schedule(token),
            Fate::Detached => self.forget_key(token),
            Fate::Over => {
                self.forget_key(token);
                // Dropping the stream closes it, and a closed file leaves the epoll by itself.
                self.connections.remove(&token);
            }
        }
    }

    fn forget_key(&mut self, token: u64) {
        if let Some(connection) = self.connections.get(&token)
            && self.by_key.get(&connection.key) == Some(&token)
        {
            self.by_key.remove(&connection.key);
        }
    }

    fn schedule(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.scheduled
            && connection.has_packet()
        {
            connection.scheduled = true;
            self.scheduled.push_back(token);
        }
    }

    // ---- the guest side ----

    fn next_packet(&mut self, room: &Buffers<'_>) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.scheduled.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.scheduled = false;
            let packet = connection.next_packet(self.guest_cid, room);
            match packet {
                Some((header, true)) => {
                    self.settle(token, Fate::Over);
                    return Some(header);
                }
                Some((header, false)) => {
                    self.schedule(token);
                    return Some(header);
                }
                // Nothing to read after all; the next edge schedules it again.
                None => {}
            }
        }
        None
    }

    fn packet(&mut self, header: &Header, payload: &Buffers<'_>) {
        let op = match header.check(self.guest_cid, payload.byte_count()) {
            Ok(op) => op,
            Err(error) => return self.refuse(header, &error),
        };
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let known = self.by_key.get(&key).copied();
        match (op, known.and_then(|token| self.connections.get_mut(&token).map(|c| (token, c)))) {
            (Op::Request, None) => self.connect(key, header),
            (Op::Reset, None) => {}
            (_, None) => self.answer_reset(header),
            (_, Some((token, connection))) => {
                let fate = match op {
                    // A second request for the same pair of ports.
                    Op::Request => connection.reset(),
                    Op::Response => connection.accepted(header),
                    Op::Reset => connection.aborted(),
                    Op::Shutdown => connection.guest_shutdown(header),
                    Op::Data => connection.data(header, payload),
                    Op::CreditUpdate => connection.credit(header, false),
                    Op::CreditRequest => connection.credit(header, true),
                };
                self.settle(token, fate);
            }
        }
    }

    /// The guest asks for the socket `<path>_<port>`.
    fn connect(&mut self, key: Key, header: &Header) {
        if self.is_full() {
            self.notes
                .add(format_args!("vsock: the guest was refused, {MAX_CONNECTIONS} connections are open"));
            return self.answer_reset(header);
        }
        // Nobody listening is an ordinary refusal, not worth a note.
        let Ok(stream) = connect_to(&self.path, key.host_port) else { return self.answer_reset(header) };
        match self.watch(&stream) {
            Some(token) => self.insert(token, Connection::from_guest(key, stream, header)),
            None => self.answer_reset(header),
        }
    }

    fn refuse(&mut self, header: &Header, error: &PacketError) {
        self.notes.add(error);
        if error.wants_reset() && header.op != Op::Reset as u16 {
            let key = Key { host_port: header.dst_port, guest_port: header.src_port };
            match self.by_key.get(&key).copied() {
                Some(token) => {
                    if let Some(connection) = self.connections.get_mut(&token) {
                        let fate = connection.reset();
                        self.settle(token, fate);
                    }
                }
                None => self.answer_reset(header),
            }
        }
    }

    fn answer_reset(&mut self, header: &Header) {
        self.resets.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: TYPE_STREAM,
            op: Op::Reset as u16,
            buf_alloc: BUF_ALLOC_BYTES,
            ..Header::default()
        });
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Greeting {
    /// Reads up to the end of the line and not one byte further: what follows belongs to the guest.
    fn read_line(&mut self) -> io::Result<Option<u32>> {
        loop {
            let mut window = [0; MAX_LINE_BYTES];
            let space = window.get_mut(self.received.len()..).unwrap_or_default();
            let peeked = match rustix::net::recv(&self.stream, space, RecvFlags::PEEK) {
                Ok((_, 0)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok((_, n)) => n,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let before = self.received.len();
            self.received.extend_from_slice(window.get(before..before + peeked).unwrap_or_default());
            let line = parse_connect(&self.received).map_err(io::Error::other)?;
            let taken = line.map_or(peeked, |(_, end)| end.saturating_sub(before));
            let mut sink = [0; MAX_LINE_BYTES];
            let sink = sink.get_mut(..taken).unwrap_or_default();
            rustix::net::recv(&self.stream, sink, RecvFlags::empty())?;
            if let Some((port, _)) = line {
                return Ok(Some(port));
            }
        }
    }
}

fn listen_on(path: &std::path::Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Connects without waiting: a listener with a full queue counts as nobody there.
fn connect_to(base: &std::path::Path, port: u32) -> io::Result<UnixStream> {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests;
