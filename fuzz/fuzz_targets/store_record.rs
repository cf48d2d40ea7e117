//! What an earlier boot, or anybody, left in a kept store beside the layers: what is understood is within its limits, and
//! is written again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocols::agent_puller::LAYERS_MAX;
use nacre_puller::store::{IMAGE_RECORD_BYTES_MAX, layer_line, parse_image, parse_layer};

fuzz_target!(|bytes: &[u8]| {
    if let Some(layer) = parse_layer(bytes) {
        assert_eq!(parse_layer(layer_line(&layer).as_bytes()), Some(layer));
    }
    for bytes in [bytes.to_vec(), [b"nacre image 1\n", bytes].concat()] {
        if let Some(record) = parse_image(&bytes) {
            assert!(record.image.layers.len() <= LAYERS_MAX);
            let again = record.encode().expect("what was read can be written");
            assert!(again.len() <= IMAGE_RECORD_BYTES_MAX);
            assert_eq!(parse_image(&again), Some(record));
        }
    }
});
