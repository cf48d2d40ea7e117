//! Any bytes as a layer. What is indexed must pass the check, and give the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_fuzz::layers::{index, seal_all, small_limits};
use nacre_puller::layer::Compression;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let mut tar = data.to_vec();
    let compression = match kind % 4 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        2 => Compression::Plain,
        _ => {
            seal_all(&mut tar);
            Compression::Plain
        }
    };
    index(&tar, compression, &small_limits());
});
