//! Writes the index: an EROFS image of metadata, whose files' data lies in the tar beside it.
//!
//! ```text
//! block 0   nothing
//!       2   superblock, and the slot that describes the tar as the extra device
//!       3   copies of sparse data that is not aligned in the tar (mostly none)
//!       …   attributes that several inodes share
//!       …   inodes, breadth first, each with its own attributes and its short data behind it
//!       …   blocks of directories and long symbolic links
//! ```
//!
//! Blocks have 512 bytes, as those of a tar, so that every file begins at a block. An ordinary file is "flat": one
//! address in the space that the tar continues after the index. A sparse one has a chunk table. All inodes have the
//! extended form, because an archive has a time for each.
//!
//! The same tar gives the same bytes: the image's UUID comes from the tar's digest, its times are zero.
//!
//! Source: the Linux kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` (the format).

mod chunk;
mod dirent;
mod inode;
mod layout;
mod superblock;
mod xattr;

use std::io;

use super::error::LayerError;
use super::limits::Limits;
use super::output::{Appender, WriteAt};
use super::sparse::{BLOCK_BITS, BLOCK_BYTES};
use super::tree::{Content, Inode, InodeId, Listing, Tree};
use layout::{Cursor, Layout, Place};
pub use superblock::FIRST_FREE_BYTE;
use superblock::Superblock;
use xattr::SharedXattrs;

/// What an index is made from.
pub struct Source<'t> {
    pub tree: &'t Tree,
    pub listing: &'t Listing,
    /// Bytes of the tar.
    pub tar_bytes: u64,
    /// SHA-256 of the tar.
    pub diff_id: [u8; 32],
    /// Where metadata may begin, in bytes of the index.
    pub start: u64,
}

/// Writes the whole index and returns its length in bytes.
pub fn write_index(source: &Source, index: impl WriteAt, limits: &Limits) -> Result<u64, LayerError> {
    let shared = SharedXattrs::new(source.tree, source.listing);
    let layout = Layout::new(source, &shared, limits)?;
    let writer = Writer { source, shared: &shared, layout: &layout };
    writer
        .write(index)
        .map_err(|operation| LayerError::Io { operation: "write the index", source: operation })?;
    Ok(layout.index_bytes())
}

struct Writer<'w> {
    source: &'w Source<'w>,
    shared: &'w SharedXattrs,
    layout: &'w Layout,
}

impl Writer<'_> {
    fn write(&self, index: impl WriteAt) -> io::Result<()> {
        let mut out = Appender::new(&index, self.layout.shared_start);
        self.shared.write(self.source.tree, &mut out)?;
        self.write_inodes(&mut out)?;
        self.write_data_blocks(&mut out)?;
        out.flush()?;
        index.set_len(self.layout.index_bytes())?;
        index.write_at(&self.superblock().to_bytes(), superblock::SUPERBLOCK_AT)
    }

    fn superblock(&self) -> Superblock {
        Superblock {
            root_nid: self.layout.nid(super::tree::ROOT),
            inodes: self.source.listing.order.len() as u64,
            index_blocks: self.layout.index_blocks,
            tar_blocks: self.layout.tar_blocks,
            metadata_block: block(self.layout.inodes_start),
            shared_xattr_block: block(self.layout.shared_start),
            diff_id: self.source.diff_id,
        }
    }

    fn write_inodes<W: WriteAt>(&self, out: &mut Appender<W>) -> io::Result<()> {
        out.pad_to(self.layout.inodes_start)?;
        let mut cursor = Cursor::new();
        for (number, inode, place) in self.places(&mut cursor) {
            out.pad_to(self.layout.inodes_start + place.at)?;
            let links = self.source.listing.links(number.id);
            let data = self.data_field(inode, &place);
            out.append(&inode::encode(inode, &place, data, links, number.ordinal))?;
            self.shared.write_set(self.source.tree, inode.xattrs, out)?;
            self.write_behind_inode(number.id, inode, &place, out)?;
        }
        out.pad_to(self.layout.data_start)
    }

    /// Short data in line, or a chunk table.
    fn write_behind_inode<W: WriteAt>(
        &self,
        id: InodeId,
        inode: &Inode,
        place: &Place,
        out: &mut Appender<W>,
    ) -> io::Result<()> {
        match inode.content {
            Content::Directory { parent, .. } if place.inline => {
                let blocks = dirent::blocks(self.source, id, parent);
                match blocks.last() {
                    Some(last) => out.append(dirent::encode(&last, self.layout).used()),
                    None => Ok(()),
                }
            }
            Content::Symlink { at, len } if place.inline => out.append(self.source.tree.target(at, len)),
            Content::Sparse { size, map } => match self.source.tree.chunk_map(map) {
                Some(map) => {
                    out.pad_to(out.position().next_multiple_of(chunk::ENTRY_BYTES))?;
                    chunk::write_table(map, size, out)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn write_data_blocks<W: WriteAt>(&self, out: &mut Appender<W>) -> io::Result<()> {
        let mut cursor = Cursor::new();
        for (number, inode, place) in self.places(&mut cursor) {
            match inode.content {
                Content::Directory { parent, .. } => {
                    let blocks = dirent::blocks(self.source, number.id, parent);
                    for block in blocks.take(place.data_blocks as usize) {
                        out.append(dirent::encode(&block, self.layout).whole())?;
                    }
                }
                Content::Symlink { at, len } if !place.inline => {
                    out.append(self.source.tree.target(at, len))?;
                    out.pad_to(out.position().next_multiple_of(BLOCK_BYTES))?;
                }
                _ => {}
            }
        }
        out.pad_to(self.layout.index_bytes())
    }

    /// Every inode with its place, in order: the same on every pass.
    fn places<'p>(&'p self, cursor: &'p mut Cursor) -> impl Iterator<Item = (Number, &'p Inode, Place)> {
        self.source.listing.order.iter().zip(1u32..).filter_map(move |(id, ordinal)| {
            let inode = self.source.tree.inode(*id)?;
            let place = cursor.place(&layout::shape(self.source, self.shared, *id, inode));
            Some((Number { id: *id, ordinal }, inode, place))
        })
    }

    /// The four bytes of an inode that say where its data is, or which device it is.
    fn data_field(&self, inode: &Inode, place: &Place) -> u32 {
        let data_block = block(self.layout.data_start) + place.data_block;
        match inode.content {
            Content::Directory { .. } | Content::Symlink { .. } => match place.data_blocks {
                0 => 0,
                _ => data_block,
            },
            Content::File { size: 0, .. } | Content::Fifo => 0,
            // The tar's blocks are numbered on from the index's.
            Content::File { tar_offset, .. } => self.layout.index_blocks + block(tar_offset),
            Content::Sparse { map, .. } => {
                self.source.tree.chunk_map(map).map_or(0, |map| chunk::format(map.chunk_bits))
            }
            Content::CharDevice { rdev } | Content::BlockDevice { rdev } => rdev,
        }
    }
}

struct Number {
    id: InodeId,
    /// Position among all inodes, from one.
    ordinal: u32,
}

/// The number of a block. The layout has made sure that all fit.
fn block(bytes: u64) -> u32 {
    (bytes >> BLOCK_BITS) as u32
}
