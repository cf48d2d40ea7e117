//! Frames on their way to one peer. A peer that does not read is not read from, and no process is read for it, once
//! [`OUTBOUND_MAX`] bytes wait for it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use tokio::sync::Notify;

/// Most bytes that wait for a peer, apart from the answers to what is being worked on already.
pub const OUTBOUND_MAX: usize = 24 * 1024;
/// What a frame costs beside its own bytes: its place in the queue, and two allocations.
const FRAME_COST: usize = 96;

#[derive(Default)]
pub struct Outbound {
    queue: RefCell<VecDeque<Frame>>,
    /// Of the queue and of the frame that is being written.
    bytes: Cell<usize>,
    closed: Cell<bool>,
    more: Notify,
    less: Notify,
    closing: Notify,
}

/// A whole frame, and what to do as soon as it was written.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub sent: Option<Sent>,
}

/// Dropped without being called when the frame cannot be written any more.
pub type Sent = Box<dyn FnOnce()>;

impl Outbound {
    /// Adds a frame. On a closed connection it is dropped, and with it what should be done.
    pub fn push(&self, frame: Frame) {
        if self.closed.get() {
            return;
        }
        self.bytes.set(self.bytes.get() + frame.bytes.len() + FRAME_COST);
        self.queue.borrow_mut().push_back(frame);
        self.more.notify_one();
    }

    /// Waits until fewer than [`OUTBOUND_MAX`] bytes wait for the peer.
    pub async fn space(&self) {
        while self.bytes.get() >= OUTBOUND_MAX {
            self.less.notified().await;
        }
    }

    /// The next frame to write; the one before was written.
    pub async fn next(&self) -> Frame {
        loop {
            let next = self.queue.borrow_mut().pop_front();
            match next {
                Some(frame) => return frame,
                None => self.more.notified().await,
            }
        }
    }

    pub fn written(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_sub(bytes + FRAME_COST));
        if self.bytes.get() < OUTBOUND_MAX {
            self.less.notify_waiters();
        }
    }

    pub fn close(&self) {
        self.closed.set(true);
        self.queue.borrow_mut().clear();
        self.closing.notify_waiters();
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) {
        let closing = self.closing.notified();
        if !self.closed.get() {
            closing.await;
        }
    }
}
