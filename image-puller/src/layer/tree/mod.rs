//! The layer as a tree of names and inodes, grown entry by entry.
//!
//! Entries mean what containerd and containers/storage make of them when they unpack onto an overlay:
//!
//! | in the archive | in the tree |
//! |---|---|
//! | the same path again | the later entry wins; a directory over a directory keeps its children |
//! | a path whose parents are missing | parents of mode 0755, owned by root, dated to the epoch |
//! | a parent that is a symbolic link | followed inside the layer, with the layer's root as `/`; made if it dangles |
//! | a parent that is any other file | refused; of a whiteout: ignored |
//! | `..` out of the layer | refused ([`super::path`]) |
//! | the root itself | its owner, mode, time and attributes are taken, which mounting under an overlay hides |
//! | a hard link | to what its target is at that moment; its own metadata is ignored; no target is an error |
//! | `.wh.NAME` | a character device 0:0 called NAME, overlayfs' mark for "deleted" |
//! | `.wh..wh..opq` | `trusted.overlay.opaque=y` on its directory |
//! | any other `.wh..wh.` name | ignored: it was for aufs |
//!
//! A whiteout speaks of the layers below alone (OCI image specification, "Whiteouts"), whatever its place in the archive:
//! beside an entry of the same name it hides nothing of this layer, and makes a directory opaque. (The oracles depend
//! on the order there, and stop when the whiteout comes second.)

mod inode;
mod listing;
mod lookup;
mod walk;
mod whiteout;

use std::mem::size_of;

use super::error::{EntryName, EntryProblem, LayerError};
use super::limits::Limits;
use super::path;
use super::sparse::{ChunkMap, Extent};
use super::tar::{Entry, Kind};
use super::xattr::XattrTable;
pub use inode::{Content, Inode, InodeId};
pub use listing::Listing;
use lookup::{Dirents, NO_INODE};
use whiteout::Whiteout;

/// The root directory's inode.
pub const ROOT: InodeId = 0;
/// The one inode that all whiteouts share.
pub const WHITEOUT: InodeId = 1;

pub struct Tree {
    inodes: Vec<Inode>,
    dirents: Dirents,
    /// Targets of symbolic links, one after the other.
    targets: Vec<u8>,
    chunk_maps: Vec<ChunkMap>,
    chunk_map_bytes: u64,
    sparse_segments: u64,
    xattrs: XattrTable,
    limits: Limits,
    /// Components walked because a symbolic link pointed there.
    symlink_steps: u64,
    /// Entries taken, and directories made for them.
    entries: u32,
}

impl Tree {
    pub fn new(limits: &Limits) -> Self {
        Tree {
            inodes: vec![Inode::implied_directory(ROOT, 0, false), Inode::whiteout()],
            dirents: Dirents::new(),
            targets: Vec::new(),
            chunk_maps: Vec::new(),
            chunk_map_bytes: 0,
            sparse_segments: 0,
            xattrs: XattrTable::new(),
            limits: *limits,
            symlink_steps: 0,
            entries: 0,
        }
    }

    /// Puts an entry into its place. `chunks` maps the data of a sparse file.
    pub fn add(&mut self, entry: &Entry, chunks: Option<ChunkMap>) -> Result<(), LayerError> {
        self.count_entry(&entry.path)?;
        let components = path::components(&entry.path, &self.limits)?;
        let Some((base, parents)) = components.split_last() else { return self.add_root(entry) };
        match whiteout::whiteout(&entry.path, &components)? {
            Some(Whiteout::Ignored) => Ok(()),
            Some(Whiteout::Opaque) => self.add_opaque(&entry.path, parents),
            Some(Whiteout::Of(name)) => self.add_whiteout(&entry.path, parents, name),
            None if entry.kind == Kind::HardLink => self.add_hard_link(entry, parents, base),
            None => self.add_inode(entry, parents, base, chunks),
        }
    }

    pub fn xattrs(&self) -> &XattrTable {
        &self.xattrs
    }

    pub fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id as usize)
    }

    /// The target of a symbolic link.
    pub fn target(&self, at: u32, len: u16) -> &[u8] {
        let at = at as usize;
        self.targets.get(at..at + usize::from(len)).unwrap_or_default()
    }

    pub fn chunk_map(&self, id: u32) -> Option<&ChunkMap> {
        self.chunk_maps.get(id as usize)
    }

    /// Ends the growing: gives opaque directories their attribute, and sorts everything that can be reached.
    pub fn finish(&mut self) -> Result<Listing, LayerError> {
        self.mark_opaque()?;
        self.check_memory(b"")?;
        Ok(Listing::new(&self.inodes, &self.dirents))
    }

    /// The name of a directory entry of the listing.
    pub fn name(&self, dirent: u32) -> &[u8] {
        self.dirents.name(dirent)
    }

    /// What a directory entry of the listing leads to.
    pub fn dirent_inode(&self, dirent: u32) -> InodeId {
        resolve(&self.inodes, &self.dirents, dirent)
    }

    fn add_root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Directory {
            return Ok(());
        }
        let xattrs = self.xattrs.intern(&entry.path, &entry.xattrs)?;
        if let Some(root) = self.inodes.get_mut(ROOT as usize) {
            root.set_metadata(entry, xattrs);
        }
        Ok(())
    }

    fn add_hard_link(&mut self, entry: &Entry, parents: &[&[u8]], base: &[u8]) -> Result<(), LayerError> {
        let problem = |problem| Err(LayerError::entry(&entry.path, problem));
        let link = path::components(&entry.link, &self.limits)?;
        let parent = self.make_parents(&entry.path, parents)?;
        let here = self.dirents.find(parent, base);
        let target = match link.split_last() {
            Some((name, parents)) => {
                self.find_parents(&entry.path, parents)?.and_then(|dir| self.dirents.find(dir, name))
            }
            None => return problem(EntryProblem::LinkToDirectory(EntryName::new(&entry.link))),
        };
        // A link to itself: unpacking would remove the file first, and then not find it.
        let target = target.filter(|target| Some(*target) != here);
        let target = target.map(|dirent| self.dirents.inode(dirent)).filter(|inode| *inode != NO_INODE);
        let Some(target) = target else {
            return problem(EntryProblem::MissingLinkTarget(EntryName::new(&entry.link)));
        };
        if self.inode(target).is_some_and(Inode::is_directory) {
            return problem(EntryProblem::LinkToDirectory(EntryName::new(&entry.link)));
        }
        self.bind(&entry.path, parent, base, target)
    }

    fn add_inode(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        base: &[u8],
        chunks: Option<ChunkMap>,
    ) -> Result<(), LayerError> {
        let parent = self.make_parents(&entry.path, parents)?;
        let xattrs = self.xattrs.intern(&entry.path, &entry.xattrs)?;
        if entry.kind == Kind::Directory
            && let Some(known) = self.directory_at(parent, base)
        {
            if let Some(inode) = self.inodes.get_mut(known as usize) {
                inode.set_metadata(entry, xattrs);
            }
            return Ok(());
        }
        let content = self.content(entry, parent, chunks)?;
        let mut inode = Inode::new(content);
        inode.set_metadata(entry, xattrs);
        let id = self.push_inode(&entry.path, inode)?;
        self.bind(&entry.path, parent, base, id)
    }

    fn content(
        &mut self,
        entry: &Entry,
        parent: InodeId,
        chunks: Option<ChunkMap>,
    ) -> Result<Content, LayerError> {
        Ok(match entry.kind {
            Kind::Directory => self.new_directory(&entry.path, parent, false)?.content,
            Kind::Symlink => self.symlink(entry)?,
            Kind::Fifo => Content::Fifo,
            Kind::CharDevice => Content::CharDevice { rdev: inode::rdev(entry)? },
            Kind::BlockDevice => Content::BlockDevice { rdev: inode::rdev(entry)? },
            Kind::File | Kind::HardLink => match chunks {
                Some(map) => self.sparse_file(entry, map)?,
                None => Content::File { size: entry.size, tar_offset: entry.data_offset },
            },
        })
    }

    fn symlink(&mut self, entry: &Entry) -> Result<Content, LayerError> {
        let len = u16::try_from(entry.link.len()).unwrap_or(u16::MAX);
        let at = u32::try_from(self.targets.len());
        let (Ok(at), false) = (at, usize::from(len) != entry.link.len()) else {
            return Err(LayerError::limit(&entry.path, "the link target", u16::MAX.into(), "bytes"));
        };
        if len == 0 {
            return Err(LayerError::entry(&entry.path, EntryProblem::EmptyTarget));
        }
        self.targets.extend_from_slice(&entry.link);
        Ok(Content::Symlink { at, len })
    }

    fn sparse_file(&mut self, entry: &Entry, map: ChunkMap) -> Result<Content, LayerError> {
        self.sparse_segments += entry.segments.as_ref().map_or(0, Vec::len) as u64;
        if self.sparse_segments > u64::from(self.limits.sparse_segments) {
            let max = self.limits.sparse_segments.into();
            return Err(LayerError::layer_limit("sparse files", max, "segments"));
        }
        let id = self.chunk_maps.len() as u32;
        self.chunk_map_bytes += (size_of::<ChunkMap>() + map.extents.len() * size_of::<Extent>()) as u64;
        self.chunk_maps.push(map);
        Ok(Content::Sparse { size: entry.size, map: id })
    }

    /// The directory called `name`, if there is one: not a link to one.
    fn directory_at(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let inode = self.dirents.inode(self.dirents.find(parent, name)?);
        self.inode(inode).is_some_and(Inode::is_directory).then_some(inode)
    }

    fn new_directory(&self, path: &[u8], parent: InodeId, for_whiteout: bool) -> Result<Inode, LayerError> {
        let depth = match self.inode(parent).map(|inode| inode.content) {
            Some(Content::Directory { depth, .. }) => depth.saturating_add(1),
            _ => 0,
        };
        if depth > self.limits.depth {
            return Err(LayerError::limit(path, "the depth", self.limits.depth.into(), "directories"));
        }
        Ok(Inode::implied_directory(parent, depth, for_whiteout))
    }

    fn push_inode(&mut self, path: &[u8], inode: Inode) -> Result<InodeId, LayerError> {
        let id = self.inodes.len() as InodeId;
        self.inodes.push(inode);
        self.check_memory(path)?;
        Ok(id)
    }

    /// Makes `name` lead to `inode`.
    fn bind(&mut self, path: &[u8], parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), LayerError> {
        let dirent = self.dirents.find_or_add(parent, name).ok_or_else(|| self.too_much_memory(path))?;
        self.dirents.set_inode(dirent, inode);
        self.check_memory(path)
    }

    fn count_entry(&mut self, path: &[u8]) -> Result<(), LayerError> {
        if self.entries >= self.limits.entries {
            return Err(LayerError::limit(
                path,
                "the number of entries",
                self.limits.entries.into(),
                "entries",
            ));
        }
        self.entries += 1;
        Ok(())
    }

    fn check_memory(&self, path: &[u8]) -> Result<(), LayerError> {
        let bytes = (self.inodes.capacity() * size_of::<Inode>() + self.targets.capacity()) as u64
            + self.dirents.bytes()
            + self.chunk_map_bytes
            + self.xattrs.bytes();
        if bytes > self.limits.metadata_bytes { Err(self.too_much_memory(path)) } else { Ok(()) }
    }

    fn too_much_memory(&self, path: &[u8]) -> LayerError {
        LayerError::limit(path, "the layer's metadata", self.limits.metadata_bytes, "bytes")
    }
}

/// What a directory entry leads to, whiteouts resolved.
fn resolve(inodes: &[Inode], dirents: &Dirents, dirent: u32) -> InodeId {
    let inode = dirents.inode(dirent);
    let hidden = dirents.is_whiteout(dirent);
    let only_whiteouts = inodes.get(inode as usize).is_some_and(Inode::is_made_for_whiteouts);
    if inode == NO_INODE || (hidden && only_whiteouts) { WHITEOUT } else { inode }
}

#[cfg(test)]
mod tests;
