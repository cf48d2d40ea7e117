//! virtio-mem, with a queue that is made up: the guest never has more than it should, and loses nothing but that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre::devices::growth::{BLOCK_BYTES, GrowingMemory, Growth};
use nacre::devices::meter::Meter;
use nacre::devices::notes::Notes;
use nacre_fuzz::{Driver, MEMORY_BYTES};

const BLOCKS: u64 = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some(mut driver) = Driver::new(bytes) else { return };
    // Behind the memory that the queue is in; none of it is there, so that nothing can be given back.
    let growth = Growth::new(MEMORY_BYTES, BLOCKS * BLOCK_BYTES);
    growth.want(BLOCKS / 2 * BLOCK_BYTES, BLOCKS * BLOCK_BYTES);
    driver.drive(&mut GrowingMemory::new(growth.clone(), Meter::default(), Notes::default()));
    assert!(growth.taken_bytes() <= BLOCKS / 2 * BLOCK_BYTES);
});
