//! The superblock of an empty internal journal (`journal.rst`).

use super::BLOCK_SIZE;
use super::record::Record;

const MAGIC: u32 = 0xc03b_3998;
const SUPERBLOCK_V2: u32 = 4;

/// The journal's first block. A start of 0 says that there is nothing to replay; the kernel turns checksums on
/// when it first mounts.
pub fn superblock(blocks: u32, uuid: &[u8; 16]) -> [u8; BLOCK_SIZE] {
    let mut record = Record::<BLOCK_SIZE>::new();
    record.be32::<0x00>(MAGIC);
    record.be32::<0x04>(SUPERBLOCK_V2);
    record.be32::<0x0c>(BLOCK_SIZE as u32);
    record.be32::<0x10>(blocks);
    record.be32::<0x14>(1); // First block of the log.
    record.be32::<0x18>(1); // First transaction expected in it.
    record.set::<0x30, 16>(*uuid);
    record.be32::<0x40>(1); // File systems that use this journal.
    *record.bytes()
}
