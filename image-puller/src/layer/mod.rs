//! Turns one layer's archive into the two files of the layer store: the plain tar, kept byte for byte, and an EROFS
//! image whose inodes point into that tar.
//!
//! ```text
//! compressed bytes → decompress → intake (count, hash, write) → tar → tree → erofs → index
//! └───── a thread of its own ───┘
//! ```
//!
//! [`index_layer`] runs this once over the stream. It opens nothing, needs no network and no privilege: it reads a
//! stream and writes at offsets of two files it was handed. What it keeps in memory is a constant plus the tree.
//! The other side is `nacre_layer_check`: what whoever mounts the index looks at first, without believing the writer.

mod aligned;
mod decompress;
mod direct;
mod erofs;
mod error;
mod indexer;
mod limits;
mod output;
mod path;
mod pieces;
mod sparse;
mod tar;
mod tree;
mod xattr;

pub use decompress::{Compression, Decompressor};
pub use error::{EntryName, EntryProblem, HeaderProblem, LayerError};
pub use indexer::{IndexedLayer, TAR_LIMIT, index_into, index_layer};
pub use limits::Limits;
pub use output::WriteAt;
pub use tar::{Entry, Kind, Segment, TarInput, TarReader, Time, Xattr};
#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod testing;
