//! virtio-net over a tap, with a queue and frames that are made up.
#![no_main]

use std::os::unix::net::UnixDatagram;

use libfuzzer_sys::fuzz_target;
use nacre::devices::notes::Notes;
use nacre::devices::queues::Queues;
use nacre::devices::tap::TapCard;
use nacre_fuzz::Driver;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[len, features], rest)) = bytes.split_first_chunk::<2>() else { return };
    let Some((frame, bytes)) = rest.split_at_checked(usize::from(len) * 4) else { return };
    let Some(mut driver) = Driver::new(bytes) else { return };
    let (ours, host) = UnixDatagram::pair().expect("no sockets");
    host.set_nonblocking(true).expect("no sockets");
    host.send(frame).expect("the socket is full");
    host.send(&frame[frame.len() / 2..]).expect("the socket is full");
    let mut card = TapCard::over(ours.into(), [2, 0, 0, 0, 0, 1], 1500, Notes::default()).expect("no card");
    // Offloads and merging, or none.
    card.negotiated(u64::from(features) << 8);
    driver.drive(&mut card);
});
