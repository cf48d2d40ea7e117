//! A directory tree as authority: every path is resolved beneath one directory descriptor and cannot leave it.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How often a resolution is tried again that a rename elsewhere disturbed (openat2(2), EAGAIN).
const ATTEMPTS_MAX: usize = 64;
/// Directories made on the way to a mount target.
const DIRECTORY_MODE: u32 = 0o755;

/// Absolute symbolic links and `..` stay inside, as after chroot(2); magic links are refused.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// No symbolic link at all.
const PLAIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

pub struct Tree {
    root: OwnedFd,
    resolve: ResolveFlags,
}

impl Tree {
    /// The tree of a container: its links may lead anywhere inside.
    pub fn container(root: OwnedFd) -> Self {
        Self { root, resolve: INSIDE }
    }

    /// A part of the guest's own tree, which has no links on the way to anything of ours; the part that `path` is.
    pub fn guest(path: &str) -> io::Result<Self> {
        let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let root = Self { root, resolve: PLAIN }.open(path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Self { root, resolve: PLAIN })
    }

    /// This process's own root directory, as a container's.
    pub fn own_root() -> io::Result<Self> {
        Ok(Self { resolve: INSIDE, ..Self::guest("/")? })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens `path`. In a container's tree links are followed, in the guest's refused (ELOOP).
    pub fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        resolve(&self.root, relative(path), flags, Mode::empty(), self.resolve)
    }

    /// Opens `path`, refusing links in any tree.
    pub fn open_plain(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        resolve(&self.root, relative(path), flags, Mode::empty(), PLAIN)
    }

    /// The directory at `path`; what is missing on the way is made. An O_PATH descriptor.
    pub fn make_directory(&self, path: &str) -> io::Result<OwnedFd> {
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, directory) {
            Err(error) if is_missing(&error) => {}
            found => return found,
        }
        // Most often the last one alone is missing.
        if let Some((parent, name)) = split_last(path)
            && let Ok(parent) = self.open(parent, directory)
        {
            return make_child_directory(&parent, name);
        }
        let mut here = self.open("/", directory)?;
        let mut walked = String::with_capacity(path.len());
        for name in components(path) {
            walked.push('/');
            walked.push_str(name);
            here = match self.open(&walked, directory) {
                Err(error) if is_missing(&error) => make_child_directory(&here, name)?,
                found => found?,
            };
        }
        Ok(here)
    }

    /// The file at `path`, whatever its type; a missing one is made empty, with the directories on the way.
    pub fn make_file(&self, path: &str) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Err(error) if is_missing(&error) => {}
            found => return found,
        }
        let (parent, name) = self.make_parent(path)?;
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        drop(resolve(&parent, name, create, Mode::from_raw_mode(0o644), PLAIN)?);
        resolve(&parent, name, OFlags::PATH, Mode::empty(), PLAIN)
    }

    /// The directory of `path`'s last component, made if it is missing, and that component.
    pub fn make_parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = split_last(path).ok_or(Errno::INVAL)?;
        Ok((self.make_directory(parent)?, name))
    }
}

/// Directory and last component of a path; `None` for a path without components.
pub fn split_last(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() { None } else { Some((parent, name)) }
}

/// Opens one component of `directory`, refusing a link.
pub fn open_child(directory: impl AsFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    resolve(directory, name, flags, Mode::empty(), PLAIN)
}

/// Makes and opens the directory `name`; one that somebody else has just made will do.
fn make_child_directory(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open_child(parent, name, OFlags::PATH | OFlags::DIRECTORY)
}

fn resolve(
    directory: impl AsFd,
    path: &str,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    for _ in 0..ATTEMPTS_MAX {
        match openat2(directory.as_fd(), path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
    Err(Errno::AGAIN.into())
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

pub fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(directory: &std::path::Path) -> Tree {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Tree::container(rustix::fs::open(directory, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn links_stay_inside_and_missing_directories_are_made() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir(inside.path().join("run")).unwrap();
        symlink("/run", inside.path().join("abs")).unwrap();
        symlink("../../../../../run", inside.path().join("up")).unwrap();
        symlink(outside.path(), inside.path().join("out")).unwrap();
        let tree = tree(inside.path());
        tree.make_directory("/abs/a/b").unwrap();
        tree.make_file("/up/c/d").unwrap();
        assert!(inside.path().join("run/a/b").is_dir());
        assert!(inside.path().join("run/c/d").is_file());
        // A link to what does not exist inside is neither followed outside nor replaced.
        assert!(tree.make_directory("/out/x").is_err());
        assert!(tree.make_file("/out").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(tree.open_plain("/abs/a", OFlags::PATH).unwrap_err().raw_os_error(), Some(40));
        assert!(tree.open("/../../run/a", OFlags::PATH).is_ok());
    }

    #[test]
    fn the_last_component_is_split_off() {
        for (path, parts) in [
            ("/a/b", Some(("/a", "b"))),
            ("/a/b/", Some(("/a", "b"))),
            ("/a", Some(("", "a"))),
            ("a", Some(("", "a"))),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(split_last(path), parts, "{path:?}");
        }
    }
}
