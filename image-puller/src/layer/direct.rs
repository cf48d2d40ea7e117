//! A file written around the page cache (`O_DIRECT`, open(2)).
//!
//! Nobody reads a layer through the file it was written to: it is mounted through a loop device with direct I/O, and the
//! mount has pages of its own. Written the ordinary way, every layer would lie in memory twice, and in a small sandbox
//! its dirty pages would push out what containers use. It also spares the processor a copy.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_setfl};

use super::aligned::ALIGNMENT_BYTES;
use super::output::WriteAt;

/// Writes directly what is aligned, and all else through the page cache. The file's flags are its own while it lives.
pub struct DirectFile<'f> {
    file: &'f File,
    direct: Cell<bool>,
}

impl<'f> DirectFile<'f> {
    /// Where the file system knows no direct I/O, this is an ordinary file.
    pub fn new(file: &'f File) -> Self {
        let direct = fcntl_setfl(file, OFlags::DIRECT).is_ok();
        DirectFile { file, direct: Cell::new(direct) }
    }

    /// Through the page cache, as an exception or from now on.
    fn write_cached(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        fcntl_setfl(self.file, OFlags::empty())?;
        self.file.write_all_at(bytes, offset)?;
        if self.direct.get() {
            fcntl_setfl(self.file, OFlags::DIRECT)?;
        }
        Ok(())
    }
}

impl WriteAt for DirectFile<'_> {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.direct.get() {
            return self.file.write_all_at(bytes, offset);
        }
        let aligned = bytes.as_ptr().align_offset(ALIGNMENT_BYTES) == 0
            && bytes.len().is_multiple_of(ALIGNMENT_BYTES)
            && offset.is_multiple_of(ALIGNMENT_BYTES as u64);
        if !aligned {
            return self.write_cached(bytes, offset);
        }
        match self.file.write_all_at(bytes, offset) {
            // The disk's own alignment is a larger one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.direct.set(false);
                self.write_cached(bytes, offset)
            }
            outcome => outcome,
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

impl Drop for DirectFile<'_> {
    /// The descriptor is shared, and others may read by it what is not aligned.
    fn drop(&mut self) {
        let _ = fcntl_setfl(self.file, OFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_other_writes_give_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("file")).unwrap();
        let out = DirectFile::new(&file);
        let memory = vec![7; 4 * ALIGNMENT_BYTES];
        let aligned = &memory[memory.as_ptr().align_offset(ALIGNMENT_BYTES)..];
        out.write_at(&aligned[..2 * ALIGNMENT_BYTES], ALIGNMENT_BYTES as u64).unwrap();
        out.write_at(&[8; 100], 3 * ALIGNMENT_BYTES as u64).unwrap();
        out.write_at(&aligned[..ALIGNMENT_BYTES], 0).unwrap();
        out.set_len(3 * ALIGNMENT_BYTES as u64 + 512).unwrap();
        let mut expected = vec![7; 3 * ALIGNMENT_BYTES];
        expected.extend([8; 100]);
        expected.resize(3 * ALIGNMENT_BYTES + 512, 0);
        drop(out);
        file.read_exact_at(&mut [0; 7], 3).expect("the file is as it was before");
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), expected);
    }
}
