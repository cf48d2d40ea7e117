//! One line at a time to the console: what a host sees when a sandbox goes wrong.

use std::io::Write;

/// Longest line, in bytes.
const LINE_MAX: usize = 1024;

/// Writes `text` as one line; a console that does not take it is no reason to stop.
pub fn say(text: &str) {
    let mut line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_MAX).collect();
    line.insert_str(0, "nacre-init: ");
    line.push('\n');
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// An error and its causes, from the outermost in.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
