//! A hostile guest and impatient clients, as queues and sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

const CID: u32 = 3;
const MEMORY_BYTES: usize = 8 << 20;
const TX_RING: GuestAddress = GuestAddress(0);
const RX_RING: GuestAddress = GuestAddress(0x10_000);
const TX_DATA: u64 = 0x100_000;
const RX_DATA: u64 = 0x200_000;
const RX_BUFFERS: u64 = 32;
const RX_BUFFER_BYTES: u32 = 0x10_000 + HEADER_BYTES as u32;

struct Guest {
    memory: GuestMemoryMmap,
    vsock: Vsock,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let config = VsockConfig { guest_cid: CID, path: dir.path().join("v") };
        let vsock = Vsock::new(config, Notes::default()).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        Guest { memory, vsock, dir }
    }

    /// Sends whatever chain the descriptors make.
    fn send_chain(&mut self, descriptors: &[(u64, u32, u16)]) {
        let raw: Vec<_> =
            descriptors.iter().map(|(a, l, f)| RawDescriptor::from(Descriptor::new(*a, *l, *f, 0))).collect();
        let ring = MockSplitQueue::create(&self.memory, TX_RING, 256);
        ring.build_desc_chain(&raw).unwrap();
        let mut queue: Queue = ring.create_queue().unwrap();
        assert!(self.vsock.process_tx(&mut queue, &self.memory));
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let bytes = [&header.encode()[..], data].concat();
        self.memory.write_slice(&bytes, GuestAddress(TX_DATA)).unwrap();
        self.send_chain(&[(TX_DATA, bytes.len() as u32, 0)]);
    }

    /// Packets that the device has for the guest, at most as many as there are buffers.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        while self.vsock.host_ready().unwrap() {}
        let descriptor = |n: u64| {
            let addr = RX_DATA + n * 0x2_0000;
            RawDescriptor::from(Descriptor::new(addr, RX_BUFFER_BYTES, VRING_DESC_F_WRITE as u16, 0))
        };
        let buffers: Vec<_> = (0..RX_BUFFERS).map(descriptor).collect();
        let ring = MockSplitQueue::create(&self.memory, RX_RING, 256);
        ring.build_multiple_desc_chains(&buffers).unwrap();
        let mut queue: Queue = ring.create_queue().unwrap();
        self.vsock.process_rx(&mut queue, &self.memory);
        let used = u16::from_le(ring.used().idx().load());
        let packet = |n: u64| {
            let mut header = [0; HEADER_BYTES];
            self.memory.read_slice(&mut header, GuestAddress(RX_DATA + n * 0x2_0000)).unwrap();
            let header = Header::decode(&header);
            let mut data = vec![0; header.len as usize];
            let at = GuestAddress(RX_DATA + n * 0x2_0000 + HEADER_BYTES as u64);
            self.memory.read_slice(&mut data, at).unwrap();
            (header, data)
        };
        (0..u64::from(used)).map(packet).collect()
    }

    fn ops(&mut self) -> Vec<u16> {
        self.receive().iter().map(|(header, _)| header.op).collect()
    }

    fn client(&self, greeting: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("v")).unwrap();
        stream.write_all(greeting).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A connection from the host to port 7 of the guest, accepted with this much room.
    fn accepted(&mut self, buf_alloc: u32) -> (UnixStream, Header) {
        let mut stream = self.client(b"CONNECT 7\n");
        let (request, _) = self.receive().remove(0);
        assert_eq!((request.op, request.dst_port), (Op::Request as u16, 7));
        let reply = Header { buf_alloc, ..answer(&request, Op::Response) };
        self.send(reply, b"");
        let mut ok = [0; 32];
        let n = stream.read(&mut ok).unwrap();
        assert_eq!(&ok[..n], format!("OK {}\n", request.src_port).as_bytes());
        (stream, reply)
    }
}

fn answer(to: &Header, op: Op) -> Header {
    Header {
        src_cid: to.dst_cid,
        dst_cid: to.src_cid,
        src_port: to.dst_port,
        dst_port: to.src_port,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn from_guest(op: Op, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn reads(mut stream: &UnixStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 20];
    match stream.read(&mut bytes) {
        Ok(n) => {
            bytes.truncate(n);
            Some(bytes)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        // Closed with unread bytes.
        Err(_) => Some(Vec::new()),
    }
}

const RESET: u16 = Op::Reset as u16;

#[test]
fn nothing_comes_before_ok_and_early_data_is_kept() {
    let mut guest = Guest::new();
    let mut stream = guest.client(b"connect 7\nearly");
    let (request, _) = guest.receive().remove(0);
    assert_eq!(reads(&stream), None);
    guest.send(answer(&request, Op::Response), b"");
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].0.op, packets[0].1.as_slice()), (Op::Data as u16, &b"early"[..]));
    stream.write_all(b"late").unwrap();
    assert_eq!(guest.receive()[0].1, b"late");
    assert!(reads(&stream).unwrap().starts_with(b"OK "));
    let data = Header { len: 5, ..answer(&request, Op::Data) };
    guest.send(data, b"hello");
    assert_eq!(reads(&stream).unwrap(), b"hello");
}

#[test]
fn a_bad_greeting_is_refused_by_closing() {
    let mut guest = Guest::new();
    for greeting in [&b"HELLO\n"[..], b"CONNECT x\n", &[b'a'; 32]] {
        let stream = guest.client(greeting);
        assert_eq!(guest.ops(), [0; 0]);
        assert_eq!(reads(&stream), Some(Vec::new()), "{greeting:?}");
    }
    // A line may come in pieces.
    let mut stream = guest.client(b"CONN");
    assert_eq!(guest.ops(), [0; 0]);
    stream.write_all(b"ECT 7\n").unwrap();
    assert_eq!(guest.ops(), [Op::Request as u16]);
}

#[test]
fn a_refusing_guest_closes_the_client() {
    let mut guest = Guest::new();
    let stream = guest.client(b"CONNECT 7\n");
    let (request, _) = guest.receive().remove(0);
    guest.send(answer(&request, Op::Reset), b"");
    assert_eq!(reads(&stream), Some(Vec::new()));
    assert!(guest.vsock.connections.is_empty());
}

#[test]
fn a_client_that_leaves_early_is_forgotten() {
    let mut guest = Guest::new();
    drop(guest.client(b"CONNECT 7\n"));
    while guest.vsock.host_ready().unwrap() {}
    assert!(guest.vsock.connections.is_empty());
    // Once the guest was asked, it is told.
    let stream = guest.client(b"CONNECT 7\n");
    assert_eq!(guest.ops(), [Op::Request as u16]);
    drop(stream);
    assert_eq!(guest.ops(), [RESET]);
    assert!(guest.vsock.connections.is_empty());
}

#[test]
fn malformed_packets_and_chains_do_no_harm() {
    let mut guest = Guest::new();
    let good = from_guest(Op::Data, 5, 6);
    let headers = [
        (good, vec![RESET]),
        (Header { src_cid: 99, ..good }, vec![]),
        (Header { dst_cid: 99, ..good }, vec![RESET]),
        (Header { kind: 2, ..good }, vec![RESET]),
        (Header { op: 77, ..good }, vec![RESET]),
        (Header { len: u32::MAX, ..good }, vec![RESET]),
        (Header { len: 100, ..good }, vec![RESET]),
        (Header { op: RESET, kind: 9, ..good }, vec![]),
        (from_guest(Op::Response, 5, 6), vec![RESET]),
        (from_guest(Op::CreditRequest, 5, 6), vec![RESET]),
        (from_guest(Op::Shutdown, 5, 6), vec![RESET]),
        (from_guest(Op::Reset, 5, 6), vec![]),
        // Nobody listens on the host.
        (from_guest(Op::Request, 5, 6), vec![RESET]),
    ];
    for (header, expected) in headers {
        guest.send(header, b"");
        assert_eq!(guest.ops(), expected, "{header:?}");
    }
    let write = VRING_DESC_F_WRITE as u16;
    guest.memory.write_slice(&good.encode(), GuestAddress(TX_DATA)).unwrap();
    let many: Vec<_> = (0..100).map(|n| (TX_DATA + n, 1, 0)).collect();
    let chains: [&[(u64, u32, u16)]; 6] = [
        &[(TX_DATA, 43, 0)],
        &[(TX_DATA, 44, write)],
        &[(TX_DATA, 44, 0), (TX_DATA, 44, write)],
        &[(u64::MAX - 10, 44, 0)],
        &[(TX_DATA, u32::MAX, 0)],
        &many,
    ];
    for chain in chains {
        guest.send_chain(chain);
        assert_eq!(guest.ops(), [0; 0], "{chain:?}");
    }
    assert!(guest.vsock.connections.is_empty());
    assert!(guest.vsock.notes.list().len() > 6);
}

#[test]
fn a_header_cut_into_pieces_is_put_together() {
    let mut guest = Guest::new();
    let (stream, reply) = guest.accepted(1 << 20);
    let bytes = [&Header { op: Op::Data as u16, len: 10, ..reply }.encode()[..], b"0123456789"].concat();
    guest.memory.write_slice(&bytes, GuestAddress(TX_DATA)).unwrap();
    let pieces: Vec<_> = (0..54).map(|n| (TX_DATA + n, 1, 0)).collect();
    guest.send_chain(&pieces);
    assert_eq!(reads(&stream).unwrap(), b"0123456789");
}

#[test]
fn a_guest_that_ignores_credit_is_cut_off() {
    let mut guest = Guest::new();
    let (stream, reply) = guest.accepted(1 << 20);
    let chunk = vec![1; 0x10_000];
    let data = Header { op: Op::Data as u16, len: chunk.len() as u32, ..reply };
    let mut sent = 0;
    // The client does not read: first its socket fills, then what the device keeps.
    while !guest.vsock.connections.is_empty() {
        guest.send(data, &chunk);
        sent += chunk.len();
        assert!(sent < 4 << 20, "the device keeps {sent} bytes");
        if guest.ops().contains(&RESET) {
            break;
        }
    }
    assert!(sent > BUF_ALLOC_BYTES as usize);
    assert!(guest.vsock.connections.is_empty());
    drop(stream);
}

#[test]
fn credit_comes_back_when_the_client_reads() {
    let mut guest = Guest::new();
    let (stream, reply) = guest.accepted(1 << 20);
    let chunk = vec![1; 0x10_000];
    let data = Header { op: Op::Data as u16, len: chunk.len() as u32, ..reply };
    let (mut sent, mut forwarded, mut read) = (0_u32, 0_u32, 0_usize);
    while sent < 8 << 20 {
        while sent.wrapping_sub(forwarded) + data.len <= BUF_ALLOC_BYTES {
            guest.send(data, &chunk);
            sent += data.len;
        }
        read += reads(&stream).map_or(0, |bytes| bytes.len());
        for (header, _) in guest.receive() {
            assert_ne!(header.op, RESET);
            assert_eq!(header.buf_alloc, BUF_ALLOC_BYTES);
            forwarded = header.fwd_cnt;
        }
    }
    while let Some(bytes) = reads(&stream) {
        read += bytes.len();
        guest.receive();
    }
    assert_eq!(read, sent as usize);
}

#[test]
fn the_guests_credit_is_respected() {
    let mut guest = Guest::new();
    let (mut stream, reply) = guest.accepted(1000);
    stream.write_all(&[9; 5000]).unwrap();
    let packets = guest.receive();
    let received: usize = packets.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(received, 1000);
    // Asked for once, not again and again.
    assert_eq!(packets.last().unwrap().0.op, Op::CreditRequest as u16);
    assert_eq!(guest.ops(), [0; 0]);
    guest.send(Header { op: Op::CreditUpdate as u16, fwd_cnt: 1000, buf_alloc: 1000, ..reply }, b"");
    assert_eq!(guest.receive()[0].1.len(), 1000);
    // A guest that claims to have passed on more than it got has no credit at all.
    guest.send(Header { op: Op::CreditUpdate as u16, fwd_cnt: u32::MAX, buf_alloc: 10, ..reply }, b"");
    assert_eq!(guest.receive().iter().map(|(_, data)| data.len()).sum::<usize>(), 0);
}

#[test]
fn each_side_closes_its_half() {
    let mut guest = Guest::new();
    let (mut stream, reply) = guest.accepted(1 << 20);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (Op::Shutdown as u16, SHUTDOWN_SEND));
    guest.send(Header { op: Op::Data as u16, len: 6, ..reply }, b"answer");
    guest.send(Header { op: Op::Shutdown as u16, flags: SHUTDOWN_SEND, ..reply }, b"");
    assert_eq!(reads(&stream).unwrap(), b"answer");
    assert_eq!(reads(&stream).unwrap(), b"");
    guest.send(Header { op: Op::Shutdown as u16, flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND, ..reply }, b"");
    assert_eq!(guest.ops(), [RESET]);
    assert!(guest.vsock.connections.is_empty());
}

#[test]
fn what_a_closing_guest_sent_last_still_arrives() {
    let mut guest = Guest::new();
    let (stream, reply) = guest.accepted(1 << 20);
    let chunk = vec![5; 0x10_000];
    let mut sent = 0;
    while sent < BUF_ALLOC_BYTES {
        guest.send(Header { op: Op::Data as u16, len: chunk.len() as u32, ..reply }, &chunk);
        sent += chunk.len() as u32;
    }
    let both = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
    guest.send(Header { op: Op::Shutdown as u16, flags: both, ..reply }, b"");
    // The guest waits for a while, then gives up the ports.
    guest.send(Header { op: RESET, ..reply }, b"");
    let mut read = 0;
    loop {
        while guest.vsock.host_ready().unwrap() {}
        match reads(&stream) {
            Some(bytes) if bytes.is_empty() => break,
            Some(bytes) => read += bytes.len(),
            None => {}
        }
    }
    assert_eq!(read, sent as usize);
    guest.receive();
    assert!(guest.vsock.connections.is_empty());
}

#[test]
fn the_guest_connects_to_sockets_beside_the_hybrid_one() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.dir.path().join("v_99")).unwrap();
    guest.send(from_guest(Op::Request, 5, 99), b"");
    let (mut stream, _) = listener.accept().unwrap();
    assert_eq!(guest.ops(), [Op::Response as u16]);
    stream.write_all(b"to the guest").unwrap();
    assert_eq!(guest.receive()[0].1, b"to the guest");
    guest.send(Header { len: 4, ..from_guest(Op::Data, 5, 99) }, b"back");
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"back");
    // The same ports twice are a fault of the guest.
    guest.send(from_guest(Op::Request, 5, 99), b"");
    assert_eq!(guest.ops(), [RESET]);
    assert_eq!(stream.read(&mut back).unwrap(), 0);
}

#[test]
fn connections_and_unread_answers_are_limited() {
    let mut guest = Guest::new();
    let _listener = UnixListener::bind(guest.dir.path().join("v_99")).unwrap();
    // The listener's own queue ends first; every refusal is a reset.
    for port in 0..2000 {
        if guest.vsock.resets.len() < MAX_RESETS {
            guest.send(from_guest(Op::Request, port, 99), b"");
        }
    }
    assert!(guest.vsock.connections.len() <= MAX_CONNECTIONS);
    assert_eq!(guest.vsock.resets.len(), MAX_RESETS);
    // Now the transmit queue waits until the guest takes its answers.
    guest.memory.write_slice(&from_guest(Op::Data, 1, 1).encode(), GuestAddress(TX_DATA)).unwrap();
    let ring = MockSplitQueue::create(&guest.memory, TX_RING, 16);
    ring.build_desc_chain(&[RawDescriptor::from(Descriptor::new(TX_DATA, 44, 0, 0))]).unwrap();
    let mut queue: Queue = ring.create_queue().unwrap();
    assert!(!guest.vsock.process_tx(&mut queue, &guest.memory));
    assert_eq!(guest.ops().len(), RX_BUFFERS as usize);
    let ring = MockSplitQueue::create(&guest.memory, TX_RING, 16);
    ring.build_desc_chain(&[RawDescriptor::from(Descriptor::new(TX_DATA, 44, 0, 0))]).unwrap();
    let mut queue: Queue = ring.create_queue().unwrap();
    assert!(guest.vsock.process_tx(&mut queue, &guest.memory));
}

#[test]
fn clients_beyond_the_limit_are_turned_away() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 10 {
        clients.push(guest.client(b"CON"));
        guest.vsock.host_ready().unwrap();
    }
    while guest.vsock.host_ready().unwrap() {}
    let refused = clients.iter().filter(|client| reads(client).is_some()).count();
    assert_eq!(refused, 10);
    assert_eq!(
        guest.vsock.notes.list(),
        ["vsock: a client was refused, 1024 connections are open (10 times)"]
    );
    clients.clear();
    while guest.vsock.host_ready().unwrap() {}
    assert!(guest.vsock.greetings.is_empty());
}

#[test]
fn a_new_driver_forgets_what_the_old_one_knew() {
    let mut guest = Guest::new();
    let (stream, _) = guest.accepted(1 << 20);
    let waiting = guest.client(b"CONNECT 8\n");
    while guest.vsock.host_ready().unwrap() {}
    guest.vsock.reset();
    assert_eq!(reads(&stream), Some(Vec::new()));
    assert_eq!(reads(&waiting), None);
    assert_eq!(guest.ops(), [Op::Request as u16]);
}

#[test]
fn reserved_addresses_and_taken_paths_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |guest_cid, path: &str| {
        Vsock::new(VsockConfig { guest_cid, path: dir.path().join(path) }, Notes::default())
    };
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(open(cid, "a"), Err(VsockError::GuestCid(_))));
    }
    let first = open(3, "b").unwrap();
    assert!(matches!(open(3, "b"), Err(VsockError::Listen { .. })));
    assert!(matches!(open(3, &"x".repeat(200)), Err(VsockError::Listen { .. })));
    drop(first);
    assert!(!dir.path().join("b").exists());
}
