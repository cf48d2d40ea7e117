//! Client of the agent: ttrpc over the hybrid vsock socket, many calls at once on one connection.
//!
//! The guest is hostile: frames are bounded, a reply that nobody asked for ends the connection, and no text of a reply
//! reaches a terminal before [`printable`] has seen it. An agent that init restarts is a short stall: calls that may be
//! repeated are sent again on a new connection.

mod agent;
mod connection;
mod error;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nacre_protocols::host_agent::Rpc;
use tokio::sync::{Mutex, watch};

pub use agent::{Exit, ProcessId, READ_LEN};
use connection::Connection;
pub use error::ClientError;
pub use text::{printable, printable_lines};

/// Deadline of an ordinary call, and of one that starts or ends a process.
pub const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How long a lost connection may stay lost.
pub const RECONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// Between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// How often one call is sent again because the connection was lost under it.
const RESENDS_MAX: usize = 20;

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub struct CallRule {
    /// `None` for calls that wait for something to happen.
    pub deadline: Option<Duration>,
    /// Sent again on a new connection when the old one is lost: only where twice is the same as once.
    pub resend: bool,
}

impl CallRule {
    pub const ONCE: Self = Self { deadline: Some(CALL_DEADLINE), resend: false };
    pub const REPEATABLE: Self = Self { deadline: Some(CALL_DEADLINE), resend: true };
    pub const LONG_POLL: Self = Self { deadline: None, resend: true };
}

/// A handle to the agent of one sandbox; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    connection: Mutex<Option<Arc<Connection>>>,
    /// True once the sandbox is known to be gone.
    closed: watch::Sender<bool>,
}

impl Client {
    /// No connection is made before the first call.
    pub fn new(socket: &Path) -> Self {
        let shared = Shared {
            socket: socket.to_owned(),
            connection: Mutex::new(None),
            closed: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits for the agent of a guest that is booting, for at most `deadline`.
    pub async fn wait_until_up(&self, deadline: Duration) -> Result<(), ClientError> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let attempt = async {
                let connection = self.connection(Attempts::One).await?;
                connection
                    .call::<nacre_protocols::host_agent::kata::health::Check>(&Default::default(), None)
                    .await
            };
            match tokio::time::timeout(left, self.unless_closed(attempt)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error @ (ClientError::Closed | ClientError::Protocol(_)))) => return Err(error),
                Ok(Err(_)) if Instant::now() < end => tokio::time::sleep(RETRY_PAUSE).await,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(ClientError::Deadline { method: "Check", deadline }),
            }
        }
    }

    /// Makes every call that is under way or comes later fail at once: the sandbox is gone.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// One call.
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        rule: CallRule,
    ) -> Result<R::Response, ClientError> {
        let work = self.unless_closed(self.send::<R>(request, rule));
        match rule.deadline {
            None => work.await,
            Some(deadline) => tokio::time::timeout(deadline, work)
                .await
                .unwrap_or(Err(ClientError::Deadline { method: R::METHOD, deadline })),
        }
    }

    async fn send<R: Rpc>(&self, request: &R::Request, rule: CallRule) -> Result<R::Response, ClientError> {
        let mut resends = 0;
        loop {
            let connection = self.connection(Attempts::UntilDeadline).await?;
            match connection.call::<R>(request, rule.deadline).await {
                Err(ClientError::Lost { .. }) if rule.resend && resends < RESENDS_MAX => resends += 1,
                result => return result,
            }
        }
    }

    async fn unless_closed<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let mut closed = self.shared.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(ClientError::Closed),
            result = work => result,
        }
    }

    /// The living connection, or a new one.
    async fn connection(&self, attempts: Attempts) -> Result<Arc<Connection>, ClientError> {
        let mut slot = self.shared.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.is_alive()) {
            return Ok(Arc::clone(connection));
        }
        let end = Instant::now() + RECONNECT_DEADLINE;
        loop {
            match Connection::open(&self.shared.socket).await {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    *slot = Some(Arc::clone(&connection));
                    return Ok(connection);
                }
                Err(error) => {
                    let hopeless = matches!(error, ClientError::Gone { .. } | ClientError::Protocol(_));
                    if attempts == Attempts::One || hopeless || Instant::now() >= end {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempts {
    One,
    UntilDeadline,
}
