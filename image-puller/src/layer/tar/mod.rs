//! Reads a tar as a stream of entries, without copying their data: an entry says where in the tar its bytes are.
//!
//! Understood are the v7, ustar, star and GNU dialects, pax records and the four ways GNU tar writes a sparse file.
//! Where these leave a choice the reader decides as Go's `archive/tar` does, because containerd, Docker and podman
//! unpack with it: an image must not mean one thing to them (and to whoever scanned it there) and another here. So
//! `g` records are checked but not applied, a link or directory has no data whatever its size field says, and
//! the first end-of-archive mark ends the archive.
//!
//! Sources: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual, "Basic Tar
//! Format" and "Storing Sparse Files"; star(5).

mod entry;
mod header;
mod pax;
mod sparse;

use super::error::{EntryName, EntryProblem, HeaderProblem, LayerError};
use super::limits::Limits;
pub use entry::{Entry, Kind, Segment, Time, Xattr};
use header::{BLOCK_BYTES, Header};
use pax::Pax;

/// Where a [`TarReader`] gets its bytes: like `BufRead`, with the layer's errors.
pub trait TarInput {
    /// The bytes that are there; fetches more if there are none. Empty only at the end.
    fn fill(&mut self) -> Result<&[u8], LayerError>;
    /// Drops the first `count` bytes of what [`TarInput::fill`] returned.
    fn consume(&mut self, count: usize);
}

impl TarInput for &[u8] {
    fn fill(&mut self) -> Result<&[u8], LayerError> {
        Ok(self)
    }

    fn consume(&mut self, count: usize) {
        *self = self.get(count..).unwrap_or_default();
    }
}

/// Pulls entries out of a tar.
pub struct TarReader<I> {
    input: I,
    limits: Limits,
    /// Bytes taken from the input.
    offset: u64,
    /// Bytes of the present entry's data that nobody has read.
    data_left: u64,
    /// Bytes of padding after them.
    padding: u64,
    ended: bool,
}

/// What the headers before an entry said about it.
#[derive(Default)]
struct Extension {
    pax: Option<Pax>,
    gnu_name: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

impl Extension {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.gnu_name.is_none() && self.gnu_link.is_none()
    }
}

impl<I: TarInput> TarReader<I> {
    pub fn new(input: I, limits: &Limits) -> Self {
        TarReader { input, limits: *limits, offset: 0, data_left: 0, padding: 0, ended: false }
    }

    /// The next entry, or `None` once the archive has ended. Skips what is left of the data of the one before.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        self.skip_rest_of_entry()?;
        let mut extension = Extension::default();
        for _ in 0..=self.limits.extension_headers {
            let at = self.offset;
            let Some(header) = self.next_header()? else {
                return match extension.is_empty() {
                    true => Ok(None),
                    false => Err(bad(at, HeaderProblem::DanglingExtension)),
                };
            };
            match header.type_flag() {
                b'x' => extension.pax = Some(self.pax(&header, at)?),
                b'g' => {
                    // Checked, so that a damaged archive does not pass, and dropped as the oracles do.
                    self.pax(&header, at)?;
                    extension = Extension::default();
                }
                b'L' => extension.gnu_name = Some(self.gnu_long(&header, at)?),
                b'K' => extension.gnu_link = Some(self.gnu_long(&header, at)?),
                _ => return self.entry(&header, extension, at).map(Some),
            }
        }
        Err(LayerError::layer_limit(
            "extension headers in a row",
            self.limits.extension_headers.into(),
            "headers",
        ))
    }

    /// Hands the present entry's data to `take`, in pieces and in order.
    pub fn read_data(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        while self.data_left > 0 {
            let piece = self.input.fill()?;
            if piece.is_empty() {
                return Err(LayerError::Truncated { offset: self.offset, inside: "the data of a file" });
            }
            let count = clamp(self.data_left, piece.len());
            take(piece.get(..count).unwrap_or_default())?;
            self.input.consume(count);
            self.offset += count as u64;
            self.data_left -= count as u64;
        }
        Ok(())
    }

    /// Reads on to the end of the input, past the end of the archive, and gives the input back.
    pub fn drain(mut self) -> Result<I, LayerError> {
        loop {
            let count = self.input.fill()?.len();
            if count == 0 {
                return Ok(self.input);
            }
            self.input.consume(count);
        }
    }

    fn skip_rest_of_entry(&mut self) -> Result<(), LayerError> {
        self.read_data(|_| Ok(()))?;
        // The very last padding may be missing: Go's reader accepts that.
        while self.padding > 0 {
            let available = self.input.fill()?.len();
            if available == 0 {
                self.padding = 0;
                break;
            }
            let count = clamp(self.padding, available);
            self.input.consume(count);
            self.offset += count as u64;
            self.padding -= count as u64;
        }
        Ok(())
    }

    /// The next header that is not zeros. `None`: the input or the archive ended.
    fn next_header(&mut self) -> Result<Option<Header>, LayerError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.offset;
        let Some(block) = self.block()? else {
            self.ended = true;
            return Ok(None);
        };
        if !is_zero(&block) {
            return Header::new(block).map(Some).map_err(|problem| bad(at, problem));
        }
        self.ended = true;
        match self.block()? {
            Some(second) if !is_zero(&second) => Err(bad(at, HeaderProblem::LoneZeroBlock)),
            _ => Ok(None),
        }
    }

    /// One whole block, or `None` if the input ends before its first byte.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, LayerError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let piece = self.input.fill()?;
            if piece.is_empty() {
                return match filled {
                    0 => Ok(None),
                    _ => Err(LayerError::Truncated { offset: self.offset, inside: "a header" }),
                };
            }
            let count = rest.len().min(piece.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..count), piece.get(..count)) {
                to.copy_from_slice(from);
            }
            self.input.consume(count);
            self.offset += count as u64;
            filled += count;
        }
        Ok(Some(block))
    }

    fn pax(&mut self, header: &Header, at: u64) -> Result<Pax, LayerError> {
        let records = self.extension_data(header, at, "a pax header")?;
        Pax::parse(&records, &self.limits, at)
    }

    /// The NUL-ended name in a GNU `L` or `K` entry.
    fn gnu_long(&mut self, header: &Header, at: u64) -> Result<Vec<u8>, LayerError> {
        let mut name = self.extension_data(header, at, "a GNU long name")?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn extension_data(
        &mut self,
        header: &Header,
        at: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, LayerError> {
        let size = header.number(Header::SIZE).map_err(|problem| bad(at, problem))?;
        if size > self.limits.pax_header_bytes {
            return Err(LayerError::layer_limit(what, self.limits.pax_header_bytes, "bytes"));
        }
        self.begin_data(size);
        let mut data = Vec::with_capacity(clamp(size, usize::MAX));
        self.read_data(|piece| {
            data.extend_from_slice(piece);
            Ok(())
        })?;
        self.skip_rest_of_entry()?;
        Ok(data)
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = padding(size);
    }

    fn entry(&mut self, header: &Header, extension: Extension, at: u64) -> Result<Entry, LayerError> {
        let Extension { pax, gnu_name, gnu_link } = extension;
        let mut pax = pax.unwrap_or_default();
        let header_error = |problem| bad(at, problem);

        let path = gnu_name.or(pax.path.take()).unwrap_or_else(|| header.path());
        let link = gnu_link.or(pax.link.take()).unwrap_or_else(|| header.link());
        let kind = entry::kind(header, &path).map_err(header_error)?;
        let stored = match pax.size {
            Some(size) => size,
            None => header.number(Header::SIZE).map_err(header_error)?,
        };
        let stored = if kind == Kind::File { stored } else { 0 };
        if stored > self.limits.tar_bytes {
            return Err(LayerError::limit(&path, "the size", self.limits.tar_bytes, "bytes"));
        }
        let mut entry = Entry {
            kind,
            mode: header.mode().map_err(header_error)?,
            uid: pax.uid.map_or_else(|| header.id(Header::UID), Ok).map_err(header_error)?,
            gid: pax.gid.map_or_else(|| header.id(Header::GID), Ok).map_err(header_error)?,
            mtime: pax.mtime.map_or_else(|| header.mtime(), Ok).map_err(header_error)?,
            device: entry::device(header, kind).map_err(header_error)?,
            size: stored,
            data_offset: self.offset,
            data_bytes: stored,
            segments: None,
            path,
            link,
            xattrs: std::mem::take(&mut pax.xattrs),
        };
        self.begin_data(stored);
        self.sparse(header, pax, &mut entry, at)?;
        self.check_lengths(&entry)?;
        self.check_xattrs(&entry)?;
        Ok(entry)
    }

    /// Fills in what only a sparse entry has: its real name and size, its segments, where its packed data begins.
    fn sparse(&mut self, header: &Header, pax: Pax, entry: &mut Entry, at: u64) -> Result<(), LayerError> {
        let max = self.limits.sparse_segments;
        let numbers = if header.type_flag() == b'S' {
            entry.size = header.number(Header::GNU_REAL_SIZE).map_err(|problem| bad(at, problem))?;
            self.gnu_sparse_map(header, entry, at)?
        } else {
            let Some(form) = pax.sparse.form() else { return Ok(()) };
            if entry.kind != Kind::File {
                return Err(bad(at, HeaderProblem::SparseMap("not a regular file")));
            }
            if let Some(size) = pax.sparse.size() {
                entry.size = size;
            }
            let numbers = match form {
                sparse::Form::InRecords => pax.sparse.map().map_err(|problem| bad(at, problem))?,
                sparse::Form::InData => self.data_sparse_map(entry, at)?,
            };
            if let Some(name) = pax.sparse.name {
                entry.path = name;
            }
            numbers
        };
        if numbers.len() / 2 > max as usize {
            return Err(LayerError::limit(&entry.path, "the sparse map", max.into(), "segments"));
        }
        let segments = sparse::segments(&numbers, entry.size, entry.data_bytes);
        entry.segments = Some(segments.map_err(|problem| bad(at, problem))?);
        Ok(())
    }

    /// The map of an old GNU sparse entry: four segments in the header, more in blocks after it.
    fn gnu_sparse_map(
        &mut self,
        header: &Header,
        entry: &mut Entry,
        at: u64,
    ) -> Result<Vec<u64>, LayerError> {
        let mut numbers = Vec::new();
        let mut extended = header.gnu_sparse(&mut numbers).map_err(|problem| bad(at, problem))?;
        while extended {
            if numbers.len() / 2 > self.limits.sparse_segments as usize {
                let max = self.limits.sparse_segments;
                return Err(LayerError::limit(&entry.path, "the sparse map", max.into(), "segments"));
            }
            let Some(block) = self.block()? else {
                return Err(LayerError::Truncated { offset: self.offset, inside: "a sparse map" });
            };
            extended =
                header::gnu_sparse_extension(&block, &mut numbers).map_err(|problem| bad(at, problem))?;
        }
        entry.data_offset = self.offset;
        Ok(numbers)
    }

    /// The map of a GNU sparse 1.0 entry: decimal lines at the head of the data, padded to a block.
    fn data_sparse_map(&mut self, entry: &mut Entry, at: u64) -> Result<Vec<u64>, LayerError> {
        let mut lines = sparse::MapLines::new(self.limits.sparse_segments);
        while !lines.complete() {
            if self.data_left < BLOCK_BYTES as u64 {
                return Err(bad(at, HeaderProblem::SparseMap("longer than the data")));
            }
            let Some(block) = self.block()? else {
                return Err(LayerError::Truncated { offset: self.offset, inside: "a sparse map" });
            };
            self.data_left -= BLOCK_BYTES as u64;
            lines.feed(&block).map_err(|problem| bad(at, problem))?;
        }
        entry.data_offset = self.offset;
        entry.data_bytes = self.data_left;
        Ok(lines.into_numbers())
    }

    fn check_lengths(&self, entry: &Entry) -> Result<(), LayerError> {
        if entry.path.len() > self.limits.path_bytes {
            return Err(LayerError::limit(&entry.path, "the path", self.limits.path_bytes as u64, "bytes"));
        }
        if entry.link.len() > self.limits.link_bytes {
            return Err(LayerError::limit(
                &entry.path,
                "the link target",
                self.limits.link_bytes as u64,
                "bytes",
            ));
        }
        if entry.size > i64::MAX as u64 {
            return Err(LayerError::limit(&entry.path, "the size", i64::MAX as u64, "bytes"));
        }
        Ok(())
    }

    fn check_xattrs(&self, entry: &Entry) -> Result<(), LayerError> {
        /// `XATTR_NAME_MAX` of Linux.
        const NAME_BYTES: usize = 255;
        let limits = &self.limits;
        let mut total = 0;
        for (name, value) in &entry.xattrs {
            if name.is_empty() || name.len() > NAME_BYTES || name.contains(&0) {
                return Err(LayerError::entry(&entry.path, EntryProblem::BadXattr(EntryName::new(name))));
            }
            if value.len() > limits.xattr_value_bytes {
                let max = limits.xattr_value_bytes as u64;
                return Err(LayerError::limit(&entry.path, "an extended attribute's value", max, "bytes"));
            }
            total += name.len() + value.len();
        }
        if total > limits.xattr_entry_bytes {
            let max = limits.xattr_entry_bytes as u64;
            return Err(LayerError::limit(&entry.path, "the size of all extended attributes", max, "bytes"));
        }
        Ok(())
    }
}

fn bad(offset: u64, problem: HeaderProblem) -> LayerError {
    LayerError::Header { offset, problem }
}

fn is_zero(block: &[u8; BLOCK_BYTES]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Zeros after `size` bytes of data, up to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

/// `count`, but at most `max`.
fn clamp(count: u64, max: usize) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).min(max)
}

#[cfg(test)]
mod tests;
