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

use super::output::WriteAt;

/// What any disk takes, of addresses in memory and of places in the file.
const ALIGNMENT_BYTES: usize = 4096;

/// Writes directly what is aligned, and all else through the page cache.
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

    fn give_up(&self) -> io::Result<()> {
        self.direct.set(false);
        Ok(fcntl_setfl(self.file, OFlags::empty())?)
    }
}

impl WriteAt for DirectFile<'_> {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.direct.get() {
            let aligned = bytes.as_ptr().align_offset(ALIGNMENT_BYTES) == 0
                && bytes.len().is_multiple_of(ALIGNMENT_BYTES)
                && offset.is_multiple_of(ALIGNMENT_BYTES as u64);
            if aligned {
                match self.file.write_all_at(bytes, offset) {
                    // The disk's own alignment is a larger one.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                    outcome => return outcome,
                }
            }
            // The end of a file, after which nothing comes.
            self.give_up()?;
        }
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
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
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), expected);
    }
}
