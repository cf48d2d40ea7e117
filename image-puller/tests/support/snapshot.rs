use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything about a tree that a container can see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub nodes: BTreeMap<PathBuf, Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub seconds: i64,
    pub nanoseconds: i64,
    pub links: u64,
    pub rdev: u64,
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A link's target, or the digest of a file.
    pub content: Vec<u8>,
    /// Names of the same inode, each group by its first.
    pub same_as: PathBuf,
}

impl Snapshot {
    /// Walks everything under `root`, and `root` itself.
    pub fn of(root: &Path) -> Self {
        let mut snapshot = Snapshot::default();
        let mut inodes = BTreeMap::new();
        snapshot.walk(root, Path::new(""), &mut inodes);
        snapshot
    }

    fn walk(&mut self, root: &Path, path: &Path, inodes: &mut BTreeMap<u64, PathBuf>) {
        let full = root.join(path);
        let metadata = full.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", full.display()));
        self.nodes.insert(path.to_owned(), node(&full, path, &metadata, inodes));
        if metadata.is_dir() {
            let mut names: Vec<_> =
                full.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names.iter().for_each(|name| self.walk(root, &path.join(name), inodes));
        }
    }

    /// Changes every node, for what two sides cannot have alike.
    pub fn map(mut self, change: impl Fn(&Path, &mut Node)) -> Self {
        self.nodes.iter_mut().for_each(|(path, node)| change(path, node));
        self
    }

    /// Fails with the first differences.
    pub fn assert_eq(&self, other: &Snapshot, what: &str) {
        let mut differences = Vec::new();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                Some(same) if same == node => {}
                Some(same) => differences.push(format!("{path:?}\n  {node:?}\n  {same:?}")),
                None => differences.push(format!("{path:?} only on the left")),
            }
        }
        let extra = other.nodes.keys().filter(|path| !self.nodes.contains_key(*path));
        differences.extend(extra.map(|path| format!("{path:?} only on the right")));
        let shown = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(differences.is_empty(), "{what}: {} differences\n{shown}", differences.len());
    }
}

fn node(full: &Path, path: &Path, metadata: &Metadata, inodes: &mut BTreeMap<u64, PathBuf>) -> Node {
    let same_as = inodes.entry(metadata.ino()).or_insert_with(|| path.to_owned()).clone();
    let content = if metadata.is_symlink() {
        full.read_link().unwrap().into_os_string().as_bytes().to_vec()
    } else if metadata.is_file() {
        digest(full)
    } else {
        Vec::new()
    };
    Node {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        seconds: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec(),
        // Not every file system counts a directory's links, and nobody relies on it.
        links: if metadata.is_dir() { 0 } else { metadata.nlink() },
        rdev: metadata.rdev(),
        size: if metadata.is_dir() { 0 } else { metadata.len() },
        xattrs: xattrs(full),
        content,
        same_as,
    }
}

fn digest(file: &Path) -> Vec<u8> {
    let mut file = std::fs::File::open(file).unwrap();
    // Not a cryptographic one: it has to be fast in a debug build.
    let (mut hash, mut buffer) = (DefaultHasher::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hash.finish().to_le_bytes().to_vec(),
            count => hash.write(&buffer[..count]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let used = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(used) => used,
        // A link's target too long for this file system is still a link.
        Err(rustix::io::Errno::NAMETOOLONG) => 0,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let names = names[..used].split_inclusive(|byte| *byte == 0);
    let value = |name: &CStr| {
        let mut value = vec![0u8; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])
            .unwrap_or_else(|error| panic!("{} {name:?}: {error}", path.display()));
        value.truncate(len);
        value
    };
    names
        .map(|name| CStr::from_bytes_with_nul(name).unwrap())
        .map(|name| (name.to_bytes().to_vec(), value(name)))
        .collect()
}

/// A name that is no text.
pub fn bytes(name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name))
}
