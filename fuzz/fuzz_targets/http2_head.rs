//! A block of fields in HPACK, as it comes in HTTP/2 before any authentication.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::registry::hpack;
use nacre_puller::registry::http::FIELDS_MAX;
use nacre_puller::registry::http2::read_head;

fuzz_target!(|input: (bool, &[u8])| {
    let (ended, block) = input;
    if let Ok(fields) = hpack::decode(block, FIELDS_MAX) {
        assert!(fields.len() <= FIELDS_MAX);
        // Huffman's shortest code has five bits; what the static table says is short.
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(bytes <= block.len() * 40);
    }
    if let Ok(head) = read_head(block, ended) {
        assert!((100..1000).contains(&head.status));
        let clean = |text: &str| !text.contains(['\r', '\n', '\0']);
        assert!(head.fields.iter().all(|(name, value)| !name.is_empty() && clean(name) && clean(value)));
        let _ = head.framing();
    }
});
