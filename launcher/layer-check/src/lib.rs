//! The check that stands between an index and mounting it.
//!
//! Whoever writes an index read an archive from outside; whoever mounts it is root. So the mounting side takes nothing
//! for granted: it accepts only images of the one form that this project writes, a small part of what EROFS can be.
//! No compression, no fragments, one block size, one kind of inode, one extra device. What the kernel then sees is
//! sane: every address lies inside its device, every inode and attribute inside the image and over no other, every
//! directory entry inside its block and in order, and the directories form a tree.
//!
//! One pass in the order of writing: inodes and directory blocks may only come at ever higher places. That makes the time
//! linear in the image's size and the memory small: a bit for every 32 bytes of the image, and the directories waiting.
//!
//! It says something about the bytes it read. The caller sees to it that nobody can change them afterwards.
//!
//! Needs nothing but the standard library.

mod directory;
mod inode;
mod superblock;
mod window;
mod xattr;

use std::collections::VecDeque;
use std::fmt;
use std::io;

use directory::Dirent;
use inode::{Directory, Inode, Inodes, Kind};
use superblock::Geometry;
pub use window::ReadAt;
use window::Window;
use xattr::SharedXattrs;

/// Bytes of a block of the index.
const BLOCK_BYTES: u64 = 512;

/// Bounds on what is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckLimits {
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Inodes, each counted once.
    pub inodes: u64,
}

impl Default for CheckLimits {
    fn default() -> Self {
        CheckLimits { index_bytes: 4 << 30, inodes: 5 << 20 }
    }
}

/// What an index that passed consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexSummary {
    pub inodes: u64,
    pub directories: u64,
    /// Blocks of 512 bytes.
    pub index_blocks: u32,
    /// Blocks of 512 bytes.
    pub tar_blocks: u32,
}

/// Why an index is not mounted.
#[derive(Debug)]
pub enum CheckError {
    Read { at: u64, source: io::Error },
    Limit { what: &'static str, max: u64 },
    Superblock(&'static str),
    SharedXattr { at: u64, problem: &'static str },
    Inode { nid: u32, problem: &'static str },
}

impl fmt::Display for CheckError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckError::Read { at, .. } => write!(out, "cannot read the index at byte {at}"),
            CheckError::Limit { what, max } => write!(out, "the index is over the limit of {max} {what}"),
            CheckError::Superblock(problem) => write!(out, "superblock of the index: {problem}"),
            CheckError::SharedXattr { at, problem } => {
                write!(out, "shared attribute at byte {at} of the index: {problem}")
            }
            CheckError::Inode { nid, problem } => write!(out, "inode {nid} of the index: {problem}"),
        }
    }
}

impl std::error::Error for CheckError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CheckError::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Checks an index of `index_bytes` bytes over a tar of `tar_bytes` bytes.
pub fn check_index<R: ReadAt + ?Sized>(
    index: &R,
    index_bytes: u64,
    tar_bytes: u64,
    limits: &CheckLimits,
) -> Result<IndexSummary, CheckError> {
    if index_bytes > limits.index_bytes {
        return Err(CheckError::Limit { what: "bytes", max: limits.index_bytes });
    }
    let geometry = Geometry::read(index, index_bytes, tar_bytes)?;
    let xattrs = SharedXattrs::read(index, &geometry)?;
    let inodes = Inodes::new(index, geometry, xattrs);
    Walk { index, geometry, inodes, limits: *limits, count: 0, directories: 0 }.run()
}

struct Walk<'r, R: ?Sized> {
    index: &'r R,
    geometry: Geometry,
    inodes: Inodes<'r, R>,
    limits: CheckLimits,
    count: u64,
    directories: u64,
}

/// A directory that was named but not yet read.
struct Waiting {
    nid: u32,
    parent: u32,
    directory: Directory,
}

impl<R: ReadAt + ?Sized> Walk<'_, R> {
    fn run(mut self) -> Result<IndexSummary, CheckError> {
        let root_nid = self.geometry.root_nid;
        let Kind::Directory(root) = self.inode(root_nid)?.kind else {
            return Err(CheckError::Inode { nid: root_nid, problem: "the root is not a directory" });
        };
        let mut waiting = VecDeque::from([Waiting { nid: root_nid, parent: root_nid, directory: root }]);
        let mut blocks = Window::new(self.index, self.geometry.index_bytes());
        let mut tails = Window::new(self.index, self.geometry.index_bytes());
        while let Some(next) = waiting.pop_front() {
            self.directories += 1;
            let (nid, parent) = (next.nid, next.parent);
            directory::read(nid, &next.directory, &mut blocks, &mut tails, |dirent| {
                self.dirent(nid, parent, dirent, &mut waiting)
            })?;
        }
        let Geometry { index_blocks, tar_blocks, .. } = self.geometry;
        Ok(IndexSummary { inodes: self.count, directories: self.directories, index_blocks, tar_blocks })
    }

    fn dirent(
        &mut self,
        nid: u32,
        parent: u32,
        dirent: Dirent,
        waiting: &mut VecDeque<Waiting>,
    ) -> Result<(), CheckError> {
        let wrong = |problem| Err(CheckError::Inode { nid, problem });
        match dirent.name {
            b"." if dirent.nid != u64::from(nid) => return wrong("`.` is not the directory itself"),
            b".." if dirent.nid != u64::from(parent) => return wrong("`..` is not the directory above"),
            b"." | b".." if dirent.file_type != inode::TYPE_DIRECTORY => {
                return wrong("`.` or `..` of a wrong type");
            }
            b"." | b".." => return Ok(()),
            _ => {}
        }
        let Ok(child) = u32::try_from(dirent.nid) else { return wrong("an entry leads out of the image") };
        if self.inodes.is_known_file(child) {
            // Another name of something that is not a directory.
            return Ok(());
        }
        let inode = self.inode(child)?;
        if inode.kind.dirent_type() != dirent.file_type {
            return wrong("an entry's type is not its inode's");
        }
        if let Kind::Directory(directory) = inode.kind {
            waiting.push_back(Waiting { nid: child, parent: nid, directory });
        }
        Ok(())
    }

    /// An inode that was not seen before.
    fn inode(&mut self, nid: u32) -> Result<Inode, CheckError> {
        self.count += 1;
        if self.count > self.limits.inodes {
            return Err(CheckError::Limit { what: "inodes", max: self.limits.inodes });
        }
        self.inodes.next(nid)
    }
}
