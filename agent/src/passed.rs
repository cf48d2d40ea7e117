//! Connections of the host's that become the standard streams of processes: Kata's *passfd*. The host connects first, and
//! names each connection in its request by the port that it has on the host's side.

use crate::error::{AgentError, RpcError};
use crate::say;
use nacre_protocols::agent_init::Streams;
use nacre_sys::vsock::{self, HOST_CID};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Notify;

/// Most connections that wait for the request that names them; the oldest are closed.
const WAITING_MAX: usize = 48;
/// How long a request waits for a connection that it names.
const PATIENCE: Duration = Duration::from_secs(3);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Passed {
    /// By their ports, the latest last.
    waiting: RefCell<VecDeque<(u32, OwnedFd)>>,
    arrived: Notify,
    is_open: std::cell::Cell<bool>,
}

impl Passed {
    /// Accepts for ever.
    pub async fn serve(&self, listener: OwnedFd) -> Result<(), AgentError> {
        self.is_open.set(true);
        let listener = crate::watch(listener).map_err(AgentError::io("watching the port of streams"))?;
        loop {
            match listener.async_io(Interest::READABLE, |listener| vsock::accept(listener.as_fd())).await {
                Ok((connection, Some(peer))) if peer.cid == HOST_CID => self.add(peer.port, connection),
                Ok(_) => say("refused a stream from elsewhere than the host"),
                Err(error) => {
                    say(&format!("accepting a stream: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn add(&self, port: u32, connection: OwnedFd) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|(other, _)| *other != port);
        if waiting.len() >= WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back((port, connection));
        self.arrived.notify_waiters();
    }

    /// The streams of a new process by the ports of stdin, stdout and stderr, of which 0 is none; and how init is told of them.
    pub async fn streams(
        &self,
        ports: [u32; 3],
        terminal: bool,
    ) -> Result<(Streams, Vec<OwnedFd>), RpcError> {
        let [_, _, stderr] = ports;
        if ports == [0; 3] {
            return Ok((Streams::Kept, Vec::new()));
        }
        if terminal && stderr != 0 {
            return Err(RpcError::invalid("stderr_port: a terminal has no stderr"));
        }
        if !self.is_open.get() {
            let message = "stdin_port, stdout_port, stderr_port: the sandbox was not booted with agent.passfd_listener_port";
            return Err(RpcError::invalid(message));
        }
        let mut given = Vec::new();
        for port in ports.into_iter().filter(|port| *port != 0) {
            let connection = tokio::time::timeout(PATIENCE, self.take(port)).await.map_err(|_| {
                RpcError::invalid(format!("no connection from port {port} of the host to be a stream"))
            })?;
            // A process does not expect that its streams do not wait; those of a terminal are the agent's to watch.
            rustix::io::ioctl_fionbio(&connection, terminal)
                .map_err(|errno| RpcError::internal(format!("a stream of the host's: {errno}")))?;
            given.push(connection);
        }
        Ok((Streams::Passed(ports.map(|port| port != 0)), given))
    }

    fn remove(&self, port: u32) -> Option<OwnedFd> {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|(other, _)| *other == port)?;
        waiting.remove(at).map(|(_, connection)| connection)
    }

    async fn take(&self, port: u32) -> OwnedFd {
        loop {
            let arrived = self.arrived.notified();
            let found = self.remove(port);
            match found {
                Some(connection) => return connection,
                None => arrived.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::host_agent::ttrpc::Code;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    fn connection() -> OwnedFd {
        std::os::unix::net::UnixStream::pair().unwrap().0.into()
    }

    #[test]
    fn a_process_gets_the_connections_that_its_request_names() {
        let passed = Passed::default();
        passed.is_open.set(true);
        for port in [7, 8, 9] {
            passed.add(port, connection());
        }
        let (streams, fds) = run(passed.streams([9, 0, 7], false)).unwrap();
        assert_eq!((streams, fds.len()), (Streams::Passed([true, false, true]), 2));
        assert_eq!(passed.waiting.borrow().len(), 1);
        // Each once, and none that is not there.
        let error = run(passed.streams([0, 9, 0], false)).unwrap_err();
        assert!(error.message.contains("port 9"), "{}", error.message);
    }

    #[test]
    fn a_request_may_come_before_its_connections() {
        let passed = Passed::default();
        passed.is_open.set(true);
        let (streams, ()) = run(async {
            tokio::join!(passed.streams([0, 5, 0], false), async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                passed.add(5, connection());
            })
        });
        assert_eq!(streams.unwrap().1.len(), 1);
    }

    #[test]
    fn what_cannot_be_passed_says_so() {
        let passed = Passed::default();
        assert_eq!(run(passed.streams([0; 3], true)).unwrap().0, Streams::Kept);
        let error = run(passed.streams([1, 0, 0], false)).unwrap_err();
        assert!(error.message.contains("agent.passfd_listener_port"), "{}", error.message);
        passed.is_open.set(true);
        let error = run(passed.streams([0, 0, 1], true)).unwrap_err();
        assert_eq!((error.code, error.message.starts_with("stderr_port")), (Code::InvalidArgument, true));
    }

    #[test]
    fn connections_that_nobody_names_do_not_pile_up() {
        let passed = Passed::default();
        for port in 1..1000 {
            passed.add(port, connection());
        }
        assert_eq!(passed.waiting.borrow().len(), WAITING_MAX);
        assert_eq!(passed.waiting.borrow().back().map(|(port, _)| *port), Some(999));
    }
}
