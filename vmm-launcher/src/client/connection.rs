//! One ttrpc connection: a task that reads, a task that writes, and the calls between them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nacre_protocols::host_agent::Rpc;
use nacre_protocols::host_agent::ttrpc::{
    self, FrameKind, HEADER_LEN, Header, PAYLOAD_MAX, Request, Response,
};
use nacre_protocols::names::AGENT_VSOCK_PORT;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::error::ClientError;
use super::text::printable;

/// Most calls without a reply.
const OUTSTANDING_MAX: usize = 128;
/// Most frames that wait to be written.
const QUEUE_MAX: usize = 16;
/// Longest answer to the hybrid socket's `connect`, in bytes.
const GREETING_MAX: usize = 32;
/// How long the guest may take to accept a connection.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest text of a status that is kept, in characters.
const STATUS_TEXT_MAX: usize = 4096;

#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    frames: mpsc::Sender<Vec<u8>>,
    next_stream: AtomicU32,
    outstanding: Semaphore,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug, Default)]
struct Shared {
    dead: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    calls: HashMap<u32, oneshot::Sender<Response>>,
    /// Highest stream id that was ever used.
    highest: u32,
    /// Why the guest was cut off.
    violation: Option<String>,
}

impl Connection {
    /// Connects to the agent's port through the hybrid socket: `connect 1024`, then `OK <host port>`.
    pub async fn open(socket: &Path) -> Result<Self, ClientError> {
        let mut stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::Gone { socket: socket.to_owned(), source }
            }
            _ => ClientError::Connect { socket: socket.to_owned(), source },
        })?;
        tokio::time::timeout(ACCEPT_DEADLINE, greet(&mut stream))
            .await
            .unwrap_or(Err(ClientError::NotListening))?;
        Ok(Self::over(stream))
    }

    fn over(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let shared = Arc::new(Shared::default());
        let (frames, queue) = mpsc::channel(QUEUE_MAX);
        let tasks = [
            tokio::spawn(read_replies(reader, Arc::clone(&shared))),
            tokio::spawn(write_frames(writer, queue, Arc::clone(&shared))),
        ];
        let outstanding = Semaphore::new(OUTSTANDING_MAX);
        Self { shared, frames, next_stream: AtomicU32::new(1), outstanding, tasks }
    }

    pub fn is_alive(&self) -> bool {
        // A stream id is never used twice; long before they run out a new connection is made.
        !self.shared.dead.load(Ordering::Acquire) && self.next_stream.load(Ordering::Relaxed) < u32::MAX / 2
    }

    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        deadline: Option<Duration>,
    ) -> Result<R::Response, ClientError> {
        let lost = || self.shared.lost(R::METHOD);
        let _permit = self.outstanding.acquire().await.map_err(|_| lost())?;
        let stream = self.next_stream.fetch_add(2, Ordering::Relaxed);
        let envelope = Request {
            service: R::SERVICE.into(),
            method: R::METHOD.into(),
            payload: request.encode_to_vec(),
            timeout_nano: deadline
                .map_or(0, |deadline| i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX)),
            metadata: Vec::new(),
        };
        let frame = ttrpc::request_frame(stream, &envelope)
            .map_err(|_| ClientError::TooLong { method: R::METHOD })?;
        let reply = self.shared.expect(stream).ok_or_else(lost)?;
        // A call that is given up is not waited for any more, whatever the reason.
        let _forget = Forget { shared: &self.shared, stream };
        self.frames.send(frame).await.map_err(|_| lost())?;
        let response = reply.await.map_err(|_| lost())?;
        let payload = response.into_result().map_err(|status| ClientError::Status {
            method: R::METHOD,
            code: status.code,
            message: printable(&status.message, STATUS_TEXT_MAX),
        })?;
        R::Response::decode(payload.as_slice())
            .map_err(|_| ClientError::Protocol(format!("the reply to {} does not decode", R::METHOD)))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting().calls.remove(&self.stream);
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, stream: u32) -> Option<oneshot::Receiver<Response>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if self.dead.load(Ordering::Acquire) {
            return None;
        }
        waiting.highest = waiting.highest.max(stream);
        waiting.calls.insert(stream, sender);
        Some(receiver)
    }

    fn lost(&self, method: &'static str) -> ClientError {
        match &self.waiting().violation {
            Some(violation) => ClientError::Protocol(violation.clone()),
            None => ClientError::Lost { method },
        }
    }

    fn end(&self, violation: Option<String>) {
        let mut waiting = self.waiting();
        self.dead.store(true, Ordering::Release);
        waiting.violation = waiting.violation.take().or(violation);
        waiting.calls.clear();
    }
}

async fn greet(stream: &mut UnixStream) -> Result<(), ClientError> {
    let ask = format!("connect {AGENT_VSOCK_PORT}\n");
    stream.write_all(ask.as_bytes()).await.map_err(|_| ClientError::NotListening)?;
    // Byte by byte: what comes after the line belongs to the agent.
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if line.len() < GREETING_MAX => line.push(byte),
            Ok(_) => return Err(ClientError::Protocol("the answer to connect is too long".into())),
            Err(_) => return Err(ClientError::NotListening),
        }
    }
    let port =
        line.strip_prefix(b"OK ").and_then(|port| std::str::from_utf8(port).ok()?.trim().parse::<u32>().ok());
    port.map(drop).ok_or_else(|| ClientError::Protocol("the answer to connect is not OK and a port".into()))
}

async fn write_frames(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, shared: Arc<Shared>) {
    while let Some(frame) = queue.recv().await {
        if writer.write_all(&frame).await.is_err() {
            break;
        }
    }
    shared.end(None);
}

async fn read_replies(mut reader: OwnedReadHalf, shared: Arc<Shared>) {
    let violation = loop {
        match read_reply(&mut reader).await {
            Err(violation) => break violation,
            Ok((stream, response)) => {
                let mut waiting = shared.waiting();
                match waiting.calls.remove(&stream) {
                    // The caller may have left in this instant.
                    Some(call) => drop(call.send(response)),
                    // The late answer to a call that was given up.
                    None if !stream.is_multiple_of(2) && stream <= waiting.highest => {}
                    None => break Some(format!("a reply to stream {stream}, which was never opened")),
                }
            }
        }
    };
    shared.end(violation);
}

/// The next reply; `Err(None)` at the end of the connection, `Err(Some(_))` when the guest breaks the rules.
async fn read_reply(reader: &mut OwnedReadHalf) -> Result<(u32, Response), Option<String>> {
    let mut head = [0; HEADER_LEN];
    reader.read_exact(&mut head).await.map_err(|_| None)?;
    let header = Header::decode(&head);
    if header.length as usize > PAYLOAD_MAX {
        return Err(Some(format!("a frame of {} bytes, the limit is {PAYLOAD_MAX}", header.length)));
    }
    if header.kind != FrameKind::Response {
        return Err(Some(format!("a frame of type {}, not a response", u8::from(header.kind))));
    }
    // Grows as the bytes arrive: a length alone takes no memory.
    let mut payload = Vec::new();
    let length = u64::from(header.length);
    let read = (&mut *reader).take(length).read_to_end(&mut payload).await.map_err(|_| None)?;
    if read as u64 != length {
        return Err(None);
    }
    let response =
        Response::from_payload(&payload).map_err(|_| Some("a response does not decode".to_owned()))?;
    Ok((header.stream, response))
}
