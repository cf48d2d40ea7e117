use std::io;

use super::super::output::{Appender, WriteAt};
use super::super::tree::{Listing, Tree};
use super::super::xattr::SetId;

/// `erofs_xattr_ibody_header`: a filter, the number of shared attributes, spare bytes.
const HEADER_BYTES: u64 = 12;
const ALIGNMENT: u64 = 4;
/// The number of shared attributes of one inode has eight bits.
const MAX_SHARED: usize = 255;
/// What the 16 bits of `i_xattr_icount` can say.
pub const MAX_XATTR_BYTES: u64 = HEADER_BYTES + ALIGNMENT * (u16::MAX as u64 - 1);

/// `i_xattr_icount`: the size of an inode's attributes, in its own unit.
pub fn count_field(bytes: u64) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - HEADER_BYTES) / ALIGNMENT + 1) as u16 }
}

/// Attributes that several inodes have: written once, and referred to by their place.
pub struct SharedXattrs {
    /// Place of each attribute in units of four bytes, or none for one that stays with its inode.
    places: Vec<Option<u32>>,
    bytes: u64,
}

impl SharedXattrs {
    pub fn new(tree: &Tree, listing: &Listing) -> Self {
        let xattrs = tree.xattrs();
        let mut users = vec![0u32; xattrs.attribute_count()];
        for inode in listing.order.iter().filter_map(|id| tree.inode(*id)) {
            for id in xattrs.ids(inode.xattrs) {
                if let Some(users) = users.get_mut(*id as usize) {
                    *users = users.saturating_add(1);
                }
            }
        }
        let mut bytes = 0;
        let places = users.iter().zip(0u32..).map(|(users, id)| {
            let place = u32::try_from(bytes / ALIGNMENT).ok().filter(|_| *users > 1)?;
            bytes += padded(xattrs.attribute_bytes(id));
            Some(place)
        });
        let places = places.collect();
        SharedXattrs { places, bytes }
    }

    /// Bytes of the shared attributes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn write<W: WriteAt>(&self, tree: &Tree, out: &mut Appender<W>) -> io::Result<()> {
        for id in (0u32..).zip(&self.places).filter_map(|(id, place)| place.map(|_| id)) {
            write_attribute(tree.xattrs().attribute_bytes(id), out)?;
        }
        Ok(())
    }

    /// Bytes of a set behind an inode.
    pub fn set_bytes(&self, tree: &Tree, set: SetId) -> u64 {
        let (shared, own) = self.split(tree, set);
        if shared.is_empty() && own.is_empty() {
            return 0;
        }
        let own: u64 = own.iter().map(|id| padded(tree.xattrs().attribute_bytes(*id))).sum();
        HEADER_BYTES + 4 * shared.len() as u64 + own
    }

    pub fn write_set<W: WriteAt>(&self, tree: &Tree, set: SetId, out: &mut Appender<W>) -> io::Result<()> {
        let (shared, own) = self.split(tree, set);
        if shared.is_empty() && own.is_empty() {
            return Ok(());
        }
        out.append(&[0, 0, 0, 0, shared.len() as u8, 0, 0, 0, 0, 0, 0, 0])?;
        shared.iter().try_for_each(|place| out.append(&place.to_le_bytes()))?;
        own.iter().try_for_each(|id| write_attribute(tree.xattrs().attribute_bytes(*id), out))
    }

    /// Places of the shared attributes of a set, and numbers of its own ones.
    fn split(&self, tree: &Tree, set: SetId) -> (Vec<u32>, Vec<u32>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for id in tree.xattrs().ids(set) {
            match self.places.get(*id as usize).copied().flatten() {
                Some(place) if shared.len() < MAX_SHARED => shared.push(place),
                _ => own.push(*id),
            }
        }
        (shared, own)
    }
}

fn write_attribute<W: WriteAt>(attribute: &[u8], out: &mut Appender<W>) -> io::Result<()> {
    out.append(attribute)?;
    let zeros = (padded(attribute) as usize).saturating_sub(attribute.len());
    out.append([0; ALIGNMENT as usize].get(..zeros).unwrap_or_default())
}

fn padded(attribute: &[u8]) -> u64 {
    (attribute.len() as u64).next_multiple_of(ALIGNMENT)
}
