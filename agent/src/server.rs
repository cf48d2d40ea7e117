//! The ttrpc server on the listener that init holds: few connections, from the host alone.

mod connection;
mod outbound;
mod socket;

pub use outbound::{Outbound, Sent};

use crate::agent::Agent;
use crate::error::AgentError;
use crate::say;
use nacre_sys::vsock;
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Mutex;

/// Most connections at once; what comes beyond is closed.
pub const CONNECTIONS_MAX: usize = 16;
/// Most requests that are being worked on, of all connections: mostly such that wait for a process.
pub const REQUESTS_MAX: usize = 1024;
/// Most bytes of their messages.
pub const REQUEST_BYTES_MAX: usize = 5 * 1024 * 1024;
/// How long to wait after a failed accept (no descriptor left, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is being worked on, of all connections together: work goes on when its connection is gone.
#[derive(Default)]
pub struct Limits {
    requests: Cell<usize>,
    bytes: Cell<usize>,
    connections: Cell<usize>,
    /// Held by the connection that receives a large frame: there is memory for one.
    large: Mutex<()>,
}

/// A share of [`Limits`], given back when it is dropped.
pub struct Share {
    limits: Rc<Limits>,
    bytes: usize,
}

impl Limits {
    /// `None` when there is too much work already.
    fn share(self: &Rc<Self>, bytes: usize) -> Option<Share> {
        let (requests, total) = (self.requests.get() + 1, self.bytes.get() + bytes);
        if requests > REQUESTS_MAX || total > REQUEST_BYTES_MAX {
            return None;
        }
        self.requests.set(requests);
        self.bytes.set(total);
        Some(Share { limits: Rc::clone(self), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limits.requests.set(self.limits.requests.get().saturating_sub(1));
        self.limits.bytes.set(self.limits.bytes.get().saturating_sub(self.bytes));
    }
}

/// Accepts for ever.
pub async fn serve(agent: &Rc<Agent>, listener: OwnedFd) -> Result<(), AgentError> {
    rustix::io::ioctl_fionbio(&listener, true).map_err(AgentError::system("the listener"))?;
    let listener = crate::watch(listener).map_err(AgentError::io("watching the listener"))?;
    loop {
        let accepted =
            listener.async_io(Interest::READABLE, |listener| vsock::accept(listener.as_fd())).await;
        match accepted {
            // A unix socket has no context id; its permissions have said who may connect.
            Ok((connection, None)) => admit(agent, connection),
            Ok((connection, Some(peer))) if peer.cid == vsock::HOST_CID => admit(agent, connection),
            Ok((_, Some(peer))) => say(&format!("refused a connection from context id {}", peer.cid)),
            Err(error) => {
                say(&format!("accepting a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(agent: &Rc<Agent>, connection: OwnedFd) {
    let limits = Rc::clone(&agent.limits);
    if limits.connections.get() >= CONNECTIONS_MAX {
        return say(&format!("refused a connection: {CONNECTIONS_MAX} are open"));
    }
    limits.connections.set(limits.connections.get() + 1);
    let agent = Rc::clone(agent);
    tokio::task::spawn_local(async move {
        if let Err(error) = connection::serve(agent, connection).await {
            say(&format!("connection: {error}"));
        }
        limits.connections.set(limits.connections.get().saturating_sub(1));
    });
}
