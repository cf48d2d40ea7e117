use std::hash::{BuildHasher, RandomState};
use std::mem::size_of;

use super::inode::InodeId;

/// Of a name that is only a whiteout.
pub const NO_INODE: InodeId = InodeId::MAX;

/// Every name of every directory. Names are never removed: what a name leads to changes, and a directory that was
/// replaced can no longer be reached.
///
/// One arena for the names, one record of 16 bytes each, and a table of record numbers with linear probing. The hash is
/// keyed at random, so that an archive cannot make all its names collide; nothing that is written depends on it.
pub struct Dirents {
    names: Vec<u8>,
    dirents: Vec<Dirent>,
    /// Record numbers plus one; zero is free. The length is a power of two.
    slots: Vec<u32>,
    hasher: RandomState,
}

struct Dirent {
    parent: InodeId,
    inode: InodeId,
    name_at: u32,
    name_len: u8,
    whiteout: bool,
}

impl Dirents {
    const FIRST_SLOTS: usize = 64;

    pub fn new() -> Self {
        Dirents {
            names: Vec::new(),
            dirents: Vec::new(),
            slots: vec![0; Self::FIRST_SLOTS],
            hasher: RandomState::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.dirents.len()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        (self.names.capacity()
            + self.dirents.capacity() * size_of::<Dirent>()
            + self.slots.len() * size_of::<u32>()) as u64
    }

    pub fn find(&self, parent: InodeId, name: &[u8]) -> Option<u32> {
        self.probe(parent, name).ok()
    }

    /// The record of a name; a new one leads nowhere. `None` if there are more names than numbers.
    pub fn find_or_add(&mut self, parent: InodeId, name: &[u8]) -> Option<u32> {
        let slot = match self.probe(parent, name) {
            Ok(dirent) => return Some(dirent),
            Err(slot) => slot,
        };
        let number = u32::try_from(self.dirents.len()).ok().filter(|number| *number < u32::MAX - 1)?;
        let name_at = u32::try_from(self.names.len()).ok()?;
        let name_len = u8::try_from(name.len()).ok()?;
        self.names.extend_from_slice(name);
        self.dirents.push(Dirent { parent, inode: NO_INODE, name_at, name_len, whiteout: false });
        *self.slots.get_mut(slot)? = number + 1;
        // At most three quarters full, so that probes stay short and always end.
        if self.dirents.len() * 4 > self.slots.len() * 3 {
            self.grow();
        }
        Some(number)
    }

    pub fn name(&self, dirent: u32) -> &[u8] {
        let Some(dirent) = self.dirents.get(dirent as usize) else { return &[] };
        let at = dirent.name_at as usize;
        self.names.get(at..at + usize::from(dirent.name_len)).unwrap_or_default()
    }

    pub fn parent(&self, dirent: u32) -> InodeId {
        self.dirents.get(dirent as usize).map_or(NO_INODE, |dirent| dirent.parent)
    }

    pub fn inode(&self, dirent: u32) -> InodeId {
        self.dirents.get(dirent as usize).map_or(NO_INODE, |dirent| dirent.inode)
    }

    pub fn set_inode(&mut self, dirent: u32, inode: InodeId) {
        if let Some(dirent) = self.dirents.get_mut(dirent as usize) {
            dirent.inode = inode;
        }
    }

    pub fn is_whiteout(&self, dirent: u32) -> bool {
        self.dirents.get(dirent as usize).is_some_and(|dirent| dirent.whiteout)
    }

    pub fn set_whiteout(&mut self, dirent: u32) {
        if let Some(dirent) = self.dirents.get_mut(dirent as usize) {
            dirent.whiteout = true;
        }
    }

    /// The record, or the slot where it would go.
    fn probe(&self, parent: InodeId, name: &[u8]) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one((parent, name)) as usize & mask;
        loop {
            match self.slots.get(slot).copied().unwrap_or(0) {
                0 => return Err(slot),
                taken if self.parent(taken - 1) == parent && self.name(taken - 1) == name => {
                    return Ok(taken - 1);
                }
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    fn grow(&mut self) {
        let len = self.slots.len() * 2;
        self.slots.clear();
        self.slots.resize(len, 0);
        for number in 0..self.dirents.len() as u32 {
            let mut slot =
                self.hasher.hash_one((self.parent(number), self.name(number))) as usize & (len - 1);
            while self.slots.get(slot).is_some_and(|taken| *taken != 0) {
                slot = (slot + 1) & (len - 1);
            }
            if let Some(free) = self.slots.get_mut(slot) {
                *free = number + 1;
            }
        }
    }
}
