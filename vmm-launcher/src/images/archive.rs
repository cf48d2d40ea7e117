//! Where the files of an uncompressed tar archive lie, so that they can be served out of it without unpacking.
//!
//! Formats: POSIX.1-2001 ustar and pax (pax(1), "pax Header Block"), and GNU long names and large numbers (tar(5)).

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::source::Extent;

/// Most entries of an archive.
const ENTRIES_MAX: usize = 200_000;
/// Longest name or link target, in bytes.
const NAME_MAX: usize = 4096;
/// Longest extended header, in bytes.
const EXTENDED_MAX: u64 = 1024 * 1024;
/// Most links from one name to its file.
const LINKS_MAX: usize = 16;
const BLOCK: u64 = 512;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("read the archive at byte {offset}: {source}")]
    Read { offset: u64, source: std::io::Error },
    #[error(
        "the archive is compressed with {0}; uncompress it first, so that its layers can be served in place"
    )]
    Compressed(&'static str),
    #[error("the file is not a tar archive")]
    NotTar,
    #[error("the archive is damaged at byte {offset}: {problem}")]
    Damaged { offset: u64, problem: &'static str },
    #[error("the archive has a name that leaves it: {0:?}")]
    Escapes(String),
    #[error("the archive has more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("{0:?} is a link that goes in circles, or to more than {LINKS_MAX} others")]
    Links(String),
}

/// Every file and link of an archive by its path.
#[derive(Debug)]
pub struct TarIndex {
    file: Arc<File>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File {
        offset: u64,
        length: u64,
    },
    /// To another path of the archive.
    Link(String),
}

impl TarIndex {
    /// Reads the headers and skips the contents.
    pub fn read(file: File) -> Result<Self, ArchiveError> {
        let mut entries = HashMap::new();
        let end = file.metadata().map_err(|source| ArchiveError::Read { offset: 0, source })?.len();
        let mut reader = Reader { file: &file, offset: 0, end, name: None, link: None, size: None };
        while let Some((path, entry)) = reader.next()? {
            if entries.len() >= ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries);
            }
            entries.insert(path, entry);
        }
        Ok(Self { file: Arc::new(file), entries })
    }

    /// The file at `path`, through links inside the archive.
    pub(super) fn find(&self, path: &str) -> Result<Option<Extent>, ArchiveError> {
        let mut path = clean(path)?;
        for _ in 0..LINKS_MAX {
            match self.entries.get(&path) {
                None => return Ok(None),
                Some(Entry::File { offset, length }) => {
                    return Ok(Some(Extent {
                        file: Arc::clone(&self.file),
                        offset: *offset,
                        length: *length,
                    }));
                }
                Some(Entry::Link(target)) => path.clone_from(target),
            }
        }
        Err(ArchiveError::Links(path))
    }
}

/// One pass over the headers; what extended headers said of the next entry is kept between.
struct Reader<'a> {
    file: &'a File,
    offset: u64,
    end: u64,
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<Option<(String, Entry)>, ArchiveError> {
        loop {
            let start = self.offset;
            let damaged = |problem| ArchiveError::Damaged { offset: start, problem };
            if start == self.end && start > 0 {
                return Ok(None);
            }
            let header = self.block(start)?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_header(&header, start)?;
            let kind = header[156];
            let mut length = number(&header[124..136]).ok_or(damaged("the size is no number"))?;
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                length = self.size.take().unwrap_or(length);
            }
            // Links, directories and devices have no content, whatever their size says.
            let content = if matches!(kind, b'1'..=b'6') { 0 } else { length };
            let data = start + BLOCK;
            let after = content
                .checked_next_multiple_of(BLOCK)
                .and_then(|padded| data.checked_add(padded))
                .filter(|after| data + content <= self.end && *after <= self.end.next_multiple_of(BLOCK))
                .ok_or(damaged("the entry is longer than the file"))?;
            self.offset = after.min(self.end);
            match kind {
                b'x' => self.pax(data, length)?,
                b'g' => {}
                b'L' => self.name = Some(self.text(data, length)?),
                b'K' => self.link = Some(self.text(data, length)?),
                _ => {
                    let name = match self.name.take() {
                        Some(name) => name,
                        None => ustar_name(&header).ok_or(damaged("the name is not UTF-8"))?,
                    };
                    let link = self.link.take();
                    let path = clean(&name)?;
                    let target = || match link {
                        Some(link) => Ok(link),
                        None => field(&header[157..257]).ok_or(damaged("the link target is not UTF-8")),
                    };
                    match kind {
                        b'0' | 0 | b'7' => return Ok(Some((path, Entry::File { offset: data, length }))),
                        b'1' => return Ok(Some((path, Entry::Link(clean(&target()?)?)))),
                        b'2' => {
                            let target = beside(&path, &target()?)?;
                            return Ok(Some((path, Entry::Link(target))));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn block(&self, offset: u64) -> Result<[u8; BLOCK as usize], ArchiveError> {
        let mut block = [0; BLOCK as usize];
        match self.file.read_exact_at(&mut block, offset) {
            Ok(()) => Ok(block),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(if offset == 0 {
                ArchiveError::NotTar
            } else {
                ArchiveError::Damaged { offset, problem: "it ends in the middle of a header" }
            }),
            Err(source) => Err(ArchiveError::Read { offset, source }),
        }
    }

    fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, ArchiveError> {
        if length > EXTENDED_MAX {
            return Err(ArchiveError::Damaged { offset, problem: "an extended header of more than 1 MiB" });
        }
        let mut bytes = vec![0; length as usize];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| ArchiveError::Read { offset, source })?;
        Ok(bytes)
    }

    fn text(&self, offset: u64, length: u64) -> Result<String, ArchiveError> {
        let bytes = self.bytes(offset, length)?;
        field(&bytes).ok_or(ArchiveError::Damaged { offset, problem: "a long name is not UTF-8" })
    }

    /// Records of the form `LENGTH KEY=VALUE\n`, LENGTH counting itself.
    fn pax(&mut self, offset: u64, length: u64) -> Result<(), ArchiveError> {
        let damaged = |problem| ArchiveError::Damaged { offset, problem };
        let bytes = self.bytes(offset, length)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && rest[0] != 0 {
            let (key, value, after) = pax_record(rest).ok_or(damaged("a pax record is malformed"))?;
            let text = || String::from_utf8(value.to_vec()).map_err(|_| damaged("a pax value is not UTF-8"));
            match key {
                b"path" => self.name = Some(text()?),
                b"linkpath" => self.link = Some(text()?),
                b"size" => {
                    self.size = Some(text()?.parse().map_err(|_| damaged("a pax size is no number"))?);
                }
                _ => {}
            }
            rest = after;
        }
        Ok(())
    }
}

fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?;
    let (b'\n', pair) = record.split_last()? else { return None };
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], &bytes[length..]))
}

fn check_header(header: &[u8; BLOCK as usize], offset: u64) -> Result<(), ArchiveError> {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    if number(&header[148..156]) == Some(sum) {
        return Ok(());
    }
    Err(match (offset, &header[..6]) {
        (0, [0x1f, 0x8b, ..]) => ArchiveError::Compressed("gzip"),
        (0, [0x28, 0xb5, 0x2f, 0xfd, ..]) => ArchiveError::Compressed("zstd"),
        (0, [0xfd, b'7', b'z', b'X', b'Z', 0]) => ArchiveError::Compressed("xz"),
        (0, [b'B', b'Z', b'h', ..]) => ArchiveError::Compressed("bzip2"),
        (0, _) => ArchiveError::NotTar,
        _ => ArchiveError::Damaged { offset, problem: "the checksum of a header is wrong" },
    })
}

/// Octal digits, or GNU's big-endian number behind a set high bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = field.split_first()?;
        return rest.iter().try_fold(u64::from(first & 0x7f), |value, byte| {
            value.checked_mul(256).map(|value| value + u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn field(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok().map(str::to_owned)
}

fn ustar_name(header: &[u8; BLOCK as usize]) -> Option<String> {
    let name = field(&header[..100])?;
    // GNU's own format (`ustar  `) uses the prefix field for times.
    let prefix = if &header[257..263] == b"ustar\0" { field(&header[345..500])? } else { String::new() };
    Some(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
}

/// The path without `.` and empty parts; one that is absolute, goes up or is too long is refused.
fn clean(path: &str) -> Result<String, ArchiveError> {
    let escapes = || ArchiveError::Escapes(path.chars().take(NAME_MAX).collect());
    if path.starts_with('/') || path.len() > NAME_MAX {
        return Err(escapes());
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(escapes());
    }
    Ok(parts.join("/"))
}

/// A symbolic link's target, seen from the directory of the link; it must stay in the archive.
fn beside(link: &str, target: &str) -> Result<String, ArchiveError> {
    let escapes =
        || ArchiveError::Escapes(format!("{link} -> {}", target.chars().take(NAME_MAX).collect::<String>()));
    if target.starts_with('/') || target.len() > NAME_MAX {
        return Err(escapes());
    }
    let mut parts: Vec<_> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(escapes)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A header with its checksum; `kind` and `link` as in tar(5).
    fn header(name: &str, kind: u8, link: &str, size: usize) -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, kind, link, content.len());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn index(parts: &[Vec<u8>]) -> Result<TarIndex, ArchiveError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&parts.concat()).unwrap();
        file.write_all(&[0; 1024]).unwrap();
        TarIndex::read(file)
    }

    #[test]
    fn files_are_found_through_every_kind_of_name_and_link() {
        let pax = b"19 path=deep/named\n";
        let index = index(&[
            entry("./plain", b'0', "", b"one"),
            entry("dir/", b'5', "", b""),
            entry("dir/soft", b'2', "../plain", b""),
            entry("hard", b'1', "./plain", b""),
            entry("ignored", b'x', "", pax),
            entry("short", b'0', "", b"pax"),
            entry("ignored", b'L', "", b"gnu/long/name\0"),
            entry("short", b'0', "", b"gnu"),
            entry("plain", b'0', "", b"two"),
        ])
        .unwrap();
        for (path, content) in [
            ("plain", "two"),
            ("dir/soft", "two"),
            ("hard", "two"),
            ("deep/named", "pax"),
            ("gnu/long/name", "gnu"),
        ] {
            let found = index.find(path).unwrap().unwrap().read_document(path).unwrap();
            assert_eq!(found, content.as_bytes(), "{path}");
        }
        assert!(index.find("short").unwrap().is_none());
    }

    #[test]
    fn names_that_leave_the_archive_are_refused() {
        for parts in [
            entry("/etc/passwd", b'0', "", b"x"),
            entry("../x", b'0', "", b"x"),
            entry("a/../../x", b'0', "", b"x"),
            entry("link", b'2', "/etc/shadow", b""),
            entry("link", b'2', "../etc/shadow", b""),
            entry("link", b'1', "../etc/shadow", b""),
        ] {
            assert!(matches!(index(&[parts]), Err(ArchiveError::Escapes(_))));
        }
        assert!(index(&[entry("a", b'0', "", b"")]).unwrap().find("../a").is_err());
    }

    #[test]
    fn damaged_archives_are_told_apart() {
        let mut flipped = entry("name", b'0', "", b"x");
        flipped[0] ^= 1;
        let huge = header("huge", b'0', "", 0o7777_7777);
        let circle = index(&[entry("a", b'2', "b", b""), entry("b", b'2', "a", b"")]).unwrap();
        assert!(matches!(circle.find("a"), Err(ArchiveError::Links(_))));
        assert!(matches!(index(&[flipped]), Err(ArchiveError::NotTar)));
        assert!(matches!(index(&[huge]), Err(ArchiveError::Damaged { .. })));
        let mut gzip = vec![0x1f, 0x8b];
        gzip.resize(512, 1);
        assert!(matches!(index(&[gzip]), Err(ArchiveError::Compressed("gzip"))));
        assert!(matches!(TarIndex::read(tempfile::tempfile().unwrap()), Err(ArchiveError::NotTar)));
    }
}
