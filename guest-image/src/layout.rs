//! What stands where in the guest image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Programs};

/// Debian's package of Mozilla's trust roots, one file per root. The bundle below `/etc/ssl` is not used: it also
/// has what the administrator of this machine trusts.
const CERTIFICATES: &str = "/usr/share/ca-certificates/mozilla";

/// The root tree of the puller's helper container.
const PULLER: &str = "usr/libexec/nacre/puller";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits; owner and group are always root.
    pub mode: u32,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Directory,
    Bytes(Vec<u8>),
    /// The content of a file of this machine.
    File(PathBuf),
    /// The text of a symbolic link.
    Link(String),
}

/// Paths, relative to the image's root, in order; every parent is there.
#[derive(Debug, Default)]
pub struct Layout {
    entries: BTreeMap<String, Entry>,
}

impl Layout {
    /// The guest image, nothing else: this is the one that people run.
    pub fn guest(programs: &Programs) -> Result<Self, Error> {
        let mut layout = Self::default();
        for mount_point in ["dev", "proc", "sys", "run", "tmp", "etc"] {
            layout.directory(mount_point)?;
        }
        layout.program("sbin/init", programs.path("nacre-init"))?;
        layout.program("usr/libexec/nacre/nacre-agent", programs.path("nacre-agent"))?;
        layout.program("usr/libexec/nacre/nacre-launcher", programs.path("nacre-launcher"))?;
        layout.puller(programs)?;
        Ok(layout)
    }

    /// A file of this machine at `path` of the image; executable there if it is here. For images of tests.
    pub fn extra(&mut self, path: &str, file: &Path) -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt;
        let metadata = fs::metadata(file).map_err(Error::io("cannot look at", file))?;
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o444 } else { 0o555 };
        self.replace(path, Entry { mode, content: Content::File(file.to_owned()) })
    }

    pub fn directory(&mut self, path: &str) -> Result<(), Error> {
        self.add(path, Entry { mode: 0o755, content: Content::Directory })
    }

    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    fn puller(&mut self, programs: &Programs) -> Result<(), Error> {
        let at = |path: &str| format!("{PULLER}/{path}");
        for mount_point in ["proc", "dev", "store", "tmp", "etc/resolver"] {
            self.directory(&at(mount_point))?;
        }
        self.program(&at("nacre-puller"), programs.path("nacre-puller"))?;
        let certificates = bundle(Path::new(CERTIFICATES))?;
        self.text(&at("etc/ssl/certs/ca-certificates.crt"), certificates)
    }

    fn program(&mut self, path: &str, file: PathBuf) -> Result<(), Error> {
        self.add(path, Entry { mode: 0o555, content: Content::File(file) })
    }

    fn text(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), Error> {
        self.add(path, Entry { mode: 0o444, content: Content::Bytes(bytes) })
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<(), Error> {
        let path = self.parents(path)?;
        match self.entries.insert(path.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(Error::Layout { path, why: "is there twice" }),
        }
    }

    fn replace(&mut self, path: &str, entry: Entry) -> Result<(), Error> {
        let path = self.parents(path)?;
        match self.entries.insert(path.clone(), entry) {
            Some(Entry { content: Content::Directory, .. }) => {
                Err(Error::Layout { path, why: "is a directory, not a file" })
            }
            _ => Ok(()),
        }
    }

    /// Checks `path` and adds the directories above it. Returns it without a leading slash.
    fn parents(&mut self, path: &str) -> Result<String, Error> {
        let refuse = |why| Error::Layout { path: path.to_owned(), why };
        let relative = path.strip_prefix('/').unwrap_or(path);
        if relative.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return Err(refuse("is not a plain path"));
        }
        for (slash, _) in relative.match_indices('/') {
            let parent = relative.get(..slash).unwrap_or_default().to_owned();
            let directory = Entry { mode: 0o755, content: Content::Directory };
            if self.entries.entry(parent).or_insert(directory).content != Content::Directory {
                return Err(refuse("lies below something that is not a directory"));
            }
        }
        Ok(relative.to_owned())
    }
}

/// All certificates of a folder, in the order of their file names.
fn bundle(folder: &Path) -> Result<Vec<u8>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("cannot list", folder))? {
        let path = entry.map_err(Error::io("cannot list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            files.push(path);
        }
    }
    files.sort();
    let mut bundle = Vec::new();
    for file in files {
        let bytes = fs::read(&file).map_err(Error::io("cannot read", &file))?;
        bundle.extend_from_slice(&bytes);
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    if bundle.is_empty() { Err(Error::NoCertificates { path: folder.to_owned() }) } else { Ok(bundle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32) -> Entry {
        Entry { mode, content: Content::Bytes(Vec::new()) }
    }

    #[test]
    fn directories_above_an_entry_appear_by_themselves() {
        let mut layout = Layout::default();
        layout.add("/a/b/c", file(0o444)).unwrap();
        let paths: Vec<&str> = layout.entries().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
    }

    #[test]
    fn paths_that_leave_the_image_or_clash_are_refused() {
        let mut layout = Layout::default();
        layout.add("etc/file", file(0o444)).unwrap();
        let cases = [
            ("", "is not a plain path"),
            ("/", "is not a plain path"),
            ("../out", "is not a plain path"),
            ("etc/../../out", "is not a plain path"),
            ("etc//x", "is not a plain path"),
            ("etc/file", "is there twice"),
            ("etc/file/below", "lies below something that is not a directory"),
        ];
        for (path, expected) in cases {
            match layout.add(path, file(0o444)) {
                Err(Error::Layout { why, .. }) => assert_eq!(why, expected, "{path}"),
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_extra_file_replaces_a_file_and_keeps_being_executable() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "x").unwrap();
        let mut layout = Layout::default();
        layout.program("sbin/init", PathBuf::from("/other")).unwrap();
        for (mode, expected) in [(0o644, 0o444), (0o755, 0o555)] {
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
            layout.extra("/sbin/init", &program).unwrap();
            let (_, entry) = layout.entries().find(|(path, _)| *path == "sbin/init").unwrap();
            assert_eq!(entry, &Entry { mode: expected, content: Content::File(program.clone()) });
        }
        layout.extra("sbin", &program).unwrap_err();
    }

    #[test]
    fn certificates_are_joined_in_order_and_only_certificates() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("b.crt", "two"), ("a.crt", "one\n"), ("README", "no")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(bundle(folder.path()).unwrap(), b"one\ntwo\n");
        fs::remove_file(folder.path().join("a.crt")).unwrap();
        fs::remove_file(folder.path().join("b.crt")).unwrap();
        assert!(matches!(bundle(folder.path()), Err(Error::NoCertificates { .. })));
    }
}
