//! Ports for servers of a test. A fetcher may connect only to ports that it was started with, and most tests start their
//! servers after it: each test's thread has some in reserve.

use std::cell::RefCell;
use std::net::TcpListener;

/// Servers that a test can start behind a puller.
const RESERVE: usize = 16;
/// Most ports of servers from before it, the newest ones.
const EARLIER_MAX: usize = 40;

#[derive(Default)]
struct Ports {
    used: Vec<u16>,
    reserve: Vec<TcpListener>,
}

thread_local! {
    static PORTS: RefCell<Ports> = RefCell::default();
}

/// A listener on a port that the last puller of this thread may connect to, and the next one, too.
pub fn listener() -> TcpListener {
    PORTS.with_borrow_mut(|ports| {
        let listener = ports.reserve.pop().unwrap_or_else(fresh);
        ports.used.push(port(&listener));
        listener
    })
}

/// What a puller may connect to that starts now.
pub fn for_puller() -> Vec<u16> {
    PORTS.with_borrow_mut(|ports| {
        ports.reserve.resize_with(RESERVE, fresh);
        let earlier = ports.used.len().saturating_sub(EARLIER_MAX);
        ports.used[earlier..].iter().copied().chain(ports.reserve.iter().map(port)).collect()
    })
}

fn fresh() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}
