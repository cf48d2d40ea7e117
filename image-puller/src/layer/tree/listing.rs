use super::inode::{Inode, InodeId};
use super::lookup::Dirents;
use super::{ROOT, resolve};

/// Everything that can be reached from the root, in the order in which it is written.
pub struct Listing {
    /// Inodes, each once: breadth first, the names of a directory in byte order. The root comes first.
    pub order: Vec<InodeId>,
    /// Names that lead to an inode, by inode; for a directory two and one for each directory in it.
    pub links: Vec<u32>,
    /// Numbers of the directory entries, grouped by directory, each group in byte order.
    children: Vec<u32>,
    /// Where an inode's group begins in `children`; one more at the end.
    starts: Vec<u32>,
}

impl Listing {
    pub(super) fn new(inodes: &[Inode], dirents: &Dirents) -> Self {
        let (children, starts) = group(inodes.len(), dirents);
        let mut listing = Listing { order: vec![ROOT], links: vec![0; inodes.len()], children, starts };
        listing.visit(inodes, dirents);
        listing
    }

    /// The directory entries of an inode, in byte order of their names.
    pub fn children(&self, directory: InodeId) -> &[u32] {
        let at = directory as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(start), Some(end)) => self.children.get(*start as usize..*end as usize).unwrap_or_default(),
            _ => &[],
        }
    }

    pub fn links(&self, inode: InodeId) -> u32 {
        self.links.get(inode as usize).copied().unwrap_or(0)
    }

    fn visit(&mut self, inodes: &[Inode], dirents: &Dirents) {
        self.add_links(ROOT, 2);
        let mut visited = 0;
        while let Some(directory) = self.order.get(visited).copied() {
            visited += 1;
            let (start, end) =
                match (self.starts.get(directory as usize), self.starts.get(directory as usize + 1)) {
                    (Some(start), Some(end)) => (*start as usize, *end as usize),
                    _ => continue,
                };
            if let Some(group) = self.children.get_mut(start..end) {
                group.sort_unstable_by(|a, b| dirents.name(*a).cmp(dirents.name(*b)));
            }
            for at in start..end {
                let Some(dirent) = self.children.get(at) else { break };
                let inode = resolve(inodes, dirents, *dirent);
                if self.links(inode) == 0 {
                    self.order.push(inode);
                }
                if inodes.get(inode as usize).is_some_and(Inode::is_directory) {
                    self.add_links(inode, 2);
                    self.add_links(directory, 1);
                } else {
                    self.add_links(inode, 1);
                }
            }
        }
    }

    fn add_links(&mut self, inode: InodeId, count: u32) {
        if let Some(links) = self.links.get_mut(inode as usize) {
            *links = links.saturating_add(count);
        }
    }
}

/// Sorts the directory entries into groups of one parent each: counts, sums up, and puts each into its place.
fn group(inodes: usize, dirents: &Dirents) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; inodes + 1];
    for dirent in 0..dirents.len() as u32 {
        if let Some(count) = starts.get_mut(dirents.parent(dirent) as usize + 1) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    let mut next = starts.clone();
    let mut children = vec![0u32; dirents.len()];
    for dirent in 0..dirents.len() as u32 {
        let Some(place) = next.get_mut(dirents.parent(dirent) as usize) else { continue };
        if let Some(child) = children.get_mut(*place as usize) {
            *child = dirent;
        }
        *place += 1;
    }
    (children, starts)
}
