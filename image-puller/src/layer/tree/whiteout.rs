use super::super::error::{EntryProblem, LayerError};
use super::Tree;
use super::inode::{Content, Inode};
use super::lookup::NO_INODE;

/// What a name means that begins with `.wh.`.
#[derive(Debug, PartialEq, Eq)]
pub enum Whiteout<'p> {
    /// This name is deleted from the layers below.
    Of(&'p [u8]),
    /// Nothing of this directory is taken from the layers below.
    Opaque,
    /// Book-keeping of aufs.
    Ignored,
}

const PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Reads the marks out of a cleaned path; `None` for an ordinary one.
pub fn whiteout<'p>(path: &[u8], components: &[&'p [u8]]) -> Result<Option<Whiteout<'p>>, LayerError> {
    let Some((base, parents)) = components.split_last() else { return Ok(None) };
    if *base == OPAQUE {
        return Ok(Some(Whiteout::Opaque));
    }
    if base.starts_with(AUFS_PREFIX) || parents.iter().any(|parent| parent.starts_with(AUFS_PREFIX)) {
        return Ok(Some(Whiteout::Ignored));
    }
    match base.strip_prefix(PREFIX) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(LayerError::entry(path, EntryProblem::BadWhiteout)),
        Some(name) => Ok(Some(Whiteout::Of(name))),
    }
}

impl Tree {
    pub(super) fn add_whiteout(
        &mut self,
        path: &[u8],
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), LayerError> {
        // "rm -r DIRECTORY" is written by some tools as a whiteout of it and of everything in it.
        let Some(parent) = self.make_whiteout_parents(path, parents)? else { return Ok(()) };
        let dirent = self.dirents.find_or_add(parent, name).ok_or_else(|| self.too_much_memory(path))?;
        self.dirents.set_whiteout(dirent);
        self.check_memory(path)
    }

    pub(super) fn add_opaque(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<(), LayerError> {
        let parent = self.make_parents(path, parents)?;
        if let Some(Inode { content: Content::Directory { opaque, .. }, .. }) =
            self.inodes.get_mut(parent as usize)
        {
            *opaque = true;
        }
        Ok(())
    }

    /// Gives every opaque directory its attribute, those included that have a whiteout of the same name beside them.
    pub(super) fn mark_opaque(&mut self) -> Result<(), LayerError> {
        for dirent in 0..self.dirents.len() as u32 {
            let inode = self.dirents.inode(dirent);
            if inode == NO_INODE || !self.dirents.is_whiteout(dirent) {
                continue;
            }
            if let Some(Inode { content: Content::Directory { opaque, .. }, .. }) =
                self.inodes.get_mut(inode as usize)
            {
                *opaque = true;
            }
        }
        for inode in &mut self.inodes {
            if matches!(inode.content, Content::Directory { opaque: true, .. }) {
                inode.xattrs = self.xattrs.with_opaque(inode.xattrs)?;
            }
        }
        Ok(())
    }
}
