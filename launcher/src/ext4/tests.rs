//! Checks by other implementations: e2fsck and dumpe2fs (Debian e2fsprogs), and the kernel's own ext4 on a loop
//! device (root).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags, getxattr, linkat, openat, setxattr, statvfs};

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const UUID: [u8; 16] = *b"\x0f\x1e\x2d\x3c\x4b\x5a\x46\x97\x88\x79\x6a\x5b\x4c\x3d\x2e\x1f";
const HASH_SEED: [u8; 16] = *b"\x10\x32\x54\x76\x98\xba\x4c\xfe\x80\x02\x13\x24\x35\x46\x57\x68";

fn options() -> Options {
    Options { created_at: 1_750_000_000, ..Options::new(UUID, HASH_SEED) }
}

fn journaled() -> Options {
    Options { journal_blocks: Some(4096), ..options() }
}

#[test]
fn every_size_is_clean_for_e2fsck() {
    if missing(&["e2fsck", "dumpe2fs"]) {
        return;
    }
    let group = 128 * MIB;
    let many_inodes = Options { bytes_per_inode: 1024, ..options() };
    let few_inodes = Options { bytes_per_inode: u32::MAX, ..options() };
    let longest_journal = Options { journal_blocks: Some(*JOURNAL_BLOCKS.end()), ..options() };
    let rich = Options {
        label: "sixteen bytes ok".into(),
        root_uid: 0x7ffe_0002,
        root_gid: 100_000,
        root_mode: 0o1777,
        reserved_percent: 5,
        ..journaled()
    };
    let cases = [
        (16 * MIB, options()),
        (16 * MIB, many_inodes.clone()),
        (17 * MIB + 4096 + 511, options()),
        (64 * MIB, options()),
        (64 * MIB, few_inodes.clone()),
        (64 * MIB, rich.clone()),
        (group - 4096, options()),
        (group, options()),
        (group + 4096, options()),
        (group + 3 * MIB, options()),
        (GIB, options()),
        (GIB, longest_journal),
        (GIB + 5 * MIB, many_inodes),
        (8 * GIB, options()),
        (8 * GIB + 77 * MIB + 1, rich),
        (64 * GIB, journaled()),
        (64 * GIB, few_inodes),
        (TIB, options()),
        (MAX_DEVICE_BYTES, options()),
    ];
    for (size, options) in cases {
        let disk = Image::zeros(size);
        let start = Instant::now();
        let summary = disk.format(&options);
        println!("{size} bytes: {summary:?} in {:?}", start.elapsed());
        disk.assert_clean(&format!("{size} bytes with {options:?}"));
        assert_eq!(disk.report("Block count"), summary.blocks.to_string());
        assert_eq!(disk.report("Free blocks"), summary.free_blocks.to_string());
        assert_eq!(disk.report("Inode count"), summary.inodes.to_string());
        assert_eq!(disk.report("Free inodes"), (summary.inodes - 11).to_string());
        let reserved = u64::from(summary.free_blocks) * u64::from(options.reserved_percent) / 100;
        assert_eq!(disk.report("Reserved block count"), reserved.to_string());
    }
}

#[test]
fn dumpe2fs_reads_back_what_was_asked_for() {
    if missing(&["dumpe2fs"]) {
        return;
    }
    let disk = Image::zeros(GIB);
    disk.format(&Options { label: "scratch".into(), ..journaled() });
    for (field, value) in [
        ("Filesystem volume name", "scratch"),
        ("Filesystem UUID", "0f1e2d3c-4b5a-4697-8879-6a5b4c3d2e1f"),
        ("Directory Hash Seed", "10325476-98ba-4cfe-8002-132435465768"),
        (
            "Filesystem features",
            "has_journal ext_attr dir_index sparse_super2 filetype extent flex_bg sparse_super large_file \
             huge_file dir_nlink extra_isize metadata_csum",
        ),
        ("Default mount options", "user_xattr acl"),
        ("Filesystem state", "clean"),
        ("Errors behavior", "Remount read-only"),
        ("First inode", "11"),
        ("Inode size", "256"),
        ("Required extra isize", "32"),
        ("Journal inode", "8"),
        ("Journal backup", "inode blocks"),
        ("Total journal blocks", "4096"),
        ("Maximum mount count", "-1"),
    ] {
        assert_eq!(disk.report(field), value, "{field}");
    }
}

#[test]
fn only_groups_in_use_and_the_last_one_have_bitmaps() {
    if missing(&["dumpe2fs"]) {
        return;
    }
    let disk = Image::zeros(GIB);
    disk.format(&options()); // 4116 blocks of metadata, all of them in group 0.
    let text = run("dumpe2fs", [disk.path.as_os_str()]);
    let groups: Vec<&str> = text.lines().filter(|line| line.starts_with("Group ")).collect();
    assert_eq!(groups.len(), 8);
    for (group, line) in groups.iter().enumerate() {
        let flags = match group {
            0 => "[ITABLE_ZEROED]",
            7 => "[INODE_UNINIT, ITABLE_ZEROED]",
            _ => "[INODE_UNINIT, BLOCK_UNINIT, ITABLE_ZEROED]",
        };
        assert!(line.ends_with(flags), "{line}");
    }
}

#[test]
fn a_damaged_byte_is_seen_by_e2fsck() {
    if missing(&["e2fsck"]) {
        return;
    }
    let disk = Image::zeros(64 * MIB);
    disk.format(&options());
    let offsets = [
        ("superblock", 1024 + 0x78),
        ("descriptor", 4096 + 0x12),
        ("block bitmap", 2 * 4096 + 200),
        ("inode bitmap", 3 * 4096 + 20),
        ("root inode", 4 * 4096 + 256 + 0x10),
    ];
    for (what, offset) in offsets {
        let mut byte = [0];
        disk.file.read_exact_at(&mut byte, offset).unwrap();
        disk.file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
        assert!(disk.complaints().is_some(), "{what}");
        disk.file.write_all_at(&byte, offset).unwrap();
    }
    disk.assert_clean("repaired");
}

#[test]
fn a_short_last_group_is_dropped_unless_it_pays_for_itself() {
    let group = 128 * MIB;
    let cases = [
        (group + 4096, 1),
        // With a little more than one group, each of two has a table of 259 blocks, and two bitmaps.
        (group + 310 * 4096, 1),
        (group + 311 * 4096, 2),
        (2 * group, 2),
        (2 * group + 8192, 2),
        (3 * group - 4096, 3),
    ];
    for (size, groups) in cases {
        let layout = Layout::plan(size, &options()).unwrap();
        assert_eq!(layout.groups, groups, "{size} bytes");
        let blocks =
            if groups == size.div_ceil(group) as u32 { size } else { u64::from(groups) * group } / 4096;
        assert_eq!(u64::from(layout.blocks), blocks, "{size} bytes");
    }
}

#[test]
fn options_and_sizes_out_of_their_limits_are_refused_before_any_write() {
    let good = options();
    let label = Options { label: "seventeen bytes!!".into(), ..good.clone() };
    let inodes = Options { bytes_per_inode: 1023, ..good.clone() };
    let reserved = Options { reserved_percent: 51, ..good.clone() };
    let short_journal = Options { journal_blocks: Some(1023), ..good.clone() };
    let long_journal = Options { journal_blocks: Some(131_073), ..good.clone() };
    let full = Options { journal_blocks: Some(4096), ..good.clone() };
    for (size, options, message) in [
        (
            MIN_DEVICE_BYTES - 1,
            &good,
            "the device has 16777215 bytes; ext4 is made on 16777216 to 4398046511104",
        ),
        (
            MAX_DEVICE_BYTES + 1,
            &good,
            "the device has 4398046511105 bytes; ext4 is made on 16777216 to 4398046511104",
        ),
        (0, &good, "the device has 0 bytes; ext4 is made on 16777216 to 4398046511104"),
        (
            u64::MAX,
            &good,
            "the device has 18446744073709551615 bytes; ext4 is made on 16777216 to 4398046511104",
        ),
        (GIB, &label, "the volume label has 17 bytes; the limit is 16"),
        (GIB, &inodes, "1023 bytes per inode; the least is 1024"),
        (GIB, &reserved, "51 % of the blocks reserved; the limit is 50"),
        (GIB, &short_journal, "a journal of 1023 blocks; it has 1024 to 131072"),
        (GIB, &long_journal, "a journal of 131073 blocks; it has 1024 to 131072"),
        (16 * MIB, &full, "metadata and journal need 4167 blocks; the device has 4096"),
    ] {
        let disk = Image::zeros(16 * MIB);
        assert_eq!(format(&disk.file, size, options).unwrap_err().to_string(), message);
        assert_eq!(disk.allocated(), 0, "{message}");
    }
    let read_only = File::open("/dev/zero").unwrap();
    let error = format(&read_only, GIB, &good).unwrap_err().to_string();
    assert!(error.starts_with("write inode bitmap at byte "), "{error}");
}

#[test]
fn a_stale_disk_is_clean_after_zeroing() {
    if missing(&["e2fsck"]) {
        return;
    }
    let disk = Image::zeros(300 * MIB);
    for block in 0..300 {
        disk.file.write_all_at(&vec![0xa5; MIB as usize], block * MIB).unwrap();
    }
    let options = Options { zero: true, ..journaled() };
    let layout = Layout::plan(disk.size, &options).unwrap();
    disk.format(&options);
    disk.assert_clean("stale");
    let after_inodes = u64::from(layout.inode_tables + 1) * 4096;
    let mut tables = vec![1; (u64::from(layout.root_directory) * 4096 - after_inodes) as usize];
    disk.file.read_exact_at(&mut tables, after_inodes).unwrap();
    assert!(tables.iter().all(|byte| *byte == 0));
}

#[test]
fn zeros_are_written_where_holes_cannot_be_punched() {
    let disk = Image::zeros(16 * MIB);
    disk.file.write_all_at(&vec![0xa5; MIB as usize], 0).unwrap();
    Disk { device: &disk.file, bytes_written: 0 }.write_zeros("test", 4096, 100 * 4096).unwrap();
    let mut bytes = vec![1; MIB as usize];
    disk.file.read_exact_at(&mut bytes, 0).unwrap();
    let (before, rest) = bytes.split_at(4096);
    let (zeros, after) = rest.split_at(100 * 4096);
    assert!(zeros.iter().all(|byte| *byte == 0));
    assert!(before.iter().chain(after).all(|byte| *byte == 0xa5));
}

#[test]
fn formatting_64_gib_writes_19_blocks_and_less_than_mke2fs() {
    if missing(&["mkfs.ext4"]) {
        return;
    }
    let ours = Image::zeros(64 * GIB);
    let start = Instant::now();
    let summary = ours.format(&options());
    let our_time = start.elapsed();
    assert_eq!(summary.bytes_written, 19 * 4096);
    assert_eq!(ours.allocated(), summary.bytes_written);

    println!("64 GiB: {} bytes in {our_time:?}", ours.allocated());
    for features in ["has_journal", "^has_journal"] {
        let theirs = Image::zeros(64 * GIB);
        let start = Instant::now();
        let flags = ["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=1,nodiscard", "-O", features];
        run("mkfs.ext4", flags.iter().map(OsStr::new).chain([theirs.path.as_os_str()]));
        let their_time = start.elapsed();
        println!("64 GiB, mke2fs -O {features}: {} bytes in {their_time:?}", theirs.allocated());
        assert!(ours.allocated() < theirs.allocated());
    }
}

#[test]
fn the_kernel_uses_what_was_formatted_and_leaves_it_clean() {
    if missing(&["e2fsck", "mount", "umount"]) || skip_unless(rustix::process::geteuid().is_root(), "root") {
        return;
    }
    let cases = [
        (64 * MIB + 8192, options(), 2_000),
        (GIB, Options { root_uid: 1000, root_gid: 0x7ffe_0002, root_mode: 0o1770, ..journaled() }, 20_000),
        (20 * GIB, options(), 20_000),
        (2 * TIB, Options { bytes_per_inode: 1 << 20, ..options() }, 20_000),
    ];
    for (size, options, files) in cases {
        let disk = Image::zeros(size);
        let summary = disk.format(&options);
        {
            let mount = Mount::of(&disk.path);
            let root = fs::metadata(&mount.path).unwrap();
            assert_eq!((root.uid(), root.gid()), (options.root_uid, options.root_gid));
            assert_eq!(root.mode(), 0o040000 | u32::from(options.root_mode));
            assert_eq!(root.mtime(), options.created_at as i64);
            let space = statvfs(&mount.path).unwrap();
            assert_eq!(space.f_bfree, u64::from(summary.free_blocks));
            assert_eq!(space.f_files, u64::from(summary.inodes));
            assert_eq!(space.f_blocks, u64::from(summary.free_blocks) + 2); // The two directories.
            exercise(&mount.path, files);
        }
        disk.assert_clean(&format!("{size} bytes, used"));
        {
            let mount = Mount::of(&disk.path);
            verify(&mount.path, files);
            fill(&mount.path, size.min(128 * MIB));
        }
        disk.assert_clean(&format!("{size} bytes, filled"));
    }
}

#[test]
fn a_block_device_is_mounted_right_after_formatting() {
    if missing(&["e2fsck", "losetup", "mount", "umount"])
        || skip_unless(rustix::process::geteuid().is_root(), "root")
    {
        return;
    }
    for options in [options(), Options { zero: true, ..journaled() }] {
        let disk = Image::zeros(64 * GIB);
        let device = LoopDevice::of(&disk.path);
        let file = OpenOptions::new().write(true).open(&device.path).unwrap();
        let start = Instant::now();
        format(&file, disk.size, &options).unwrap();
        let formatted = start.elapsed();
        drop(file);
        let mount = Mount::of(&device.path);
        println!("64 GiB block device: formatted in {formatted:?}, mounted after {:?}", start.elapsed());
        exercise(&mount.path, 100);
        drop(mount);
        drop(device);
        disk.assert_clean("block device");
    }
}

/// Files of every kind that layers and containers bring.
fn exercise(root: &Path, files: u32) {
    for number in 0..files {
        let directory = root.join(format!("directory-{}", number / 5_000));
        if number % 5_000 == 0 {
            fs::create_dir(&directory).unwrap();
        }
        fs::write(directory.join(format!("file-{number}")), number.to_string()).unwrap();
    }
    let first = root.join("directory-0/file-0");
    for link in 0..100 {
        fs::hard_link(&first, root.join(format!("link-{link}"))).unwrap();
    }
    std::os::unix::fs::symlink("s".repeat(300), root.join("long-symlink")).unwrap();

    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all(b"start").unwrap();
    sparse.seek(SeekFrom::Start(10_000_000_000)).unwrap();
    sparse.write_all(b"end").unwrap();

    setxattr(&first, "user.small", b"value", XattrFlags::CREATE).unwrap();
    setxattr(&first, "trusted.large", &[7; 3000], XattrFlags::CREATE).unwrap();
    setxattr(&first, "system.posix_acl_access", &acl(), XattrFlags::CREATE).unwrap();

    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let unnamed = openat(CWD, root, flags, Mode::RUSR | Mode::WUSR).unwrap();
    let mut unnamed = File::from(unnamed);
    unnamed.write_all(b"named late").unwrap();
    let through_proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&unnamed));
    linkat(CWD, through_proc, CWD, root.join("tmpfile"), AtFlags::SYMLINK_FOLLOW).unwrap();
    drop(File::from(openat(CWD, root, flags, Mode::RUSR).unwrap())); // One that never gets a name.
}

fn verify(root: &Path, files: u32) {
    for number in 0..files {
        let path = root.join(format!("directory-{}/file-{number}", number / 5_000));
        assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
    }
    let first = root.join("directory-0/file-0");
    assert_eq!(fs::metadata(&first).unwrap().nlink(), 101);
    assert_eq!(fs::read_link(root.join("long-symlink")).unwrap().as_os_str().len(), 300);
    let mut sparse = File::open(root.join("sparse")).unwrap();
    assert_eq!(sparse.metadata().unwrap().len(), 10_000_000_003);
    sparse.seek(SeekFrom::Start(9_999_999_990)).unwrap();
    let mut tail = Vec::new();
    sparse.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, b"\0\0\0\0\0\0\0\0\0\0end");

    for (name, value) in [
        ("user.small", b"value".to_vec()),
        ("trusted.large", vec![7; 3000]),
        ("system.posix_acl_access", acl()),
    ] {
        let mut buffer = vec![0; 4096];
        let length = getxattr(&first, name, &mut buffer[..]).unwrap();
        assert_eq!(buffer[..length], value, "{name}");
    }
    assert_eq!(fs::read(root.join("tmpfile")).unwrap(), b"named late");
    assert_eq!(fs::read_dir(root.join("lost+found")).unwrap().count(), 0);
}

/// Writes until `limit` bytes or a full disk, then frees half of it.
fn fill(root: &Path, limit: u64) {
    let mut file = File::create(root.join("filler")).unwrap();
    let chunk = vec![0x5a; MIB as usize];
    let mut written = 0;
    while written < limit && file.write_all(&chunk).is_ok() {
        written += MIB;
    }
    file.set_len(written / 2).unwrap();
}

/// user::rw-, user:1234:r--, group::r--, mask::r--, other::r--, in the kernel's form of xattr.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 6u16, u32::MAX),
        (0x02, 4, 1234),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// A sparse file that stands for the device.
struct Image {
    _directory: tempfile::TempDir,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Image {
    fn zeros(size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        Self { _directory: directory, path, file, size }
    }

    fn format(&self, options: &Options) -> Summary {
        format(&self.file, self.size, options).unwrap()
    }

    fn assert_clean(&self, case: &str) {
        assert_eq!(self.complaints(), None, "{case}");
    }

    /// What e2fsck says if it is not content. Its exit code alone does not tell: with -n it overlooks some errors
    /// and ends with 0, but never without a line on each.
    fn complaints(&self) -> Option<String> {
        let output = Command::new("e2fsck")
            .args(["-fn", "-E", "no_optimize_extents"])
            .arg(&self.path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let passes = lines.iter().zip(1..=5).all(|(line, pass)| line.starts_with(&format!("Pass {pass}: ")));
        let is_content = output.status.success() && passes && lines.len() == 6;
        (!is_content).then(|| text + &String::from_utf8_lossy(&output.stderr))
    }

    /// One line of dumpe2fs.
    fn report(&self, field: &str) -> String {
        let text = run("dumpe2fs", [OsStr::new("-h"), self.path.as_os_str()]);
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
    }

    fn allocated(&self) -> u64 {
        self.file.sync_all().unwrap();
        self.file.metadata().unwrap().blocks() * 512
    }
}

struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn of(image: &Path) -> Self {
        let name = run("losetup", [OsStr::new("--find"), OsStr::new("--show"), image.as_os_str()]);
        Self { path: PathBuf::from(name.trim()) }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", [OsStr::new("--detach"), self.path.as_os_str()]);
    }
}

struct Mount {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mount {
    fn of(image: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        run("mount", [OsStr::new("-t"), OsStr::new("ext4"), image.as_os_str(), path.as_os_str()]);
        Self { path, _directory: directory }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Busy for a moment while another test of this program forks: its child has our descriptors until it executes.
        let until = Instant::now() + Duration::from_secs(10);
        while !Command::new("umount").arg(&self.path).output().unwrap().status.success() {
            assert!(Instant::now() < until, "{} stays mounted", self.path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn missing(programs: &[&str]) -> bool {
    programs.iter().any(|program| skip_unless(Command::new(program).arg("-V").output().is_ok(), program))
}

/// A test without its means is skipped with a reason, but not where the whole suite must run.
fn skip_unless(condition: bool, need: &str) -> bool {
    if !condition {
        assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "needs {need}");
        eprintln!("skipped: needs {need}");
    }
    !condition
}
