use super::super::tar::TarReader;
use super::super::testing::{Block, Tar};
use super::*;

fn grow(tar: &[u8]) -> Result<Tree, LayerError> {
    let limits = Limits::default();
    grow_within(tar, &limits)
}

fn grow_within(tar: &[u8], limits: &Limits) -> Result<Tree, LayerError> {
    let mut reader = TarReader::new(tar, limits);
    let mut tree = Tree::new(limits);
    while let Some(entry) = reader.next_entry()? {
        tree.add(&entry, None)?;
    }
    Ok(tree)
}

/// Every path with what it is: `path=type mode`, sorted.
fn list(tree: &mut Tree) -> Vec<String> {
    let listing = tree.finish().unwrap();
    let mut lines = Vec::new();
    describe(tree, &listing, ROOT, "", &mut lines);
    lines.sort();
    lines
}

fn describe(tree: &Tree, listing: &Listing, directory: InodeId, path: &str, lines: &mut Vec<String>) {
    for dirent in listing.children(directory) {
        let path = format!("{path}/{}", tree.name(*dirent).escape_ascii());
        let id = tree.dirent_inode(*dirent);
        let inode = tree.inode(id).unwrap();
        let what = match inode.content {
            Content::Directory { opaque, .. } => {
                describe(tree, listing, id, &path, lines);
                if opaque { "opaque".into() } else { format!("dir {:o}", inode.mode) }
            }
            Content::File { size, .. } if listing.links(id) == 1 => format!("file {size}"),
            Content::File { size, .. } => format!("file {size} links {}", listing.links(id)),
            Content::Symlink { at, len } => format!("-> {}", tree.target(at, len).escape_ascii()),
            Content::CharDevice { rdev: 0 } => "whiteout".into(),
            Content::CharDevice { rdev } => format!("char {rdev:x}"),
            ref other => format!("{other:?}"),
        };
        lines.push(format!("{path}={what}"));
    }
}

fn check(what: &str, tar: Tar, expected: &[&str]) {
    let mut tree = grow(&tar.end()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(list(&mut tree), expected, "{what}");
}

fn problem(tar: Tar) -> EntryProblem {
    match grow(&tar.end()).err() {
        Some(LayerError::Entry { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_later_entry_wins() {
    check("file over file", Tar::new().file("a", b"1").file("a", b"22"), &["/a=file 2"]);
    check(
        "file over link",
        Tar::new().file("a", b"1").hard_link("b", "a").file("b", b"22"),
        &["/a=file 1", "/b=file 2"],
    );
    check("file over directory", Tar::new().dir("d").file("d/f", b"1").file("d", b"22"), &["/d=file 2"]);
    check(
        "directory over file",
        Tar::new().file("d", b"1").dir("d").file("d/f", b"1"),
        &["/d/f=file 1", "/d=dir 755"],
    );
    check(
        "directory over directory",
        Tar::new().dir("d").file("d/f", b"1").header(Block::new("d", b'5').mode(0o700)),
        &["/d/f=file 1", "/d=dir 700"],
    );
    check(
        "directory again after a file",
        Tar::new().dir("d").file("d/f", b"1").file("d", b"").dir("d"),
        &["/d=dir 755"],
    );
    check(
        "directory over link to directory",
        Tar::new().dir("d").symlink("l", "d").dir("l"),
        &["/d=dir 755", "/l=dir 755"],
    );
}

#[test]
fn missing_parents_are_made_and_later_described() {
    check(
        "child first",
        Tar::new().file("a/b/c", b"").header(Block::new("a", b'5').mode(0o1777)),
        &["/a/b/c=file 0", "/a/b=dir 755", "/a=dir 1777"],
    );
}

#[test]
fn links_lead_to_what_their_target_is_at_that_moment() {
    check(
        "two links",
        Tar::new().file("a", b"1").hard_link("d/b", "./a").hard_link("c", "/d/b"),
        &["/a=file 1 links 3", "/c=file 1 links 3", "/d/b=file 1 links 3", "/d=dir 755"],
    );
    check(
        "target replaced later",
        Tar::new().file("a", b"1").hard_link("b", "a").file("a", b"22"),
        &["/a=file 2", "/b=file 1"],
    );
    check(
        "link to a symbolic link",
        Tar::new().symlink("s", "nowhere").hard_link("h", "s"),
        &["/h=-> nowhere", "/s=-> nowhere"],
    );
    check(
        "through a symbolic link",
        Tar::new().file("d/f", b"1").symlink("s", "d").hard_link("h", "s/f"),
        &["/d/f=file 1 links 2", "/d=dir 755", "/h=file 1 links 2", "/s=-> d"],
    );
}

#[test]
fn links_to_nothing_are_refused_by_name() {
    let missing = |name: &str| EntryProblem::MissingLinkTarget(EntryName::new(name.as_bytes()));
    assert_eq!(problem(Tar::new().hard_link("a", "b")), missing("b"));
    assert_eq!(problem(Tar::new().hard_link("a", "b").file("b", b"")), missing("b"));
    assert_eq!(problem(Tar::new().file("a", b"").hard_link("a", "a")), missing("a"));
    assert_eq!(problem(Tar::new().file(".wh.a", b"").hard_link("b", "a")), missing("a"));
    assert_eq!(problem(Tar::new().file("f", b"").hard_link("b", "f/x")), missing("f/x"));
    assert_eq!(problem(Tar::new().hard_link("b", "../etc/passwd")), EntryProblem::Escapes);
    let directory = EntryProblem::LinkToDirectory(EntryName::new(b"d"));
    assert_eq!(problem(Tar::new().dir("d").hard_link("b", "d")), directory);
}

#[test]
fn symbolic_links_on_the_way_stay_in_the_layer() {
    check(
        "relative",
        Tar::new().dir("d").symlink("l", "d").file("l/f", b"1"),
        &["/d/f=file 1", "/d=dir 755", "/l=-> d"],
    );
    check(
        "absolute",
        Tar::new().dir("d/e").symlink("d/l", "/x").file("d/l/f", b"1"),
        &["/d/e=dir 755", "/d/l=-> /x", "/d=dir 755", "/x/f=file 1", "/x=dir 755"],
    );
    check(
        "upwards beyond the root",
        Tar::new().symlink("l", "../../../etc").file("l/passwd", b"1"),
        &["/etc/passwd=file 1", "/etc=dir 755", "/l=-> ../../../etc"],
    );
    check(
        "a link to a link",
        Tar::new().dir("c").symlink("b", "c").symlink("a", "./b").file("a/f", b""),
        &["/a=-> ./b", "/b=-> c", "/c/f=file 0", "/c=dir 755"],
    );
    assert_eq!(
        problem(Tar::new().symlink("a", "b").symlink("b", "a").file("a/f", b"")),
        EntryProblem::SymlinkLoop
    );
    assert_eq!(problem(Tar::new().symlink("a", "a/x").file("a/f", b"")), EntryProblem::SymlinkLoop);
}

#[test]
fn paths_that_lead_out_or_through_a_file_are_refused() {
    assert_eq!(problem(Tar::new().file("../a", b"")), EntryProblem::Escapes);
    assert_eq!(problem(Tar::new().file("a/../../b", b"")), EntryProblem::Escapes);
    let parent = EntryProblem::ParentNotDirectory(EntryName::new(b"f"));
    assert_eq!(problem(Tar::new().file("f", b"").file("f/x", b"")), parent);
    assert_eq!(problem(Tar::new().pax(&[("linkpath", b"")]).symlink("f", "")), EntryProblem::EmptyTarget);
}

#[test]
fn the_root_takes_metadata_and_nothing_else() {
    let mut tree =
        grow(&Tar::new().header(Block::new("./", b'5').mode(0o700)).file(".", b"x").end()).unwrap();
    assert_eq!(tree.inode(ROOT).unwrap().mode, 0o700);
    assert_eq!(list(&mut tree), [""; 0]);
}

#[test]
fn whiteouts_delete_from_lower_layers_only() {
    let wh = |tar: Tar, name: &str| tar.file(name, b"");
    check("alone", wh(Tar::new(), "d/.wh.f"), &["/d/f=whiteout", "/d=dir 755"]);
    check("before a file", wh(Tar::new(), ".wh.f").file("f", b"1"), &["/f=file 1"]);
    check("after a file", wh(Tar::new().file("f", b"1"), ".wh.f"), &["/f=file 1"]);
    check("before a directory", wh(Tar::new(), ".wh.d").dir("d"), &["/d=opaque"]);
    check("after a directory", wh(Tar::new().dir("d"), ".wh.d"), &["/d=opaque"]);
    check(
        "before a directory's file",
        wh(Tar::new(), ".wh.d").file("d/f", b"1"),
        &["/d/f=file 1", "/d=opaque"],
    );
    check("tree from the top", wh(wh(Tar::new(), ".wh.d"), "d/.wh.f"), &["/d=whiteout"]);
    check("tree from the bottom", wh(wh(Tar::new(), "d/.wh.f"), ".wh.d"), &["/d=whiteout"]);
    check("below a file", wh(Tar::new().file("f", b"1"), "f/.wh.x"), &["/f=file 1"]);
    check("below what becomes a file", wh(Tar::new(), "f/.wh.x").file("f", b"1"), &["/f=file 1"]);
    check("a link as whiteout", Tar::new().hard_link(".wh.b", ".wh.a"), &["/b=whiteout"]);
    check(
        "opaque",
        wh(Tar::new().dir("d"), "d/.wh..wh..opq").file("d/f", b"1"),
        &["/d/f=file 1", "/d=opaque"],
    );
    check(
        "opaque first",
        wh(Tar::new(), "d/.wh..wh..opq").header(Block::new("d", b'5').mode(0o700)),
        &["/d=opaque"],
    );
    check("aufs", wh(wh(Tar::new(), ".wh..wh.plnk/12.34"), ".wh..wh.aufs"), &[]);
    for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        assert_eq!(problem(wh(Tar::new(), name)), EntryProblem::BadWhiteout, "{name}");
    }
}

#[test]
fn an_opaque_directory_gets_the_attribute_beside_its_own() {
    let tar = Tar::new().pax(&[("SCHILY.xattr.user.a", b"1")]).dir("d").file("d/.wh..wh..opq", b"").end();
    let mut tree = grow(&tar).unwrap();
    let listing = tree.finish().unwrap();
    let d = tree.inode(tree.dirent_inode(listing.children(ROOT)[0])).unwrap();
    let attributes: Vec<&[u8]> =
        tree.xattrs().ids(d.xattrs).iter().map(|id| tree.xattrs().attribute_bytes(*id)).collect();
    assert_eq!(attributes, [&b"\x01\x01\x01\0a1"[..], b"\x0e\x04\x01\0overlay.opaquey"]);
}

#[test]
fn devices_keep_their_numbers() {
    let device = |major: &str, minor: &str| {
        Tar::new().header(Block::new("d", b'3').at(329, major.as_bytes()).at(337, minor.as_bytes()))
    };
    check("null", device("0000001\0", "0000003\0"), &["/d=char 103"]);
    check("high minor", device("0000001\0", "3777777\0"), &["/d=char fff001ff"]);
    assert!(matches!(problem(device("0010000\0", "0000003\0")), EntryProblem::DeviceNumber { .. }));
    assert!(matches!(problem(device("0000001\0", "4000000\0")), EntryProblem::DeviceNumber { .. }));
}

#[test]
fn limits_hold_for_whole_layers() {
    let d = Limits::default();
    let many = || (0..50).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), b"")).end();
    let deep = || Tar::new().file("a/b/c/d/e/f/g", b"").end();
    let hops = || {
        let tar = Tar::new().dir("d").symlink("l", "d/../d/../d/../d");
        (0..20).fold(tar, |tar, at| tar.file(&format!("l/{at}"), b"")).end()
    };
    let cases: [(&str, Vec<u8>, Limits, &str); 5] = [
        ("entries", many(), Limits { entries: 20, ..d }, "the number of entries"),
        ("made directories", deep(), Limits { entries: 5, ..d }, "the number of entries"),
        ("memory", many(), Limits { metadata_bytes: 2000, ..d }, "the layer's metadata"),
        ("depth", deep(), Limits { depth: 5, ..d }, "the depth"),
        ("symbolic links", hops(), Limits { symlink_steps: 100, ..d }, "the walk through symbolic links"),
    ];
    for (case, tar, limits, expected) in cases {
        match grow_within(&tar, &limits).err() {
            Some(LayerError::Limit { what, .. }) => assert_eq!(what, expected, "{case}"),
            other => panic!("{case}: {other:?}"),
        }
        assert!(grow(&tar).is_ok(), "{case}");
    }
}
