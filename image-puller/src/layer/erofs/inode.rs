use super::super::tree::{Content, Inode};
use super::layout::{INODE_BYTES, Place};
use super::xattr;

/// `i_format`: bit 0 says "extended", the bits from 1 on how the data is laid out.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0 << 1;
const FLAT_INLINE: u16 = 2 << 1;
const CHUNK_BASED: u16 = 4 << 1;

const S_IFIFO: u16 = 0o010000;
const S_IFCHR: u16 = 0o020000;
const S_IFDIR: u16 = 0o040000;
const S_IFBLK: u16 = 0o060000;
const S_IFREG: u16 = 0o100000;
const S_IFLNK: u16 = 0o120000;

/// `erofs_inode_extended`. `data` is the union of block address, chunk format and device number.
pub fn encode(inode: &Inode, place: &Place, data: u32, links: u32, ordinal: u32) -> Vec<u8> {
    let (file_type, size) = match inode.content {
        Content::Directory { .. } => (S_IFDIR, place.data_bytes),
        Content::Symlink { .. } => (S_IFLNK, place.data_bytes),
        Content::File { size, .. } | Content::Sparse { size, .. } => (S_IFREG, size),
        Content::CharDevice { .. } => (S_IFCHR, 0),
        Content::BlockDevice { .. } => (S_IFBLK, 0),
        Content::Fifo => (S_IFIFO, 0),
    };
    let layout = match inode.content {
        Content::Sparse { .. } => CHUNK_BASED,
        _ if place.inline => FLAT_INLINE,
        _ => FLAT_PLAIN,
    };
    let mut bytes = Vec::with_capacity(INODE_BYTES as usize);
    bytes.extend((EXTENDED | layout).to_le_bytes());
    bytes.extend(xattr::count_field(place.body_bytes - INODE_BYTES).to_le_bytes());
    bytes.extend((file_type | inode.mode).to_le_bytes());
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(data.to_le_bytes());
    bytes.extend(ordinal.to_le_bytes());
    bytes.extend(inode.uid.to_le_bytes());
    bytes.extend(inode.gid.to_le_bytes());
    bytes.extend(inode.mtime.seconds.to_le_bytes());
    bytes.extend(inode.mtime.nanoseconds.to_le_bytes());
    bytes.extend(links.to_le_bytes());
    bytes.extend([0; 16]);
    bytes
}

/// The file type of a directory entry (`EROFS_FT_*`).
pub fn dirent_type(inode: &Inode) -> u8 {
    match inode.content {
        Content::File { .. } | Content::Sparse { .. } => 1,
        Content::Directory { .. } => 2,
        Content::CharDevice { .. } => 3,
        Content::BlockDevice { .. } => 4,
        Content::Fifo => 5,
        Content::Symlink { .. } => 7,
    }
}
