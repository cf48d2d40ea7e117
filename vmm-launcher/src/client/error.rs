//! Why a call to the agent failed.

use std::path::PathBuf;
use std::time::Duration;

use nacre_protocols::host_agent::ttrpc::Code;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the host's side: the VM is not there (any more, or yet).
    #[error("the sandbox is gone: connect to {socket:?}: {source}")]
    Gone { socket: PathBuf, source: std::io::Error },
    #[error("connect to {socket:?}: {source}")]
    Connect { socket: PathBuf, source: std::io::Error },
    /// The VM is there, but nobody listens on the agent's port.
    #[error("the agent does not accept connections")]
    NotListening,
    #[error("the connection to the agent was lost during {method}")]
    Lost { method: &'static str },
    #[error("the sandbox has ended")]
    Closed,
    #[error("the agent did not answer {method} within {} s", deadline.as_secs())]
    Deadline { method: &'static str, deadline: Duration },
    /// The guest does not speak the protocol: it is broken, or hostile.
    #[error("the sandbox broke the protocol: {0}")]
    Protocol(String),
    /// The agent's own answer; its text is made printable.
    #[error("{message} ({method}, code {code})")]
    Status { method: &'static str, code: i32, message: String },
    #[error("{method}: the message is longer than a frame may be")]
    TooLong { method: &'static str },
}

impl ClientError {
    /// The agent's answer had this code.
    pub fn is_status(&self, wanted: Code) -> bool {
        matches!(self, Self::Status { code, .. } if *code == wanted as i32)
    }

    /// The sandbox is not there any more: nothing that is tried with it can work.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Closed | Self::NotListening | Self::Protocol(_))
    }
}
