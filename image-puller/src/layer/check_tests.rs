//! What the indexer writes passes the launcher's check, and nothing that was bent does.

use super::indexer::index_into;
use super::testing::{Block, MemFile, Tar};
use super::{Compression, Limits};
use nacre_layer_check::{CheckError, CheckLimits, IndexSummary, check_index};

/// An index and the length of its tar.
fn index(tar: Tar) -> (Vec<u8>, u64) {
    let (tar, index) = (tar.end(), MemFile::default());
    let file = MemFile::default();
    index_into(&tar[..], Compression::Plain, &file, &index, &Limits::default(), |_| {}).unwrap();
    (index.into_bytes(), file.into_bytes().len() as u64)
}

fn check(index: &[u8], tar_bytes: u64) -> Result<IndexSummary, CheckError> {
    check_index(index, index.len() as u64, tar_bytes, &CheckLimits::default())
}

fn rich() -> Tar {
    let names = (0..100).map(|at| format!("d/a-file-with-a-name-{at}"));
    let many = names.fold(Tar::new().dir("d"), |tar, name| tar.file(&name, b"x"));
    let long = "t".repeat(1000);
    many.pax(&[("SCHILY.xattr.user.shared", b"1")])
        .file("s1", b"")
        .pax(&[("SCHILY.xattr.user.shared", b"1"), ("SCHILY.xattr.security.own", &[9; 300])])
        .file("s2", b"data")
        .hard_link("d/s2", "s2")
        .symlink("short", "d")
        .pax(&[("linkpath", long.as_bytes())])
        .symlink("long", "")
        .file("gone/.wh.x", b"")
        .file("gone/.wh..wh..opq", b"")
        .header(Block::new("fifo", b'6'))
        .header(Block::new("null", b'3').at(329, b"0000001\0").at(337, b"0000003\0"))
        .pax(&[
            ("GNU.sparse.size", b"1000000"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.map", b"4096,512"),
        ])
        .file("aligned", &[3; 512])
        .pax(&[
            ("GNU.sparse.size", b"1000000"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.map", b"4099,3"),
        ])
        .file("askew", &[3; 3])
}

#[test]
fn what_the_writer_writes_passes() {
    let cases = [("nothing", Tar::new()), ("one file", Tar::new().file("a", b"x")), ("everything", rich())];
    for (what, tar) in cases {
        let (index, tar_bytes) = index(tar);
        let summary = check(&index, tar_bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(u64::from(summary.index_blocks) * 512, index.len() as u64);
        assert_eq!(u64::from(summary.tar_blocks) * 512, tar_bytes);
    }
    let (index, tar_bytes) = index(rich());
    let summary = check(&index, tar_bytes).unwrap();
    assert_eq!((summary.inodes, summary.directories), (112, 3));
}

#[test]
fn an_index_belongs_to_one_length_of_tar() {
    let (index, tar_bytes) = index(rich());
    assert!(check(&index, tar_bytes - 512).is_err());
    assert!(check(&index, tar_bytes + 512).is_err());
    assert!(check(&index[..index.len() - 512], tar_bytes).is_err());
    let longer = [&index[..], &[0; 512]].concat();
    assert!(check(&longer, tar_bytes).is_err());
}

/// Finds an inode by the bytes of its mode, and changes it.
struct Image {
    bytes: Vec<u8>,
    tar_bytes: u64,
    inodes_at: usize,
}

impl Image {
    fn new(tar: Tar) -> Self {
        let (bytes, tar_bytes) = index(tar);
        let block = u32::from_le_bytes(bytes[1024 + 40..1024 + 44].try_into().unwrap());
        Image { bytes, tar_bytes, inodes_at: block as usize * 512 }
    }

    /// The place of an inode, by its ordinal in the order of writing.
    fn inode(&self, ordinal: u32) -> usize {
        (self.inodes_at..self.bytes.len())
            .step_by(32)
            .find(|at| self.bytes[*at] & 1 == 1 && self.bytes[at + 20..at + 24] == ordinal.to_le_bytes())
            .unwrap()
    }

    fn with(mut self, at: usize, value: &[u8]) -> Self {
        self.bytes[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn problem(&self) -> String {
        check(&self.bytes, self.tar_bytes).unwrap_err().to_string()
    }
}

#[test]
fn hostile_inodes_are_refused() {
    // Ordinals: the root 1, then by name d 2, f 3, l 4, and d's e 5.
    let image =
        || Image::new(Tar::new().dir("d").file("d/e", b"").file("f", &[1; 5000]).symlink("l", "target"));
    let cases: [(&str, u32, usize, &[u8], &str); 14] = [
        ("compressed", 3, 0, &[0x03, 0], "a form of inode"),
        ("compact", 3, 0, &[0x00, 0], "a form of inode"),
        ("unknown type", 3, 4, &[0, 0], "an unknown file type"),
        ("data before the tar", 3, 16, &[0, 0, 0, 0], "not all in the tar"),
        ("data after the tar", 3, 16, &[0xf0, 0xff, 0xff, 0xff], "not all in the tar"),
        ("longer than the tar", 3, 8, &[0, 0, 0, 1], "not all in the tar"),
        ("size of 2^64 - 1", 3, 8, &[0xff; 8], "not all in the tar"),
        ("no links", 3, 44, &[0; 4], "without links"),
        ("nanoseconds", 3, 40, &[0xff; 4], "nanoseconds"),
        ("attributes out of the image", 3, 2, &[0xff, 0xff], "attributes reach out"),
        ("long directory", 2, 8, &[0, 0, 0, 0, 1], "impossible size"),
        ("empty directory", 2, 8, &[0; 8], "impossible size"),
        ("long link in line", 4, 8, &[0xff, 0x01], "crosses into another block"),
        ("a link as large as a file", 4, 8, &[0, 0, 1], "impossible length"),
    ];
    for (what, ordinal, field, value, expected) in cases {
        let image = image();
        let at = image.inode(ordinal) + field;
        let problem = image.with(at, value).problem();
        assert!(problem.contains(expected), "{what}: {problem}");
    }
}

#[test]
fn hostile_directories_are_refused() {
    // The root's own entries stand behind it: `.`, `..`, d, f; twelve bytes each, then the names.
    let image = || Image::new(Tar::new().dir("d").file("d/e", b"").file("f", b""));
    let root = image().inode(1) + 64;
    let d = image().inode(2) + 64;
    let nid = |image: &Image, ordinal: u32| ((image.inode(ordinal) - image.inodes_at) / 32) as u8;
    let (root_nid, d_nid) = (nid(&image(), 1), nid(&image(), 2));
    let cases: [(&str, usize, &[u8], &str); 11] = [
        ("a circle", d + 2 * 12, &[root_nid], "lies over another one, is a directory with two names"),
        ("two names of a directory", root + 3 * 12, &[d_nid], "is a directory with two names"),
        ("`.` of another", root, &[d_nid], "`.` is not the directory itself"),
        ("`..` of another", d + 12, &[d_nid], "`..` is not the directory above"),
        ("out of the image", root + 3 * 12, &[0xfe, 0xff, 0xff], "outside of the image"),
        ("far out of the image", root + 3 * 12, &[0xff; 8], "leads out of the image"),
        ("wrong type", root + 3 * 12 + 10, &[2], "type is not its inode's"),
        ("names in disorder", root + 48 + 3, b"fd", "not in order"),
        ("a slash", root + 48 + 4, b"/", "no file can have"),
        ("records that are no records", root + 8, &[47], "without whole records"),
        ("names outside", root + 8, &[0xf0, 0xff], "names outside"),
    ];
    for (what, at, value, expected) in cases {
        let problem = image().with(at, value).problem();
        assert!(problem.contains(expected), "{what}: {problem}");
    }
}

#[test]
fn attributes_that_overlayfs_obeys_are_refused() {
    let image =
        || Image::new(Tar::new().pax(&[("SCHILY.xattr.trusted.zverlay.redirect", b"/")]).file("f", b""));
    assert!(check(&image().bytes, image().tar_bytes).is_ok());
    let name = image().inode(2) + 64 + 12 + 4;
    let problem = image().with(name, b"o").problem();
    assert!(problem.contains("overlayfs would obey"), "{problem}");

    // The mark of an opaque directory, shared by two of them, on a file.
    let opaque = || {
        Tar::new()
            .file("a/.wh..wh..opq", b"")
            .file("b/.wh..wh..opq", b"")
            .pax(&[("SCHILY.xattr.user.x", b"1")])
            .file("c", b"")
            .pax(&[("SCHILY.xattr.user.x", b"1")])
            .file("d", b"")
    };
    let image = Image::new(opaque());
    let directory = image.inode(2) + 64 + 12;
    let file = image.inode(4) + 64 + 12;
    let place: [u8; 4] = image.bytes[directory..directory + 4].try_into().unwrap();
    let problem = image.with(file, &place).problem();
    assert!(problem.contains("opaque file"), "{problem}");
}

#[test]
fn hostile_chunk_tables_are_refused() {
    let sparse = || {
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", b"8192"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.map", b"4096,512"),
            ])
            .file("s", &[3; 512])
            .file("t", b"")
    };
    let image = || Image::new(sparse());
    let s = image().inode(2);
    let cases: [(&str, usize, &[u8], &str); 5] = [
        ("beyond the tar", s + 64 + 4, &[0xf0, 0xff], "not all in its device"),
        ("another device", s + 64 + 2, &[2], "not all in its device"),
        ("metadata as data", s + 64, &[0, 0, 0, 0, 3, 0, 0, 0], "not all in its device"),
        ("a table out of the image", s + 8, &[0, 0, 0, 0, 0, 0, 1], "out of the image"),
        ("a format of its own", s + 16, &[0xff], "unknown chunk format"),
    ];
    for (what, at, value, expected) in cases {
        let problem = image().with(at, value).problem();
        assert!(problem.contains(expected), "{what}: {problem}");
    }
}

#[test]
fn every_field_of_the_superblock_counts() {
    let (index, tar_bytes) = index(rich());
    for at in 1024..1536 {
        // UUID, name and device tag mean nothing, but the checksum covers them.
        let mut damaged = index.clone();
        damaged[at] ^= 0x80;
        assert!(check(&damaged, tar_bytes).is_err(), "byte {at}");
    }
}

#[test]
fn no_flipped_bit_panics() {
    let (index, tar_bytes) = index(rich());
    for bit in (1536 * 8..index.len() * 8).step_by(61) {
        let mut damaged = index.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let _ = check(&damaged, tar_bytes);
    }
}
