//! Directory blocks (`directory.rst`): linear ones; the kernel indexes a directory when it outgrows a block.

use super::{BLOCK_SIZE, checksum, inode};

const TYPE_DIRECTORY: u8 = 2;
/// The false entry at a block's end that holds its checksum: bytes, and the type that tells it.
const TAIL_SIZE: usize = 12;
const TAIL_TYPE: u8 = 0xde;

/// The block of the root directory and that of lost+found.
pub fn blocks(seed: u32) -> Vec<u8> {
    use inode::{LOST_AND_FOUND, ROOT};
    let mut blocks = block(ROOT, &[(ROOT, "."), (ROOT, ".."), (LOST_AND_FOUND, "lost+found")], seed);
    blocks.extend(block(LOST_AND_FOUND, &[(LOST_AND_FOUND, "."), (ROOT, "..")], seed));
    blocks
}

fn block(number: u32, entries: &[(u32, &str)], seed: u32) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_SIZE);
    for (index, (entry, name)) in entries.iter().enumerate() {
        let start = block.len();
        let is_last = index + 1 == entries.len();
        let end = if is_last { BLOCK_SIZE - TAIL_SIZE } else { (start + 8 + name.len()).next_multiple_of(4) };
        push_header(&mut block, *entry, end - start, name.len(), TYPE_DIRECTORY);
        block.extend_from_slice(name.as_bytes());
        block.resize(end, 0);
    }
    let sum = checksum::crc32c(checksum::inode_seed(seed, number), &block);
    push_header(&mut block, 0, TAIL_SIZE, 0, TAIL_TYPE);
    block.extend_from_slice(&sum.to_le_bytes());
    block
}

fn push_header(block: &mut Vec<u8>, entry: u32, length: usize, name_length: usize, kind: u8) {
    block.extend_from_slice(&entry.to_le_bytes());
    block.extend_from_slice(&(length as u16).to_le_bytes());
    block.extend_from_slice(&[name_length as u8, kind]);
}
