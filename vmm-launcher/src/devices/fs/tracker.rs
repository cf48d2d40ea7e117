//! What the guest makes the host hold: inodes it looked up (one descriptor each) and files it opened.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rules::errno;

/// Descriptors that are left to the rest of the program.
const RESERVED_FILES: u64 = 512;
/// Inodes and handles when the process may open as many files as it likes.
const MAX_INODES: u64 = 400_000;
const MAX_HANDLES: u64 = 50_000;

/// Counts, and refuses beyond the limits.
pub struct Tracker {
    max_inodes: usize,
    max_handles: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Lookups that the guest has not forgotten, by inode.
    lookups: HashMap<u64, u64>,
    handles: usize,
}

impl Tracker {
    /// Limits that fit `files`, the number of descriptors that this process may have.
    pub fn new(files: u64) -> Tracker {
        let usable = files.saturating_sub(RESERVED_FILES).max(64);
        let share = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Tracker {
            max_inodes: share((usable / 8 * 7).min(MAX_INODES)),
            max_handles: share((usable / 8).min(MAX_HANDLES)),
            held: Mutex::default(),
        }
    }

    /// Counts a lookup. Refused, the caller forgets the inode again.
    pub fn looked_up(&self, inode: u64) -> io::Result<()> {
        let mut held = self.lock();
        let known = held.lookups.len();
        if known >= self.max_inodes && !held.lookups.contains_key(&inode) {
            return Err(errno(libc::ENFILE));
        }
        let count = held.lookups.entry(inode).or_insert(0);
        *count = count.saturating_add(1);
        Ok(())
    }

    /// Takes lookups back; returns how many of `count` there were.
    pub fn forget(&self, inode: u64, count: u64) -> u64 {
        let mut held = self.lock();
        let Some(known) = held.lookups.get_mut(&inode) else { return 0 };
        let taken = count.min(*known);
        *known -= taken;
        if *known == 0 {
            held.lookups.remove(&inode);
        }
        taken
    }

    /// Counts a handle before it is opened.
    pub fn open(&self) -> io::Result<()> {
        let mut held = self.lock();
        if held.handles >= self.max_handles {
            return Err(errno(libc::ENFILE));
        }
        held.handles += 1;
        Ok(())
    }

    /// A handle is closed, or was not opened after all.
    pub fn close(&self) {
        let mut held = self.lock();
        held.handles = held.handles.saturating_sub(1);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_and_handles_are_limited_and_given_back() {
        let tracker = Tracker::new(RESERVED_FILES + 64);
        for inode in 0..56 {
            tracker.looked_up(inode).unwrap();
        }
        assert_eq!(tracker.looked_up(999).unwrap_err().raw_os_error(), Some(libc::ENFILE));
        tracker.looked_up(0).unwrap();
        assert_eq!(tracker.forget(0, u64::MAX), 2);
        assert_eq!(tracker.forget(0, 1), 0);
        tracker.looked_up(999).unwrap();
        for _ in 0..8 {
            tracker.open().unwrap();
        }
        assert!(tracker.open().is_err());
        tracker.close();
        tracker.open().unwrap();
    }
}
