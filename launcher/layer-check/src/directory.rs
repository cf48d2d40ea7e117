use super::inode::Directory;
use super::window::{ReadAt, Window, u16_at, u64_at};
use super::{BLOCK_BYTES, CheckError};

const DIRENT_BYTES: usize = 12;
/// `NAME_MAX` of Linux.
const MAX_NAME_BYTES: usize = 255;

/// One entry of a directory.
pub struct Dirent<'b> {
    pub name: &'b [u8],
    pub nid: u64,
    pub file_type: u8,
}

/// Hands every entry of a directory to `visit`, after checking that they are in order, inside their blocks, and that `.`
/// and `..` are among them.
pub fn read<R: ReadAt + ?Sized>(
    nid: u32,
    directory: &Directory,
    blocks: &mut Window<R>,
    tails: &mut Window<R>,
    mut visit: impl FnMut(Dirent) -> Result<(), CheckError>,
) -> Result<(), CheckError> {
    let wrong = |problem| CheckError::Inode { nid, problem };
    let mut previous = Vec::with_capacity(MAX_NAME_BYTES);
    let mut dots = 0;
    let mut done = 0;
    while done < directory.size {
        let len = BLOCK_BYTES.min(directory.size - done);
        let block = match directory.inline_at {
            Some(inline_at) if len < BLOCK_BYTES => tails.get(inline_at, len)?,
            _ => blocks.get(directory.blocks_at + done, len)?,
        };
        let block = block.ok_or_else(|| wrong("a directory that reaches out of the image"))?;
        read_block(block, |dirent| {
            if dirent.name <= previous.as_slice() {
                return Err(wrong("names that are not in order"));
            }
            previous.clear();
            previous.extend_from_slice(dirent.name);
            dots += u8::from(matches!(dirent.name, b"." | b".."));
            visit(dirent)
        })
        .unwrap_or_else(|problem| Err(wrong(problem)))?;
        done += len;
    }
    if dots == 2 { Ok(()) } else { Err(wrong("a directory without `.` or `..`")) }
}

/// The outer error is a problem of the block, the inner one comes from `visit`.
fn read_block(
    block: &[u8],
    mut visit: impl FnMut(Dirent) -> Result<(), CheckError>,
) -> Result<Result<(), CheckError>, &'static str> {
    // The records end where the first name begins.
    let records_end = usize::from(u16_at(block, 8));
    let records = block.get(..records_end).ok_or("names outside of their block")?;
    if records.is_empty() || records.len() % DIRENT_BYTES != 0 {
        return Err("a directory block without whole records");
    }
    let mut records = records.chunks_exact(DIRENT_BYTES).peekable();
    let mut name_at = records_end;
    while let Some(record) = records.next() {
        let name_end = records.peek().map_or(block.len(), |next| usize::from(u16_at(next, 8)));
        if usize::from(u16_at(record, 8)) != name_at || record.get(11) != Some(&0) {
            return Err("a malformed directory entry");
        }
        let mut name = block.get(name_at..name_end).ok_or("names outside of their block")?;
        if records.peek().is_none() {
            // The last name ends with the block, or with the zeros that fill it.
            name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        }
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err("a name that no file can have");
        }
        name_at = name_end;
        let file_type = record.get(10).copied().unwrap_or(0);
        if let Err(error) = visit(Dirent { name, nid: u64_at(record, 0), file_type }) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
