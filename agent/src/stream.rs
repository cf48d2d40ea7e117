//! One stream of a process, read so that an agent that dies loses nothing of it: what is read stays in a pipe that init
//! holds, and init takes it out when the host has it.

use crate::error::RpcError;
use crate::init::Init;
use nacre_protocols::agent_init::{OutputStream, ProcessRef, RequestBody};
use nacre_protocols::host_agent::ttrpc::Code;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice, tee};
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// What a pipe of ours can show at once, in bytes, and so the most that one read gives (pipe(7)).
pub const READ_MAX: usize = 64 * 1024;

/// A pipe into which the bytes of a stream are doubled (tee(2)) to be read there.
pub struct Mirror {
    read: OwnedFd,
    write: OwnedFd,
}

pub struct Stream {
    process: ProcessRef,
    which: OutputStream,
    /// What the process writes to: the read end of a pipe, or a terminal's master.
    pub fd: AsyncFd<OwnedFd>,
    /// Of a terminal, which cannot be looked into: the pipe that its bytes go through, read end and write end.
    pub stage: Option<(OwnedFd, OwnedFd)>,
    /// Bytes that init has taken out of it.
    taken: Cell<u64>,
    /// How many of them were there when the process was known to have ended.
    taken_at_exit: Cell<Option<u64>>,
    /// One reader at a time, until the host has what he read.
    turn: Arc<Mutex<()>>,
}

/// Bytes of a stream that are still in it. Dropped, they are read again by the next who asks.
pub struct Chunk {
    pub bytes: Vec<u8>,
    stream: Rc<Stream>,
    turn: OwnedMutexGuard<()>,
}

impl Mirror {
    /// Before the agent gives up its rights: it can make no pipe afterwards.
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write })
    }

    /// The next bytes of `pipe`, which stay there; none at its end.
    fn look(&self, pipe: &OwnedFd, length: usize) -> Result<Vec<u8>, Errno> {
        let count = tee(pipe, &self.write, length, SpliceFlags::NONBLOCK)?;
        let mut bytes = vec![0; count];
        let mut left = bytes.as_mut_slice();
        while !left.is_empty() {
            match rustix::io::read(&self.read, &mut *left) {
                Ok(0) => return Err(Errno::PIPE),
                Ok(count) => left = left.get_mut(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(bytes)
    }
}

impl Stream {
    pub fn new(
        process: &ProcessRef,
        which: OutputStream,
        fd: OwnedFd,
        stage: Option<(OwnedFd, OwnedFd)>,
        taken: u64,
    ) -> io::Result<Rc<Self>> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Rc::new(Self {
            process: process.clone(),
            which,
            fd: crate::watch(fd)?,
            stage,
            taken: Cell::new(taken),
            taken_at_exit: Cell::default(),
            turn: Arc::default(),
        }))
    }

    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Bytes that were read since the process is known to have ended.
    pub fn drained(&self) -> u64 {
        let taken = self.taken.get();
        let at_exit = self.taken_at_exit.get().unwrap_or(taken);
        self.taken_at_exit.set(Some(at_exit));
        taken.saturating_sub(at_exit)
    }

    /// The host has so many bytes of the stream: they leave it.
    pub async fn take(&self, init: &Init, upto: u64) -> Result<(), RpcError> {
        let taken = self.taken.get();
        if upto < taken {
            let message = format!("received {upto}: the first {taken} bytes of the stream are gone");
            return Err(RpcError::new(Code::OutOfRange, message));
        }
        if upto > taken {
            let (process, stream) = (self.process.clone(), self.which);
            init.order(RequestBody::Take { process, stream, upto }).await?;
            self.taken.set(upto);
        }
        Ok(())
    }

    /// What is there, without taking it; none at the end of the stream.
    pub fn look(&self, mirror: &Mirror, length: usize) -> Result<Vec<u8>, Errno> {
        let length = length.min(READ_MAX);
        let Some((stage, into)) = &self.stage else { return mirror.look(self.fd.get_ref(), length) };
        // What an agent before this one has taken and not sent goes first.
        match mirror.look(stage, length) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
        match splice(self.fd.get_ref(), None, into, None, length, SpliceFlags::NONBLOCK) {
            Ok(0) => Ok(Vec::new()),
            Ok(_) => mirror.look(stage, length),
            Err(errno) => Err(errno),
        }
    }

    pub fn chunk(self: &Rc<Self>, bytes: Vec<u8>, turn: OwnedMutexGuard<()>) -> Chunk {
        Chunk { bytes, stream: Rc::clone(self), turn }
    }
}

impl Chunk {
    /// An answer with its bytes was sent to somebody who does not say what he has: that must do.
    pub async fn sent(self, init: &Init, length: usize) {
        let upto = self.stream.taken.get().saturating_add(length as u64);
        if let Err(error) = self.stream.take(init, upto).await {
            crate::say(&format!("{length} bytes of a stream are sent twice: {}", error.message));
        }
        drop(self.turn);
    }
}
