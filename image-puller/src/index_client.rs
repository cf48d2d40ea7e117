//! The fetcher's side of the edge to the indexer: hands out layers, and brings each answer to who waits for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocols::fetcher_indexer::{
    Compression, FRAME_MAX, IndexFailureKind, IndexLayer, LAYERS_AT_ONCE, Reply,
};
use nacre_protocols::frame;
use nacre_sys::seqpacket;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::digest::Digest;
use crate::registry::transport::Cancel;

/// Bytes that a layer's pipe holds: enough that neither side waits for the other at every read.
const PIPE_BYTES: usize = 256 << 10;
/// Longest wait between two looks at the cancel flag.
const WAIT_SLICE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("{message}")]
    Failed { kind: IndexFailureKind, message: String },
    #[error("the indexer is gone")]
    Gone,
    #[error("cannot hand the layer to the indexer: {0}")]
    Start(io::Error),
    #[error("cancelled")]
    Cancelled,
}

/// What the indexer made of a layer; sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    pub diff_id: Digest,
    pub tar: u64,
    pub index: u64,
}

pub struct IndexClient {
    socket: OwnedFd,
    state: Mutex<State>,
    slot_freed: Condvar,
}

#[derive(Default)]
struct State {
    next_id: u32,
    /// A job keeps its place here until the indexer has answered, also when nobody waits for it any more.
    jobs: HashMap<u32, Sender<Result<Indexed, IndexError>>>,
    gone: bool,
}

impl IndexError {
    /// The layer is not what a layer should be, as far as the indexer can tell.
    pub fn blames_the_layer(&self) -> bool {
        matches!(self, Self::Failed { kind: IndexFailureKind::Malformed, .. })
    }
}

/// One layer under way.
pub struct Job {
    answer: Receiver<Result<Indexed, IndexError>>,
    pipe: Option<PipeWriter>,
    cancel: Cancel,
}

impl IndexClient {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, state: Mutex::default(), slot_freed: Condvar::new() }
    }

    /// Receives answers until the indexer is gone or says what it may not; then every job has failed.
    pub fn receive(&self) {
        let mut buffer = vec![0; FRAME_MAX];
        while let Ok(Some((length, _))) = seqpacket::receive(&self.socket, &mut buffer) {
            let reply = buffer.get(..length).and_then(|bytes| frame::decode(bytes, FRAME_MAX).ok());
            if reply.and_then(|reply| self.deliver(reply)).is_none() {
                break;
            }
        }
        // An indexer that is not understood must not go on either.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let mut state = self.lock();
        state.gone = true;
        for (_, waiting) in state.jobs.drain() {
            let _ = waiting.send(Err(IndexError::Gone));
        }
        self.slot_freed.notify_all();
    }

    /// Waits for one of the indexer's places, then hands it a layer: with the file that its tar goes into and the most bytes
    /// of it, or without, where the tar is there already.
    pub fn start(
        &self,
        compression: Compression,
        tar: Option<(&File, u64)>,
        index: &File,
        cancel: &Cancel,
    ) -> Result<Job, IndexError> {
        let (reader, writer) = io::pipe().map_err(IndexError::Start)?;
        // A smaller pipe works too.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
        rustix::io::ioctl_fionbio(&writer, true).map_err(|error| IndexError::Start(error.into()))?;
        let (sender, answer) = channel();
        let id = self.take_slot(sender, cancel)?;
        let tar_max = tar.map(|(_, max)| max);
        let request = frame::encode(&IndexLayer { id, compression, tar_max }, FRAME_MAX)
            .map_err(|error| IndexError::Start(io::Error::other(error)))?;
        let tar = tar.map(|(file, _)| file.as_fd());
        let fds: Vec<_> = [Some(reader.as_fd()), tar, Some(index.as_fd())].into_iter().flatten().collect();
        if let Err(error) = seqpacket::send(&self.socket, &request, &fds) {
            self.lock().jobs.remove(&id);
            self.slot_freed.notify_one();
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => IndexError::Gone,
                _ => IndexError::Start(error),
            });
        }
        Ok(Job { answer, pipe: Some(writer), cancel: cancel.clone() })
    }

    fn take_slot(
        &self,
        sender: Sender<Result<Indexed, IndexError>>,
        cancel: &Cancel,
    ) -> Result<u32, IndexError> {
        let mut state = self.lock();
        while state.jobs.len() >= LAYERS_AT_ONCE && !state.gone {
            if cancel.is_set() {
                return Err(IndexError::Cancelled);
            }
            let waited = self.slot_freed.wait_timeout(state, WAIT_SLICE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.gone {
            return Err(IndexError::Gone);
        }
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        state.jobs.insert(id, sender);
        Ok(id)
    }

    /// `None` if nothing was asked under this id.
    fn deliver(&self, reply: Reply) -> Option<()> {
        let (id, answer) = match reply {
            Reply::Done { id, diff_id, tar, index, .. } => {
                (id, Ok(Indexed { diff_id: Digest::from_bytes(diff_id.0), tar, index }))
            }
            Reply::Failed { id, kind, message } => {
                (id, Err(IndexError::Failed { kind, message: crate::manifest::shorten_to(&message, 512) }))
            }
        };
        let waiting = self.lock().jobs.remove(&id)?;
        self.slot_freed.notify_one();
        // Nobody waits where the pull was cancelled.
        let _ = waiting.send(answer);
        Some(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    /// Feeds compressed bytes; false if the indexer takes no more: its answer says why.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<bool, IndexError> {
        let Some(pipe) = &mut self.pipe else { return Ok(false) };
        while !bytes.is_empty() {
            match io::Write::write(pipe, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.cancel.is_set() {
                        return Err(IndexError::Cancelled);
                    }
                    wait_writable(pipe);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Says that the blob has ended, and waits for what became of it.
    pub fn finish(mut self) -> Result<Indexed, IndexError> {
        self.pipe = None;
        loop {
            match self.answer.recv_timeout(WAIT_SLICE) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(IndexError::Gone),
                Err(RecvTimeoutError::Timeout) if self.cancel.is_set() => return Err(IndexError::Cancelled),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

fn wait_writable(pipe: &PipeWriter) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: WAIT_SLICE.subsec_nanos().into() };
    // Whatever comes back, the caller writes again and sees.
    let _ = rustix::event::poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&timeout));
}
