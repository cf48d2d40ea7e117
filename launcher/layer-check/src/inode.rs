use super::superblock::Geometry;
use super::window::{ReadAt, Window, is_zero, u16_at, u32_at, u64_at};
use super::xattr::{self, SharedXattrs};
use super::{BLOCK_BYTES, CheckError};

const INODE_BYTES: u64 = 64;
const SLOT_BYTES: u64 = 32;

const EXTENDED_FLAT: u16 = 0x1;
const EXTENDED_INLINE: u16 = 0x5;
const EXTENDED_CHUNKED: u16 = 0x9;

const CHUNK_ENTRY_BYTES: u64 = 8;
const CHUNK_WITH_INDEXES: u32 = 0x20;
const CHUNK_BITS_MASK: u32 = 0x1f;

/// `PATH_MAX` without the NUL.
const MAX_LINK_BYTES: u64 = 4095;
/// A directory larger than this many bytes is none that was made from an archive.
const MAX_DIRECTORY_BYTES: u64 = 1 << 31;

pub const TYPE_DIRECTORY: u8 = 2;

/// What the check needs to know of an inode.
pub struct Inode {
    pub kind: Kind,
}

pub enum Kind {
    Directory(Directory),
    /// Anything else, by the number that directory entries have for it.
    Other {
        dirent_type: u8,
    },
}

/// Where a directory's entries are.
pub struct Directory {
    pub size: u64,
    /// Its first block's place, in bytes of the image.
    pub blocks_at: u64,
    /// Where its last part stands, if that is behind the inode.
    pub inline_at: Option<u64>,
}

impl Kind {
    pub fn dirent_type(&self) -> u8 {
        match self {
            Kind::Directory(_) => TYPE_DIRECTORY,
            Kind::Other { dirent_type } => *dirent_type,
        }
    }
}

/// All inodes of an image, looked at in the order of their places.
pub struct Inodes<'r, R: ?Sized> {
    window: Window<'r, R>,
    geometry: Geometry,
    shared: SharedXattrs,
    /// One bit for each possible place: set where something other than a directory begins.
    files: Vec<u64>,
    /// The end of the inode before, with all that stands behind it.
    end: u64,
    /// The end of the last inode's data blocks, in blocks.
    blocks_end: u32,
}

impl<'r, R: ReadAt + ?Sized> Inodes<'r, R> {
    pub fn new(index: &'r R, geometry: Geometry, shared: SharedXattrs) -> Self {
        let places = (geometry.index_bytes() - geometry.metadata_start()) / SLOT_BYTES;
        Inodes {
            window: Window::new(index, geometry.index_bytes()),
            geometry,
            shared,
            files: vec![0; (places / 64 + 1) as usize],
            end: geometry.metadata_start(),
            blocks_end: geometry.metadata_block,
        }
    }

    /// Whether `nid` is an inode that was looked at and is not a directory.
    pub fn is_known_file(&self, nid: u32) -> bool {
        self.files.get(nid as usize / 64).is_some_and(|bits| bits >> (nid % 64) & 1 == 1)
    }

    /// Looks at the inode `nid`, which must lie behind all before.
    pub fn next(&mut self, nid: u32) -> Result<Inode, CheckError> {
        let at = self.geometry.metadata_start() + u64::from(nid) * SLOT_BYTES;
        self.check(nid, at).unwrap_or_else(|problem| Err(CheckError::Inode { nid, problem }))
    }

    /// The outer error is a problem of this inode, the inner one is of reading.
    fn check(&mut self, nid: u32, at: u64) -> Result<Result<Inode, CheckError>, &'static str> {
        if at < self.end {
            return Err("it lies over another one, is a directory with two names, or is out of order");
        }
        if at % BLOCK_BYTES + INODE_BYTES > BLOCK_BYTES {
            return Err("it crosses into another block");
        }
        let fields = match self.window.get(at, INODE_BYTES) {
            Ok(Some(bytes)) => Fields::read(bytes)?,
            Ok(None) => return Err("it lies outside of the image"),
            Err(error) => return Ok(Err(error)),
        };
        let xattr_bytes = xattr::body_bytes(fields.xattr_count);
        let body_end = at + INODE_BYTES + xattr_bytes;
        match self.window.get(at + INODE_BYTES, xattr_bytes) {
            Ok(Some(bytes)) => xattr::check_body(bytes, &self.shared, fields.file_type() == TYPE_DIRECTORY)?,
            Ok(None) => return Err("its attributes reach out of the image"),
            Err(error) => return Ok(Err(error)),
        }
        self.end = body_end;
        let kind = match fields.file_type() {
            TYPE_DIRECTORY => Kind::Directory(self.directory(&fields, at)?),
            dirent_type => {
                match dirent_type {
                    1 if fields.format == EXTENDED_CHUNKED => match self.chunk_table(&fields) {
                        Ok(problem) => problem?,
                        Err(error) => return Ok(Err(error)),
                    },
                    1 => self.flat_file(&fields)?,
                    7 => self.symlink(&fields, at)?,
                    _ => fields.check_special()?,
                }
                if let Some(bits) = self.files.get_mut(nid as usize / 64) {
                    *bits |= 1 << (nid % 64);
                }
                Kind::Other { dirent_type }
            }
        };
        match self.end <= self.geometry.index_bytes() {
            true => Ok(Ok(Inode { kind })),
            false => Err("it reaches out of the image"),
        }
    }

    fn directory(&mut self, fields: &Fields, at: u64) -> Result<Directory, &'static str> {
        if fields.size == 0 || fields.size > MAX_DIRECTORY_BYTES {
            return Err("a directory of an impossible size");
        }
        let inline_at = self.blocks_and_tail(fields, at)?;
        Ok(Directory { size: fields.size, blocks_at: u64::from(fields.data) * BLOCK_BYTES, inline_at })
    }

    fn symlink(&mut self, fields: &Fields, at: u64) -> Result<(), &'static str> {
        if fields.size == 0 || fields.size > MAX_LINK_BYTES {
            return Err("a symbolic link of an impossible length");
        }
        if fields.format == EXTENDED_INLINE && fields.size >= BLOCK_BYTES {
            return Err("a symbolic link in line and in blocks");
        }
        self.blocks_and_tail(fields, at).map(|_| ())
    }

    /// Data inside the image: in blocks, and with its end in line or not. Returns where the in-line part is.
    fn blocks_and_tail(&mut self, fields: &Fields, at: u64) -> Result<Option<u64>, &'static str> {
        let tail = fields.size % BLOCK_BYTES;
        let (blocks, inline_at) = match fields.format {
            EXTENDED_FLAT => (fields.size.div_ceil(BLOCK_BYTES), None),
            EXTENDED_INLINE if tail > 0 => {
                let inline_at = self.end;
                if at / BLOCK_BYTES != (inline_at + tail - 1) / BLOCK_BYTES {
                    return Err("data in line that crosses into another block");
                }
                self.end += tail;
                (fields.size / BLOCK_BYTES, Some(inline_at))
            }
            _ => return Err("a layout that its type cannot have"),
        };
        if blocks > 0 {
            let end = u64::from(fields.data) + blocks;
            if fields.data < self.blocks_end || end > u64::from(self.geometry.index_blocks) {
                return Err("data blocks out of order or outside of the image");
            }
            self.blocks_end = end as u32;
        }
        Ok(inline_at)
    }

    /// A file that lies in one piece in the tar.
    fn flat_file(&self, fields: &Fields) -> Result<(), &'static str> {
        if fields.format != EXTENDED_FLAT {
            return Err("a layout that its type cannot have");
        }
        let start = u64::from(self.geometry.index_blocks);
        let tar = start..start + u64::from(self.geometry.tar_blocks);
        let first = u64::from(fields.data);
        let end =
            first.checked_add(fields.size.div_ceil(BLOCK_BYTES)).ok_or("a file of an impossible size")?;
        if fields.size > 0 && (first < tar.start || end > tar.end) {
            return Err("a file's data is not all in the tar");
        }
        Ok(())
    }

    /// The chunk table of a sparse file. The outer error is of reading.
    fn chunk_table(&mut self, fields: &Fields) -> Result<Result<(), &'static str>, CheckError> {
        if fields.data & !(CHUNK_WITH_INDEXES | CHUNK_BITS_MASK) != 0 || fields.data & CHUNK_WITH_INDEXES == 0
        {
            return Ok(Err("an unknown chunk format"));
        }
        if fields.size > i64::MAX as u64 {
            return Ok(Err("a file of an impossible size"));
        }
        let chunk_blocks = 1u64 << (fields.data & CHUNK_BITS_MASK);
        let blocks = fields.size.div_ceil(BLOCK_BYTES);
        let mut left = blocks;
        let table = self.end.next_multiple_of(CHUNK_ENTRY_BYTES);
        let entries = blocks.div_ceil(chunk_blocks);
        let end = table + entries.saturating_mul(CHUNK_ENTRY_BYTES).min(self.geometry.index_bytes());
        if end > self.geometry.index_bytes() {
            return Ok(Err("a chunk table that reaches out of the image"));
        }
        for entry_at in (table..end).step_by(CHUNK_ENTRY_BYTES as usize) {
            let count = chunk_blocks.min(left);
            left -= count;
            let geometry = self.geometry;
            match self.window.get(entry_at, CHUNK_ENTRY_BYTES)? {
                Some(entry) if chunk_is_inside(entry, count, &geometry) => {}
                _ => return Ok(Err("a chunk that is not all in its device")),
            }
        }
        self.end = end;
        Ok(Ok(()))
    }
}

fn chunk_is_inside(entry: &[u8], blocks: u64, geometry: &Geometry) -> bool {
    let (spare, device, block) = (u16_at(entry, 0), u16_at(entry, 2), u32_at(entry, 4));
    match (spare, device, block) {
        (0, 0, u32::MAX) => true,
        (0, 0, block) => geometry.is_copied_data(block, blocks),
        (0, 1, block) => u64::from(block) + blocks <= u64::from(geometry.tar_blocks),
        _ => false,
    }
}

/// `erofs_inode_extended`.
struct Fields {
    format: u16,
    xattr_count: u16,
    mode: u16,
    size: u64,
    data: u32,
}

impl Fields {
    fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let fields = Fields {
            format: u16_at(bytes, 0),
            xattr_count: u16_at(bytes, 2),
            mode: u16_at(bytes, 4),
            size: u64_at(bytes, 8),
            data: u32_at(bytes, 16),
        };
        let (nanoseconds, links) = (u32_at(bytes, 40), u32_at(bytes, 44));
        if !matches!(fields.format, EXTENDED_FLAT | EXTENDED_INLINE | EXTENDED_CHUNKED) {
            return Err("a form of inode that is not used here");
        }
        if !is_zero(bytes, 6..8) || !is_zero(bytes, 48..64) {
            return Err("fields that are not used here");
        }
        if nanoseconds >= 1_000_000_000 {
            return Err("more nanoseconds than a second has");
        }
        if links == 0 {
            return Err("an inode without links");
        }
        match fields.file_type() {
            0 => Err("an unknown file type"),
            _ => Ok(fields),
        }
    }

    /// The number that directory entries have for the type; zero for none.
    fn file_type(&self) -> u8 {
        match self.mode >> 12 {
            0o10 => 1,
            0o04 => TYPE_DIRECTORY,
            0o02 => 3,
            0o06 => 4,
            0o01 => 5,
            0o12 => 7,
            _ => 0,
        }
    }

    /// Devices and fifos have no data.
    fn check_special(&self) -> Result<(), &'static str> {
        let no_data = self.format == EXTENDED_FLAT && self.size == 0;
        if no_data { Ok(()) } else { Err("a device or fifo with data") }
    }
}
