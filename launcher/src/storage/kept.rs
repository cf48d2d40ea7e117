//! What is on a disk that outlives the sandbox, judged by its superblock before the kernel mounts it.
//!
//! The host says that it is the disk of an earlier boot, and may be wrong: it may be another's, half written, or damaged.
//! Nothing of the kind is formatted or mounted. That the superblock is whole is no promise for the rest: the kernel checks
//! the checksum of every block of metadata that it reads, and what the store has is checked again by its digests.

use super::STAGE;
use super::scratch::HEAD_BYTES;
use crate::error::LaunchError;
use crate::ext4::{self, BLOCK_SIZE, JOURNAL_BLOCKS};
use rustix::io::Errno;

pub const LABEL: &str = "nacre-kept";
/// Most of a disk that its journal takes, and most blocks of one: 16 MiB.
const JOURNAL_PART: u64 = 64;
const JOURNAL_MAX: u64 = 4096;

// The superblock in the disk, and fields in the superblock (`Documentation/filesystems/ext4/super.rst`).
const SUPERBLOCK: usize = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const BLOCKS: usize = 0x04;
const MAGIC: usize = 0x38;
const STATE: usize = 0x3a;
const COMPATIBLE: usize = 0x5c;
const INCOMPATIBLE: usize = 0x60;
const VOLUME: usize = 0x78;
const ERROR_COUNT: usize = 0x194;
const CHECKSUM: usize = 0x3fc;

const EXT4_MAGIC: u16 = 0xef53;
/// The kernel found the file system inconsistent.
const STATE_ERRORS: u16 = 2;
const HAS_JOURNAL: u32 = 0x4;
/// What our formatter makes: file types, extents, flexible groups; and a journal that waits to be replayed.
const INCOMPATIBLE_OURS: u32 = 0x2 | 0x40 | 0x200;
const RECOVER: u32 = 0x4;

pub enum Found {
    Blank,
    Ours,
    /// Something else; what.
    Other(String),
}

pub fn journal_blocks(disk_bytes: u64) -> u32 {
    let blocks = (disk_bytes / BLOCK_SIZE as u64 / JOURNAL_PART).min(JOURNAL_MAX);
    u32::try_from(blocks).unwrap_or(u32::MAX).max(*JOURNAL_BLOCKS.start())
}

pub fn judge(head: &[u8; HEAD_BYTES], disk_bytes: u64) -> Found {
    if head.iter().all(|byte| *byte == 0) {
        return Found::Blank;
    }
    let superblock = head.get(SUPERBLOCK..SUPERBLOCK + SUPERBLOCK_BYTES).unwrap_or_default();
    match check(superblock, disk_bytes) {
        Ok(()) => Found::Ours,
        Err(what) => Found::Other(what),
    }
}

fn check(superblock: &[u8], disk_bytes: u64) -> Result<(), String> {
    let short = |at: usize| number::<2>(superblock, at).map(u16::from_le_bytes).unwrap_or_default();
    let long = |at: usize| number::<4>(superblock, at).map(u32::from_le_bytes).unwrap_or_default();
    if short(MAGIC) != EXT4_MAGIC {
        return Err("it has something else than a file system of ours".to_owned());
    }
    let volume = superblock.get(VOLUME..VOLUME + 16).unwrap_or_default();
    let name = volume.split(|byte| *byte == 0).next().unwrap_or_default();
    if name != LABEL.as_bytes() {
        let name = String::from_utf8_lossy(name).into_owned();
        return Err(format!("it has a file system with the label {name:?}, not {LABEL:?}"));
    }
    let covered = superblock.get(..CHECKSUM).unwrap_or_default();
    if ext4::crc32c(covered) != long(CHECKSUM) {
        return Err("it is damaged: the checksum of its superblock is wrong".to_owned());
    }
    if long(INCOMPATIBLE) & !RECOVER != INCOMPATIBLE_OURS || long(COMPATIBLE) & HAS_JOURNAL == 0 {
        return Err("it has a file system with other features than ours".to_owned());
    }
    let bytes = u64::from(long(BLOCKS)) * BLOCK_SIZE as u64;
    if bytes > disk_bytes {
        return Err(format!("it is damaged: its file system of {bytes} bytes is on a disk of {disk_bytes}"));
    }
    if short(STATE) & STATE_ERRORS != 0 || long(ERROR_COUNT) != 0 {
        return Err("it is damaged: the kernel found errors in its file system earlier".to_owned());
    }
    Ok(())
}

/// The kernel's word for a damaged file system, in plain ones.
pub fn explain(error: LaunchError, device: &str) -> LaunchError {
    let damaged =
        [Errno::UCLEAN, Errno::BADMSG, Errno::IO].iter().any(|errno| error.errno == errno.raw_os_error());
    if !damaged {
        return error;
    }
    LaunchError::refused(STAGE, format!("the kept disk {device} is damaged: {error}"))
}

fn number<const N: usize>(superblock: &[u8], at: usize) -> Option<[u8; N]> {
    superblock.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::Options;
    use std::os::unix::fs::FileExt;

    const BYTES: u64 = 64 << 20;

    fn formatted() -> [u8; HEAD_BYTES] {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(BYTES).unwrap();
        let mut options = Options::new([1; 16], [2; 16]);
        options.label = LABEL.to_owned();
        options.journal_blocks = Some(journal_blocks(BYTES));
        ext4::format(&disk, BYTES, &options).unwrap();
        let mut head = [0; HEAD_BYTES];
        disk.read_exact_at(&mut head, 0).unwrap();
        head
    }

    #[test]
    fn only_a_blank_disk_and_one_of_ours_are_taken() {
        assert!(matches!(judge(&[0; HEAD_BYTES], BYTES), Found::Blank));
        let ours = formatted();
        assert!(matches!(judge(&ours, BYTES), Found::Ours));
        let with = |at: usize, bytes: &[u8], is_signed: bool| {
            let mut head = ours;
            head[SUPERBLOCK + at..SUPERBLOCK + at + bytes.len()].copy_from_slice(bytes);
            if is_signed {
                let sum = ext4::crc32c(&head[SUPERBLOCK..SUPERBLOCK + CHECKSUM]);
                head[SUPERBLOCK + CHECKSUM..SUPERBLOCK + CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
            }
            head
        };
        // A journal that waits to be replayed is what a killed machine leaves.
        let waiting = (INCOMPATIBLE_OURS | RECOVER).to_le_bytes();
        assert!(matches!(judge(&with(INCOMPATIBLE, &waiting, true), BYTES), Found::Ours));
        for (head, bytes, text) in [
            ([7; HEAD_BYTES], BYTES, "something else"),
            (with(VOLUME, b"mine\0", true), BYTES, "label \"mine\""),
            (with(0x10, &[9], false), BYTES, "checksum"),
            (with(INCOMPATIBLE, &[0xff], true), BYTES, "other features"),
            (with(COMPATIBLE, &[0], true), BYTES, "other features"),
            (ours, BYTES / 2, "on a disk of 33554432"),
            (with(STATE, &[3, 0], true), BYTES, "found errors"),
            (with(ERROR_COUNT, &[1], true), BYTES, "found errors"),
        ] {
            let Found::Other(what) = judge(&head, bytes) else { panic!("{text}") };
            assert!(what.contains(text), "{what}");
        }
    }
}
