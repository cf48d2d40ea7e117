//! virtio-balloon, with a queue that is made up: it gives nothing back but memory of the guest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre::devices::balloon::Balloon;
use nacre::devices::meter::Meter;
use nacre::devices::notes::Notes;
use nacre_fuzz::Driver;

fuzz_target!(|bytes: &[u8]| {
    let Some(mut driver) = Driver::new(bytes) else { return };
    driver.drive(&mut Balloon::new(Meter::default(), Notes::default()));
});
