//! Commands to monitor: one JSON document a line, over a unix socket of the sandbox's directory.
//!
//! The connection is the lifeline. What a command holds through it (its container, its exec) is killed by the monitor when
//! the connection closes, whatever the reason; a detached container is handed to the monitor instead.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::machine::{GuestNetwork, MachineConfig};
use super::record::ContainerRecord;

/// Longest line, in bytes.
pub const LINE_MAX: u64 = 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
pub enum ToMonitor {
    /// The first line to a monitor that has just been started. Reply: [`FromMonitor::Booted`] or
    /// [`FromMonitor::Failed`].
    Boot(Box<MachineConfig>),
    /// Serve these files of the host as an image. Reply: [`FromMonitor::Reference`].
    ServeImage {
        image: String,
    },
    /// This connection is about to create a container. Reply: [`FromMonitor::Done`] or [`FromMonitor::Refused`].
    Hold(Box<ContainerRecord>),
    /// It runs now; the record says with what.
    Started(Box<ContainerRecord>),
    /// It has ended and was removed by this connection's command. Reply: [`FromMonitor::StillUsed`] if other containers
    /// run, else [`FromMonitor::Done`], and then [`FromMonitor::Gone`].
    Ended {
        container: String,
        code: u8,
    },
    /// The monitor takes the container over: output, end and removal.
    Adopt {
        container: String,
    },
    /// This connection has started an exec.
    HoldExec {
        container: String,
        exec: String,
    },
    ExecEnded {
        exec: String,
    },
    /// Reply, when it has ended: [`FromMonitor::Exited`].
    Wait {
        container: String,
    },
    /// End the sandbox with all that runs in it.
    Stop,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromMonitor {
    Booted(Box<Booted>),
    Failed(Problem),
    Done,
    StillUsed,
    Refused {
        reason: String,
    },
    Reference {
        reference: String,
        /// Where it is: `host` and a repository.
        location: String,
        host: String,
    },
    Exited {
        code: u8,
    },
    /// The last line: the sandbox has ended and nothing of it is left.
    Gone(Gone),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Booted {
    pub vsock: PathBuf,
    pub network: Option<GuestNetwork>,
    /// One line each for the user.
    pub notices: Vec<String>,
    pub kvm: bool,
}

/// Why something could not be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    pub stage: String,
    pub cause: String,
    /// The end of the guest's console.
    pub console: Vec<String>,
    pub next_step: String,
}

/// How a sandbox ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Gone {
    /// As it was meant to.
    Orderly,
    /// The guest or QEMU died.
    Died(Problem),
}

pub struct LineReader {
    reader: BufReader<OwnedReadHalf>,
}

pub struct LineWriter {
    writer: OwnedWriteHalf,
}

/// Both halves of a control connection.
pub fn split(stream: UnixStream) -> (LineReader, LineWriter) {
    let (reader, writer) = stream.into_split();
    (LineReader { reader: BufReader::new(reader) }, LineWriter { writer })
}

impl LineReader {
    /// The next message; `None` at the end of the connection. Safe to cancel only between messages.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(LINE_MAX).read_until(b'\n', &mut line).await?;
        if read == 0 || line.last() != Some(&b'\n') {
            return if read as u64 == LINE_MAX {
                Err(io::Error::other("a line is too long"))
            } else {
                Ok(None)
            };
        }
        serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
    }
}

impl LineWriter {
    pub async fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        if line.len() as u64 > LINE_MAX {
            return Err(io::Error::other(format!("a message is longer than {LINE_MAX} bytes")));
        }
        self.writer.write_all(&line).await
    }
}

/// A command's end of a control connection.
pub struct Control {
    writer: tokio::sync::Mutex<LineWriter>,
    replies: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<FromMonitor>>,
    gone: tokio::sync::watch::Receiver<Option<Gone>>,
    reader: tokio::task::JoinHandle<()>,
}

/// Replies that may wait to be read.
const REPLIES_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("connect to the monitor of the sandbox at {path:?}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("talk to the monitor of the sandbox: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the monitor gave an answer that does not belong to the question")]
    Unexpected,
    #[error("the monitor of the sandbox is gone")]
    Closed,
}

impl Control {
    pub async fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| ControlError::Connect { path: path.to_owned(), source })?;
        Ok(Self::over(stream))
    }

    pub fn over(stream: UnixStream) -> Self {
        let (mut reader, writer) = split(stream);
        let (replies, receiver) = tokio::sync::mpsc::channel(REPLIES_MAX);
        let (ended, gone) = tokio::sync::watch::channel(None);
        let reader = tokio::spawn(async move {
            while let Ok(Some(message)) = reader.next().await {
                match message {
                    FromMonitor::Gone(how) => drop(ended.send(Some(how))),
                    reply => {
                        if replies.send(reply).await.is_err() {
                            break;
                        }
                    }
                }
            }
        });
        Self { writer: writer.into(), replies: receiver.into(), gone, reader }
    }

    /// Says something that has no reply.
    pub async fn tell(&self, message: &ToMonitor) -> Result<(), ControlError> {
        Ok(self.writer.lock().await.send(message).await?)
    }

    pub async fn ask(&self, message: &ToMonitor) -> Result<FromMonitor, ControlError> {
        // One question at a time: replies come in the order of the questions.
        let mut replies = self.replies.lock().await;
        self.tell(message).await?;
        match replies.recv().await {
            Some(FromMonitor::Refused { reason }) => Err(ControlError::Refused(reason)),
            Some(reply) => Ok(reply),
            None => Err(ControlError::Closed),
        }
    }

    /// Asks for something that is answered with [`FromMonitor::Done`].
    pub async fn order(&self, message: &ToMonitor) -> Result<(), ControlError> {
        match self.ask(message).await? {
            FromMonitor::Done => Ok(()),
            _ => Err(ControlError::Unexpected),
        }
    }

    /// Waits for the end of the sandbox; `None` if the monitor died without a word.
    pub async fn gone(&self) -> Option<Gone> {
        let mut gone = self.gone.clone();
        gone.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
