//! The first line on the hybrid socket: the line that is taken lies within what was received and within its limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre::devices::vsock::handshake::{MAX_LINE_BYTES, parse_connect, parse_ok};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((_, end))) = parse_connect(bytes) {
        assert!(end <= MAX_LINE_BYTES && bytes.get(end - 1) == Some(&b'\n'));
    }
    let _ = parse_ok(bytes);
});
