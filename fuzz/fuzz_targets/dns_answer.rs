//! Answers of a name server, which anybody on the way can forge.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::registry::dns::{Answer, Family, Question};

fuzz_target!(|tail: &[u8]| {
    for (family, v4) in [(Family::V4, true), (Family::V6, false)] {
        let question = Question::new("registry.example", family, 7).expect("a valid name");
        // The head of an answer that fits, so that the records are reached: QR set, the count of answers from the input.
        let mut packet = question.encode();
        packet[2] = 0x80;
        packet[7] = tail.first().copied().unwrap_or_default();
        packet.extend_from_slice(tail.get(1..).unwrap_or_default());
        if let Some(Answer::Addresses(addresses)) = question.parse_answer(&packet) {
            assert!(addresses.iter().all(|address| address.is_ipv4() == v4));
        }
        let _ = question.parse_answer(tail);
    }
});
