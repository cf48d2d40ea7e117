//! Makes an empty ext4 file system on the sandbox's scratch disk, at every boot.
//!
//! The disk is thrown away with the sandbox, so the format is the cheapest one that the kernel accepts in full:
//! all metadata lies in one run at the start, groups that nothing lies in are left to be initialised by the
//! kernel on first use, and there are no backups of superblock and descriptors. 64 GiB cost 19 blocks of writes.
//!
//! Everything here is computed; nothing is read from the device. The format follows the kernel's
//! `Documentation/filesystems/ext4`, and is checked against e2fsck and the kernel in the tests.

mod checksum;
mod directory;
mod group;
mod inode;
mod journal;
mod layout;
mod record;
mod superblock;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use self::layout::Layout;

/// The checksum of a superblock's first part.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum::crc32c(checksum::START, bytes)
}

/// The one block size used, in bytes.
pub const BLOCK_SIZE: usize = 4096;
/// The smallest device, in bytes.
pub const MIN_DEVICE_BYTES: u64 = 16 << 20;
/// The largest device, in bytes. Well below 2^32 blocks, so that block numbers have 32 bits, and low enough
/// that descriptors and bitmaps of a format (3 MiB here) are put together in memory.
pub const MAX_DEVICE_BYTES: u64 = 4 << 40;
/// The least device bytes per inode.
pub const MIN_BYTES_PER_INODE: u32 = 1024;
/// The smallest and largest journal, in blocks: what jbd2 wants at least, and what four extents reach.
pub const JOURNAL_BLOCKS: std::ops::RangeInclusive<u32> = 1024..=4 * 32768;
/// The most of the blocks that can be reserved for root, in percent.
pub const MAX_RESERVED_PERCENT: u8 = 50;
/// The longest volume label, in bytes.
pub const MAX_LABEL_BYTES: usize = 16;

/// What the file system shall be like.
#[derive(Clone, Debug)]
pub struct Options {
    pub uuid: [u8; 16],
    /// Keys the hash of directory indexes; random, so that nobody can prepare names that collide.
    pub hash_seed: [u8; 16],
    pub label: String,
    /// Owner and permission bits of the root directory.
    pub root_uid: u32,
    pub root_gid: u32,
    pub root_mode: u16,
    /// Blocks that only root may fill, in percent.
    pub reserved_percent: u8,
    /// One inode for so many bytes of the device; the tables of 16384 take 1/64 of it.
    pub bytes_per_inode: u32,
    /// Blocks of an internal journal; none by default, as a scratch disk does not outlive its kernel.
    pub journal_blocks: Option<u32>,
    /// Zero what the descriptors and the log say is zero: the inode tables and the journal. Set it for any disk
    /// that is not known to read as zeros; without it, a check or a replay could take stale blocks for live ones.
    pub zero: bool,
    /// The time stamp of everything made, in seconds since 1970.
    pub created_at: u64,
}

impl Options {
    /// The scratch disk's options: for a device that reads as zeros, without journal and reserve.
    pub fn new(uuid: [u8; 16], hash_seed: [u8; 16]) -> Self {
        Self {
            uuid,
            hash_seed,
            label: String::new(),
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
            reserved_percent: 0,
            bytes_per_inode: 16384,
            journal_blocks: None,
            zero: false,
            created_at: 0,
        }
    }
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of metadata written, without the zeroing that `Options::zero` asks for.
    pub bytes_written: u64,
    /// Blocks of the file system, of `BLOCK_SIZE` bytes.
    pub blocks: u32,
    /// Blocks that files can fill.
    pub free_blocks: u32,
    pub inodes: u32,
    pub groups: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("the device has {0} bytes; ext4 is made on {MIN_DEVICE_BYTES} to {MAX_DEVICE_BYTES}")]
    DeviceSize(u64),
    #[error("the volume label has {0} bytes; the limit is {MAX_LABEL_BYTES}")]
    LabelTooLong(usize),
    #[error("{0} bytes per inode; the least is {MIN_BYTES_PER_INODE}")]
    BytesPerInode(u32),
    #[error("{0} % of the blocks reserved; the limit is {MAX_RESERVED_PERCENT}")]
    ReservedPercent(u8),
    #[error("a journal of {0} blocks; it has {min} to {max}", min = JOURNAL_BLOCKS.start(), max = JOURNAL_BLOCKS.end())]
    JournalSize(u32),
    #[error("metadata and journal need {needed} blocks; the device has {blocks}")]
    NoRoom { needed: u32, blocks: u32 },
    #[error("write {what} at byte {offset}")]
    Write { what: &'static str, offset: u64, source: io::Error },
}

/// Makes an ext4 file system on the first `size_bytes` of `device`.
///
/// Unless `options.zero` is set, the device must read as zeros. Nothing is flushed: mount it with the same
/// kernel, or sync. Fails before the first write if an option or the size is out of its limits; when a write
/// fails, the superblock may not be there yet.
pub fn format(device: &File, size_bytes: u64, options: &Options) -> Result<Summary, FormatError> {
    check(options)?;
    let layout = Layout::plan(size_bytes, options)?;
    let seed = checksum::crc32c(checksum::START, &options.uuid);
    let mut disk = Disk { device, bytes_written: 0 };

    if options.zero {
        disk.zero("inode tables", layout.inode_tables, layout.groups * layout.inode_table_blocks)?;
        if let Some(journal) = layout.journal {
            disk.zero("journal", journal.first, journal.blocks)?;
        }
    }
    disk.write("inode bitmap", layout.inode_bitmaps, &group::first_inode_bitmap(&layout))?;
    disk.write("inode table", layout.inode_tables, &inode::first_table_block(&layout, options, seed))?;
    disk.write("directories", layout.root_directory, &directory::blocks(seed))?;
    if let Some(journal) = layout.journal {
        disk.write("journal", journal.first, &journal::superblock(journal.blocks, &options.uuid))?;
    }

    // Superblock, descriptors and the bitmaps of the leading groups lie side by side: one write, and the last
    // one, as it is what makes a file system of the rest.
    let tables = group::tables(&layout, seed);
    disk.write("last block bitmap", layout.block_bitmaps + layout.groups - 1, &tables.last_bitmap)?;
    let mut head = superblock::block(&layout, options);
    head.extend_from_slice(&tables.descriptors);
    head.extend_from_slice(&tables.leading_bitmaps);
    disk.write("superblock", 0, &head)?;

    Ok(Summary {
        bytes_written: disk.bytes_written,
        blocks: layout.blocks,
        free_blocks: layout.free_blocks(),
        inodes: layout.inodes(),
        groups: layout.groups,
    })
}

fn check(options: &Options) -> Result<(), FormatError> {
    if options.label.len() > MAX_LABEL_BYTES {
        return Err(FormatError::LabelTooLong(options.label.len()));
    }
    if options.bytes_per_inode < MIN_BYTES_PER_INODE {
        return Err(FormatError::BytesPerInode(options.bytes_per_inode));
    }
    if options.reserved_percent > MAX_RESERVED_PERCENT {
        return Err(FormatError::ReservedPercent(options.reserved_percent));
    }
    match options.journal_blocks {
        Some(blocks) if !JOURNAL_BLOCKS.contains(&blocks) => Err(FormatError::JournalSize(blocks)),
        _ => Ok(()),
    }
}

/// The device by block number.
struct Disk<'a> {
    device: &'a File,
    bytes_written: u64,
}

impl Disk<'_> {
    /// Writes whole blocks only: a part of one would make the kernel read the rest of it first.
    fn write(&mut self, what: &'static str, block: u32, bytes: &[u8]) -> Result<(), FormatError> {
        let offset = u64::from(block) * BLOCK_SIZE as u64;
        self.device.write_all_at(bytes, offset).map_err(|source| FormatError::Write {
            what,
            offset,
            source,
        })?;
        self.bytes_written += bytes.len() as u64;
        Ok(())
    }

    /// Zeroes blocks, by discarding them where the device can promise zeros for it.
    fn zero(&self, what: &'static str, block: u32, blocks: u32) -> Result<(), FormatError> {
        let offset = u64::from(block) * BLOCK_SIZE as u64;
        let length = u64::from(blocks) * BLOCK_SIZE as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(self.device, flags, offset, length) {
            Ok(()) => Ok(()),
            Err(_) => self.write_zeros(what, offset, length),
        }
    }

    fn write_zeros(&self, what: &'static str, mut offset: u64, mut length: u64) -> Result<(), FormatError> {
        let zeros = vec![0; 64 * BLOCK_SIZE];
        while length > 0 {
            let chunk = zeros.get(..length as usize).unwrap_or(&zeros);
            let written = self.device.write_all_at(chunk, offset);
            written.map_err(|source| FormatError::Write { what, offset, source })?;
            offset += chunk.len() as u64;
            length -= chunk.len() as u64;
        }
        Ok(())
    }
}
