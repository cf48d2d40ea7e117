//! Layers out of real tars, mounted for real, beside the tree they were made from and beside the reference's index.
//!
//! Needs root, loop devices and a kernel with EROFS; GNU tar, bsdtar (libarchive-tools), python3; Debian's archive.

mod support;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};
use support::erofs_utils::ErofsUtils;
use support::mounted::Mounted;
use support::snapshot::{Snapshot, bytes};
use support::{can_mount, has, index, run, skip};
use tempfile::TempDir;

/// What a tree has that not every dialect of tar can carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Richness {
    /// Files, directories, links; short names.
    Plain,
    /// Devices, fifos, longer paths.
    Ustar,
    /// Names, targets and owners of any length.
    Gnu,
    /// Attributes, nanoseconds, times before 1970.
    Pax,
}

struct Tree {
    root: PathBuf,
    richness: Richness,
}

impl Tree {
    fn make(root: &Path, richness: Richness) -> Self {
        let tree = Tree { root: root.to_owned(), richness };
        fs::create_dir_all(root).unwrap();
        tree.plain();
        if richness >= Richness::Ustar {
            tree.ustar();
        }
        if richness >= Richness::Gnu {
            tree.gnu();
        }
        if richness >= Richness::Pax {
            tree.pax();
        }
        tree.settle(root);
        tree
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    fn dir(&self, name: &str) {
        fs::create_dir_all(self.at(name)).unwrap();
    }

    fn file(&self, name: impl AsRef<Path>, size: usize) {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        fs::write(self.at(name), data).unwrap();
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn plain(&self) {
        self.dir("sizes");
        for size in [0, 1, 511, 512, 513, 1024, 4096, 5000, 300_000] {
            self.file(format!("sizes/{size}"), size);
        }
        self.dir("empty");
        self.dir("deep/er/and/deeper");
        self.dir("modes");
        for mode in [0o000, 0o777, 0o4755, 0o2755, 0o1777, 0o644] {
            let name = format!("modes/{mode:o}");
            self.file(&name, 3);
            self.mode(&name, mode);
        }
        self.mode("empty", 0o1777);
        self.dir("order");
        for name in ["-", "!", " ", "+a", ".-", "...", "..a", ".a", "a", "a.", "a-", "~", "A"] {
            self.file(Path::new("order").join(name), 1);
        }
        self.dir("many");
        (0..600).for_each(|at| self.file(format!("many/{:0width$}", at, width = at % 40 + 3), 0));
        fs::hard_link(self.at("sizes/513"), self.at("linked")).unwrap();
        fs::hard_link(self.at("sizes/513"), self.at("empty-not")).unwrap();
        self.dir("links");
        for len in [1, 50, 99] {
            symlink("t".repeat(len), self.at(format!("links/{len}"))).unwrap();
        }
        std::os::unix::fs::chown(self.at("sizes/1"), Some(1234), Some(60_000)).unwrap();
    }

    fn ustar(&self) {
        self.dir("special");
        let node = |name: &str, kind, device| {
            mknodat(CWD, self.at(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
        };
        node("special/null", FileType::CharacterDevice, makedev(1, 3));
        node("special/high", FileType::BlockDevice, makedev(259, 70_000));
        node("special/fifo", FileType::Fifo, 0);
        let long = format!("{}/{}", "p".repeat(75), "q".repeat(70));
        self.dir(&long);
        self.file(format!("{long}/{}", "f".repeat(70)), 100);
    }

    fn gnu(&self) {
        for len in 100..=120 {
            symlink("x".repeat(len), self.at(format!("links/{len}"))).unwrap();
        }
        // Around the ends of a block, with and without the inode in it.
        for len in (400..=520).chain([1000, 1023, 1024, 1025, 4095]) {
            symlink("x".repeat(len), self.at(format!("links/{len}"))).unwrap();
        }
        self.dir("names");
        for len in (1..=255).step_by(2) {
            self.file(format!("names/{}", "n".repeat(len)), 2);
        }
        self.file(bytes(b"names/\xff\xfe not text \x01\n"), 7);
        let deep = vec!["d".repeat(200); 12].join("/");
        self.dir(&deep);
        self.file(format!("{deep}/bottom"), 9);
        self.file("owner", 1);
        std::os::unix::fs::chown(self.at("owner"), Some(u32::MAX - 1), Some(3_000_000)).unwrap();
    }

    fn pax(&self) {
        self.dir("xattrs");
        for len in [0, 1, 3, 4, 5, 300, 400, 447, 448, 449, 1500, 3000] {
            let name = format!("xattrs/{len}");
            self.file(&name, 1);
            self.xattr(&name, "user.own", &vec![b'v'; len]);
            self.xattr(&name, "user.shared", b"the same everywhere");
        }
        let acl = |tag: u16, perm: u16, id: u32| {
            [tag.to_le_bytes().to_vec(), perm.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()].concat()
        };
        let none = u32::MAX;
        let entries = [acl(1, 6, none), acl(2, 4, 1000), acl(4, 4, none), acl(16, 4, none), acl(32, 0, none)];
        let value = [2u32.to_le_bytes().to_vec(), entries.concat()].concat();
        self.file("xattrs/acl", 1);
        self.xattr("xattrs/acl", "system.posix_acl_access", &value);
        self.dir("xattrs/dir");
        self.xattr("xattrs/dir", "system.posix_acl_default", &value);
        self.xattr("xattrs/dir", "trusted.secret", b"\0\x01");
        self.file("xattrs/capable", 10);
        let capability = [&0x0200_0001u32.to_le_bytes()[..], &0x2000u32.to_le_bytes(), &[0; 12]].concat();
        self.xattr("xattrs/capable", "security.capability", &capability);
        symlink("anywhere", self.at("xattrs/link")).unwrap();
        self.xattr("xattrs/link", "trusted.on-a-link", b"yes");
    }

    fn xattr(&self, name: &str, xattr: &str, value: &[u8]) {
        rustix::fs::lsetxattr(self.at(name), xattr, value, XattrFlags::empty()).unwrap();
    }

    /// Gives everything a time of its own, from the leaves to the root.
    fn settle(&self, path: &Path) {
        if path.symlink_metadata().unwrap().is_dir() {
            path.read_dir().unwrap().for_each(|entry| self.settle(&entry.unwrap().path()));
        }
        let number = path.as_os_str().len() as i64 * 7919 % 100_000;
        let pax = self.richness == Richness::Pax;
        let seconds = if pax { number * 40_000 - 1_000_000_000 } else { 1_500_000_000 + number };
        let nanoseconds = if pax { number * 9_973 % 1_000_000_000 } else { 0 };
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Indexes, checks and mounts a tar, and looks at it.
fn mounted(tar: &Path, work: &Path) -> Snapshot {
    let layer = index(tar, work);
    let mounted = Mounted::layer(&layer.index, &layer.tar, &work.join("mount"));
    Snapshot::of(&mounted.at)
}

fn python_tar(root: &Path, tar: &Path, format: &str) {
    let script = "import sys, tarfile\n\
        with tarfile.open(sys.argv[2], 'w', format=getattr(tarfile, sys.argv[3])) as tar: tar.add(sys.argv[1], '.')";
    run(Command::new("python3").args(["-c", script]).arg(root).arg(tar).arg(format));
}

#[test]
fn the_mounted_layer_is_the_tree_in_every_dialect() {
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let work = TempDir::new().unwrap();
    let trees = [Richness::Plain, Richness::Ustar, Richness::Gnu, Richness::Pax]
        .map(|richness| Tree::make(&work.path().join(format!("tree{}", richness as u8)), richness));
    let xattrs = ["--xattrs", "--xattrs-include=*", "--acls"];
    let cases: [(&str, &str, Richness, &[&str]); 12] = [
        ("tar", "v7", Richness::Plain, &[]),
        ("tar", "ustar", Richness::Ustar, &[]),
        ("tar", "oldgnu", Richness::Gnu, &[]),
        ("tar", "gnu", Richness::Gnu, &[]),
        ("tar", "pax", Richness::Pax, &xattrs),
        ("bsdtar", "v7", Richness::Plain, &[]),
        ("bsdtar", "ustar", Richness::Ustar, &[]),
        ("bsdtar", "gnutar", Richness::Gnu, &[]),
        ("bsdtar", "pax", Richness::Pax, &["--xattrs", "--no-acls"]),
        ("python3", "USTAR_FORMAT", Richness::Ustar, &[]),
        ("python3", "GNU_FORMAT", Richness::Gnu, &[]),
        ("python3", "PAX_FORMAT", Richness::Gnu, &[]),
    ];
    for (tool, format, richness, options) in cases {
        if !has(tool) {
            skip(&format!("{tool} is not installed"));
            continue;
        }
        let what = format!("{tool} {format}");
        let tree = trees.iter().find(|tree| tree.richness == richness).unwrap();
        let tar = work.path().join("input.tar");
        match tool {
            "python3" => python_tar(&tree.root, &tar, format),
            _ => run(Command::new(tool)
                .arg(format!("--format={format}"))
                .args(options)
                .arg("-C")
                .arg(&tree.root)
                .arg("-cf")
                .arg(&tar)
                .arg(".")),
        }
        let comparable = |snapshot: Snapshot| {
            snapshot.map(|_, node| {
                if tool == "bsdtar" {
                    // libarchive writes ACLs as text, which nobody who unpacks layers reads.
                    node.xattrs.retain(|name, _| !name.starts_with(b"system."));
                    // It writes -0.25 s as -1.75: the whole seconds rounded down, the fraction not.
                    node.nanoseconds = if node.seconds < 0 { 0 } else { node.nanoseconds };
                    node.seconds = node.seconds.max(0);
                }
            })
        };
        let got = mounted(&tar, &work.path().join("work"));
        comparable(Snapshot::of(&tree.root)).assert_eq(&comparable(got), &what);
    }
}

#[test]
fn the_index_shows_what_the_reference_index_shows() {
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let tools = match ErofsUtils::get() {
        Ok(tools) => tools,
        Err(reason) => return skip(&reason),
    };
    let work = TempDir::new().unwrap();
    let odd = Tree::make(&work.path().join("odd"), Richness::Pax).root;
    // A real tree: documentation and small programs of this machine, with their links.
    let cases: [(&str, &Path, &[&str]); 2] = [
        ("this machine", Path::new("/usr"), &["share/doc", "sbin", "share/terminfo"]),
        ("odd", &odd, &["."]),
    ];
    for (what, root, names) in cases {
        let tar = work.path().join("input.tar");
        let names = names.iter().filter(|name| root.join(name).exists());
        run(Command::new("tar")
            .args(["--format=pax", "--xattrs", "--xattrs-include=*", "-C"])
            .arg(root)
            .arg("-cf")
            .arg(&tar)
            .args(names));
        let reference = work.path().join("reference.erofs");
        tools.index(&tar, &reference);
        let expected = Mounted::layer(&reference, &tar, &work.path().join("reference"));
        let expected = Snapshot::of(&expected.at);
        let comparable = |snapshot: Snapshot| {
            snapshot.map(|path, node| {
                // Directories without an entry: open to all in the reference, and dated to the time of its run.
                if [Path::new(""), Path::new("share")].contains(&path) {
                    (node.mode, node.seconds, node.nanoseconds) = (0, 0, 0);
                }
                // It reads the fraction of 0.25 seconds as 25 nanoseconds, and that of times before 1970 as it likes.
                while node.nanoseconds > 0 && node.nanoseconds % 10 == 0 {
                    node.nanoseconds /= 10;
                }
                if node.seconds < 0 {
                    (node.seconds, node.nanoseconds) = (0, 0);
                }
            })
        };
        let got = mounted(&tar, &work.path().join("work"));
        assert!(got.nodes.len() > 500, "{what}");
        comparable(expected).assert_eq(&comparable(got), what);
    }
}

#[test]
fn the_reference_finds_nothing_wrong_with_an_index() {
    let tools = match ErofsUtils::get() {
        Ok(tools) => tools,
        Err(reason) => return skip(&reason),
    };
    if !rustix::process::geteuid().is_root() {
        return skip("making devices needs root");
    }
    let work = TempDir::new().unwrap();
    let root = Tree::make(&work.path().join("tree"), Richness::Pax).root;
    let tar = work.path().join("input.tar");
    run(Command::new("tar")
        .args(["--format=pax", "--xattrs", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&tar)
        .arg("."));
    let layer = index(&tar, &work.path().join("work"));
    // fsck.erofs 1.8.6 reads beyond its buffer when it sums a block of less than 1024 bytes: take the checksum away.
    let mut file = File::options().write(true).open(&layer.index).unwrap();
    file.seek(SeekFrom::Start(1024 + 4)).unwrap();
    file.write_all(&[0, 0, 0, 0, 2, 0, 0, 0]).unwrap();
    let device = OsString::from_vec([b"--device=", layer.tar.as_os_str().as_encoded_bytes()].concat());
    run(tools.command("fsck.erofs").arg(&device).arg(&layer.index));
    let extract =
        OsString::from_vec([b"--extract=", work.path().join("out").as_os_str().as_encoded_bytes()].concat());
    run(tools.command("fsck.erofs").arg(&device).arg(&extract).arg("--preserve").arg(&layer.index));
    let contents = |root: &Path| {
        Snapshot::of(root).map(|_, node| {
            // What fsck.erofs does not restore.
            (node.links, node.nanoseconds, node.seconds) = (0, 0, 0);
            node.xattrs.clear();
            node.same_as = PathBuf::new();
            // It finds a flat file's place in the second device, and then reads the first.
            if node.mode & 0o170_000 == 0o100_000 {
                node.content.clear();
            }
        })
    };
    contents(&root).assert_eq(&contents(&work.path().join("out")), "extracted by the reference");
}

#[test]
fn sparse_files_read_as_they_were() {
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let work = TempDir::new().unwrap();
    let root = work.path().join("tree");
    fs::create_dir(&root).unwrap();
    let sparse = |name: &str, size: u64, parts: &[(u64, usize)]| {
        let mut file = File::create(root.join(name)).unwrap();
        for (offset, len) in parts {
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(&vec![name.as_bytes()[0]; *len]).unwrap();
        }
        file.set_len(size).unwrap();
    };
    sparse("all hole", 5 << 20, &[]);
    sparse("begin", 1 << 20, &[(0, 5000)]);
    sparse("end", (1 << 20) + 777, &[((1 << 20) - 4096, 4096 + 777)]);
    sparse("middle", 10_000_000, &[(4_096_000, 100_000)]);
    sparse("comb", 4 << 20, &(0..100).map(|at| (at * 40_960, 4096)).collect::<Vec<_>>());
    sparse("huge", 300 << 30, &[(200 << 30, 4096)]);
    let formats: [&[&str]; 5] = [
        &["--format=oldgnu"],
        &["--format=gnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    for format in formats {
        let tar = work.path().join("input.tar");
        run(Command::new("tar")
            .args(format)
            .args(["--sparse", "-C"])
            .arg(&root)
            .arg("-cf")
            .arg(&tar)
            .arg("."));
        assert!(fs::metadata(&tar).unwrap().len() < 2 << 20, "{format:?} is not sparse");
        let layer = index(&tar, &work.path().join("work"));
        let mounted = Mounted::layer(&layer.index, &layer.tar, &work.path().join("mount"));
        for name in ["all hole", "begin", "end", "middle", "comb"] {
            let (expected, got) =
                (fs::read(root.join(name)).unwrap(), fs::read(mounted.at.join(name)).unwrap());
            assert!(expected == got, "{format:?} {name}");
        }
        let mut huge = File::open(mounted.at.join("huge")).unwrap();
        assert_eq!(huge.metadata().unwrap().len(), 300 << 30);
        let mut data = [1; 8192];
        huge.seek(SeekFrom::Start((200 << 30) - 2048)).unwrap();
        std::io::Read::read_exact(&mut huge, &mut data).unwrap();
        let expected = [&[0; 2048][..], &[b'h'; 4096], &[0; 2048]].concat();
        assert!(data[..] == expected[..], "{format:?} huge");
    }
}

/// Every byte of it in the tar, whose header has no room for such a size as digits.
#[test]
fn a_file_of_ten_gigabytes_is_whole() {
    const SIZE: u64 = 10_000_000_000;
    nacre_tests::require!(slow);
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let work = TempDir::new().unwrap();
    let root = work.path().join("tree");
    fs::create_dir(&root).unwrap();
    let mut file = File::create(root.join("large")).unwrap();
    let places = [0, (8 << 30) - 3, SIZE - 6];
    for place in places {
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(b"marked").unwrap();
    }
    fs::write(root.join("next"), "behind it").unwrap();
    for format in ["gnu", "pax"] {
        let fifo = work.path().join("pipe");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut command = Command::new("tar");
        command.arg(format!("--format={format}")).arg("-C").arg(&root).arg("-cf").arg(&fifo);
        let mut tar = command.args(["large", "next"]).spawn().unwrap();
        let layer = index(&fifo, &work.path().join("work"));
        assert!(tar.wait().unwrap().success());
        fs::remove_file(&fifo).unwrap();
        assert!(layer.indexed.tar_bytes > SIZE && layer.indexed.entries == 2, "{:?}", layer.indexed);
        let taken = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&layer.tar).unwrap()) * 512;
        assert!(taken < 1 << 20, "{format}: zeros take {taken} bytes");
        let mounted = Mounted::layer(&layer.index, &layer.tar, &work.path().join("mount"));
        let mut large = File::open(mounted.at.join("large")).unwrap();
        assert_eq!(large.metadata().unwrap().len(), SIZE, "{format}");
        for place in places {
            let mut found = [0; 6];
            large.seek(SeekFrom::Start(place)).unwrap();
            std::io::Read::read_exact(&mut large, &mut found).unwrap();
            assert_eq!(&found, b"marked", "{format}: at {place}");
        }
        assert_eq!(fs::read(mounted.at.join("next")).unwrap(), b"behind it");
    }
}

#[test]
fn sparse_data_not_aligned_to_blocks_reads_as_it_was() {
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let work = TempDir::new().unwrap();
    // By hand: no tool makes such maps out of a file system's blocks.
    let parts = [(3u64, 5usize), (600, 1000), (70_000, 4096), (99_999, 1)];
    let map: Vec<String> = parts.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
    let script = "import sys, tarfile, io\n\
        info = tarfile.TarInfo('askew'); data = open(sys.argv[2], 'rb').read(); info.size = len(data)\n\
        info.pax_headers = {'GNU.sparse.size': '100000', 'GNU.sparse.numblocks': '4', 'GNU.sparse.map': sys.argv[3]}\n\
        with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as tar: tar.addfile(info, io.BytesIO(data))";
    let mut packed = Vec::new();
    let mut expected = vec![0u8; 100_000];
    for (number, (offset, len)) in parts.iter().enumerate() {
        packed.extend(vec![number as u8 + 1; *len]);
        expected[*offset as usize..][..*len].fill(number as u8 + 1);
    }
    let (tar, data) = (work.path().join("input.tar"), work.path().join("data"));
    fs::write(&data, packed).unwrap();
    run(Command::new("python3").args(["-c", script]).arg(&tar).arg(&data).arg(map.join(",")));
    let layer = index(&tar, &work.path().join("work"));
    let mounted = Mounted::layer(&layer.index, &layer.tar, &work.path().join("mount"));
    assert!(fs::read(mounted.at.join("askew")).unwrap() == expected);
}

#[test]
fn whiteouts_hide_what_lower_layers_have() {
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let work = TempDir::new().unwrap();
    let layer = |name: &str, files: &[&str]| {
        let root = work.path().join(name).join("tree");
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let tar = work.path().join(name).join("input.tar");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
        let layer = index(&tar, &work.path().join(name));
        Mounted::layer(&layer.index, &layer.tar, &work.path().join(name).join("mount"))
    };
    let lower =
        layer("lower", &["gone", "kept", "dir/old", "dir/kept", "opaque/old", "replaced/old", "tree/a/b"]);
    let upper = layer(
        "upper",
        &[
            ".wh.gone",
            "dir/.wh.old",
            "dir/new",
            "opaque/.wh..wh..opq",
            "opaque/new",
            ".wh.replaced",
            "replaced/new",
            ".wh.tree",
        ],
    );
    let merged = Mounted::overlay(&[&upper.at, &lower.at], &work.path().join("merged"));
    let files: Vec<String> = Snapshot::of(&merged.at)
        .nodes
        .iter()
        .filter(|(_, node)| node.mode & 0o170_000 == 0o100_000)
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_eq!(files, ["dir/kept", "dir/new", "kept", "opaque/new", "replaced/new"]);
    drop(merged);
}

#[test]
fn a_directory_of_twenty_thousand_files_is_whole() {
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let work = TempDir::new().unwrap();
    let script = "import sys, tarfile, io\n\
        with tarfile.open(sys.argv[1], 'w') as tar:\n\
        \tfor at in range(20000):\n\
        \t\tinfo = tarfile.TarInfo(f'd/{at * 7919 % 20000}'); data = str(at * 7919 % 20000).encode(); info.size = len(data)\n\
        \t\ttar.addfile(info, io.BytesIO(data))";
    let tar = work.path().join("input.tar");
    run(Command::new("python3").args(["-c", script]).arg(&tar));
    let layer = index(&tar, &work.path().join("work"));
    let mounted = Mounted::layer(&layer.index, &layer.tar, &work.path().join("mount"));
    let directory = mounted.at.join("d");
    assert_eq!(directory.read_dir().unwrap().count(), 20_000);
    for number in 0..20_000 {
        let name = number.to_string();
        assert_eq!(fs::read(directory.join(&name)).unwrap(), name.as_bytes());
    }
}

#[test]
fn the_same_tar_gives_the_same_bytes() {
    let work = TempDir::new().unwrap();
    let root = work.path().join("tree");
    (0..300).for_each(|at| {
        let path = root.join(format!("d{}/f{at}", at % 17));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, at.to_string()).unwrap();
    });
    let tar = work.path().join("input.tar");
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
    let [one, two] = ["one", "two"].map(|name| fs::read(index(&tar, &work.path().join(name)).index).unwrap());
    assert!(one == two);
}
