//! The agent's log: lines on the guest's console, and, where the host asked for a port of it, as lines of JSON to whoever is
//! connected there, with the fields that Kata's runtimes read.

use crate::error::AgentError;
use nacre_sys::vsock::{self, HOST_CID};
use rustix::net::SendFlags;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::Interest;

/// Most readers at once; what comes beyond is closed.
const READERS_MAX: usize = 2;
/// Most lines that are kept for the next reader, and longest text of one in characters.
const LINES_MAX: usize = 64;
const TEXT_MAX: usize = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Log {
    readers: Vec<OwnedFd>,
    /// For who connects later.
    lines: VecDeque<String>,
}

thread_local! {
    /// The agent has one thread. `None`: the host asked for no log.
    static LOG: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// Keeps lines for readers from now on; the work is to accept them, for ever.
pub fn serve(listener: OwnedFd) -> impl Future<Output = Result<(), AgentError>> {
    open();
    accept(listener)
}

fn open() {
    LOG.with_borrow_mut(|log| *log = Some(Log::default()));
}

async fn accept(listener: OwnedFd) -> Result<(), AgentError> {
    let listener = crate::watch(listener).map_err(AgentError::io("watching the log's port"))?;
    loop {
        match listener.async_io(Interest::READABLE, |listener| vsock::accept(listener.as_fd())).await {
            Ok((connection, None)) => add(connection),
            Ok((connection, Some(peer))) if peer.cid == HOST_CID => add(connection),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn add(reader: OwnedFd) {
    LOG.with_borrow_mut(|log| {
        let Some(log) = log else { return };
        // Those that are gone make room.
        log.readers.retain(|reader| rustix::net::send(reader, &[], SendFlags::NOSIGNAL).is_ok());
        if log.readers.len() < READERS_MAX && log.lines.iter().all(|line| send(&reader, line)) {
            log.readers.push(reader);
        }
    });
}

/// One line on the guest's console, and to who reads the log. A reader that does not keep up is let go: nothing waits for it.
pub fn say(text: &str) {
    // Nothing can be done about a console that does not take it.
    let _ = std::io::stderr().write_all(format!("nacre-agent: {text}\n").as_bytes());
    LOG.with_borrow_mut(|log| {
        let Some(log) = log else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line(text, now);
        log.readers.retain(|reader| send(reader, &line));
        if log.lines.len() >= LINES_MAX {
            log.lines.pop_front();
        }
        log.lines.push_back(line);
    });
}

/// True if all of it was taken.
fn send(reader: &OwnedFd, line: &str) -> bool {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(reader, line.as_bytes(), flags) == Ok(line.len())
}

fn line(text: &str, now: Duration) -> String {
    let text: String = text.chars().take(TEXT_MAX).collect();
    format!(
        "{{\"msg\":\"{}\",\"level\":\"INFO\",\"ts\":\"{}\",\"subsystem\":\"agent\",\"source\":\"agent\",\"name\":\"nacre-agent\",\
         \"version\":\"{}\"}}\n",
        escaped(&text),
        timestamp(now),
        env!("CARGO_PKG_VERSION")
    )
}

/// As the inside of a JSON string (RFC 8259, section 7).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\\' => escaped.extend(['\\', letter]),
            letter if letter.is_control() => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// As RFC 3339 has it, in UTC, to the microsecond.
fn timestamp(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut month) = (1970, 1);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    loop {
        let days = if is_leap(year) { 366 } else { 365 };
        if day < days {
            break;
        }
        day -= days;
        year += 1;
    }
    loop {
        let days = match month {
            2 if is_leap(year) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (second, micros) = (second % 60, since_1970.subsec_micros());
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(Duration::from_secs(seconds)), expected, "{seconds}");
        }
        assert_eq!(timestamp(Duration::from_micros(5)), "1970-01-01T00:00:00.000005Z");
    }

    #[test]
    fn a_line_is_one_object_whatever_the_text() {
        let line = line("a \"b\" \\ \n c", Duration::ZERO);
        assert!(line.starts_with("{\"msg\":\"a \\\"b\\\" \\\\   c\",\"level\":\"INFO\""), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with("}\n"));
    }

    #[test]
    fn a_reader_gets_what_came_before_it_and_one_that_does_not_read_is_let_go() {
        use std::io::Read;
        use std::os::unix::net::UnixStream;
        open();
        say("first");
        let ((ours, mut theirs), (deaf, _kept)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        add(ours.into());
        add(deaf.into());
        let readers = || LOG.with_borrow(|log| log.as_ref().map(|log| log.readers.len()));
        assert_eq!(readers(), Some(2));
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for number in 0..5000 {
            say(&format!("line {number} {}", "x".repeat(900)));
            let mut bytes = [0; 4096];
            let count = theirs.read(&mut bytes).unwrap();
            let text = std::str::from_utf8(&bytes[..count]).unwrap();
            assert!(text.contains(&format!("line {number} ")), "{text}");
            assert!(number > 0 || text.contains("first"), "{text}");
            if readers() == Some(1) {
                return;
            }
        }
        panic!("who does not read was kept");
    }
}
