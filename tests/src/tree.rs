//! A file tree as canonical lines, one per file: equal trees give equal texts, whatever file system holds them.
//!
//! Columns, separated by tabs: path, kind, mode, uid, gid, links, size, mtime, device, link target, first name of the
//! same inode, xattrs, sha256. A column that means nothing for the kind, or that the file system chooses by itself
//! (size and links of a directory), is `-`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags};
use sha2::{Digest, Sha256};

/// Bytes read at once when a file's content is hashed.
const READ_BYTES: usize = 256 * 1024;
/// Bytes of one xattr, and of the list of their names: the kernel's own limit (`XATTR_SIZE_MAX`).
const XATTR_BYTES: usize = 64 * 1024;
/// What overlayfs writes for itself is no part of the tree.
const OWN_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Writes the tree below `root` without entering other mounts; each of those is a line `# mount PATH`.
pub fn write(root: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut writer = Writer { root, mount: stat(root)?.stx_mnt_id, first_names: HashMap::new(), out };
    writer.entry(Path::new(""))
}

/// The same, as lines.
pub fn lines(root: &Path) -> io::Result<Vec<String>> {
    let mut text = Vec::new();
    write(root, &mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    Ok(text.lines().map(str::to_owned).collect())
}

struct Writer<'a, W> {
    root: &'a Path,
    mount: u64,
    first_names: HashMap<(u32, u32, u64), String>,
    out: &'a mut W,
}

impl<W: Write> Writer<'_, W> {
    fn entry(&mut self, path: &Path) -> io::Result<()> {
        // Joining the empty path would add a slash, which is no harm to the root alone.
        let full = if path.as_os_str().is_empty() { self.root.to_owned() } else { self.root.join(path) };
        let name = format!("/{}", escape(path.as_os_str().as_bytes()));
        let about = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
        let stat = stat(&full).map_err(about)?;
        if stat.stx_mnt_id != self.mount {
            return writeln!(self.out, "# mount {name}");
        }
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let line = self.line(&name, kind, &stat, &full).map_err(about)?;
        writeln!(self.out, "{line}")?;
        if kind == FileType::Directory {
            for child in children(&full).map_err(about)? {
                self.entry(&path.join(child))?;
            }
        }
        Ok(())
    }

    fn line(&mut self, name: &str, kind: FileType, stat: &Statx, full: &Path) -> io::Result<String> {
        const NOTHING: &str = "-";
        let nothing = || NOTHING.to_owned();
        let directory = kind == FileType::Directory;
        let (letter, size, target, digest, device) = match kind {
            FileType::RegularFile => ('f', stat.stx_size.to_string(), nothing(), sha256(full)?, nothing()),
            FileType::Directory => ('d', nothing(), nothing(), nothing(), nothing()),
            FileType::Symlink => {
                let target = std::fs::read_link(full)?;
                ('l', stat.stx_size.to_string(), escape(target.as_os_str().as_bytes()), nothing(), nothing())
            }
            FileType::Fifo => ('p', nothing(), nothing(), nothing(), nothing()),
            FileType::Socket => ('s', nothing(), nothing(), nothing(), nothing()),
            FileType::CharacterDevice => ('c', nothing(), nothing(), nothing(), device(stat)),
            FileType::BlockDevice => ('b', nothing(), nothing(), nothing(), device(stat)),
            FileType::Unknown => ('?', nothing(), nothing(), nothing(), nothing()),
        };
        let links = if directory { nothing() } else { stat.stx_nlink.to_string() };
        let first = match !directory && stat.stx_nlink > 1 {
            true => {
                let inode = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
                self.first_names.entry(inode).or_insert_with(|| name.to_owned()).clone()
            }
            false => nothing(),
        };
        Ok(format!(
            "{name}\t{letter}\t{:04o}\t{}\t{}\t{links}\t{size}\t{}.{:09}\t{device}\t{target}\t{first}\t{}\t{digest}",
            stat.stx_mode & 0o7777,
            stat.stx_uid,
            stat.stx_gid,
            stat.stx_mtime.tv_sec,
            stat.stx_mtime.tv_nsec,
            xattrs(full)?,
        ))
    }
}

fn stat(path: &Path) -> io::Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, wanted)?)
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.push(entry?.file_name().into_vec());
    }
    names.sort();
    Ok(names.into_iter().map(|name| PathBuf::from(std::ffi::OsString::from_vec(name))).collect())
}

fn device(stat: &Statx) -> String {
    format!("{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut hash = Sha256::new();
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

fn xattrs(path: &Path) -> io::Result<String> {
    let mut names = vec![0u8; XATTR_BYTES];
    let count = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(count) => count,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut pairs = Vec::new();
    let mut value = vec![0u8; XATTR_BYTES];
    for name in names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if OWN_XATTRS.iter().any(|own| name.starts_with(own)) {
            continue;
        }
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        pairs.push(format!("{}={}", escape(name), hex(&value[..length])));
    }
    pairs.sort();
    Ok(if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") })
}

/// Printable ASCII as it is, all else as `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        match byte {
            b'\\' => text.push_str("\\\\"),
            0x21..=0x7e => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
        text
    })
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn sample() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("b"), "content").unwrap();
        std::fs::hard_link(at("b"), at("c")).unwrap();
        symlink("b", at("a link")).unwrap();
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"d/\xff")), "").unwrap();
        folder
    }

    #[test]
    fn equal_trees_give_equal_lines_and_any_difference_shows() {
        let folder = sample();
        let before = lines(folder.path()).unwrap();
        assert_eq!(before, lines(folder.path()).unwrap());
        let names: Vec<&str> = before.iter().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(names, ["/", "/a\\x20link", "/b", "/c", "/d", "/d/\\xff"]);
        assert_eq!(before[3].split('\t').nth(10), Some("/b"), "the other name of the inode");

        type Change = (&'static str, fn(&Path));
        let changes: [Change; 4] = [
            ("content", |root| std::fs::write(root.join("b"), "CONTENT").unwrap()),
            ("mode", |root| {
                std::fs::set_permissions(root.join("b"), PermissionsExt::from_mode(0o4711)).unwrap()
            }),
            ("a name less", |root| std::fs::remove_file(root.join("c")).unwrap()),
            ("kind", |root| {
                std::fs::remove_file(root.join("a link")).unwrap();
                std::fs::write(root.join("a link"), "b").unwrap();
            }),
        ];
        for (what, change) in changes {
            let folder = sample();
            let before = lines(folder.path()).unwrap();
            change(folder.path());
            assert_ne!(before, lines(folder.path()).unwrap(), "{what}");
        }
    }
}
