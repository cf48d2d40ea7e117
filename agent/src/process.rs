//! A process of a container: its streams, and how it ended.
//!
//! Streams are read only when the host asks, so a container that floods its output costs nothing but a full pipe.

use crate::error::RpcError;
use crate::server::Outbound;
use nacre_protocols::agent_init::{ExitStatus, ProcessRef};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::TerminalSize;
use rustix::io::Errno;
use rustix::termios::Winsize;
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, watch};

/// Most bytes that one read gives.
pub const READ_MAX: usize = 64 * 1024;
/// After the process has ended, so many bytes are still read of each stream, whoever else writes to it: as many as
/// the largest pipe holds (`/proc/sys/fs/pipe-max-size`).
const DRAIN_MAX: usize = 1024 * 1024;

pub struct Process {
    pub name: ProcessRef,
    /// Set when init has made the process.
    streams: OnceCell<Streams>,
    exit: watch::Sender<Option<ExitStatus>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

struct Streams {
    terminal: bool,
    stdin: RefCell<Option<Rc<Stream>>>,
    /// The terminal's master, or the read end of stdout.
    stdout: Option<Rc<Stream>>,
    stderr: Option<Rc<Stream>>,
    /// One write at a time, in the order of the requests.
    writing: Mutex<()>,
}

struct Stream {
    fd: AsyncFd<OwnedFd>,
    drained: Cell<usize>,
}

impl Process {
    pub fn new(name: ProcessRef) -> Rc<Self> {
        let (exit, _) = watch::channel(None);
        Rc::new(Self { name, streams: OnceCell::new(), exit })
    }

    /// Takes the streams as init gives them: the terminal's master; or stdin, unless it was closed, stdout and stderr.
    pub fn born(&self, terminal: bool, stdin_open: bool, fds: Vec<OwnedFd>) -> io::Result<()> {
        let mut fds = fds.into_iter().map(Stream::new);
        let mut next = || fds.next().transpose();
        let streams = if terminal {
            let master = next()?;
            Streams::new(true, master.clone(), master, None)
        } else {
            let stdin = if stdin_open { next()? } else { None };
            Streams::new(false, stdin, next()?, next()?)
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

    /// At least one byte, or none at end-of-file: every writer is gone, or the process is and what it wrote was read.
    ///
    /// Nothing is lost when the caller gives up: bytes leave the pipe only in the step that returns them.
    pub async fn read(&self, which: Output, length: u32, outbound: &Outbound) -> Result<Vec<u8>, RpcError> {
        let streams = self.streams()?;
        let stream = match which {
            Output::Stdout => &streams.stdout,
            Output::Stderr => &streams.stderr,
        };
        let Some(stream) = stream else { return Ok(Vec::new()) };
        let length = usize::try_from(length).unwrap_or(READ_MAX).clamp(1, READ_MAX);
        let mut exit = self.exit.subscribe();
        loop {
            outbound.space().await;
            let has_exited = exit.borrow_and_update().is_some();
            if has_exited && stream.drained.get() >= DRAIN_MAX {
                return Ok(Vec::new());
            }
            match stream.try_read(length) {
                Ok(bytes) => {
                    if has_exited {
                        stream.drained.set(stream.drained.get() + bytes.len());
                    }
                    return Ok(bytes);
                }
                Err(Errno::AGAIN) if has_exited => return Ok(Vec::new()),
                Err(Errno::AGAIN) => {}
                // A terminal that nobody has open any more.
                Err(Errno::IO) => return Ok(Vec::new()),
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
        if streams.terminal {
            return Ok(false);
        }
        let _turn = streams.writing.lock().await;
        Ok(streams.stdin.borrow_mut().take().is_some())
    }

    pub fn resize(&self, size: TerminalSize) -> Result<(), RpcError> {
        let streams = self.streams()?;
        let (true, Some(master)) = (streams.terminal, &streams.stdout) else {
            return Err(RpcError::new(Code::Unavailable, "no tty"));
        };
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
        terminal: bool,
        stdin: Option<Rc<Stream>>,
        stdout: Option<Rc<Stream>>,
        stderr: Option<Rc<Stream>>,
    ) -> Self {
        Self { terminal, stdin: RefCell::new(stdin), stdout, stderr, writing: Mutex::new(()) }
    }
}

impl Stream {
    fn new(fd: OwnedFd) -> io::Result<Rc<Self>> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Rc::new(Self { fd: crate::watch(fd)?, drained: Cell::new(0) }))
    }

    fn try_read(&self, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        let count = rustix::io::read(&self.fd, bytes.as_mut_slice())?;
        bytes.truncate(count);
        Ok(bytes)
    }
}
