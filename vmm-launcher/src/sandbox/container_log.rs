//! The log of a detached container: frames of standard output and standard error in the order in which they came.
//!
//! A frame is one byte (1 output, 2 error), the length in four bytes, big-endian, and the data. When a file is full it
//! becomes `NAME.log.1` and a new one begins, so that a container that floods its output costs a bounded amount.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest file, in bytes; there are two.
pub const LOG_MAX: u64 = 16 * 1024 * 1024;
/// Longest frame that is written, in bytes.
const FRAME_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Output = 1,
    Error = 2,
}

#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    written: u64,
}

impl LogWriter {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, written: 0 })
    }

    pub fn write(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(FRAME_MAX) {
            let mut frame = Vec::with_capacity(part.len() + 5);
            frame.push(stream as u8);
            frame.extend_from_slice(&(part.len() as u32).to_be_bytes());
            frame.extend_from_slice(part);
            if self.written + frame.len() as u64 > LOG_MAX {
                std::fs::rename(&self.path, rotated(&self.path))?;
                (self.file, self.written) = (open(&self.path)?, 0);
            }
            self.file.write_all(&frame)?;
            self.written += frame.len() as u64;
        }
        Ok(())
    }
}

/// Reads a log from its beginning, across its rotation.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// `None` before the file exists.
    file: Option<File>,
    /// The current file is the older one.
    in_rotated: bool,
    pending: Vec<u8>,
}

impl LogReader {
    pub fn open(path: &Path) -> io::Result<Self> {
        let older = open_existing(&rotated(path))?;
        let in_rotated = older.is_some();
        let file = if in_rotated { older } else { open_existing(path)? };
        Ok(Self { path: path.to_owned(), file, in_rotated, pending: Vec::new() })
    }

    /// The next frame; `None` at the end of what there is now.
    pub fn next_frame(&mut self) -> io::Result<Option<(Stream, Vec<u8>)>> {
        loop {
            if let Some(frame) = take_frame(&mut self.pending)? {
                return Ok(Some(frame));
            }
            let Some(file) = &mut self.file else {
                self.file = open_existing(&self.path)?;
                match self.file {
                    Some(_) => continue,
                    None => return Ok(None),
                }
            };
            let mut chunk = vec![0; 64 * 1024];
            let read = file.read(&mut chunk)?;
            if read > 0 {
                self.pending.extend_from_slice(&chunk[..read]);
            } else if !self.follow_rotation()? {
                return Ok(None);
            }
        }
    }

    /// At the end of a file: goes on to the newer one, if this is not it.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let Some(newer) = open_existing(&self.path)? else { return Ok(false) };
        let same = match &self.file {
            Some(file) => {
                let (old, new) = (file.metadata()?, newer.metadata()?);
                (old.dev(), old.ino()) == (new.dev(), new.ino())
            }
            None => false,
        };
        if same && !self.in_rotated {
            return Ok(false);
        }
        // What is left of a frame in a rotated file will never be completed.
        self.pending.clear();
        (self.file, self.in_rotated) = (Some(newer), false);
        Ok(true)
    }
}

fn take_frame(pending: &mut Vec<u8>) -> io::Result<Option<(Stream, Vec<u8>)>> {
    let Some(([kind, a, b, c, d], rest)) = pending.split_first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let stream = match kind {
        1 => Stream::Output,
        2 => Stream::Error,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the log is damaged")),
    };
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the log is damaged"));
    }
    if rest.len() < length {
        return Ok(None);
    }
    let data = rest[..length].to_vec();
    pending.drain(..5 + length);
    Ok(Some((stream, data)))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_while_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut reader = LogReader::open(&path).unwrap();
        assert_eq!(reader.next_frame().unwrap(), None);
        let mut writer = LogWriter::create(&path).unwrap();
        writer.write(Stream::Output, b"one").unwrap();
        writer.write(Stream::Error, b"two").unwrap();
        assert_eq!(reader.next_frame().unwrap(), Some((Stream::Output, b"one".to_vec())));
        assert_eq!(reader.next_frame().unwrap(), Some((Stream::Error, b"two".to_vec())));
        assert_eq!(reader.next_frame().unwrap(), None);
        writer.write(Stream::Output, b"three").unwrap();
        assert_eq!(reader.next_frame().unwrap(), Some((Stream::Output, b"three".to_vec())));
    }

    #[test]
    fn a_flood_costs_two_files_and_a_reader_goes_on_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut writer = LogWriter::create(&path).unwrap();
        let mut follower = LogReader::open(&path).unwrap();
        let chunk = vec![b'x'; FRAME_MAX];
        let chunks = LOG_MAX as usize / FRAME_MAX * 3;
        for _ in 0..chunks {
            writer.write(Stream::Output, &chunk).unwrap();
        }
        writer.write(Stream::Output, b"last").unwrap();
        let size: u64 = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 2 * LOG_MAX, "{size}");
        for mut reader in [LogReader::open(&path).unwrap(), {
            follower.next_frame().unwrap();
            follower
        }] {
            let mut last = Vec::new();
            while let Some((_, data)) = reader.next_frame().unwrap() {
                last = data;
            }
            assert_eq!(last, b"last");
        }
    }
}
