//! What passed through a device: counters that whoever asks reads while the device works.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    wakeups: AtomicU64,
    requests: AtomicU64,
    from_guest: AtomicU64,
    to_guest: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub wakeups: u64,
    pub requests: u64,
    pub from_guest_bytes: u64,
    pub to_guest_bytes: u64,
}

impl Meter {
    /// The device's thread woke up, and took so many requests.
    pub fn woken(&self, requests: u64) {
        self.0.wakeups.fetch_add(1, Ordering::Relaxed);
        self.0.requests.fetch_add(requests, Ordering::Relaxed);
    }

    pub fn from_guest(&self, bytes: u64) {
        self.0.from_guest.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn to_guest(&self, bytes: u64) {
        self.0.to_guest.fetch_add(bytes, Ordering::Relaxed);
    }

    #[must_use]
    pub fn read(&self) -> Reading {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Reading {
            wakeups: load(&self.0.wakeups),
            requests: load(&self.0.requests),
            from_guest_bytes: load(&self.0.from_guest),
            to_guest_bytes: load(&self.0.to_guest),
        }
    }
}
