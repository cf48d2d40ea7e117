//! A datagram of rtnetlink: taking it apart never panics and ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_launcher::network::netlink::{attributes, messages};

fuzz_target!(|data: &[u8]| {
    for message in messages(data) {
        for fixed in [0, 8, 12, 16] {
            assert!(attributes(message.body, fixed).count() <= message.body.len() / 4);
        }
    }
});
