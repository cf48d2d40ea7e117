use std::fmt;
use std::io;

use thiserror::Error;

/// Why a layer was not indexed. Every variant names the operation or the entry it stopped at.
#[derive(Debug, Error)]
pub enum LayerError {
    #[error("cannot {operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the {format} data is damaged or cut short")]
    Decompress {
        format: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{entry}: {what} is over the limit of {max} {unit}")]
    Limit { what: &'static str, max: u64, unit: &'static str, entry: EntryName },
    #[error("the layer is over the limit of {max} {unit} for {what}")]
    LayerLimit { what: &'static str, max: u64, unit: &'static str },
    #[error("tar header at byte {offset}: {problem}")]
    Header { offset: u64, problem: HeaderProblem },
    #[error("the tar ends at byte {offset}, inside {inside}")]
    Truncated { offset: u64, inside: &'static str },
    #[error("{entry}: {problem}")]
    Entry { entry: EntryName, problem: EntryProblem },
}

/// What is wrong with one 512-byte header, or with the pax records before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderProblem {
    #[error("the checksum does not match")]
    Checksum,
    #[error("one block of zeros, then more data: neither an entry nor the end of the archive")]
    LoneZeroBlock,
    #[error("the field {0} is not a number, or one that does not fit")]
    Number(&'static str),
    #[error("entry type {0:#04x} is not one that a layer can hold")]
    Type(u8),
    #[error("an extension header without an entry after it")]
    DanglingExtension,
    #[error("a pax record that is not `LENGTH KEY=VALUE` and a line feed")]
    PaxSyntax,
    #[error("the pax record {0} has a value that cannot be")]
    PaxValue(&'static str),
    #[error("the sparse map is malformed: {0}")]
    SparseMap(&'static str),
}

/// What is wrong with an entry in its place in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryProblem {
    #[error("the path leads out of the layer through `..`")]
    Escapes,
    #[error("the name contains a NUL byte")]
    NulInName,
    #[error("a symbolic link without a target")]
    EmptyTarget,
    #[error("hard link to {0}, which is not in the layer before it")]
    MissingLinkTarget(EntryName),
    #[error("hard link to {0}, which is a directory")]
    LinkToDirectory(EntryName),
    #[error("its parent {0} is not a directory")]
    ParentNotDirectory(EntryName),
    #[error("too many symbolic links on the way to it")]
    SymlinkLoop,
    #[error("a whiteout without the name of what it hides")]
    BadWhiteout,
    #[error("the extended attribute {0} is malformed")]
    BadXattr(EntryName),
    #[error("device number {major}:{minor} does not fit into 12:20 bits")]
    DeviceNumber { major: u32, minor: u32 },
}

/// A name out of an archive, for people: escaped, so that it cannot drive a terminal, and cut to a sane length.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    /// Bytes of a name that an error carries and shows.
    const SHOWN_BYTES: usize = 256;

    pub fn new(name: &[u8]) -> Self {
        EntryName(name.get(..Self::SHOWN_BYTES).unwrap_or(name).into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", self.0.escape_ascii())?;
        if self.0.len() == Self::SHOWN_BYTES { out.write_str("…") } else { Ok(()) }
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl LayerError {
    pub(super) fn entry(name: &[u8], problem: EntryProblem) -> Self {
        LayerError::Entry { entry: EntryName::new(name), problem }
    }

    pub(super) fn limit(name: &[u8], what: &'static str, max: u64, unit: &'static str) -> Self {
        LayerError::Limit { what, max, unit, entry: EntryName::new(name) }
    }

    /// For what an archive cannot bring about with in-range limits: an internal count that outgrew its field.
    pub(super) fn layer_limit(what: &'static str, max: u64, unit: &'static str) -> Self {
        LayerError::LayerLimit { what, max, unit }
    }
}
