use super::super::error::LayerError;
use super::super::limits::Limits;
use super::super::sparse::{self, BLOCK_BITS, BLOCK_BYTES};
use super::super::tree::{Content, Inode, InodeId, ROOT};
use super::xattr::{MAX_XATTR_BYTES, SharedXattrs};
use super::{Source, chunk, dirent};

/// Bytes of an inode in its extended form.
pub const INODE_BYTES: u64 = 64;
/// Inodes are numbered by their place, in units of this many bytes.
pub const SLOT_BYTES: u64 = 32;
/// The first inode's place: number zero would read as "no file" in programs that look at inode numbers.
const FIRST_PLACE: u64 = INODE_BYTES;

/// Where everything goes in the index, in bytes unless it says blocks.
pub struct Layout {
    pub shared_start: u64,
    pub inodes_start: u64,
    pub data_start: u64,
    pub index_blocks: u32,
    pub tar_blocks: u32,
    /// Inode numbers of EROFS by the tree's; zero for what cannot be reached.
    nids: Vec<u32>,
}

/// How much room an inode takes.
pub struct Shape {
    /// The inode and its attributes.
    body_bytes: u64,
    data: DataShape,
}

enum DataShape {
    None,
    /// Bytes in blocks, of which the last ones may move in line.
    Blocks {
        bytes: u64,
        tail_bytes: u64,
    },
    ChunkTable {
        entries: u64,
    },
}

/// Where an inode goes.
#[derive(Clone, Copy)]
pub struct Place {
    /// From the first inode's block on.
    pub at: u64,
    /// The last of its data, or all of it, stands behind the inode.
    pub inline: bool,
    /// Its first data block, counted from the first of all.
    pub data_block: u32,
    /// How many it has.
    pub data_blocks: u32,
    pub body_bytes: u64,
    /// Bytes of data of a directory or symbolic link.
    pub data_bytes: u64,
}

/// Gives out places, one inode after the other.
pub struct Cursor {
    next: u64,
    next_block: u64,
}

impl Layout {
    pub fn new(source: &Source, shared: &SharedXattrs, limits: &Limits) -> Result<Self, LayerError> {
        let mut nids = vec![0u32; source.listing.links.len()];
        let mut cursor = Cursor::new();
        let max = limits.index_bytes;
        let too_large = || LayerError::layer_limit("the index", max, "bytes");
        for id in &source.listing.order {
            let Some(inode) = source.tree.inode(*id) else { continue };
            let shape = shape(source, shared, *id, inode);
            if shape.body_bytes > INODE_BYTES + MAX_XATTR_BYTES {
                return Err(LayerError::layer_limit("the attributes of one entry", MAX_XATTR_BYTES, "bytes"));
            }
            let place = cursor.place(&shape);
            if let Some(nid) = nids.get_mut(*id as usize) {
                *nid = u32::try_from(place.at / SLOT_BYTES).map_err(|_| too_large())?;
            }
        }
        let shared_start = source.start.next_multiple_of(BLOCK_BYTES);
        let inodes_start = (shared_start + shared.bytes()).next_multiple_of(BLOCK_BYTES);
        let data_start = (inodes_start + cursor.next).next_multiple_of(BLOCK_BYTES);
        let index_bytes = data_start + cursor.next_block * BLOCK_BYTES;
        if index_bytes > max {
            return Err(too_large());
        }
        let index_blocks = index_bytes >> BLOCK_BITS;
        let tar_blocks = source.tar_bytes.div_ceil(BLOCK_BYTES);
        let addressable = u64::from(u32::MAX);
        if index_blocks + tar_blocks >= addressable {
            return Err(LayerError::layer_limit(
                "index and tar together",
                addressable,
                "blocks of 512 bytes",
            ));
        }
        let (index_blocks, tar_blocks) = (index_blocks as u32, tar_blocks as u32);
        Ok(Layout { shared_start, inodes_start, data_start, index_blocks, tar_blocks, nids })
    }

    pub fn nid(&self, id: InodeId) -> u32 {
        self.nids.get(id as usize).copied().unwrap_or(ROOT)
    }

    pub fn index_bytes(&self) -> u64 {
        u64::from(self.index_blocks) << BLOCK_BITS
    }
}

pub fn shape(source: &Source, shared: &SharedXattrs, id: InodeId, inode: &Inode) -> Shape {
    let data = match inode.content {
        Content::Directory { parent, .. } => {
            let (whole, tail_bytes) = dirent::size(source, id, parent);
            DataShape::Blocks { bytes: u64::from(whole) * BLOCK_BYTES + tail_bytes, tail_bytes }
        }
        Content::Symlink { len, .. } => {
            let bytes = u64::from(len);
            // A long target stays in one piece: kernels take one in line or in blocks, not in both.
            DataShape::Blocks { bytes, tail_bytes: if bytes < BLOCK_BYTES { bytes } else { 0 } }
        }
        Content::Sparse { size, map } => {
            let bits = source.tree.chunk_map(map).map_or(BLOCK_BITS, |map| map.chunk_bits);
            DataShape::ChunkTable { entries: sparse::chunks(size, bits) }
        }
        _ => DataShape::None,
    };
    Shape { body_bytes: INODE_BYTES + shared.set_bytes(source.tree, inode.xattrs), data }
}

impl Cursor {
    pub fn new() -> Self {
        Cursor { next: FIRST_PLACE, next_block: 0 }
    }

    pub fn place(&mut self, shape: &Shape) -> Place {
        let at = room_in_block(self.next.next_multiple_of(SLOT_BYTES), INODE_BYTES);
        let data_block = self.next_block as u32;
        let mut place = Place {
            at,
            inline: false,
            data_block,
            data_blocks: 0,
            body_bytes: shape.body_bytes,
            data_bytes: 0,
        };
        let mut end = at + shape.body_bytes;
        match shape.data {
            DataShape::None => {}
            DataShape::ChunkTable { entries } => {
                end = end.next_multiple_of(chunk::ENTRY_BYTES) + entries * chunk::ENTRY_BYTES;
            }
            DataShape::Blocks { bytes, tail_bytes } => {
                place.data_bytes = bytes;
                place.data_blocks = bytes.div_ceil(BLOCK_BYTES) as u32;
                // In line, inode and data share one block: kernels differ in what else they take.
                let inline_bytes = shape.body_bytes + tail_bytes;
                let inline_at = room_in_block(at, inline_bytes);
                let worth_it = inline_at - at + tail_bytes <= BLOCK_BYTES;
                if tail_bytes > 0 && inline_bytes <= BLOCK_BYTES && worth_it {
                    place.at = inline_at;
                    place.inline = true;
                    place.data_blocks -= 1;
                    end = inline_at + inline_bytes;
                }
                self.next_block += u64::from(place.data_blocks);
            }
        }
        self.next = end;
        place
    }
}

/// The first place from `at` on where `bytes` do not cross into another block; the next block if they never fit.
fn room_in_block(at: u64, bytes: u64) -> u64 {
    if at % BLOCK_BYTES + bytes <= BLOCK_BYTES { at } else { at.next_multiple_of(BLOCK_BYTES) }
}
