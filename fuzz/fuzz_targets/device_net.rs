//! virtio-net, with a queue and a stream that are made up.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use nacre::devices::ethernet::Card;
use nacre::devices::notes::Notes;
use nacre_fuzz::Driver;

fuzz_target!(|bytes: &[u8]| {
    let Some((&len, rest)) = bytes.split_first() else { return };
    let Some((stream, bytes)) = rest.split_at_checked(len.into()) else { return };
    let Some(mut driver) = Driver::new(bytes) else { return };
    let (ours, mut host) = UnixStream::pair().expect("no sockets");
    host.set_nonblocking(true).expect("no sockets");
    host.write_all(stream).expect("the socket is full");
    driver.drive(&mut Card::new(ours.into(), [2, 0, 0, 0, 0, 1], 1500, Notes::default()).expect("no card"));
    // What came out is frames, each behind its length; the last one may be cut.
    let mut sent = Vec::new();
    let _ = host.read_to_end(&mut sent);
    let mut rest = sent.as_slice();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        assert!(length > 0 && length <= 65_550);
        rest = behind.get(length..).unwrap_or_default();
    }
});
