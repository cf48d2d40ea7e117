//! Any bytes as a layer. What is indexed must pass the check, and give the same bytes again.
#![no_main]

use std::cell::RefCell;
use std::io;

use libfuzzer_sys::fuzz_target;
use nacre_layer_check::{CheckLimits, check_index};
use nacre_puller::layer::{Compression, Limits, WriteAt, index_into};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let mut tar = data.to_vec();
    let compression = match kind % 4 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        2 => Compression::Plain,
        _ => {
            seal(&mut tar);
            Compression::Plain
        }
    };
    let Some((index, tar_bytes)) = index(&tar, compression) else { return };
    let checked = check_index(&index[..], index.len() as u64, tar_bytes, &CheckLimits::default());
    checked.unwrap_or_else(|error| panic!("the writer wrote what the check refuses: {error}"));
    assert!(self::index(&tar, compression).is_some_and(|(again, _)| again == index));
});

fn index(layer: &[u8], compression: Compression) -> Option<(Vec<u8>, u64)> {
    let limits = Limits {
        tar_bytes: 16 << 20,
        entries: 10_000,
        metadata_bytes: 32 << 20,
        sparse_segments: 1000,
        realigned_bytes: 16 << 20,
        index_bytes: 32 << 20,
        zstd_window_bytes: 8 << 20,
        ..Limits::default()
    };
    let (tar, index) = (Memory::default(), Memory::default());
    index_into(layer, compression, &tar, &index, &limits, |_| {}).ok()?;
    Some((index.0.into_inner(), tar.0.into_inner().len() as u64))
}

#[derive(Default)]
struct Memory(RefCell<Vec<u8>>);

impl WriteAt for Memory {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut file, at) = (self.0.borrow_mut(), offset as usize);
        let end = file.len().max(at + bytes.len());
        file.resize(end, 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.borrow_mut().resize(len as usize, 0);
        Ok(())
    }
}

/// Puts a checksum that holds into every block that is not zero.
fn seal(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
