//! The tar in pieces: decompressed where they are asked for, or ahead of that by a thread of its own.

use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::aligned::AlignedBuffer;
use super::decompress::Decompressor;
use super::error::LayerError;

/// Bytes of the tar that are taken in at once. Each is written directly, and whoever waits for the disk waits once a piece: with a
/// quarter of it a pull from zstd took a tenth longer, on a quiet machine, and a twentieth more processor time.
pub const PIECE_BYTES: usize = 1 << 20;
/// Pieces that a thread works ahead: together with the one in hand, this much memory for each layer.
const AHEAD: usize = 2;

/// The next bytes of a tar, aligned so that a file can be written directly from them.
pub struct Piece {
    memory: AlignedBuffer,
    filled: usize,
    /// Bytes taken from the compressed stream when this was filled.
    pub compressed: u64,
}

impl Piece {
    fn new() -> Self {
        Piece { memory: AlignedBuffer::new(PIECE_BYTES), filled: 0, compressed: 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        self.memory.front(self.filled)
    }

    /// Fills it as far as there is data, so that writes are large.
    fn fill<R: Read>(&mut self, from: &mut Decompressor<R>) -> Result<(), LayerError> {
        self.filled = 0;
        while self.filled < PIECE_BYTES {
            match from.read(self.memory.part_mut(self.filled..PIECE_BYTES))? {
                0 => break,
                count => self.filled += count,
            }
        }
        self.compressed = from.compressed_bytes();
        Ok(())
    }
}

/// Where the tar comes from.
pub trait Pieces {
    /// The next piece, which is empty at the end; takes one that was dealt with back, to fill it again.
    fn next(&mut self, done: Option<Piece>) -> Result<Piece, LayerError>;
}

impl<R: Read> Pieces for Decompressor<R> {
    fn next(&mut self, done: Option<Piece>) -> Result<Piece, LayerError> {
        let mut piece = done.unwrap_or_else(Piece::new);
        piece.fill(self)?;
        Ok(piece)
    }
}

/// Pieces that another thread decompresses. Dropped, it lets that thread end: as soon as its present read has returned.
pub struct Threaded {
    filled: Receiver<Result<Piece, LayerError>>,
    empty: Sender<Piece>,
}

impl Threaded {
    pub fn start<R: Read + Send + 'static>(mut decompressor: Decompressor<R>) -> Result<Self, LayerError> {
        let (empty, to_fill) = channel();
        let (done, filled) = sync_channel(AHEAD);
        for _ in 0..AHEAD {
            // The other end is here.
            let _ = empty.send(Piece::new());
        }
        std::thread::Builder::new()
            .spawn(move || run(&mut decompressor, &to_fill, &done))
            .map_err(|source| LayerError::Io { operation: "start the decompressor's thread", source })?;
        Ok(Threaded { filled, empty })
    }
}

impl Pieces for Threaded {
    fn next(&mut self, done: Option<Piece>) -> Result<Piece, LayerError> {
        if let Some(piece) = done {
            // It may have ended: then what it said last still waits below.
            let _ = self.empty.send(piece);
        }
        let gone = |_| LayerError::Io {
            operation: "decompress the layer",
            source: std::io::Error::other("its thread is gone"),
        };
        self.filled.recv().map_err(gone)?
    }
}

/// Ends after an error, after the empty piece that says the end, or when nobody waits for more.
fn run<R: Read>(
    decompressor: &mut Decompressor<R>,
    to_fill: &Receiver<Piece>,
    done: &SyncSender<Result<Piece, LayerError>>,
) {
    while let Ok(mut piece) = to_fill.recv() {
        let outcome = piece.fill(decompressor).map(|()| piece);
        let last = outcome.as_ref().map_or(true, |piece| piece.filled == 0);
        if done.send(outcome).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::aligned::ALIGNMENT_BYTES;
    use super::super::{Compression, Limits};
    use super::*;

    fn collect(mut pieces: impl Pieces) -> Result<Vec<u8>, LayerError> {
        let (mut all, mut done) = (Vec::new(), None);
        loop {
            let piece = pieces.next(done)?;
            assert_eq!(piece.bytes().as_ptr().align_offset(ALIGNMENT_BYTES), 0);
            if piece.bytes().is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(piece.bytes());
            done = Some(piece);
        }
    }

    fn plain<R: Read>(input: R) -> Decompressor<R> {
        Decompressor::new(input, Compression::Plain, &Limits::default()).unwrap()
    }

    #[test]
    fn a_thread_gives_the_same_bytes() {
        for length in [0, 1, PIECE_BYTES, 5 * PIECE_BYTES + 7] {
            let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            assert_eq!(collect(plain(&data[..])).unwrap(), data);
            assert_eq!(
                collect(Threaded::start(plain(io::Cursor::new(data.clone()))).unwrap()).unwrap(),
                data
            );
        }
    }

    #[test]
    fn a_thread_hands_its_error_over_and_ends() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 > 3 { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(buffer.len().min(9)) }
            }
        }
        let error = collect(Threaded::start(plain(Broken(0))).unwrap()).unwrap_err();
        assert!(matches!(error, LayerError::Io { operation: "read the compressed layer", .. }), "{error}");
    }

    #[test]
    fn whoever_stops_asking_lets_the_thread_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(Threaded::start(plain(reader)).unwrap());
        // The thread ends within a read; then nobody reads the pipe any more.
        let piece = vec![0; PIECE_BYTES];
        while io::Write::write_all(&mut writer, &piece).is_ok() {}
    }
}
