use std::fs::File;
use std::io::Read;

use sha2::{Digest, Sha256};

use super::decompress::{Compression, Decompressor};
use super::direct::DirectFile;
use super::erofs::{FIRST_FREE_BYTE, Source, write_index};
use super::error::LayerError;
use super::limits::Limits;
use super::output::WriteAt;
use super::pieces::{Piece, Pieces, Threaded};
use super::sparse::{BLOCK_BYTES, ChunkMap, Plan, Realigner, plan};
use super::tar::{Entry, Kind, TarInput, TarReader};
use super::tree::Tree;

/// The name of the limit on the whole tar.
pub const TAR_LIMIT: &str = "the tar";
/// Zeros are left out of the tar's file in pieces of this many bytes, the block of most file systems.
const HOLE_BYTES: usize = 4096;

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedLayer {
    /// SHA-256 of the tar: every byte of it, those after the end of the archive too.
    pub diff_id: [u8; 32],
    /// Length of the tar that was hashed. The file may end in up to 511 zeros more, to fill its last block.
    pub tar_bytes: u64,
    pub index_bytes: u64,
    /// Entries in the archive.
    pub entries: u64,
}

/// Decompresses a layer into `tar_out` and writes its index to `index_out`, in one pass; decompressing is done by another
/// thread, which ends when `compressed` does.
///
/// Both files must be empty, and open for writing. What is written to them must not be used before the caller compared
/// `diff_id` with the image's. `progress` gets the bytes of the tar so far.
///
/// Makes the system calls `read` (of `compressed`), `pwrite64` and `ftruncate`, `fcntl` to write directly, those of
/// the allocator and of a thread, and once `getrandom`.
pub fn index_layer(
    compressed: impl Read + Send + 'static,
    compression: Compression,
    tar_out: &File,
    index_out: &File,
    limits: &Limits,
    progress: impl FnMut(u64),
) -> Result<IndexedLayer, LayerError> {
    let pieces = Threaded::start(Decompressor::new(compressed, compression, limits)?)?;
    index_pieces(pieces, DirectFile::new(tar_out), DirectFile::new(index_out), limits, progress)
}

/// The same for anything that can be written at offsets, and in one thread.
pub fn index_into<T: WriteAt, I: WriteAt>(
    compressed: impl Read,
    compression: Compression,
    tar_out: T,
    index_out: I,
    limits: &Limits,
    progress: impl FnMut(u64),
) -> Result<IndexedLayer, LayerError> {
    index_pieces(Decompressor::new(compressed, compression, limits)?, tar_out, index_out, limits, progress)
}

fn index_pieces<T: WriteAt, I: WriteAt>(
    pieces: impl Pieces,
    tar_out: T,
    index_out: I,
    limits: &Limits,
    progress: impl FnMut(u64),
) -> Result<IndexedLayer, LayerError> {
    let mut reader = TarReader::new(Intake::new(pieces, tar_out, limits, progress), limits);
    let mut tree = Tree::new(limits);
    let mut realigner = Realigner::new(FIRST_FREE_BYTE);
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        let chunks = map_sparse(&mut reader, &entry, &mut realigner, &index_out, limits)?;
        tree.add(&entry, chunks)?;
    }
    let (diff_id, tar_bytes) = reader.drain()?.finish()?;
    let listing = tree.finish()?;
    let source = Source { tree: &tree, listing: &listing, tar_bytes, diff_id, start: realigner.end() };
    let index_bytes = write_index(&source, &index_out, limits)?;
    Ok(IndexedLayer { diff_id, tar_bytes, index_bytes, entries })
}

/// Maps a sparse file; copies its data into the index where the tar's cannot be pointed at.
fn map_sparse<I: TarInput>(
    reader: &mut TarReader<I>,
    entry: &Entry,
    realigner: &mut Realigner,
    index: impl WriteAt,
    limits: &Limits,
) -> Result<Option<ChunkMap>, LayerError> {
    let (Kind::File, Some(segments)) = (entry.kind, &entry.segments) else { return Ok(None) };
    match plan(segments, entry.size, entry.data_offset) {
        Plan::Direct(map) => Ok(Some(map)),
        Plan::Realign { chunk_bits } => {
            let mut file = realigner.file(index, limits, &entry.path, segments, chunk_bits);
            reader.read_data(|piece| file.take(piece))?;
            Ok(Some(file.finish()))
        }
    }
}

/// Takes the tar in: counts it against the limits, hashes it, writes it out, and holds one piece of it for the reader.
struct Intake<S, T, P> {
    pieces: S,
    tar: T,
    limits: Limits,
    progress: P,
    hash: Sha256,
    piece: Option<Piece>,
    /// The part of the piece that somebody has consumed.
    consumed: usize,
    /// Bytes of the tar so far.
    bytes: u64,
}

impl<S: Pieces, T: WriteAt, P: FnMut(u64)> Intake<S, T, P> {
    fn new(pieces: S, tar: T, limits: &Limits, progress: P) -> Self {
        let hash = Sha256::new();
        Intake { pieces, tar, limits: *limits, progress, hash, piece: None, consumed: 0, bytes: 0 }
    }

    /// Ends the tar's file at a whole block. Returns the digest and the number of bytes that went into it.
    fn finish(self) -> Result<([u8; 32], u64), LayerError> {
        self.tar.set_len(self.bytes.next_multiple_of(BLOCK_BYTES)).map_err(write_error)?;
        Ok((self.hash.finalize().into(), self.bytes))
    }

    fn refill(&mut self) -> Result<(), LayerError> {
        // Once it has ended, it ends for ever: the piece that says so stays.
        if self.piece.as_ref().is_some_and(|piece| piece.bytes().is_empty()) {
            return Ok(());
        }
        self.consumed = 0;
        let piece = self.pieces.next(self.piece.take())?;
        let bytes = piece.bytes();
        if !bytes.is_empty() {
            let total = self.bytes + bytes.len() as u64;
            self.check_size(total, piece.compressed)?;
            self.hash.update(bytes);
            write_sparsely(&self.tar, bytes, self.bytes)?;
            self.bytes = total;
            (self.progress)(total);
        }
        self.piece = Some(piece);
        Ok(())
    }

    fn left(&self) -> &[u8] {
        let bytes = self.piece.as_ref().map_or(&[][..], Piece::bytes);
        bytes.get(self.consumed..).unwrap_or_default()
    }

    fn check_size(&self, total: u64, compressed: u64) -> Result<(), LayerError> {
        let limits = &self.limits;
        if total > limits.tar_bytes {
            return Err(LayerError::layer_limit(TAR_LIMIT, limits.tar_bytes, "bytes"));
        }
        if total > limits.ratio_floor_bytes && total / limits.ratio.max(1) > compressed {
            return Err(LayerError::layer_limit(
                "compression",
                limits.ratio,
                "bytes for each compressed one",
            ));
        }
        Ok(())
    }
}

impl<S: Pieces, T: WriteAt, P: FnMut(u64)> TarInput for Intake<S, T, P> {
    fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.left().is_empty() {
            self.refill()?;
        }
        Ok(self.left())
    }

    fn consume(&mut self, count: usize) {
        self.consumed = self.consumed.saturating_add(count);
    }
}

/// Writes `piece` at `offset`, except for runs of zeros: the file is new, and they are holes in it.
fn write_sparsely(file: &impl WriteAt, piece: &[u8], offset: u64) -> Result<(), LayerError> {
    let mut data: Option<usize> = None;
    for (number, block) in piece.chunks(HOLE_BYTES).enumerate() {
        let at = number * HOLE_BYTES;
        if !is_zero(block) {
            data.get_or_insert(at);
        } else if let Some(from) = data.take() {
            write_part(file, piece, from, at, offset)?;
        }
    }
    match data {
        Some(from) => write_part(file, piece, from, piece.len(), offset),
        None => Ok(()),
    }
}

fn write_part(
    file: &impl WriteAt,
    piece: &[u8],
    from: usize,
    to: usize,
    offset: u64,
) -> Result<(), LayerError> {
    let part = piece.get(from..to).unwrap_or_default();
    file.write_at(part, offset + from as u64).map_err(write_error)
}

/// Most blocks differ from zero early: the first bytes decide before the rest is looked at.
fn is_zero(block: &[u8]) -> bool {
    let (first, rest) = block.split_at(block.len().min(16));
    first.iter().all(|byte| *byte == 0) && rest.iter().fold(0, |seen, byte| seen | byte) == 0
}

fn write_error(source: std::io::Error) -> LayerError {
    LayerError::Io { operation: "write the layer's tar", source }
}

#[cfg(test)]
mod tests;
