use super::super::sparse::BLOCK_BYTES;
use super::super::tree::InodeId;
use super::layout::Layout;
use super::{Source, inode};

/// `erofs_dirent`: inode number (64 bits), where the name begins in the block, file type, a spare byte.
const DIRENT_BYTES: usize = 12;

/// One directory entry, with its type.
#[derive(Clone, Copy)]
pub struct Dirent<'d> {
    name: &'d [u8],
    inode: InodeId,
    file_type: u8,
}

/// A directory block in its written form.
pub struct Encoded {
    bytes: [u8; BLOCK_BYTES as usize],
    used: usize,
}

impl Encoded {
    /// With zeros to the end of the block, which end the last name.
    pub fn whole(&self) -> &[u8] {
        &self.bytes
    }

    pub fn used(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

/// All blocks but the last, and the bytes used in the last.
pub fn size(source: &Source, directory: InodeId, parent: InodeId) -> (u32, u64) {
    let (mut whole, mut used) = (0, 0);
    for dirent in dirents(source, directory, parent) {
        let needed = (DIRENT_BYTES + dirent.name.len()) as u64;
        if used + needed > BLOCK_BYTES {
            whole += 1;
            used = 0;
        }
        used += needed;
    }
    (whole, used)
}

/// The directory's entries, block by block.
pub fn blocks<'d>(
    source: &'d Source,
    directory: InodeId,
    parent: InodeId,
) -> impl Iterator<Item = Vec<Dirent<'d>>> {
    let mut dirents = dirents(source, directory, parent).peekable();
    std::iter::from_fn(move || {
        let (mut block, mut used) = (Vec::new(), 0);
        while let Some(dirent) =
            dirents.next_if(|next| used + DIRENT_BYTES + next.name.len() <= BLOCK_BYTES as usize)
        {
            used += DIRENT_BYTES + dirent.name.len();
            block.push(dirent);
        }
        (!block.is_empty()).then_some(block)
    })
}

/// First all records, then all names.
pub fn encode(block: &[Dirent], layout: &Layout) -> Encoded {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    let mut name_at = block.len() * DIRENT_BYTES;
    for dirent in block {
        bytes.extend(u64::from(layout.nid(dirent.inode)).to_le_bytes());
        bytes.extend((name_at as u16).to_le_bytes());
        bytes.extend([dirent.file_type, 0]);
        name_at += dirent.name.len();
    }
    block.iter().for_each(|dirent| bytes.extend_from_slice(dirent.name));
    let used = bytes.len();
    bytes.resize(BLOCK_BYTES as usize, 0);
    Encoded { bytes: bytes.try_into().unwrap_or([0; BLOCK_BYTES as usize]), used }
}

/// Everything in the directory in byte order, with `.` and `..` at their places in it.
fn dirents<'d>(source: &'d Source, directory: InodeId, parent: InodeId) -> impl Iterator<Item = Dirent<'d>> {
    let tree = source.tree;
    let children = source.listing.children(directory);
    let (before_dot, rest) =
        children.split_at(children.partition_point(|child| tree.name(*child) < b".".as_slice()));
    let (between, after) = rest.split_at(rest.partition_point(|child| tree.name(*child) < b"..".as_slice()));
    let child = |number: &u32| (tree.name(*number), tree.dirent_inode(*number));
    let named = before_dot
        .iter()
        .map(child)
        .chain([(&b"."[..], directory)])
        .chain(between.iter().map(child))
        .chain([(&b".."[..], parent)])
        .chain(after.iter().map(child));
    named.map(move |(name, inode)| {
        let file_type = tree.inode(inode).map_or(0, inode::dirent_type);
        Dirent { name, inode, file_type }
    })
}
