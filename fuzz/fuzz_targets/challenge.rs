//! `WWW-Authenticate` fields, which come before any authentication.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::registry::auth::{CHALLENGE_ITEMS_MAX, Way, is_field_value, parse_challenges};

fuzz_target!(|field: &str| {
    if let Ok(challenges) = parse_challenges(field) {
        assert!(challenges.len() <= CHALLENGE_ITEMS_MAX);
    }
    if let Ok(Way::Bearer(source)) = Way::choose(&[field]) {
        let url = source.url("scope");
        assert!(is_field_value(&url.target) && !url.target.contains(' '));
    }
});
