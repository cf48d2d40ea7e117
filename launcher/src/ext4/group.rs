//! Group descriptors and bitmaps (`group_descr.rst`, `bitmaps.rst`). A bitmap is written only for groups that
//! something lies in; the kernel makes the others up from the descriptor's flags.

use super::layout::{BLOCKS_PER_GROUP, Layout};
use super::record::Record;
use super::{BLOCK_SIZE, checksum, inode};

/// Without the `64bit` feature, in bytes.
pub const DESCRIPTOR_SIZE: usize = 32;

/// The inode bitmap was not written, and no inode is in use.
const INODE_UNINIT: u16 = 1;
/// The block bitmap was not written, and no block is in use.
const BLOCK_UNINIT: u16 = 2;
/// The inode table reads as zeros: by the precondition of `format`, or because `Options::zero` made it so.
const ITABLE_ZEROED: u16 = 4;

type Bitmap = [u8; BLOCK_SIZE];

pub struct Tables {
    /// All descriptors, in whole blocks.
    pub descriptors: Vec<u8>,
    /// The block bitmaps of the groups up to the first free block.
    pub leading_bitmaps: Vec<u8>,
    /// The last group's, which has to mark where the device ends.
    pub last_bitmap: Bitmap,
}

pub fn tables(layout: &Layout, seed: u32) -> Tables {
    let last = layout.groups - 1;
    let last_bitmap = block_bitmap(layout, last);
    let mut descriptors = Vec::with_capacity(layout.descriptor_blocks as usize * BLOCK_SIZE);
    let mut leading_bitmaps = Vec::new();
    for group in 0..layout.groups {
        let leading = group * BLOCKS_PER_GROUP < layout.first_free;
        let bitmap = (leading || group == last).then(|| block_bitmap(layout, group));
        if let Some(bitmap) = bitmap.filter(|_| leading) {
            leading_bitmaps.extend_from_slice(&bitmap);
        }
        descriptors.extend_from_slice(&descriptor(layout, group, bitmap.as_ref(), seed));
    }
    descriptors.resize(layout.descriptor_blocks as usize * BLOCK_SIZE, 0);
    Tables { descriptors, leading_bitmaps, last_bitmap }
}

/// The inode bitmap of group 0, the only one that has inodes in use.
pub fn first_inode_bitmap(layout: &Layout) -> Bitmap {
    bitmap(inode::FIRST_UNUSED - 1, layout.inodes_per_group)
}

fn descriptor(layout: &Layout, group: u32, bitmap: Option<&Bitmap>, seed: u32) -> [u8; DESCRIPTOR_SIZE] {
    let mut record = Record::<DESCRIPTOR_SIZE>::new();
    let (used, blocks) = extent(layout, group);
    record.le32::<0x00>(layout.block_bitmaps + group);
    record.le32::<0x04>(layout.inode_bitmaps + group);
    record.le32::<0x08>(layout.inode_tables + group * layout.inode_table_blocks);
    record.le16::<0x0c>((blocks - used) as u16);

    let mut flags = ITABLE_ZEROED;
    match bitmap {
        Some(bitmap) => record.le16::<0x18>(checksum::crc32c(seed, bitmap) as u16),
        None => flags |= BLOCK_UNINIT,
    }
    let mut free_inodes = layout.inodes_per_group;
    if group == 0 {
        free_inodes -= inode::FIRST_UNUSED - 1;
        record.le16::<0x10>(inode::DIRECTORIES);
        let bitmap = first_inode_bitmap(layout);
        let covered = bitmap.get(..layout.inodes_per_group as usize / 8).unwrap_or(&bitmap);
        record.le16::<0x1a>(checksum::crc32c(seed, covered) as u16);
    } else {
        flags |= INODE_UNINIT;
    }
    record.le16::<0x0e>(free_inodes as u16);
    record.le16::<0x12>(flags);
    record.le16::<0x1c>(free_inodes as u16); // At the table's end, and never touched yet.
    let sum = checksum::crc32c(checksum::crc32c(seed, &group.to_le_bytes()), record.bytes());
    record.le16::<0x1e>(sum as u16);
    *record.bytes()
}

fn block_bitmap(layout: &Layout, group: u32) -> Bitmap {
    let (used, blocks) = extent(layout, group);
    bitmap(used, blocks)
}

/// How many blocks of a group are in use (from its start) and how many it has.
fn extent(layout: &Layout, group: u32) -> (u32, u32) {
    let first = group * BLOCKS_PER_GROUP;
    let within = |end: u32| end.saturating_sub(first).min(BLOCKS_PER_GROUP);
    (within(layout.first_free), within(layout.blocks))
}

/// Bits before `used`, and from `end` on, are set.
fn bitmap(used: u32, end: u32) -> Bitmap {
    let mut bitmap = [0; BLOCK_SIZE];
    for (bit, byte) in (0..).step_by(8).zip(bitmap.iter_mut()) {
        *byte = ones(used.saturating_sub(bit)) | !ones(end.saturating_sub(bit));
    }
    bitmap
}

/// The lowest `count` bits of a byte.
fn ones(count: u32) -> u8 {
    u8::MAX.checked_shl(count).map_or(u8::MAX, |zeros| !zeros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_marks_what_is_used_and_what_is_not_there() {
        for (used, end) in [(0, 32768), (11, 1024), (8, 8), (13, 15), (32768, 32768), (7, 32767)] {
            let bitmap = bitmap(used, end);
            for bit in 0..BLOCKS_PER_GROUP {
                let set = bitmap[bit as usize / 8] >> (bit % 8) & 1 == 1;
                assert_eq!(set, bit < used || bit >= end, "bit {bit} of {used} used, end {end}");
            }
        }
    }
}
