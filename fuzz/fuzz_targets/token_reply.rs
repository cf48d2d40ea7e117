//! What a token endpoint answers: a token that is taken can be sent in a field.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::registry::auth::{TOKEN_BYTES_MAX, is_field_value, parse_token};

fuzz_target!(|bytes: &[u8]| {
    match parse_token(bytes) {
        Ok(token) => {
            assert!(!token.is_empty() && token.len() <= TOKEN_BYTES_MAX);
            assert!(is_field_value(&token) && !token.contains(['\r', '\n', '\0']));
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
});
