//! The image argument of the command line, and the files behind one that is served from this host.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_protocols::names::Sha256;
use nacre_reference::{Reference, ReferenceError};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest, Sha256 as Hasher};

use super::{ArchiveError, DOCUMENT_MAX, TarIndex, open_docker_archive, open_oci_archive, open_oci_layout};

/// Where an image comes from, as written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// `[registry/]repository[:tag][@digest]`: the sandbox asks the registry.
    Registry(String),
    /// `oci:DIRECTORY[:TAG]`, an OCI image layout.
    OciLayout { directory: PathBuf, tag: Option<String> },
    /// `oci-archive:FILE[:TAG]`, the same in a tar file.
    OciArchive { file: PathBuf, tag: Option<String> },
    /// `docker-archive:FILE[:TAG]`, what `docker save` writes.
    DockerArchive { file: PathBuf, tag: Option<String> },
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("{0:?} names no file")]
    NoPath(String),
    #[error("open {path:?}: {source}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("read {path:?}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path:?} is {length} bytes long, the limit for such a document is {DOCUMENT_MAX}")]
    TooLarge { path: String, length: u64 },
    #[error("{path:?} is not in it")]
    Missing { path: String },
    #[error("{path:?} is not the JSON document that it should be: {source}")]
    Json { path: String, source: serde_json::Error },
    #[error("{path:?}: {problem}")]
    Malformed { path: String, problem: String },
    #[error("it holds {count} images; choose one by adding :TAG ({})", tags.join(", "))]
    Ambiguous { count: usize, tags: Vec<String> },
    #[error("it has no image {tag:?}; it has {}", if tags.is_empty() { "none with a tag".into() } else { tags.join(", ") })]
    NoSuchTag { tag: String, tags: Vec<String> },
    #[error("it holds no image")]
    Empty,
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl ImageSource {
    /// Reads an image argument. Paths may contain colons, and so may tags: the longest path that exists is it, what
    /// follows is a tag.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let split = |rest: &str| -> Result<(PathBuf, Option<String>), SourceError> {
            if rest.is_empty() {
                return Err(SourceError::NoPath(text.to_owned()));
            }
            let splits = || rest.rmatch_indices(':').map(|(at, _)| (&rest[..at], &rest[at + 1..]));
            let plain = |&(path, tag): &(&str, &str)| !path.is_empty() && !tag.contains('/');
            let there = |&(path, _): &(&str, &str)| Path::new(path).exists();
            match splits().find(there).or_else(|| splits().next().filter(plain)) {
                Some((path, tag)) if !Path::new(rest).exists() => {
                    Ok((path.into(), (!tag.is_empty()).then(|| tag.to_owned())))
                }
                _ => Ok((rest.into(), None)),
            }
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (directory, tag) = split(rest)?;
            Ok(Self::OciLayout { directory, tag })
        } else if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = split(rest)?;
            Ok(Self::OciArchive { file, tag })
        } else if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, tag) = split(rest)?;
            Ok(Self::DockerArchive { file, tag })
        } else {
            let reference = text.strip_prefix("docker://").unwrap_or(text);
            // The sandbox reads it again; what cannot be one needs no boot to be told.
            Reference::parse(reference)?;
            Ok(Self::Registry(reference.to_owned()))
        }
    }

    /// Opens the files of this host behind it; `None` for a registry.
    pub fn open(&self) -> Result<Option<ImageFiles>, SourceError> {
        match self {
            Self::Registry(_) => Ok(None),
            Self::OciLayout { directory, tag } => open_oci_layout(directory, tag.as_deref()).map(Some),
            Self::OciArchive { file, tag } => open_oci_archive(file, tag.as_deref()).map(Some),
            Self::DockerArchive { file, tag } => open_docker_archive(file, tag.as_deref()).map(Some),
        }
    }
}

/// One image of this host, ready to be served: its top document and everything beneath it by digest.
#[derive(Debug)]
pub struct ImageFiles {
    /// What the reference of the sandbox names.
    pub(super) root: Sha256,
    /// Documents that no file of the tree holds as such: a manifest made up for a docker archive.
    pub(super) documents: HashMap<Sha256, Arc<[u8]>>,
    /// Blobs whose file is not named by their digest.
    pub(super) named: HashMap<Sha256, Extent>,
    /// Where `blobs/sha256/…` may be found besides.
    pub(super) tree: Option<Tree>,
}

impl ImageFiles {
    /// Digest of the manifest or index that stands for the image.
    pub fn root(&self) -> Sha256 {
        self.root
    }

    /// The blob of this digest, by name alone: its content is for the sandbox to check.
    pub(super) fn blob(&self, digest: &Sha256) -> Result<Content, SourceError> {
        if let Some(document) = self.documents.get(digest) {
            return Ok(Content::Bytes(Arc::clone(document)));
        }
        if let Some(extent) = self.named.get(digest) {
            return Ok(Content::File(extent.clone()));
        }
        let path = blob_path(digest);
        let Some(tree) = &self.tree else { return Err(SourceError::Missing { path }) };
        tree.open(&path).map(Content::File)
    }
}

/// What is served for a digest.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Bytes(Arc<[u8]>),
    File(Extent),
}

impl Content {
    pub fn length(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(extent) => extent.length,
        }
    }

    /// All of it, if it is small enough for a document.
    pub fn document(&self, path: &str) -> Result<Arc<[u8]>, SourceError> {
        match self {
            Content::Bytes(bytes) => Ok(Arc::clone(bytes)),
            Content::File(extent) => extent.read_document(path).map(Into::into),
        }
    }
}

/// A run of bytes in a file.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    pub file: Arc<File>,
    pub offset: u64,
    pub length: u64,
}

impl Extent {
    pub fn read_document(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        if self.length > DOCUMENT_MAX {
            return Err(SourceError::TooLarge { path: path.to_owned(), length: self.length });
        }
        let mut bytes = vec![0; self.length as usize];
        self.file
            .read_exact_at(&mut bytes, self.offset)
            .map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
        Ok(bytes)
    }

    /// sha256 of the bytes, read once from end to end.
    pub fn digest(&self, path: &str) -> Result<Sha256, SourceError> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut done = 0;
        while done < self.length {
            let want = buffer.len().min((self.length - done) as usize);
            self.file
                .read_exact_at(&mut buffer[..want], self.offset + done)
                .map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
            hasher.update(&buffer[..want]);
            done += want as u64;
        }
        Ok(Sha256(hasher.finalize().into()))
    }
}

/// A directory, or a tar file, in which files are found by path and never outside.
#[derive(Debug)]
pub(super) enum Tree {
    Directory(OwnedFd),
    Archive(TarIndex),
}

impl Tree {
    pub fn open_directory(path: &Path) -> Result<Self, SourceError> {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map(Self::Directory)
            .map_err(|errno| SourceError::Open { path: path.to_owned(), source: errno.into() })
    }

    pub fn open_archive(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(|source| SourceError::Open { path: path.to_owned(), source })?;
        Ok(Self::Archive(TarIndex::read(file)?))
    }

    pub fn open(&self, path: &str) -> Result<Extent, SourceError> {
        match self {
            Self::Archive(index) => {
                index.find(path)?.ok_or_else(|| SourceError::Missing { path: path.to_owned() })
            }
            Self::Directory(directory) => open_beneath(directory, path),
        }
    }

    pub fn document(&self, path: &str) -> Result<Vec<u8>, SourceError> {
        self.open(path)?.read_document(path)
    }
}

/// A link of a hostile layout must not lead to another file of the host, nor a fifo block us.
fn open_beneath(directory: &OwnedFd, path: &str) -> Result<Extent, SourceError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let fd = match rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOENT) => return Err(SourceError::Missing { path: path.to_owned() }),
        Err(errno) => return Err(SourceError::Open { path: path.into(), source: errno.into() }),
        Ok(fd) => fd,
    };
    let file = File::from(fd);
    let metadata = file.metadata().map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(SourceError::Malformed { path: path.to_owned(), problem: "not a regular file".into() });
    }
    Ok(Extent { file: Arc::new(file), offset: 0, length: metadata.len() })
}

pub(super) fn blob_path(digest: &Sha256) -> String {
    format!("blobs/sha256/{digest}")
}

pub(super) fn digest_of(bytes: &[u8]) -> Sha256 {
    Sha256(Hasher::digest(bytes).into())
}

/// Reads up to `limit` bytes and refuses more.
pub(super) fn read_limited(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::other(format!("longer than the limit of {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_arguments_are_read_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        let odd_text = format!("oci:{}", odd.display());
        let saved = format!("docker-archive:{}:docker.io/library/x:v1", odd.display());
        for (text, expected) in [
            ("busybox", ImageSource::Registry("busybox".into())),
            ("docker://ghcr.io/a/b:c", ImageSource::Registry("ghcr.io/a/b:c".into())),
            ("localhost:5000/x:t", ImageSource::Registry("localhost:5000/x:t".into())),
            ("oci:/x", ImageSource::OciLayout { directory: "/x".into(), tag: None }),
            ("oci:/x:v1", ImageSource::OciLayout { directory: "/x".into(), tag: Some("v1".into()) }),
            ("oci:/x:y/z", ImageSource::OciLayout { directory: "/x:y/z".into(), tag: None }),
            (
                "oci-archive:i.tar:v1",
                ImageSource::OciArchive { file: "i.tar".into(), tag: Some("v1".into()) },
            ),
            ("docker-archive:i.tar", ImageSource::DockerArchive { file: "i.tar".into(), tag: None }),
            (&odd_text, ImageSource::OciLayout { directory: odd.clone(), tag: None }),
            (
                &saved,
                ImageSource::DockerArchive { file: odd.clone(), tag: Some("docker.io/library/x:v1".into()) },
            ),
        ] {
            assert_eq!(ImageSource::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "oci:", "A", "x:", "x@sha256:00", "x y"] {
            assert!(ImageSource::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_link_out_of_a_layout_is_not_followed() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        std::fs::write(directory.path().join("file"), "inside").unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("inner")).unwrap();
        let tree = Tree::open_directory(directory.path()).unwrap();
        assert!(matches!(tree.open("link"), Err(SourceError::Open { .. })));
        assert!(matches!(tree.open("../x"), Err(SourceError::Open { .. })));
        assert_eq!(tree.document("inner").unwrap(), b"inside");
    }
}
