//! A name server of the tests' own, in a network namespace (RFC 1035).

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How often the thread looks whether it should end.
const POLL: Duration = Duration::from_millis(50);
const TYPE_A: [u8; 2] = [0, 1];

/// Knows one name and says of every other that there is none. Ends with its value.
pub struct NameServer {
    asked: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Listens on `address`, UDP port 53, in the network namespace that `ip netns` knows as `namespace`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start(namespace: &str, address: Ipv4Addr, name: &str, answer: Ipv4Addr) -> Self {
        let namespace = File::open(Path::new("/run/netns").join(namespace)).expect("no such namespace");
        let (asked, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (question, ready) = (question(name), Arc::new(std::sync::Barrier::new(2)));
        let thread = thread::spawn({
            let (asked, end, ready) = (asked.clone(), end.clone(), ready.clone());
            move || {
                let socket = listen(&namespace, address);
                ready.wait();
                let socket = socket.expect("cannot listen");
                while !end.load(Ordering::Relaxed) {
                    let mut packet = [0; 512];
                    let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Some(reply) = reply(&packet[..length], &question, answer) {
                        let _ = socket.send_to(&reply, from);
                    }
                }
            }
        });
        ready.wait();
        Self { asked, end, thread: Some(thread) }
    }

    /// How many questions came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The calling thread stays in the namespace.
fn listen(namespace: &File, address: Ipv4Addr) -> io::Result<UdpSocket> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = UdpSocket::bind((address, 53))?;
    socket.set_read_timeout(Some(POLL))?;
    Ok(socket)
}

/// A name as a question has it: labels, each behind its length (section 3.1).
fn question(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a long label"));
        bytes.extend_from_slice(label.to_ascii_lowercase().as_bytes());
    }
    bytes.push(0);
    bytes
}

/// One question, one answer (section 4.1).
fn reply(packet: &[u8], known: &[u8], answer: Ipv4Addr) -> Option<Vec<u8>> {
    let body = packet.get(12..)?;
    let end = body.iter().position(|byte| *byte == 0)? + 1;
    let (name, kind) = (body.get(..end)?.to_ascii_lowercase(), body.get(end..end + 2)?);
    let (is_known, has_answer) = (name == known, name == known && kind == TYPE_A);
    let mut reply = packet.get(..2)?.to_vec();
    // A response, recursion desired and available; 3 is "no such name".
    reply.extend([0x81, if is_known { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(has_answer), 0, 0, 0, 0]);
    reply.extend_from_slice(body.get(..end + 4)?);
    if has_answer {
        // The name at offset 12, type A, class IN, a lifetime of one minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer.octets());
    }
    Some(reply)
}
