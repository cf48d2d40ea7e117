//! What a device has to say about its guest: a short list, shared with whoever reports it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Different messages that are kept; the oldest goes first.
const MAX_NOTES: usize = 64;
/// Bytes of one message.
const MAX_NOTE_BYTES: usize = 256;

/// A bounded list of messages, each with how often it was said. Clones share the list.
///
/// A guest can provoke any message any number of times, so they are counted, not streamed.
#[derive(Clone, Default)]
pub struct Notes {
    list: Arc<Mutex<VecDeque<(String, u64)>>>,
}

impl Notes {
    /// Adds a message, or counts it when it is there already.
    pub fn add(&self, message: impl fmt::Display) {
        let mut text = message.to_string();
        let mut end = text.len().min(MAX_NOTE_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = list.iter_mut().find(|(known, _)| *known == text) {
            *count = count.saturating_add(1);
            return;
        }
        if list.len() == MAX_NOTES {
            list.pop_front();
        }
        list.push_back((text, 1));
    }

    /// All messages, oldest first, those said more than once with their count.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let show = |(text, count): &(String, u64)| match count {
            1 => text.clone(),
            n => format!("{text} ({n} times)"),
        };
        list.iter().map(show).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_messages_stays_bounded_and_counted() {
        let notes = Notes::default();
        for n in 0..10_000 {
            notes.add(format!("message {n}"));
            notes.add("the same");
        }
        let list = notes.list();
        assert!(list.len() <= MAX_NOTES);
        assert!(list.iter().any(|line| line.starts_with("the same")), "{list:?}");
        assert!(list.contains(&"message 9999".to_owned()));
    }
}
