//! One ttrpc connection: calls begin in any order and end in any other.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nacre_protocols::host_agent::ttrpc::{HEADER_LEN, Header, PAYLOAD_MAX, Request, Response, request_frame};

/// Longest answer to the hybrid socket's `connect`, in bytes.
const GREETING_MAX: usize = 64;
/// How long a guest that boots may take until its agent answers, and how often it is tried.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
const RETRY: Duration = Duration::from_millis(50);

type Waiting = Arc<Mutex<HashMap<u32, Sender<Response>>>>;

pub struct Client {
    writer: Mutex<Writer>,
    waiting: Waiting,
}

struct Writer {
    socket: UnixStream,
    next: u32,
}

/// A call that has begun.
pub struct Pending {
    replies: Receiver<Response>,
}

impl Client {
    /// Connects through a hybrid vsock socket as runtime-rs does: `connect PORT`, then `OK HOST_PORT`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(hybrid: &Path, port: u32) -> io::Result<Self> {
        let mut socket = UnixStream::connect(hybrid)?;
        socket.write_all(format!("connect {port}\n").as_bytes())?;
        let mut greeting = Vec::new();
        while greeting.last() != Some(&b'\n') {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            greeting.extend(byte);
            if greeting.len() > GREETING_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        if !greeting.starts_with(b"OK ") {
            return Err(io::Error::other(String::from_utf8_lossy(&greeting).into_owned()));
        }
        let waiting = Waiting::default();
        let (reader, shared) = (socket.try_clone()?, Arc::clone(&waiting));
        thread::spawn(move || read_replies(reader, &shared));
        Ok(Self { writer: Mutex::new(Writer { socket, next: 1 }), waiting })
    }

    /// The same, again and again while the guest boots.
    ///
    /// # Errors
    /// It does not within its time.
    pub fn connect_when_booted(hybrid: &Path, port: u32) -> io::Result<Self> {
        let until = Instant::now() + BOOT_LIMIT;
        loop {
            match Self::connect(hybrid, port) {
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => thread::sleep(RETRY),
                connected => return connected,
            }
        }
    }

    /// Sends a request; `deadline` is what the agent is told.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn begin(
        &self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        deadline: Option<Duration>,
    ) -> io::Result<Pending> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: deadline.map_or(0, |it| i64::try_from(it.as_nanos()).unwrap_or(i64::MAX)),
            metadata: Vec::new(),
        };
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = writer.next;
        writer.next += 2;
        let (sender, replies) = channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, sender);
        let frame = request_frame(stream, &request).map_err(io::Error::other)?;
        writer.socket.write_all(&frame)?;
        Ok(Pending { replies })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Pending {
    /// The reply, or nothing when there is none within `limit`.
    ///
    /// # Errors
    /// The connection ended first.
    pub fn wait(&self, limit: Duration) -> io::Result<Option<Response>> {
        match self.replies.recv_timeout(limit) {
            Ok(response) => Ok(Some(response)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// To the end of the connection; who still waits then is let go.
fn read_replies(mut socket: UnixStream, waiting: &Waiting) {
    while let Ok((stream, response)) = read_reply(&mut socket) {
        let waits = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
        if let Some(waits) = waits {
            // Who asked may not want to know any more.
            let _ = waits.send(response);
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn read_reply(socket: &mut UnixStream) -> io::Result<(u32, Response)> {
    let mut head = [0; HEADER_LEN];
    socket.read_exact(&mut head)?;
    let header = Header::decode(&head);
    let length = header.length as usize;
    if length > PAYLOAD_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload)?;
    Ok((header.stream, Response::from_payload(&payload).map_err(io::Error::other)?))
}
