//! Entries with any names, many of them whiteouts, in any order: the index that comes of them passes the check, is the same
//! each time, and shows no mark as a file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_fuzz::layers::{index, seal};
use nacre_puller::layer::{Compression, Limits};

/// What a byte of the input stands for, so that marks and few names come often. No two names that lie side by side in the
/// index make a mark between them.
const WORDS: [&[u8]; 12] =
    [b".wh.", b".wh..wh..opq", b".wh..wh.", b"a", b"b", b"c", b"/", b"/", b"..", b".", b"\xff", b"w"];

fuzz_target!(|data: &[u8]| {
    let mut tar = Vec::new();
    let mut has_inner_mark = false;
    for line in data.split(|byte| *byte == b'\n').take(200) {
        let Some((kind, words)) = line.split_first() else { continue };
        let name: Vec<u8> = words
            .iter()
            .flat_map(|word| WORDS[usize::from(*word) % WORDS.len()])
            .copied()
            .take(100)
            .collect();
        // A mark in a mark is a name with a mark; and a directory is what its name says where something is in it.
        let parts: Vec<&[u8]> =
            name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        let (last, parents) = parts.split_last().map_or((&b""[..], &[][..]), |(last, rest)| (*last, rest));
        let has_mark = |bytes: &[u8]| bytes.windows(4).any(|inner| inner == b".wh.");
        has_inner_mark |=
            parents.iter().any(|part| has_mark(part)) || has_mark(last.get(1..).unwrap_or_default());
        tar.extend(header(&name, b"050125"[usize::from(*kind) % 6]));
    }
    tar.extend([0; 1024]);
    let limits = Limits { metadata_bytes: 32 << 20, index_bytes: 32 << 20, ..Limits::default() };
    let Some(index) = index(&tar, Compression::Plain, &limits) else { return };
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
    seal(&mut block);
    block
}
