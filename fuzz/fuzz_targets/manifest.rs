//! Manifests and indexes: what is accepted is within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::manifest::{Document, INDEX_ENTRIES_MAX, LAYER_BYTES_MAX, LAYERS_MAX, Platform};

fuzz_target!(|input: (Option<&str>, &[u8])| {
    match Document::parse(input.1, input.0) {
        Ok(Document::Image(image)) => {
            assert!(image.layers.len() <= LAYERS_MAX);
            assert!(image.layers.iter().all(|layer| layer.blob.size <= LAYER_BYTES_MAX));
        }
        Ok(Document::Index(index)) => {
            assert!(index.entries.len() <= INDEX_ENTRIES_MAX);
            let chosen = index.choose(&Platform::host());
            assert!(chosen.is_none_or(|chosen| index.entries.contains(chosen)));
            let _ = index.platforms();
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
});
