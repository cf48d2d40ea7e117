//! The superblock (`super.rst`), in the one copy there is.

use super::layout::{BLOCKS_PER_GROUP, Layout};
use super::record::Record;
use super::{BLOCK_SIZE, MAX_LABEL_BYTES, Options, checksum, inode};

/// Where the superblock starts in block 0, in bytes.
const OFFSET: usize = 1024;

/// Features an old kernel may ignore.
mod compatible {
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const EXT_ATTR: u32 = 0x8;
    pub const DIR_INDEX: u32 = 0x20;
    /// Only the groups named in the superblock have backups: none.
    pub const SPARSE_SUPER2: u32 = 0x200;
}

/// Features without which nothing can be read.
mod incompatible {
    pub const FILETYPE: u32 = 0x2;
    pub const EXTENTS: u32 = 0x40;
    /// A group's bitmaps and inode table may lie outside of it.
    pub const FLEX_BG: u32 = 0x200;
}

/// Features without which nothing may be written.
mod read_only_compatible {
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const LARGE_FILE: u32 = 0x2;
    pub const HUGE_FILE: u32 = 0x8;
    pub const DIR_NLINK: u32 = 0x20;
    pub const EXTRA_ISIZE: u32 = 0x40;
    pub const METADATA_CSUM: u32 = 0x400;
}

/// Groups that the allocator treats as one (log2). Placement does not follow it; this is the usual value, which
/// the kernel's heuristics for spreading directories are made for.
const LOG_GROUPS_PER_FLEX: u8 = 4;
const STATE_CLEAN: u16 = 1;
/// A scratch disk that turned out inconsistent is not written any further.
const ERRORS_REMOUNT_READ_ONLY: u16 = 2;
const DEFAULT_MOUNT_USER_XATTR_AND_ACL: u32 = 0x4 | 0x8;
const HASH_HALF_MD4: u8 = 1;
const FLAG_SIGNED_DIRECTORY_HASH: u32 = 1;
const CHECKSUM_CRC32C: u8 = 1;
const JOURNAL_BACKUP_IS_INODE: u8 = 1;

/// Block 0: the boot sectors, empty, and the superblock.
pub fn block(layout: &Layout, options: &Options) -> Vec<u8> {
    let mut record = Record::<1024>::new();
    counts(&mut record, layout, options);
    identity(&mut record, options);
    features(&mut record, layout, options);
    if let Some(journal) = layout.journal {
        record.le32::<0xe0>(inode::JOURNAL);
        record.byte::<0xfd>(JOURNAL_BACKUP_IS_INODE);
        record.set::<0x10c, 60>(inode::extent_root(journal.first, journal.blocks));
        record.le32::<0x14c>(journal.blocks * BLOCK_SIZE as u32);
    }
    let sum = checksum::crc32c(checksum::START, record.before::<0x3fc>());
    record.le32::<0x3fc>(sum);

    let mut block = vec![0; OFFSET];
    block.extend_from_slice(record.bytes());
    block.resize(BLOCK_SIZE, 0);
    block
}

fn counts(record: &mut Record<1024>, layout: &Layout, options: &Options) {
    let reserved = u64::from(layout.free_blocks()) * u64::from(options.reserved_percent) / 100;
    record.le32::<0x00>(layout.inodes());
    record.le32::<0x04>(layout.blocks);
    record.le32::<0x08>(reserved as u32);
    record.le32::<0x0c>(layout.free_blocks());
    record.le32::<0x10>(layout.free_inodes());
    let log_block_size = BLOCK_SIZE.ilog2() - 10;
    record.le32::<0x18>(log_block_size);
    record.le32::<0x1c>(log_block_size); // Clusters are blocks.
    record.le32::<0x20>(BLOCKS_PER_GROUP);
    record.le32::<0x24>(BLOCKS_PER_GROUP);
    record.le32::<0x28>(layout.inodes_per_group);
    record.le32::<0x54>(inode::LOST_AND_FOUND); // The first inode that is not reserved.
    record.le16::<0x58>(inode::SIZE as u16);
    record.le16::<0x15c>(inode::EXTRA_SIZE);
    record.le16::<0x15e>(inode::EXTRA_SIZE);
    record.le32::<0x248>(layout.overhead());
}

fn identity(record: &mut Record<1024>, options: &Options) {
    record.le16::<0x38>(0xef53);
    record.le32::<0x4c>(1); // Revision: inode sizes and features are variable.
    record.set::<0x68, 16>(options.uuid);
    let mut label = [0; MAX_LABEL_BYTES];
    label.iter_mut().zip(options.label.bytes()).for_each(|(to, from)| *to = from);
    record.set::<0x78, MAX_LABEL_BYTES>(label);
    record.le16::<0x36>(u16::MAX); // Mounts until a check is due: no limit.
    record.le16::<0x3a>(STATE_CLEAN);
    record.le16::<0x3c>(ERRORS_REMOUNT_READ_ONLY);
    let (low, high) = (options.created_at as u32, (options.created_at >> 32) as u8);
    record.le32::<0x30>(low); // Written.
    record.le32::<0x40>(low); // Checked.
    record.le32::<0x108>(low); // Made.
    record.byte::<0x274>(high);
    record.byte::<0x276>(high);
    record.byte::<0x277>(high);
}

fn features(record: &mut Record<1024>, layout: &Layout, options: &Options) {
    use self::{compatible::*, incompatible::*, read_only_compatible::*};
    let journal = if layout.journal.is_some() { HAS_JOURNAL } else { 0 };
    record.le32::<0x5c>(journal | EXT_ATTR | DIR_INDEX | SPARSE_SUPER2);
    record.le32::<0x60>(FILETYPE | EXTENTS | FLEX_BG);
    record.le32::<0x64>(SPARSE_SUPER | LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE | METADATA_CSUM);
    record.set::<0xec, 16>(options.hash_seed);
    record.byte::<0xfc>(HASH_HALF_MD4);
    record.le32::<0x100>(DEFAULT_MOUNT_USER_XATTR_AND_ACL);
    record.le32::<0x160>(FLAG_SIGNED_DIRECTORY_HASH);
    record.byte::<0x174>(LOG_GROUPS_PER_FLEX);
    record.byte::<0x175>(CHECKSUM_CRC32C);
}
