//! The extended attributes of a layer, each stored once, in the form that EROFS has for them.

use std::collections::HashMap;
use std::rc::Rc;

use super::error::{EntryName, EntryProblem, LayerError};
use super::tar::Xattr;

/// A set of attributes: what one or many inodes have. Zero is the empty set.
pub type SetId = u32;

pub const NO_XATTRS: SetId = 0;

/// Every attribute and every set of attributes of a layer, without duplicates.
pub struct XattrTable {
    /// In EROFS form: name length, prefix number, value length (16 bits), name without prefix, value. Not padded.
    attributes: Vec<Rc<[u8]>>,
    attribute_ids: HashMap<Rc<[u8]>, u32>,
    sets: Vec<Rc<[u32]>>,
    set_ids: HashMap<Rc<[u32]>, SetId>,
    bytes: u64,
}

impl XattrTable {
    /// Fixed bytes that one attribute or set costs in memory, hash tables included: an estimate on the high side.
    const OVERHEAD_BYTES: u64 = 96;

    pub fn new() -> Self {
        let empty: Rc<[u32]> = Rc::new([]);
        XattrTable {
            attributes: Vec::new(),
            attribute_ids: HashMap::new(),
            sets: vec![empty.clone()],
            set_ids: HashMap::from([(empty, NO_XATTRS)]),
            bytes: 0,
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The set of an entry's attributes. Those that overlayfs would obey are dropped: they come from outside and would
    /// redirect or reveal files of other layers. So are those of namespaces that no Linux file system takes.
    pub fn intern(&mut self, path: &[u8], xattrs: &[Xattr]) -> Result<SetId, LayerError> {
        if xattrs.is_empty() {
            return Ok(NO_XATTRS);
        }
        let mut ids = Vec::with_capacity(xattrs.len());
        for (name, value) in xattrs {
            if is_overlay(name) {
                continue;
            }
            let Some((prefix, rest)) = split_prefix(name) else { continue };
            let acl = prefix == POSIX_ACL_ACCESS || prefix == POSIX_ACL_DEFAULT;
            if (acl && !is_posix_acl(value)) || (!acl && rest.is_empty()) {
                return Err(LayerError::entry(path, EntryProblem::BadXattr(EntryName::new(name))));
            }
            ids.push(self.attribute(path, prefix, rest, value)?);
        }
        Ok(self.set(ids))
    }

    /// `set` with the mark that hides a directory's lower layers.
    pub fn with_opaque(&mut self, set: SetId) -> Result<SetId, LayerError> {
        let mut ids = self.ids(set).to_vec();
        ids.push(self.attribute(b"", TRUSTED, b"overlay.opaque", b"y")?);
        Ok(self.set(ids))
    }

    /// The attributes of a set.
    pub fn ids(&self, set: SetId) -> &[u32] {
        self.sets.get(set as usize).map(|ids| &ids[..]).unwrap_or_default()
    }

    /// An attribute in EROFS form, not padded.
    pub fn attribute_bytes(&self, id: u32) -> &[u8] {
        self.attributes.get(id as usize).map(|bytes| &bytes[..]).unwrap_or_default()
    }

    pub fn attribute_count(&self) -> usize {
        self.attributes.len()
    }

    fn attribute(&mut self, path: &[u8], prefix: u8, name: &[u8], value: &[u8]) -> Result<u32, LayerError> {
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u16::try_from(value.len())) else {
            let max = u64::from(u16::MAX);
            return Err(LayerError::limit(path, "an extended attribute's value", max, "bytes"));
        };
        let mut bytes = Vec::with_capacity(4 + name.len() + value.len());
        bytes.extend([name_len, prefix]);
        bytes.extend(value_len.to_le_bytes());
        bytes.extend(name);
        bytes.extend(value);
        if let Some(id) = self.attribute_ids.get(&bytes[..]) {
            return Ok(*id);
        }
        let id = self.attributes.len() as u32;
        let bytes: Rc<[u8]> = bytes.into();
        self.bytes += bytes.len() as u64 + Self::OVERHEAD_BYTES;
        self.attributes.push(bytes.clone());
        self.attribute_ids.insert(bytes, id);
        Ok(id)
    }

    fn set(&mut self, mut ids: Vec<u32>) -> SetId {
        ids.sort_unstable_by(|a, b| {
            sort_key(self.attribute_bytes(*a)).cmp(&sort_key(self.attribute_bytes(*b)))
        });
        ids.dedup();
        if let Some(id) = self.set_ids.get(&ids[..]) {
            return *id;
        }
        let id = self.sets.len() as SetId;
        let ids: Rc<[u32]> = ids.into();
        self.bytes += 4 * ids.len() as u64 + Self::OVERHEAD_BYTES;
        self.sets.push(ids.clone());
        self.set_ids.insert(ids, id);
        id
    }
}

/// Prefix numbers of EROFS (`EROFS_XATTR_INDEX_*`).
pub const USER: u8 = 1;
pub const POSIX_ACL_ACCESS: u8 = 2;
pub const POSIX_ACL_DEFAULT: u8 = 3;
pub const TRUSTED: u8 = 4;
pub const SECURITY: u8 = 6;

fn split_prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole = |wanted: &[u8], index| (name == wanted).then_some((index, &b""[..]));
    let start = |wanted: &[u8], index| name.strip_prefix(wanted).map(|rest| (index, rest));
    start(b"user.", USER)
        .or_else(|| start(b"security.", SECURITY))
        .or_else(|| start(b"trusted.", TRUSTED))
        .or_else(|| whole(b"system.posix_acl_access", POSIX_ACL_ACCESS))
        .or_else(|| whole(b"system.posix_acl_default", POSIX_ACL_DEFAULT))
}

fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// The kernel's form of an ACL: a version, then entries of eight bytes (`include/uapi/linux/posix_acl_xattr.h`).
fn is_posix_acl(value: &[u8]) -> bool {
    value.starts_with(&2u32.to_le_bytes()) && value.len() % 8 == 4
}

/// Sorts attributes by prefix and name, so that equal sets come out equal in whatever order an archive has them.
fn sort_key(attribute: &[u8]) -> (Option<&u8>, &[u8]) {
    let name_len = attribute.first().copied().unwrap_or(0);
    (attribute.get(1), attribute.get(4..4 + usize::from(name_len)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[(&str, &str)]) -> Vec<Xattr> {
        names.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).collect()
    }

    #[test]
    fn equal_sets_are_stored_once_whatever_their_order() {
        let mut table = XattrTable::new();
        let one = table.intern(b"a", &list(&[("user.a", "1"), ("security.x", "2")])).unwrap();
        let two = table.intern(b"b", &list(&[("security.x", "2"), ("user.a", "1")])).unwrap();
        assert_eq!(one, two);
        assert_eq!(table.attribute_count(), 2);
    }

    #[test]
    fn attributes_that_overlayfs_obeys_are_dropped() {
        let mut table = XattrTable::new();
        let hostile = [
            "trusted.overlay.redirect",
            "trusted.overlay.opaque",
            "trusted.overlay.metacopy",
            "user.overlay.opaque",
            "trusted.overlay.overlay.opaque",
            "system.nfs4_acl",
            "nonsense",
        ];
        for name in hostile {
            assert_eq!(table.intern(b"a", &list(&[(name, "y")])).unwrap(), NO_XATTRS, "{name}");
        }
        assert_ne!(table.intern(b"a", &list(&[("trusted.overlayish", "y")])).unwrap(), NO_XATTRS);
    }

    #[test]
    fn malformed_acls_and_empty_names_are_refused() {
        let mut table = XattrTable::new();
        for (name, value) in [("system.posix_acl_access", "xx"), ("user.", "v"), ("security.", "v")] {
            assert!(table.intern(b"a", &list(&[(name, value)])).is_err(), "{name}");
        }
        let acl = [2u8, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff];
        let good: Xattr = (b"system.posix_acl_access"[..].into(), acl[..].into());
        assert!(table.intern(b"a", &[good]).is_ok());
    }
}
