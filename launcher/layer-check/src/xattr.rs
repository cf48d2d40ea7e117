use super::CheckError;
use super::superblock::Geometry;
use super::window::{ReadAt, Window, u16_at, u32_at};

const HEADER_BYTES: u64 = 12;
const ENTRY_HEADER_BYTES: u64 = 4;
const ALIGNMENT: u64 = 4;

const USER: u8 = 1;
const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
const TRUSTED: u8 = 4;
const SECURITY: u8 = 6;

/// Where the shared attributes are, and which of them mark a directory as opaque.
pub struct SharedXattrs {
    /// In units of four bytes from their beginning; in order.
    entries: Vec<(u32, bool)>,
}

impl SharedXattrs {
    /// Reads the area once, from its beginning to the zeros that fill its last block.
    pub fn read<R: ReadAt + ?Sized>(index: &R, geometry: &Geometry) -> Result<Self, CheckError> {
        let mut window = Window::new(index, geometry.metadata_start());
        let mut entries = Vec::new();
        let (start, end) = (geometry.shared_xattr_start(), geometry.metadata_start());
        let mut at = start;
        while at + ENTRY_HEADER_BYTES <= end {
            let wrong = |problem| CheckError::SharedXattr { at, problem };
            let Some(header) = window.get(at, ENTRY_HEADER_BYTES)? else { break };
            if header == [0; ENTRY_HEADER_BYTES as usize] {
                break;
            }
            let len = entry_bytes(header);
            let entry = window.get(at, len)?.ok_or_else(|| wrong("it reaches into the inodes"))?;
            let meaning = check_entry(entry).map_err(wrong)?;
            let place = u32::try_from((at - start) / ALIGNMENT).map_err(|_| wrong("too far"))?;
            entries.push((place, meaning == Meaning::Opaque));
            at += len.next_multiple_of(ALIGNMENT);
        }
        Ok(SharedXattrs { entries })
    }

    fn get(&self, place: u32) -> Option<bool> {
        let found = self.entries.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        self.entries.get(found).map(|(_, opaque)| *opaque)
    }
}

/// Bytes of an inode's attributes from the count in the inode.
pub fn body_bytes(count: u16) -> u64 {
    if count == 0 { 0 } else { HEADER_BYTES + ALIGNMENT * (u64::from(count) - 1) }
}

/// Checks the attributes behind an inode.
pub fn check_body(body: &[u8], shared: &SharedXattrs, is_directory: bool) -> Result<(), &'static str> {
    if body.is_empty() {
        return Ok(());
    }
    let (header, rest) = body.split_at_checked(HEADER_BYTES as usize).ok_or("attributes without a header")?;
    let shared_count = header.get(4).copied().unwrap_or(0);
    let (places, mut rest) =
        rest.split_at_checked(4 * usize::from(shared_count)).ok_or("more shared attributes than room")?;
    let opaque_is_fine = |opaque| if opaque && !is_directory { Err("an opaque file") } else { Ok(()) };
    for place in places.chunks_exact(4) {
        let opaque = shared.get(u32_at(place, 0)).ok_or("a shared attribute that is none")?;
        opaque_is_fine(opaque)?;
    }
    while !rest.is_empty() {
        let len = entry_bytes(rest);
        let entry = rest.get(..len as usize).ok_or("an attribute that reaches behind the last")?;
        opaque_is_fine(check_entry(entry)? == Meaning::Opaque)?;
        rest =
            rest.get(len.next_multiple_of(ALIGNMENT) as usize..).ok_or("an attribute without its padding")?;
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Meaning {
    Ordinary,
    Opaque,
}

fn entry_bytes(header: &[u8]) -> u64 {
    let name_len = header.first().copied().unwrap_or(0);
    ENTRY_HEADER_BYTES + u64::from(name_len) + u64::from(u16_at(header, 2))
}

/// Overlayfs obeys some attributes: of them only the mark of an opaque directory may be there.
fn check_entry(entry: &[u8]) -> Result<Meaning, &'static str> {
    let (name_len, prefix) = (entry.first().copied().unwrap_or(0), entry.get(1).copied().unwrap_or(0));
    let (name, value) = entry
        .get(ENTRY_HEADER_BYTES as usize..)
        .and_then(|rest| rest.split_at_checked(name_len.into()))
        .ok_or("an attribute cut short")?;
    match prefix {
        POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT if name.is_empty() => return Ok(Meaning::Ordinary),
        USER | TRUSTED | SECURITY if !name.is_empty() && !name.contains(&0) => {}
        _ => return Err("an attribute of an impossible name"),
    }
    match name.starts_with(b"overlay.") && (prefix == USER || prefix == TRUSTED) {
        false => Ok(Meaning::Ordinary),
        true if prefix == TRUSTED && name == b"overlay.opaque" && value == b"y" => Ok(Meaning::Opaque),
        true => Err("an attribute that overlayfs would obey"),
    }
}
