//! Any bytes as an index, with a superblock whose checksum, lengths and magic are put right so that the rest is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_layer_check::{CheckLimits, check_index};

fuzz_target!(|data: &[u8]| {
    let Some((blocks, data)) = data.split_first_chunk() else { return };
    let tar_blocks = u16::from_le_bytes(*blocks);
    let mut index = data.to_vec();
    index.truncate(index.len() / 512 * 512);
    if index.len() >= 2048 {
        complete(&mut index, tar_blocks.into());
    }
    let limits = CheckLimits { inodes: 100_000, ..CheckLimits::default() };
    if let Ok(summary) = check_index(&index[..], index.len() as u64, u64::from(tar_blocks) * 512, &limits) {
        assert!(summary.directories <= summary.inodes && summary.inodes <= index.len() as u64 / 64);
    }
});

fn complete(index: &mut [u8], tar_blocks: u32) {
    let index_blocks = (index.len() / 512) as u32;
    let mut put = |at: usize, value: &[u8]| index[1024 + at..1024 + at + value.len()].copy_from_slice(value);
    put(0, &0xe0f5_e1e2u32.to_le_bytes());
    put(4, &[0, 0, 0, 0, 3, 0, 0, 0, 9, 0]);
    put(24, &[0; 12]);
    put(36, &index_blocks.to_le_bytes());
    put(80, &[0xc, 0, 0, 0, 0, 0, 1, 0, 9, 0]);
    put(90, &[0; 38]);
    put(192, &tar_blocks.to_le_bytes());
    put(196, &index_blocks.to_le_bytes());
    put(200, &[0; 312]);
    let sum = index[1024..1536].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    });
    index[1028..1032].copy_from_slice(&sum.to_le_bytes());
}
