use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::error::LayerError;
use super::limits::Limits;

/// How a layer travels, as its media type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Plain,
    /// RFC 1952; any number of members.
    Gzip,
    /// RFC 8878; any number of frames, skippable ones too.
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Compression::Plain => "tar",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// Bytes read from the input at once: what zstd itself recommends, which leaves the caches to its window.
const INPUT_BYTES: usize = 128 << 10;

/// Undoes a layer's compression.
///
/// gzip is zlib-rs, 1.7 times as fast as miniz_oxide and, with AVX2 looked for at run time (its feature `std`, a third faster
/// than without), as fast as the assembly of ISA-L. zstd is the C library: the decoder in safe Rust (ruzstd 0.9) took
/// four times its time, and whoever takes over this process can do no more than write a bad index, which is checked.
pub struct Decompressor<R: Read> {
    compression: Compression,
    codec: Codec<R>,
    window_bytes: u64,
}

enum Codec<R: Read> {
    Plain(Input<R>),
    Gzip(Box<MultiGzDecoder<BufReader<Input<R>>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Input<R>>>>),
}

impl<R: Read> Decompressor<R> {
    pub fn new(input: R, compression: Compression, limits: &Limits) -> Result<Self, LayerError> {
        let window_bytes = limits.zstd_window_bytes;
        let input = Input { inner: input, bytes: 0, failed: false };
        let buffered = |input| BufReader::with_capacity(INPUT_BYTES, input);
        let codec = match compression {
            Compression::Plain => Codec::Plain(input),
            Compression::Gzip => Codec::Gzip(Box::new(MultiGzDecoder::new(buffered(input)))),
            Compression::Zstd => {
                let codec = zstd_decoder(buffered(input), window_bytes)
                    .map_err(|source| LayerError::Io { operation: "set up the zstd decoder", source })?;
                Codec::Zstd(Box::new(codec))
            }
        };
        Ok(Decompressor { compression, codec, window_bytes })
    }

    /// Fills as much of `buffer` as there is data for; zero at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let read = match &mut self.codec {
            Codec::Plain(input) => input.read(buffer),
            Codec::Gzip(codec) => codec.read(buffer),
            Codec::Zstd(codec) => codec.read(buffer),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.read(buffer),
            Err(error) => Err(self.describe(error)),
            Ok(count) => Ok(count),
        }
    }

    /// Compressed bytes taken so far; some of them may still lie in a buffer.
    pub fn compressed_bytes(&self) -> u64 {
        self.input().bytes
    }

    fn input(&self) -> &Input<R> {
        match &self.codec {
            Codec::Plain(input) => input,
            Codec::Gzip(codec) => codec.get_ref().get_ref(),
            Codec::Zstd(codec) => codec.get_ref().get_ref(),
        }
    }

    fn describe(&self, source: io::Error) -> LayerError {
        if self.input().failed {
            return LayerError::Io { operation: "read the compressed layer", source };
        }
        // ZSTD_error_frameParameter_windowTooLarge
        if self.compression == Compression::Zstd && source.to_string().contains("too much memory") {
            return LayerError::layer_limit("the window of a zstd frame", self.window_bytes, "bytes");
        }
        LayerError::Decompress { format: self.compression.name(), source }
    }
}

fn zstd_decoder<B: BufRead>(input: B, window_bytes: u64) -> io::Result<zstd::Decoder<'static, B>> {
    let mut decoder = zstd::Decoder::with_buffer(input)?;
    decoder.window_log_max(window_bytes.max(1).ilog2())?;
    Ok(decoder)
}

/// Counts what comes in, and remembers whether reading it is what failed.
struct Input<R> {
    inner: R,
    bytes: u64,
    failed: bool,
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer);
        match &read {
            Ok(count) => self.bytes += *count as u64,
            Err(error) => self.failed = error.kind() != io::ErrorKind::Interrupted,
        }
        read
    }
}
