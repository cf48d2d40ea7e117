use super::super::testing::{Block, Tar};
use super::*;

fn read(bytes: &[u8]) -> Result<Vec<Entry>, LayerError> {
    read_within(bytes, &Limits::default())
}

fn read_within(bytes: &[u8], limits: &Limits) -> Result<Vec<Entry>, LayerError> {
    let mut reader = TarReader::new(bytes, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn names(bytes: &[u8]) -> Vec<String> {
    read(bytes).unwrap().iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[test]
fn data_is_found_where_it_lies() {
    let tar = Tar::new().file("a", b"one").file("b", &[7; 1000]).end();
    let entries = read(&tar).unwrap();
    for (entry, data) in entries.iter().zip([&b"one"[..], &[7; 1000]]) {
        let at = entry.data_offset as usize;
        assert_eq!(&tar[at..at + entry.size as usize], data);
        assert_eq!(at % 512, 0);
    }
}

#[test]
fn every_dialect_has_its_way_to_a_long_name() {
    let long = "d/".repeat(60) + "name";
    let cases: [(&str, Tar, &str); 8] = [
        ("v7 has none", Tar::new().header(Block::new("a", b'0').v7().at(345, b"prefix")), "a"),
        ("ustar's prefix", Tar::new().header(Block::new("a", b'0').at(345, b"some/dir")), "some/dir/a"),
        (
            "star's shorter prefix",
            Tar::new().header(Block::new("a", b'0').at(345, &[b'p'; 155]).at(508, b"tar\0")),
            "",
        ),
        (
            "gnu's L",
            Tar::new().entry(Block::new("././@LongLink", b'L').gnu(), long.as_bytes()).file("a", b""),
            &long,
        ),
        (
            "gnu's L, with a NUL",
            Tar::new().entry(Block::new("x", b'L').gnu(), b"name\0junk").file("a", b""),
            "name",
        ),
        ("pax", Tar::new().pax(&[("path", long.as_bytes())]).file("a", b""), &long),
        (
            "gnu's L over pax",
            Tar::new().entry(Block::new("x", b'L'), b"l\0").pax(&[("path", b"p")]).file("a", b""),
            "l",
        ),
        (
            "gnu's times are no prefix",
            Tar::new().header(Block::new("a", b'0').gnu().at(345, b"00000000001\0")),
            "a",
        ),
    ];
    for (what, tar, expected) in cases {
        let star = "p".repeat(131) + "/a";
        let expected = if expected.is_empty() { &star } else { expected };
        assert_eq!(names(&tar.end()), [expected], "{what}");
    }
}

#[test]
fn types_are_what_they_are_to_those_who_unpack() {
    let cases: [(&str, u8, Option<Kind>); 13] = [
        ("f", b'0', Some(Kind::File)),
        ("f", 0, Some(Kind::File)),
        ("d/", 0, Some(Kind::Directory)),
        ("f/", b'0', Some(Kind::File)),
        ("f", b'7', Some(Kind::File)),
        ("f", b'1', Some(Kind::HardLink)),
        ("f", b'2', Some(Kind::Symlink)),
        ("f", b'3', Some(Kind::CharDevice)),
        ("f", b'4', Some(Kind::BlockDevice)),
        ("f", b'5', Some(Kind::Directory)),
        ("f", b'6', Some(Kind::Fifo)),
        ("f", b'V', None),
        ("f", b'Z', None),
    ];
    for (name, flag, expected) in cases {
        let entries = read(&Tar::new().header(Block::new(name, flag)).end());
        assert_eq!(entries.ok().map(|entries| entries[0].kind), expected, "{name} {flag}");
    }
}

#[test]
fn links_and_directories_have_no_data_whatever_they_say() {
    for flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let tar = Tar::new().raw(&Block::new("a", flag).size(512).sealed()).file("b", b"").end();
        assert_eq!(names(&tar), ["a", "b"]);
    }
}

#[test]
fn pax_records_go_over_the_header() {
    let tar = Tar::new()
        .pax(&[
            ("path", b"new"),
            ("linkpath", b"target"),
            ("uid", b"4294967294"),
            ("gid", b"70000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.x", b"\0=\n"),
            ("comment", b"nobody cares"),
        ])
        .symlink("old", "else")
        .file("next", b"")
        .end();
    let entries = read(&tar).unwrap();
    let first = &entries[0];
    assert_eq!((&first.path[..], &first.link[..]), (&b"new"[..], &b"target"[..]));
    assert_eq!((first.uid, first.gid), (4_294_967_294, 70_000));
    assert_eq!(first.mtime, Time { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(first.xattrs, [(b"user.x"[..].into(), b"\0=\n"[..].into())]);
    assert_eq!(entries[1].xattrs, [], "records are for one entry");
}

#[test]
fn a_pax_size_is_the_size_that_counts() {
    let data = [1u8; 600];
    let tar = Tar::new()
        .pax(&[("size", b"600")])
        .raw(&Block::new("a", b'0').size(0).sealed())
        .padded(&data)
        .file("b", b"")
        .end();
    assert_eq!(names(&tar), ["a", "b"]);
}

#[test]
fn global_records_are_checked_and_not_applied() {
    let record = super::super::testing::record("path", b"elsewhere");
    let tar = Tar::new().entry(Block::new("g", b'g'), &record).file("a", b"").end();
    assert_eq!(names(&tar), ["a"]);
    let tar = Tar::new().entry(Block::new("g", b'g'), b"nonsense").file("a", b"").end();
    assert!(read(&tar).is_err());
}

#[test]
fn the_archive_ends_where_it_says_or_where_the_input_does() {
    let a = || Tar::new().file("a", b"x");
    let cases: [(&str, Vec<u8>, Option<usize>); 9] = [
        ("nothing", vec![], Some(0)),
        ("two zero blocks", a().end(), Some(1)),
        ("no zero block", a().bytes(), Some(1)),
        ("one zero block", a().raw(&[0; 512]).bytes(), Some(1)),
        ("one zero block, then an entry", a().raw(&[0; 512]).file("b", b"").end(), None),
        ("a second archive", a().raw(&a().end()).raw(&[0; 512]).raw(&[0; 512]).file("b", b"").end(), Some(2)),
        ("half a header", a().raw(&[1; 100]).bytes(), None),
        (
            "data cut short",
            Tar::new().raw(&Block::new("a", b'0').size(600).sealed()).raw(&[1; 512]).bytes(),
            None,
        ),
        (
            "no last padding",
            Tar::new().raw(&Block::new("a", b'0').size(3).sealed()).raw(b"abc").bytes(),
            Some(1),
        ),
    ];
    for (what, bytes, expected) in cases {
        assert_eq!(read(&bytes).ok().map(|entries| entries.len()), expected, "{what}");
    }
}

#[test]
fn a_header_must_match_its_checksum() {
    let good = Block::new("\u{e9}", b'0').sealed();
    let signed: i32 = good
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i32::from(*byte as i8) })
        .sum();
    let mut old = good;
    old[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    let mut bad = good;
    bad[0] ^= 1;
    for (what, block, is_fine) in [("unsigned", good, true), ("signed", old, true), ("damaged", bad, false)] {
        assert_eq!(read(&Tar::new().raw(&block).end()).is_ok(), is_fine, "{what}");
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_by_name() {
    let base_256 = |value: u64| [&[0x80, 0, 0, 0][..], &value.to_be_bytes()].concat();
    let cases: [(&str, Block, &str); 6] = [
        ("uid -1", Block::new("a", b'0').at(108, b"\x80\0\0\0\xff\xff\xff\xff"), "uid"),
        ("uid of 33 bits", Block::new("a", b'0').at(108, b"\x80\0\0\x01\0\0\0\0"), "uid"),
        ("negative size", Block::new("a", b'0').at(124, &[0xff; 12]), "size"),
        ("letters", Block::new("a", b'0').at(100, b"rwxr-xr\0"), "mode"),
        ("size of 2^63", Block::new("a", b'0').at(124, &base_256(1 << 63)), "size"),
        ("device", Block::new("a", b'3').at(329, b"\x80\0\0\x01\0\0\0\0"), "devmajor"),
    ];
    for (what, block, field) in cases {
        let error = read(&Tar::new().raw(&block.sealed()).end()).unwrap_err();
        let matches =
            matches!(error, LayerError::Header { problem: HeaderProblem::Number(name), .. } if name == field);
        assert!(matches, "{what}: {error}");
    }
    let largest = Block::new("a", b'0').at(124, &base_256(i64::MAX as u64));
    let error = read(&Tar::new().raw(&largest.sealed()).end()).unwrap_err();
    assert!(matches!(error, LayerError::Limit { what: "the size", .. }), "{error}");
}

#[test]
fn limits_are_named_in_the_error() {
    let many: Vec<(String, Vec<u8>)> =
        (0..300).map(|at| (format!("SCHILY.xattr.user.{at}"), vec![b'v'])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (&key[..], &value[..])).collect();
    let value = vec![b'v'; 70_000];
    let sum = vec![b'v'; 50_000];
    let long_name = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    let headers = (0..20).fold(Tar::new(), |tar, _| tar.pax(&[("comment", b"again")]));
    let cases: [(&str, Tar, &str); 8] = [
        ("extension headers", headers.file("a", b""), "extension headers in a row"),
        ("pax header", Tar::new().raw(&Block::new("p", b'x').size(2 << 20).sealed()), "a pax header"),
        ("gnu name", Tar::new().raw(&Block::new("p", b'L').size(2 << 20).sealed()), "a GNU long name"),
        ("path", Tar::new().pax(&[("path", &[b'p'; 4096])]).file("a", b""), "the path"),
        ("link", Tar::new().pax(&[("linkpath", &[b'p'; 4096])]).symlink("a", ""), "the link target"),
        ("many attributes", Tar::new().pax(&many).file("a", b""), "the number of attributes"),
        (
            "value",
            Tar::new().pax(&[("SCHILY.xattr.user.a", &value)]).file("a", b""),
            "an extended attribute's value",
        ),
        (
            "all attributes",
            Tar::new()
                .pax(&[
                    ("SCHILY.xattr.user.a", &sum),
                    ("SCHILY.xattr.user.b", &sum),
                    ("SCHILY.xattr.user.c", &sum),
                ])
                .file("a", b""),
            "the size of all extended attributes",
        ),
    ];
    for (case, tar, expected) in cases {
        match read(&tar.end()) {
            Err(LayerError::Limit { what, .. } | LayerError::LayerLimit { what, .. }) => {
                assert_eq!(what, expected, "{case}");
            }
            other => panic!("{case}: {other:?}"),
        }
    }
    let error = read(&Tar::new().pax(&[(&long_name, b"v")]).file("a", b"").end()).unwrap_err();
    assert!(matches!(error, LayerError::Entry { problem: EntryProblem::BadXattr(_), .. }), "{error}");
}

#[test]
fn names_need_not_be_text() {
    let tar = Tar::new().pax(&[("path", b"\xff\xfe/\x01\n")]).file("a", b"").end();
    assert_eq!(read(&tar).unwrap()[0].path, b"\xff\xfe/\x01\n");
}

fn segment(offset: u64, len: u64) -> Segment {
    Segment { offset, len }
}

#[test]
fn sparse_files_are_understood_in_all_four_forms() {
    let data = [5u8; 1024];
    let number = |value: u64| format!("{value:011o}\0").into_bytes();
    let old = Block::new("s", b'S')
        .gnu()
        .at(386, &[number(512), number(512), number(4096), number(512)].concat())
        .at(483, &number(10_000));
    let extended = Block::new("s", b'S')
        .gnu()
        .at(386, &[number(0), number(512)].concat())
        .at(482, &[1])
        .at(483, &number(10_000))
        .size(1024);
    let mut extension = [0u8; 512];
    extension[..24].copy_from_slice(&[number(4096), number(512)].concat());
    let (a, b) = (segment(512, 512), segment(4096, 512));
    let in_data = [&b"2\n512\n512\n4096\n512\n"[..], &[0; 493], &data].concat();
    let cases: [(&str, Tar, Vec<Segment>); 6] = [
        ("old GNU", Tar::new().entry(old, &data), vec![a, b]),
        (
            "old GNU, continued",
            Tar::new().raw(&extended.sealed()).raw(&extension).padded(&data),
            vec![segment(0, 512), b],
        ),
        (
            "0.0",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"10000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"512"),
                    ("GNU.sparse.numbytes", b"512"),
                    ("GNU.sparse.offset", b"4096"),
                    ("GNU.sparse.numbytes", b"512"),
                ])
                .file("s", &data),
            vec![a, b],
        ),
        (
            "0.1",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.size", b"10000"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.map", b"512,512,4096,512"),
                    ("GNU.sparse.name", b"s"),
                ])
                .file("GNUSparseFile.1/s", &data),
            vec![a, b],
        ),
        (
            "1.0",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.realsize", b"10000"),
                ])
                .file("GNUSparseFile.1/s", &in_data),
            vec![a, b],
        ),
        (
            "1.0, all hole",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.realsize", b"10000"),
                ])
                .file("GNUSparseFile.1/s", &[&b"1\n10000\n0\n"[..], &[0; 502]].concat()),
            vec![],
        ),
    ];
    for (what, tar, segments) in cases {
        let tar = tar.file("next", b"").end();
        let entries = read(&tar).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(entries[0].path, b"s", "{what}");
        assert_eq!(entries[0].size, 10_000, "{what}");
        assert_eq!(entries[0].data_bytes, segments.iter().map(|segment| segment.len).sum::<u64>(), "{what}");
        assert_eq!(entries[0].segments, Some(segments), "{what}");
        if entries[0].data_bytes > 0 {
            assert_eq!(tar[entries[0].data_offset as usize], 5, "{what}");
        }
        assert_eq!(entries[1].path, b"next", "{what}");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let with_map = |map: &[u8], numblocks: &[u8]| {
        Tar::new().pax(&[
            ("GNU.sparse.size", b"10000"),
            ("GNU.sparse.numblocks", numblocks),
            ("GNU.sparse.map", map),
        ])
    };
    let in_data = |lines: &[u8]| {
        let mut data = lines.to_vec();
        data.resize(data.len().next_multiple_of(512), 0);
        Tar::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10000")])
            .file("s", &data)
    };
    let cases: [(&str, Tar); 13] = [
        ("overlap", with_map(b"0,512,256,512", b"2").file("s", &[1; 1024])),
        ("backwards", with_map(b"512,512,0,512", b"2").file("s", &[1; 1024])),
        ("beyond the end", with_map(b"9999,2", b"1").file("s", &[1; 2])),
        ("overflow", with_map(b"18446744073709551615,2", b"1").file("s", &[1; 2])),
        ("less data", with_map(b"0,512", b"1").file("s", &[1; 100])),
        ("more data", with_map(b"0,512", b"1").file("s", &[1; 1024])),
        ("odd map", with_map(b"0,512,4", b"1").file("s", &[1; 512])),
        ("wrong count", with_map(b"0,512", b"7").file("s", &[1; 512])),
        ("not a file", with_map(b"0,512", b"1").dir("s")),
        ("1.0 without an end", in_data(&[b'1'; 512])),
        ("1.0 with letters", in_data(b"1\nx\n")),
        ("1.0 with too many", in_data(b"99999999999\n")),
        ("1.0 cut", in_data(b"300\n1\n")),
    ];
    for (what, tar) in cases {
        let error = read(&tar.end()).expect_err(what);
        assert!(matches!(error, LayerError::Header { .. }), "{what}: {error}");
    }
}

#[test]
fn no_cut_and_no_flipped_bit_panics() {
    let tar = Tar::new()
        .pax(&[("path", b"p"), ("SCHILY.xattr.user.x", b"v"), ("mtime", b"1.5")])
        .file("a", b"data")
        .entry(Block::new("l", b'L').gnu(), b"long\0")
        .symlink("b", "c")
        .end();
    for cut in 0..tar.len() {
        let _ = read(&tar[..cut]);
    }
    for bit in (0..tar.len() * 8).step_by(5) {
        let mut damaged = tar.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let _ = read(&damaged);
    }
}
