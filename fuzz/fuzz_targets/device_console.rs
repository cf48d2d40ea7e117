//! virtio-console, with a queue that is made up.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre::devices::console::Console;
use nacre::devices::notes::Notes;
use nacre_fuzz::Driver;

fuzz_target!(|bytes: &[u8]| {
    let Some(mut driver) = Driver::new(bytes) else { return };
    driver.drive(&mut Console::new(std::io::sink(), Notes::default()));
});
