//! Where everything lies. All of the metadata, the two directories and the journal are one run of blocks from
//! the start of the device, so what is in use is said by one number: the first free block.

use super::{BLOCK_SIZE, FormatError, MAX_DEVICE_BYTES, MIN_DEVICE_BYTES, Options, group, inode};

/// Blocks of a group: as many as a bitmap of one block has bits.
pub const BLOCKS_PER_GROUP: u32 = BLOCK_SIZE as u32 * 8;
/// Inodes of a group are at most the bits of a bitmap, too.
const MAX_INODES_PER_GROUP: u64 = BLOCKS_PER_GROUP as u64;
/// A last group must bring so many blocks more than its own metadata takes, as with mke2fs.
const LAST_GROUP_GAIN: u32 = 50;
const INODES_PER_BLOCK: u64 = (BLOCK_SIZE / inode::SIZE) as u64;

#[derive(Clone, Copy, Debug)]
pub struct Journal {
    pub first: u32,
    pub blocks: u32,
}

/// Block numbers and counts. The fields from `block_bitmaps` on are the first blocks of adjacent areas.
#[derive(Clone, Debug)]
pub struct Layout {
    pub blocks: u32,
    pub groups: u32,
    pub inodes_per_group: u32,
    /// Blocks of one group's inode table.
    pub inode_table_blocks: u32,
    pub descriptor_blocks: u32,
    pub block_bitmaps: u32,
    pub inode_bitmaps: u32,
    pub inode_tables: u32,
    pub root_directory: u32,
    pub lost_and_found: u32,
    pub journal: Option<Journal>,
    pub first_free: u32,
}

impl Layout {
    /// No sum here overflows: 4 TiB are 2^30 blocks in 2^15 groups of at most 2^15 inodes.
    pub fn plan(size_bytes: u64, options: &Options) -> Result<Self, FormatError> {
        if !(MIN_DEVICE_BYTES..=MAX_DEVICE_BYTES).contains(&size_bytes) {
            return Err(FormatError::DeviceSize(size_bytes));
        }
        let blocks = (size_bytes / BLOCK_SIZE as u64) as u32;
        let whole = Self::of(blocks, options);
        let remainder = blocks % BLOCKS_PER_GROUP;
        let cost = 2 + whole.inode_table_blocks + LAST_GROUP_GAIN;
        let drop_last = whole.groups > 1 && remainder != 0 && remainder < cost;
        let layout = if drop_last { Self::of(blocks - remainder, options) } else { whole };
        if layout.first_free >= layout.blocks {
            return Err(FormatError::NoRoom { needed: layout.first_free + 1, blocks: layout.blocks });
        }
        Ok(layout)
    }

    fn of(blocks: u32, options: &Options) -> Self {
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let inodes = u64::from(blocks) * BLOCK_SIZE as u64 / u64::from(options.bytes_per_inode);
        let inodes_per_group = inodes
            .div_ceil(u64::from(groups))
            .next_multiple_of(INODES_PER_BLOCK)
            .clamp(INODES_PER_BLOCK, MAX_INODES_PER_GROUP) as u32;
        let inode_table_blocks = inodes_per_group / INODES_PER_BLOCK as u32;
        let descriptor_blocks = (groups * group::DESCRIPTOR_SIZE as u32).div_ceil(BLOCK_SIZE as u32);

        let block_bitmaps = 1 + descriptor_blocks;
        let inode_bitmaps = block_bitmaps + groups;
        let inode_tables = inode_bitmaps + groups;
        let root_directory = inode_tables + groups * inode_table_blocks;
        let lost_and_found = root_directory + 1;
        let first = lost_and_found + 1;
        let journal = options.journal_blocks.map(|blocks| Journal { first, blocks });
        let first_free = first + journal.map_or(0, |journal| journal.blocks);
        Self {
            blocks,
            groups,
            inodes_per_group,
            inode_table_blocks,
            descriptor_blocks,
            block_bitmaps,
            inode_bitmaps,
            inode_tables,
            root_directory,
            lost_and_found,
            journal,
            first_free,
        }
    }

    pub fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    pub fn free_blocks(&self) -> u32 {
        self.blocks - self.first_free
    }

    pub fn free_inodes(&self) -> u32 {
        self.inodes() - inode::FIRST_UNUSED + 1
    }

    /// What statfs does not count: everything in use but the directories.
    pub fn overhead(&self) -> u32 {
        self.first_free - 2
    }
}
