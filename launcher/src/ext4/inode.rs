//! Inodes (`inodes.rst`): the root directory, lost+found, and the journal; the other reserved ones stay zero.

use super::layout::Layout;
use super::record::Record;
use super::{BLOCK_SIZE, Options, checksum};

/// Bytes of an inode, and how many of them are used beyond the classic 128.
pub const SIZE: usize = 256;
pub const EXTRA_SIZE: u16 = 32;

pub const ROOT: u32 = 2;
pub const JOURNAL: u32 = 8;
pub const LOST_AND_FOUND: u32 = 11;
/// The lowest inode number that nothing has.
pub const FIRST_UNUSED: u32 = LOST_AND_FOUND + 1;
/// Directories that a new file system has.
pub const DIRECTORIES: u16 = 2;

const TYPE_DIRECTORY: u16 = 0o040000;
const TYPE_REGULAR: u16 = 0o100000;
const FLAG_EXTENTS: u32 = 0x80000;
/// The longest extent, in blocks.
const MAX_EXTENT: u32 = 32768;

/// The first block of group 0's inode table, which holds all inodes in use.
pub fn first_table_block(layout: &Layout, options: &Options, seed: u32) -> Vec<u8> {
    let directory = Inode { mode: TYPE_DIRECTORY, uid: 0, gid: 0, links: 2, first: 0, blocks: 1 };
    let mut block = Vec::with_capacity(BLOCK_SIZE);
    for number in 1..=(BLOCK_SIZE / SIZE) as u32 {
        let inode = match number {
            ROOT => Some(Inode {
                mode: TYPE_DIRECTORY | options.root_mode & 0o7777,
                uid: options.root_uid,
                gid: options.root_gid,
                links: 3,
                first: layout.root_directory,
                ..directory
            }),
            JOURNAL => layout.journal.map(|journal| Inode {
                mode: TYPE_REGULAR | 0o600,
                links: 1,
                first: journal.first,
                blocks: journal.blocks,
                ..directory
            }),
            LOST_AND_FOUND => {
                Some(Inode { mode: TYPE_DIRECTORY | 0o700, first: layout.lost_and_found, ..directory })
            }
            _ => None,
        };
        let bytes = inode.map_or([0; SIZE], |inode| inode.encode(number, options.created_at, seed));
        block.extend_from_slice(&bytes);
    }
    block
}

/// The root of an extent tree as it stands in an inode (`ifork.rst`): a header and, for adjacent blocks from
/// `first` on, up to four extents.
pub fn extent_root(first: u32, blocks: u32) -> [u8; 60] {
    let mut root = [0; 60];
    let count = blocks.div_ceil(MAX_EXTENT) as u16;
    let mut fields = Vec::with_capacity(root.len());
    for half in [0xf30a, count, 4, 0, 0, 0] {
        fields.extend_from_slice(&u16::to_le_bytes(half)); // Magic, entries, room for, depth, generation (32 bits).
    }
    for start in (0..blocks).step_by(MAX_EXTENT as usize) {
        fields.extend_from_slice(&start.to_le_bytes()); // Its first block in the file,
        fields.extend_from_slice(&((blocks - start).min(MAX_EXTENT) as u16).to_le_bytes()); // its length,
        fields.extend_from_slice(&[0, 0]);
        fields.extend_from_slice(&(first + start).to_le_bytes()); // and where it lies (lower 32 bits).
    }
    root.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    root
}

#[derive(Clone, Copy)]
struct Inode {
    mode: u16,
    uid: u32,
    gid: u32,
    links: u16,
    first: u32,
    blocks: u32,
}

impl Inode {
    fn encode(&self, number: u32, created_at: u64, seed: u32) -> [u8; SIZE] {
        let mut record = Record::<SIZE>::new();
        record.le16::<0x00>(self.mode);
        record.le16::<0x02>(self.uid as u16);
        record.le16::<0x78>((self.uid >> 16) as u16);
        record.le16::<0x18>(self.gid as u16);
        record.le16::<0x7a>((self.gid >> 16) as u16);
        record.le16::<0x1a>(self.links);
        record.le32::<0x04>(self.blocks * BLOCK_SIZE as u32);
        record.le32::<0x1c>(self.blocks * (BLOCK_SIZE / 512) as u32);
        record.le32::<0x20>(FLAG_EXTENTS);
        record.set::<0x28, 60>(extent_root(self.first, self.blocks));
        record.le16::<0x80>(EXTRA_SIZE);

        let (seconds, epoch) = timestamp(created_at);
        record.le32::<0x08>(seconds); // Access, change, modification, and creation time,
        record.le32::<0x0c>(seconds);
        record.le32::<0x10>(seconds);
        record.le32::<0x90>(seconds);
        record.le32::<0x84>(epoch); // and the upper bits of each.
        record.le32::<0x88>(epoch);
        record.le32::<0x8c>(epoch);
        record.le32::<0x94>(epoch);

        let sum = checksum::crc32c(checksum::inode_seed(seed, number), record.bytes());
        record.le16::<0x7c>(sum as u16);
        record.le16::<0x82>((sum >> 16) as u16);
        *record.bytes()
    }
}

/// A time as *signed* lower 32 bits, and the two epoch bits that are added above them.
fn timestamp(seconds: u64) -> (u32, u32) {
    let low = seconds as u32;
    let epoch = (seconds as i64).wrapping_sub(i64::from(low as i32)) >> 32;
    (low, epoch as u32 & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_its_split_until_2446() {
        for seconds in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, 0x3_7fff_ffff] {
            let (low, epoch) = timestamp(seconds);
            assert_eq!(i64::from(low as i32) + (i64::from(epoch) << 32), seconds as i64);
        }
    }
}
