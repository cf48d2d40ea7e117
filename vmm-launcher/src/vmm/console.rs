//! What the guest's kernel prints: the end of it in memory, all of it (up to a limit) in a file if asked.
//!
//! The guest writes what it likes, so nothing here grows without bound and nothing reaches a terminal unescaped.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bytes kept in memory.
pub const RING_BYTES: usize = 64 * 1024;
/// Bytes written to the log file.
pub const MAX_LOG_BYTES: u64 = 16 << 20;
/// Characters of a line as it is shown.
const MAX_LINE_CHARS: usize = 400;
/// What Linux says when it gives up.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// The last of a stream of text. Clones share it.
#[derive(Clone, Default)]
pub struct Console {
    ring: Arc<Mutex<VecDeque<u8>>>,
}

impl Console {
    /// Reads `source` to its end in a thread of its own, keeping the last bytes and copying to `log`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn collect(
        name: &str,
        mut source: impl Read + Send + 'static,
        mut log: Option<File>,
    ) -> io::Result<(Console, JoinHandle<()>)> {
        let console = Console::default();
        let shared = console.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut buffer = [0; 4096];
            let mut logged = 0;
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => {
                        let bytes = buffer.get(..n).unwrap_or_default();
                        shared.push(bytes);
                        copy_to_log(&mut log, &mut logged, bytes);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok((console, thread))
    }

    /// Adds bytes; the oldest go.
    pub fn push(&self, bytes: &[u8]) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.get(bytes.len().saturating_sub(RING_BYTES)..).unwrap_or_default();
        let excess = (ring.len() + bytes.len()).saturating_sub(RING_BYTES);
        ring.drain(..excess);
        ring.extend(bytes);
    }

    /// The last `count` lines that are not empty, control characters escaped.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let text = self.bytes();
        let lines = text.split(|b| *b == b'\n').map(show).filter(|line| !line.is_empty());
        let mut last: VecDeque<String> = VecDeque::with_capacity(count.min(1024));
        for line in lines {
            if last.len() >= count {
                last.pop_front();
            }
            if count > 0 {
                last.push_back(line);
            }
        }
        last.into()
    }

    /// The line in which the kernel gave up, if it is still among what is kept.
    #[must_use]
    pub fn panic_line(&self) -> Option<String> {
        let text = self.bytes();
        text.split(|b| *b == b'\n').find(|line| line.windows(PANIC.len()).any(|w| w == PANIC)).map(show)
    }

    fn bytes(&self) -> Vec<u8> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

fn copy_to_log(log: &mut Option<File>, logged: &mut u64, bytes: &[u8]) {
    let Some(file) = log else { return };
    *logged += bytes.len() as u64;
    let done = if *logged > MAX_LOG_BYTES {
        writeln!(file, "\n[console log ends here: {MAX_LOG_BYTES} bytes]").map(|()| true)
    } else {
        file.write_all(bytes).map(|()| false)
    };
    // A log that cannot be written must not stop the guest.
    if done.unwrap_or(true) {
        *log = None;
    }
}

/// A line for people: no carriage returns at the end, everything that is not plain text escaped, bounded.
fn show(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::new();
    for c in text.trim_end().chars().take(MAX_LINE_CHARS) {
        if c == '\t' || !c.is_control() {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_bounded_and_harmless() {
        let console = Console::default();
        for n in 0..20_000 {
            console.push(format!("line {n}\r\n").as_bytes());
        }
        assert_eq!(console.bytes().len(), RING_BYTES);
        assert_eq!(console.last_lines(2), ["line 19998", "line 19999"]);
        assert!(console.last_lines(0).is_empty());
        console.push(b"\x1b]0;evil\x07\x1b[2J\xff\n");
        assert_eq!(console.last_lines(1), ["\\u{1b}]0;evil\\u{7}\\u{1b}[2J\u{fffd}"]);
        console.push(&vec![b'x'; RING_BYTES * 2]);
        assert_eq!(console.last_lines(1).first().map(String::len), Some(MAX_LINE_CHARS));
        assert_eq!(console.bytes().len(), RING_BYTES);
    }

    #[test]
    fn a_panic_is_found() {
        let console = Console::default();
        assert_eq!(console.panic_line(), None);
        console.push(b"a\n[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\nb\n");
        let line = "[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs";
        assert_eq!(console.panic_line().as_deref(), Some(line));
    }
}
