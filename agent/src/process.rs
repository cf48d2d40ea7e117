//! A process of a container: its streams, and how it ended.
//!
//! Streams are read only when the host asks, so a container that floods its output costs nothing but a full pipe.

use crate::agent::Agent;
use crate::error::RpcError;
use crate::relay::Relay;
use crate::server::Outbound;
use crate::stream::{Chunk, READ_MAX, Stream};
use nacre_protocols::agent_init::{ExitStatus, OutputStream, ProcessRef};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::TerminalSize;
use rustix::io::Errno;
use rustix::termios::Winsize;
use std::cell::{OnceCell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::sync::{Mutex, watch};

/// After the process has ended, so many bytes are still read of each stream, whoever else writes to it: as many as
/// the largest pipe holds (`/proc/sys/fs/pipe-max-size`).
pub const DRAIN_MAX: u64 = 1024 * 1024;

pub struct Process {
    pub name: ProcessRef,
    /// Set when init has made the process.
    streams: OnceCell<Streams>,
    exit: watch::Sender<Option<ExitStatus>>,
}

/// What is known of a process beside its descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    pub terminal: bool,
    pub stdin_open: bool,
    /// Bytes that were taken out of its output and its error stream.
    pub taken: [u64; 2],
    /// Of a terminal: whether its input and its output are connections of the host's.
    pub relayed: [bool; 2],
}

struct Streams {
    /// Its master.
    terminal: Option<Rc<Stream>>,
    stdin: RefCell<Option<Rc<Stream>>>,
    /// The terminal's master, or the read end of stdout.
    stdout: Option<Rc<Stream>>,
    stderr: Option<Rc<Stream>>,
    /// One write at a time, in the order of the requests.
    writing: Mutex<()>,
}

impl Process {
    pub fn new(name: ProcessRef) -> Rc<Self> {
        let (exit, _) = watch::channel(None);
        Rc::new(Self { name, streams: OnceCell::new(), exit })
    }

    /// Takes the streams as init gives them: the terminal's master and the pipe behind it; or stdin, unless it was closed,
    /// stdout and stderr. Those that are connections of the host's are his to read and write, and nobody else's.
    pub fn born(&self, birth: Birth, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Birth { terminal, stdin_open, taken: [output_taken, error_taken], relayed } = birth;
        let stream = |which, fd, stage, taken| Stream::new(&self.name, which, fd, stage, taken);
        let mut fds = fds.into_iter();
        let streams = if terminal {
            let (master, stage) = (fds.next(), fds.next().zip(fds.next()));
            let master =
                master.map(|master| stream(OutputStream::Output, master, stage, output_taken)).transpose()?;
            let relay = Relay::new(relayed, &mut fds)?;
            if let (Some(relay), Some(master)) = (relay, &master) {
                tokio::task::spawn_local(relay.run(Rc::clone(master), self.exit.subscribe()));
                Streams::new(Some(Rc::clone(master)), None, None, None)
            } else {
                Streams::new(master.clone(), master.clone(), master, None)
            }
        } else {
            let mut next = |which, taken| fds.next().map(|fd| stream(which, fd, None, taken)).transpose();
            // Only written to, so what it is called does not matter.
            let stdin = if stdin_open { next(OutputStream::Output, 0)? } else { None };
            let stdout = next(OutputStream::Output, output_taken)?;
            Streams::new(None, stdin, stdout, next(OutputStream::Error, error_taken)?)
        };
        // Born twice would be a fault of ours; the first streams stay.
        let _ = self.streams.set(streams);
        Ok(())
    }

    pub fn is_born(&self) -> bool {
        self.streams.get().is_some()
    }

    pub fn exited(&self, status: ExitStatus) {
        self.exit.send_replace(Some(status));
    }

    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    pub async fn wait(&self) -> Result<ExitStatus, RpcError> {
        let mut exit = self.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.ok_or_else(|| RpcError::internal("the process was forgotten"))
    }

    /// At least one byte, or nothing at end-of-file: every writer is gone, or the process is and what it wrote was read.
    ///
    /// `received` is how much of the stream the caller has, if he says it.
    pub async fn read(
        &self,
        agent: &Agent,
        which: OutputStream,
        length: u32,
        received: Option<u64>,
        outbound: &Outbound,
    ) -> Result<Option<Chunk>, RpcError> {
        let streams = self.streams()?;
        let stream = match which {
            OutputStream::Output => &streams.stdout,
            OutputStream::Error => &streams.stderr,
        };
        let Some(stream) = stream else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(READ_MAX).clamp(1, READ_MAX);
        let turn = stream.turn().await;
        if let Some(received) = received {
            stream.take(&agent.init, received).await?;
        }
        let mut exit = self.exit.subscribe();
        loop {
            outbound.space().await;
            let has_exited = exit.borrow_and_update().is_some();
            if has_exited && stream.drained() >= DRAIN_MAX {
                return Ok(None);
            }
            match stream.look(&agent.mirror, length) {
                Ok(bytes) if bytes.is_empty() => return Ok(None),
                Ok(bytes) => return Ok(Some(stream.chunk(bytes, turn))),
                Err(Errno::AGAIN) if has_exited => return Ok(None),
                Err(Errno::AGAIN) => {}
                // A terminal that nobody has open any more.
                Err(Errno::IO) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(RpcError::internal(format!("reading: {errno}"))),
            }
            tokio::select! {
                ready = stream.fd.readable() => match ready {
                    // Cleared before the next try: what arrives after it sets it anew.
                    Ok(mut ready) => ready.clear_ready(),
                    Err(error) => return Err(RpcError::internal(format!("waiting to read: {error}"))),
                },
                _ = exit.changed() => {}
            }
        }
    }

    /// Writes all of it, as fast as the process reads.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), RpcError> {
        let streams = self.streams()?;
        let _turn = streams.writing.lock().await;
        let stdin = streams.stdin.borrow().clone();
        let Some(stdin) = stdin else {
            return Err(RpcError::internal("cannot write to stdin: it is closed"));
        };
        let mut exit = self.exit.subscribe();
        let mut left = bytes;
        while !left.is_empty() {
            match rustix::io::write(&stdin.fd, left) {
                Ok(count) => {
                    left = left.get(count..).unwrap_or_default();
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if exit.borrow_and_update().is_some() => {
                    return Err(RpcError::internal("cannot write to stdin: the process has ended"));
                }
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(RpcError::internal(format!("writing to stdin: {errno}"))),
            }
            tokio::select! {
                ready = stdin.fd.writable() => match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(error) => return Err(RpcError::internal(format!("waiting to write: {error}"))),
                },
                _ = exit.changed() => {}
            }
        }
        Ok(())
    }

    /// Gives up our end of stdin, after the writes that came before; true when init has to give up its own. A terminal has
    /// no end that could be closed alone.
    pub async fn close_stdin(&self) -> Result<bool, RpcError> {
        let streams = self.streams()?;
        if streams.terminal.is_some() {
            return Ok(false);
        }
        let _turn = streams.writing.lock().await;
        Ok(streams.stdin.borrow_mut().take().is_some())
    }

    pub fn resize(&self, size: TerminalSize) -> Result<(), RpcError> {
        let streams = self.streams()?;
        let master = streams.terminal.as_ref().ok_or_else(|| RpcError::new(Code::Unavailable, "no tty"))?;
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master.fd, size)
            .map_err(|errno| RpcError::internal(format!("setting the size of the terminal: {errno}")))
    }

    fn streams(&self) -> Result<&Streams, RpcError> {
        self.streams.get().ok_or_else(|| RpcError::new(Code::NotFound, "the process is not there yet"))
    }
}

impl Streams {
    fn new(
        terminal: Option<Rc<Stream>>,
        stdin: Option<Rc<Stream>>,
        stdout: Option<Rc<Stream>>,
        stderr: Option<Rc<Stream>>,
    ) -> Self {
        Self { terminal, stdin: RefCell::new(stdin), stdout, stderr, writing: Mutex::new(()) }
    }
}
