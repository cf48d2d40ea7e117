//! Layers that are made up, and what must hold of their indexes.

use std::cell::RefCell;
use std::io;

use nacre_layer_check::{CheckLimits, check_index};
use nacre_puller::layer::{Compression, Limits, WriteAt, index_into};

/// Limits under which no input takes long.
pub fn small_limits() -> Limits {
    Limits {
        tar_bytes: 16 << 20,
        entries: 10_000,
        metadata_bytes: 32 << 20,
        sparse_segments: 1000,
        realigned_bytes: 16 << 20,
        index_bytes: 32 << 20,
        zstd_window_bytes: 8 << 20,
        ..Limits::default()
    }
}

/// The index of a layer, if it is one.
///
/// # Panics
/// When the index does not pass the check, or is another the second time.
pub fn index(layer: &[u8], compression: Compression, limits: &Limits) -> Option<Vec<u8>> {
    let (index, tar_bytes) = write(layer, compression, limits)?;
    let checked = check_index(&index[..], index.len() as u64, tar_bytes, &CheckLimits::default());
    checked.unwrap_or_else(|error| panic!("the writer wrote what the check refuses: {error}"));
    assert!(write(layer, compression, limits).is_some_and(|(again, _)| again == index), "another index");
    Some(index)
}

fn write(layer: &[u8], compression: Compression, limits: &Limits) -> Option<(Vec<u8>, u64)> {
    let (tar, index) = (Memory::default(), Memory::default());
    index_into(layer, compression, &tar, &index, limits, |_| {}).ok()?;
    Some((index.0.into_inner(), tar.0.into_inner().len() as u64))
}

/// Puts a checksum that holds into a tar's header.
pub fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The same for every block that is not zero.
pub fn seal_all(tar: &mut [u8]) {
    tar.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)).for_each(seal);
}

/// A file.
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
