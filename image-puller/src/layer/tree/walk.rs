use super::super::error::{EntryName, EntryProblem, LayerError};
use super::inode::{Content, Inode, InodeId};
use super::lookup::NO_INODE;
use super::{ROOT, Tree};

/// Symbolic links followed on the way to one entry: what Linux follows (`MAXSYMLINKS`).
const MAX_SYMLINKS: u32 = 40;

/// What to do where a parent is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Make it, as a place for an entry.
    Make,
    /// Make it, as a place for a whiteout, unless it is deleted itself or a file: then there is nothing left to delete.
    MakeForWhiteout,
    /// Give up.
    Stop,
}

impl Tree {
    /// The directory that `parents` leads to, made where it is missing.
    pub(super) fn make_parents(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<InodeId, LayerError> {
        self.walk(path, parents, Missing::Make).map(|found| found.unwrap_or(ROOT))
    }

    /// The same for a whiteout: `None` if a directory on the way is deleted in this very layer, or replaced by a file.
    pub(super) fn make_whiteout_parents(
        &mut self,
        path: &[u8],
        parents: &[&[u8]],
    ) -> Result<Option<InodeId>, LayerError> {
        self.walk(path, parents, Missing::MakeForWhiteout)
    }

    /// The directory that `parents` leads to, if it is there.
    pub(super) fn find_parents(
        &mut self,
        path: &[u8],
        parents: &[&[u8]],
    ) -> Result<Option<InodeId>, LayerError> {
        self.walk(path, parents, Missing::Stop)
    }

    fn walk(
        &mut self,
        path: &[u8],
        parents: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<InodeId>, LayerError> {
        let mut directory = ROOT;
        for (at, name) in parents.iter().enumerate() {
            match self.step(path, directory, name, missing)? {
                Step::Into(next) => directory = next,
                Step::Nowhere => return Ok(None),
                Step::Link => {
                    let rest = parents.get(at..).unwrap_or_default();
                    return self.walk_through_links(path, directory, rest, missing);
                }
            }
        }
        Ok(Some(directory))
    }

    /// The slow way, with a list of components that grows where a symbolic link is met.
    fn walk_through_links(
        &mut self,
        path: &[u8],
        mut directory: InodeId,
        rest: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<InodeId>, LayerError> {
        let mut pending: Vec<Box<[u8]>> = rest.iter().rev().map(|name| (*name).into()).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            self.symlink_steps += 1;
            if self.symlink_steps > self.limits.symlink_steps {
                let max = self.limits.symlink_steps;
                return Err(LayerError::limit(path, "the walk through symbolic links", max, "steps"));
            }
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    directory = self.parent_of(directory);
                    continue;
                }
                _ => {}
            }
            match self.step(path, directory, &name, missing)? {
                Step::Into(next) => directory = next,
                Step::Nowhere => return Ok(None),
                Step::Link => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(LayerError::entry(path, EntryProblem::SymlinkLoop));
                    }
                    let target = self.link_target(directory, &name);
                    if target.first() == Some(&b'/') {
                        directory = ROOT;
                    }
                    pending.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
            }
        }
        Ok(Some(directory))
    }

    fn step(
        &mut self,
        path: &[u8],
        directory: InodeId,
        name: &[u8],
        missing: Missing,
    ) -> Result<Step, LayerError> {
        let dirent = self.dirents.find(directory, name);
        let inode = dirent.map_or(NO_INODE, |dirent| self.dirents.inode(dirent));
        match self.inodes.get_mut(inode as usize) {
            Some(inode) if matches!(inode.content, Content::Symlink { .. }) => return Ok(Step::Link),
            Some(found) if found.is_directory() => {
                if missing == Missing::Make {
                    found.is_for_more_than_whiteouts();
                }
                return Ok(Step::Into(inode));
            }
            // A whiteout below a file has nothing left to delete. umoci writes it for a directory that became a file.
            Some(_) if missing != Missing::Make => return Ok(Step::Nowhere),
            Some(_) => {
                let parent = EntryName::new(name);
                return Err(LayerError::entry(path, EntryProblem::ParentNotDirectory(parent)));
            }
            None => {}
        }
        let deleted = dirent.is_some_and(|dirent| self.dirents.is_whiteout(dirent));
        if missing == Missing::Stop || (deleted && missing == Missing::MakeForWhiteout) {
            return Ok(Step::Nowhere);
        }
        self.count_entry(path)?;
        let made = self.new_directory(path, directory, missing == Missing::MakeForWhiteout)?;
        let made = self.push_inode(path, made)?;
        self.bind(path, directory, name, made)?;
        Ok(Step::Into(made))
    }

    fn parent_of(&self, directory: InodeId) -> InodeId {
        match self.inode(directory).map(|inode: &Inode| inode.content) {
            Some(Content::Directory { parent, .. }) => parent,
            _ => ROOT,
        }
    }

    fn link_target(&self, directory: InodeId, name: &[u8]) -> Box<[u8]> {
        let inode = self.dirents.find(directory, name).map_or(NO_INODE, |dirent| self.dirents.inode(dirent));
        match self.inode(inode).map(|inode| inode.content) {
            Some(Content::Symlink { at, len }) => self.target(at, len).into(),
            _ => Box::default(),
        }
    }
}

/// Where one component leads.
enum Step {
    Into(InodeId),
    Link,
    Nowhere,
}
