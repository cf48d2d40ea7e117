//! The user's standard streams and signals, joined to a process in the sandbox until it ends.

use std::io;
use std::time::Duration;

use rustix::fd::BorrowedFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::{self, RawMode};
use crate::client::{Client, ClientError, ProcessId};
use crate::sandbox::spec::SIGKILL;

/// Chunks of output on their way to a slow reader, besides the one that is asked for.
const CHUNKS_MAX: usize = 2;
/// Read from standard input at once, in bytes.
const STDIN_CHUNK: usize = 64 * 1024;
/// As many requests to end, and the user means it.
const INSISTING: u32 = 3;
/// After a hang-up nobody waits for the process for longer.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// 128 and SIGPIPE.
const BROKEN_PIPE: u8 = 141;
/// 128 and SIGKILL.
const KILLED: u8 = 137;

/// What is joined.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    pub interactive: bool,
    pub terminal: bool,
}

/// Until the process ends; returns its exit code.
pub async fn attach(client: &Client, id: &ProcessId, streams: Streams) -> Result<u8, ClientError> {
    let signals = Signals::new(streams.terminal).map_err(lost)?;
    let raw = streams.terminal && streams.interactive && terminal::stdin_is_terminal();
    let _raw = if raw { Some(RawMode::enter().map_err(lost)?) } else { None };
    if streams.terminal {
        resize(client, id).await;
    }
    let input = tokio::spawn(feed(client.clone(), id.clone(), streams));
    let result = tokio::select! {
        result = drain(client, id, streams.terminal) => result,
        result = forward(client, id, signals) => result,
    };
    input.abort();
    match result? {
        Ended::Output => {
            let exit = client.wait(id).await?;
            if exit.out_of_memory {
                eprintln!(
                    "nacre: out of memory: the kernel killed a process of {:?}; -m gives it more",
                    id.container
                );
            }
            Ok(exit.code)
        }
        Ended::Pipe => {
            kill(client, id).await;
            Ok(BROKEN_PIPE)
        }
        Ended::Insisted => {
            kill(client, id).await;
            Ok(KILLED)
        }
    }
}

/// Why nobody reads any more.
enum Ended {
    /// Both streams are at their end, so the process is.
    Output,
    /// Whoever read our standard output is gone.
    Pipe,
    Insisted,
}

fn lost(error: io::Error) -> ClientError {
    ClientError::Protocol(format!("this terminal: {error}"))
}

async fn kill(client: &Client, id: &ProcessId) {
    // The sandbox may be gone already, and that is as good.
    let _ = client.signal(id, SIGKILL).await;
    let _ = tokio::time::timeout(HANGUP_GRACE, client.wait(id)).await;
}

async fn drain(client: &Client, id: &ProcessId, terminal: bool) -> Result<Ended, ClientError> {
    let mut output = std::pin::pin!(copy(client, id, Output::Stdout));
    if terminal {
        // Both streams are one there.
        return Ok(if output.await? { Ended::Output } else { Ended::Pipe });
    }
    let mut error = std::pin::pin!(copy(client, id, Output::Stderr));
    let intact = tokio::select! {
        intact = &mut output => {
            let intact = intact?;
            if intact {
                error.await?;
            }
            intact
        }
        ended = &mut error => {
            ended?;
            output.await?
        }
    };
    Ok(if intact { Ended::Output } else { Ended::Pipe })
}

#[derive(Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            Output::Stdout => rustix::stdio::stdout(),
            Output::Stderr => rustix::stdio::stderr(),
        }
    }
}

/// Copies one stream to its end. False if nobody reads it any more. The next chunk is asked for while the last is written.
async fn copy(client: &Client, id: &ProcessId, output: Output) -> Result<bool, ClientError> {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            write_all(output.fd(), &chunk)?;
        }
        Ok::<(), rustix::io::Errno>(())
    });
    let mut received = 0;
    loop {
        let chunk = match output {
            Output::Stdout => client.read_stdout(id, received).await?,
            Output::Stderr => client.read_stderr(id, received).await?,
        };
        received += chunk.len() as u64;
        if chunk.is_empty() || sender.send(chunk).await.is_err() {
            break;
        }
    }
    drop(sender);
    match writer.await {
        Ok(Ok(())) => Ok(true),
        // stderr may be closed without harm; a closed stdout ends the whole.
        Ok(Err(_)) => Ok(matches!(output, Output::Stderr)),
        Err(_) => Ok(false),
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Somebody has made our stdout non-blocking: wait.
            Err(rustix::io::Errno::AGAIN) => wait_writable(fd),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn wait_writable(fd: BorrowedFd<'_>) {
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::OUT)];
    let _ = rustix::event::poll(&mut fds, None);
}

/// Standard input into the process, then end-of-file.
async fn feed(client: Client, id: ProcessId, streams: Streams) {
    if streams.interactive {
        let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
        // Not a task of the runtime: it may wait for a key for ever, and dies with the program.
        let reader = std::thread::Builder::new().name("stdin".into()).spawn(move || read_stdin(&sender));
        if reader.is_ok() {
            while let Some(mut chunk) = chunks.recv().await {
                while !chunk.is_empty() {
                    match client.write_stdin(&id, chunk.clone()).await {
                        Ok(taken) => drop(chunk.drain(..taken)),
                        // The process has ended, or closed its input; its output says more.
                        Err(_) => return,
                    }
                }
            }
        }
    }
    // The end of a terminal's input is a key, not a closed pipe.
    if !streams.terminal {
        let _ = client.close_stdin(&id).await;
    }
}

fn read_stdin(sender: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; STDIN_CHUNK];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let stdin = rustix::stdio::stdin();
                let mut fds = [rustix::event::PollFd::new(&stdin, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, None);
            }
            Err(_) => return,
        }
    }
}

/// Signals that are the process's business. `SIGINT` arrives as a key when the terminal is raw.
struct Signals {
    resized: Option<Signal>,
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
    proceed: Signal,
}

impl Signals {
    fn new(terminal: bool) -> io::Result<Self> {
        Ok(Self {
            resized: if terminal { Some(signal(SignalKind::window_change())?) } else { None },
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            proceed: signal(SignalKind::from_raw(libc::SIGCONT))?,
        })
    }

    async fn next(&mut self) -> i32 {
        let resized = async {
            match &mut self.resized {
                Some(resized) => resized.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = resized => libc::SIGWINCH,
            _ = self.hangup.recv() => libc::SIGHUP,
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.quit.recv() => libc::SIGQUIT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.user1.recv() => libc::SIGUSR1,
            _ = self.user2.recv() => libc::SIGUSR2,
            _ = self.proceed.recv() => libc::SIGCONT,
        }
    }
}

/// Passes signals on; ends only when the user insists, or has hung up.
async fn forward(client: &Client, id: &ProcessId, mut signals: Signals) -> Result<Ended, ClientError> {
    let mut asked = 0;
    loop {
        let number = signals.next().await;
        match number {
            libc::SIGWINCH => resize(client, id).await,
            libc::SIGHUP => {
                let _ = client.signal(id, number.cast_unsigned()).await;
                // Nobody sees the output any more.
                tokio::time::sleep(HANGUP_GRACE).await;
                return Ok(Ended::Insisted);
            }
            _ => {
                if matches!(number, libc::SIGINT | libc::SIGTERM) {
                    asked += 1;
                    if asked >= INSISTING {
                        return Ok(Ended::Insisted);
                    }
                }
                match client.signal(id, number.cast_unsigned()).await {
                    // It has ended meanwhile; its output ends, too.
                    Ok(()) | Err(ClientError::Status { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

async fn resize(client: &Client, id: &ProcessId) {
    if let Some(size) = terminal::size() {
        // A process that ends right now has no terminal to be resized.
        let _ = client.resize(id, size.rows, size.columns).await;
    }
}
