use super::super::error::{EntryProblem, LayerError};
use super::super::tar::{Entry, Time};
use super::super::xattr::{NO_XATTRS, SetId};

/// An inode's place in the tree.
pub type InodeId = u32;

/// What one or several names lead to. Small, because a layer has up to millions.
#[derive(Clone, Debug)]
pub struct Inode {
    pub content: Content,
    /// Permission bits, with set-id and sticky: 12 bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: SetId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Directory {
        parent: InodeId,
        depth: u16,
        opaque: bool,
        /// Made because a whiteout lies in it, and so far for nothing else.
        for_whiteouts: bool,
    },
    /// All bytes in a row in the tar.
    File {
        size: u64,
        tar_offset: u64,
    },
    /// `map` is a number of the tree's chunk maps.
    Sparse {
        size: u64,
        map: u32,
    },
    /// A part of the tree's link targets.
    Symlink {
        at: u32,
        len: u16,
    },
    CharDevice {
        rdev: u32,
    },
    BlockDevice {
        rdev: u32,
    },
    Fifo,
}

impl Inode {
    pub fn new(content: Content) -> Self {
        Inode { content, mode: 0, uid: 0, gid: 0, mtime: Time::default(), xattrs: NO_XATTRS }
    }

    /// A directory that the archive uses but does not describe.
    pub fn implied_directory(parent: InodeId, depth: u16, for_whiteouts: bool) -> Self {
        let content = Content::Directory { parent, depth, opaque: false, for_whiteouts };
        Inode { mode: 0o755, ..Inode::new(content) }
    }

    pub fn whiteout() -> Self {
        Inode::new(Content::CharDevice { rdev: 0 })
    }

    pub fn set_metadata(&mut self, entry: &Entry, xattrs: SetId) {
        self.mode = entry.mode;
        self.uid = entry.uid;
        self.gid = entry.gid;
        self.mtime = entry.mtime;
        self.xattrs = xattrs;
        self.is_for_more_than_whiteouts();
    }

    pub fn is_for_more_than_whiteouts(&mut self) {
        if let Content::Directory { for_whiteouts, .. } = &mut self.content {
            *for_whiteouts = false;
        }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory { .. })
    }

    pub fn is_made_for_whiteouts(&self) -> bool {
        matches!(self.content, Content::Directory { for_whiteouts: true, .. })
    }
}

/// A device number as Linux packs it into 32 bits (`new_encode_dev`).
pub fn rdev(entry: &Entry) -> Result<u32, LayerError> {
    let (major, minor) = entry.device;
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(LayerError::entry(&entry.path, EntryProblem::DeviceNumber { major, minor }));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}
