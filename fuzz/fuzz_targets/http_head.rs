//! Heads of a registry's answers, and how the body behind them ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::registry::http::{FIELDS_MAX, Head};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((head, length))) = Head::parse(bytes) {
        assert!(length <= bytes.len() && head.fields.len() <= FIELDS_MAX);
        let _ = head.framing();
    }
});
