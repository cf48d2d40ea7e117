//! Fetcher to indexer, the two processes of the puller: the one with the network never reads an archive, the one that
//! reads archives has no network and opens nothing.
//!
//! Carrier: a `SOCK_SEQPACKET` pair made by init; the indexer has its end at descriptor [`FETCHER_FD`]. When the
//! fetcher's end closes, the indexer exits.

use crate::names::Sha256;
use serde::{Deserialize, Serialize};

/// Longest frame either way, in bytes.
pub const FRAME_MAX: usize = 8 * 1024;
/// Most layers at once: a thread of the indexer each.
pub const LAYERS_AT_ONCE: usize = 4;
/// Longest text of a failure, in bytes.
pub const MESSAGE_MAX: usize = 2048;
/// The indexer's end of this edge.
pub const FETCHER_FD: i32 = 3;

/// Index one layer. Descriptors: read end of a pipe with the blob's bytes; the tar file and the index file, both empty,
/// readable and writable. Without `tar_max` the tar is there already: its bytes come through the pipe, to be hashed and
/// indexed again, and the tar file is not handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexLayer {
    pub id: u32,
    pub compression: Compression,
    /// Longest tar, in bytes.
    pub tar_max: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done { id: u32, diff_id: Sha256, tar: u64, index: u64, entries: u64 },
    Failed { id: u32, kind: IndexFailureKind, message: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexFailureKind {
    /// The compressed stream or the tar is malformed, or it ended early.
    Malformed,
    /// A named limit was reached.
    Limit,
    /// The tar is longer than `tar_max`.
    TarMax,
    /// No space left on the scratch disk.
    DiskFull,
    /// Another system call failed.
    System,
}
