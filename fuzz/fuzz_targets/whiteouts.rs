//! Entries with any names, many of them whiteouts, in any order: the index that comes of them passes the check, is the same
//! each time, and shows no mark as a file.
#![no_main]

use std::cell::RefCell;
use std::io;

use libfuzzer_sys::fuzz_target;
use nacre_layer_check::{CheckLimits, check_index};
use nacre_puller::layer::{Compression, Limits, WriteAt, index_into};

/// What a byte of the input stands for, so that marks and few names come often. No two names that lie side by side in the
/// index make a mark between them.
const WORDS: [&[u8]; 12] =
    [b".wh.", b".wh..wh..opq", b".wh..wh.", b"a", b"b", b"c", b"/", b"/", b"..", b".", b"\xff", b"w"];

fuzz_target!(|data: &[u8]| {
    let mut tar = Vec::new();
    let mut has_inner_mark = false;
    for line in data.split(|byte| *byte == b'\n').take(200) {
        let Some((kind, words)) = line.split_first() else { continue };
        let name: Vec<u8> =
            words.iter().flat_map(|word| WORDS[usize::from(*word) % WORDS.len()]).copied().take(100).collect();
        // A mark in a mark is a name with a mark; and a directory is what its name says where something is in it.
        let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        let (last, parents) = parts.split_last().map_or((&b""[..], &[][..]), |(last, rest)| (*last, rest));
        let has_mark = |bytes: &[u8]| bytes.windows(4).any(|inner| inner == b".wh.");
        has_inner_mark |= parents.iter().any(|part| has_mark(part)) || has_mark(last.get(1..).unwrap_or_default());
        tar.extend(header(&name, b"050125"[usize::from(*kind) % 6]));
    }
    tar.extend([0; 1024]);
    let Some((index, tar_bytes)) = index(&tar) else { return };
    let checked = check_index(&index[..], index.len() as u64, tar_bytes, &CheckLimits::default());
    checked.unwrap_or_else(|error| panic!("the writer wrote what the check refuses: {error}"));
    assert!(self::index(&tar).is_some_and(|(again, _)| again == index));
    if !has_inner_mark {
        assert!(!index.windows(4).any(|bytes| bytes == b".wh."), "a mark became a file");
    }
});

/// A header of an entry without data; links lead to `a`.
fn header(name: &[u8], kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    for (at, text) in [(100, &b"0000755\0"[..]), (108, b"0000000\0"), (116, b"0000000\0")] {
        block[at..at + 8].copy_from_slice(text);
    }
    block[124..136].copy_from_slice(b"00000000000\0");
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[157] = b'a';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn index(tar: &[u8]) -> Option<(Vec<u8>, u64)> {
    let limits = Limits { metadata_bytes: 32 << 20, index_bytes: 32 << 20, ..Limits::default() };
    let (kept, index) = (Memory::default(), Memory::default());
    index_into(tar, Compression::Plain, &kept, &index, &limits, |_| {}).ok()?;
    Some((index.0.into_inner(), kept.0.into_inner().len() as u64))
}

#[derive(Default)]
struct Memory(RefCell<Vec<u8>>);

impl WriteAt for Memory {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut file, at) = (self.0.borrow_mut(), offset as usize);
        let end = file.len().max(at + bytes.len());
        file.resize(end, 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.borrow_mut().resize(len as usize, 0);
        Ok(())
    }
}
