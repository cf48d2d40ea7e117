//! A hostile guest, as the calls that the FUSE server would make for it.

use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::devices::fs::Access;

const FILES: u64 = 1 << 16;

fn guest() -> Context {
    // A hostile guest claims any user.
    Context { uid: 4242, gid: 4242, pid: 1 }
}

struct Fixture {
    dir: tempfile::TempDir,
    fs: SharedDirs,
    rw: u64,
    ro: u64,
    file: u64,
}

/// `rw`, `ro` and the single file `one/only`; outside of all of them `secret`.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["rw/sub", "ro/sub", "one"] {
        std::fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    for file in ["secret", "rw/a", "ro/a", "one/only", "one/other"] {
        std::fs::write(dir.path().join(file), file).unwrap();
    }
    symlink(dir.path().join("secret"), dir.path().join("rw/link")).unwrap();
    symlink("/", dir.path().join("rw/dirlink")).unwrap();
    let share =
        |name: &str, host: &str, access| Share { name: name.into(), host: dir.path().join(host), access };
    let shares = [
        share("vol0", "rw", Access::ReadWrite),
        share("vol1", "ro", Access::ReadOnly),
        share("vol2", "one/only", Access::ReadWrite),
    ];
    let fs = SharedDirs::open(&shares, FILES).unwrap();
    let [rw, ro, file] =
        [c"vol0", c"vol1", c"vol2"].map(|name| fs.lookup(&guest(), ROOT_ID, name).unwrap().inode);
    Fixture { dir, fs, rw, ro, file }
}

fn code<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

fn create_in(flags: i32, mode: u32) -> CreateIn {
    CreateIn { flags: flags.cast_unsigned(), mode, umask: 0, fuse_flags: 0 }
}

fn names(fs: &SharedDirs, dir: u64) -> Vec<String> {
    let (handle, _) = fs.opendir(&guest(), dir, 0).unwrap();
    let mut names = Vec::new();
    fs.readdir(&guest(), dir, handle.unwrap_or(0), 4096, 0, &mut |entry| {
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        Ok(1)
    })
    .unwrap();
    names.sort();
    names
}

#[test]
fn no_name_leads_out_of_a_share() {
    let Fixture { fs, rw, dir: _dir, .. } = fixture();
    let sub = fs.lookup(&guest(), rw, c"sub").unwrap().inode;
    for name in ["..", ".", "", "/", "../secret", "sub/../..", "/etc/passwd", "a/b"] {
        let name = CString::new(name).unwrap();
        for parent in [ROOT_ID, rw, sub] {
            let results = [
                code(fs.lookup(&guest(), parent, &name)),
                code(fs.mkdir(&guest(), parent, &name, 0o755, 0)),
                code(fs.create(&guest(), parent, &name, create_in(libc::O_RDWR, 0o644)).map(|_| ())),
                code(fs.mknod(&guest(), parent, &name, libc::S_IFREG | 0o644, 0, 0)),
                code(fs.symlink(&guest(), c"/x", parent, &name)),
                code(fs.unlink(&guest(), parent, &name)),
                code(fs.rmdir(&guest(), parent, &name)),
                code(fs.rename(&guest(), rw, c"a", parent, &name, 0)),
                code(fs.rename(&guest(), parent, &name, rw, c"b", 0)),
                code(fs.link(&guest(), sub, parent, &name)),
            ];
            assert_eq!(results, [libc::EINVAL; 10], "{name:?}");
        }
    }
}

#[test]
fn symbolic_links_are_read_and_never_followed() {
    let Fixture { fs, rw, dir, .. } = fixture();
    let link = fs.lookup(&guest(), rw, c"link").unwrap();
    assert_eq!(link.attr.st_mode & libc::S_IFMT, libc::S_IFLNK);
    let target = fs.readlink(&guest(), link.inode).unwrap();
    assert_eq!(target, dir.path().join("secret").as_os_str().as_encoded_bytes());
    assert_eq!(code(fs.open(&guest(), link.inode, 0, 0).map(|_| ())), libc::EBADF);
    // Neither create nor a change of attributes goes through the link.
    let created = fs.create(&guest(), rw, c"link", create_in(libc::O_RDWR | libc::O_TRUNC, 0o666));
    assert_ne!(code(created.map(|_| ())), 0);
    let mut attr = link.attr;
    attr.st_size = 0;
    assert_ne!(code(fs.setattr(&guest(), link.inode, attr, None, SetattrValid::SIZE)), 0);
    assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"secret");
    let dirlink = fs.lookup(&guest(), rw, c"dirlink").unwrap().inode;
    assert_ne!(code(fs.lookup(&guest(), dirlink, c"etc")), 0);
    assert_ne!(code(fs.opendir(&guest(), dirlink, 0).map(|_| ())), 0);
}

#[test]
fn swapping_a_directory_for_a_link_wins_no_race() {
    let Fixture { fs, rw, dir, .. } = fixture();
    let base = dir.path().join("rw");
    std::fs::create_dir(dir.path().join("outside")).unwrap();
    std::fs::write(dir.path().join("outside/loot"), "loot").unwrap();
    std::fs::create_dir(base.join("swap")).unwrap();
    symlink("../outside", base.join("swap.link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let swapper = std::thread::spawn(move || {
        let dir = std::fs::File::open(&base).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&dir, "swap", &dir, "swap.link", flags).unwrap();
        }
    });
    let mut seen = 0;
    for _ in 0..3000 {
        let Ok(entry) = fs.lookup(&guest(), rw, c"swap") else { continue };
        seen += 1;
        assert!(fs.lookup(&guest(), entry.inode, c"loot").is_err(), "a link was followed");
        fs.forget(&guest(), entry.inode, 1);
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(seen > 1000);
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let Fixture { fs, ro, dir, .. } = fixture();
    let file = fs.lookup(&guest(), ro, c"a").unwrap();
    let writes =
        [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_RDWR | libc::O_APPEND];
    for flags in writes {
        assert_eq!(code(fs.open(&guest(), file.inode, flags.cast_unsigned(), 0).map(|_| ())), libc::EROFS);
    }
    let results = [
        code(fs.setattr(&guest(), file.inode, file.attr, None, SetattrValid::MODE)),
        code(fs.setattr(&guest(), file.inode, file.attr, None, SetattrValid::SIZE)),
        code(fs.setattr(&guest(), file.inode, file.attr, None, SetattrValid::MTIME_NOW)),
        code(fs.mkdir(&guest(), ro, c"n", 0o755, 0)),
        code(fs.create(&guest(), ro, c"n", create_in(libc::O_RDWR, 0o644)).map(|_| ())),
        code(fs.create(&guest(), ro, c"a", create_in(libc::O_RDONLY, 0o644)).map(|_| ())),
        code(fs.mknod(&guest(), ro, c"n", libc::S_IFREG | 0o644, 0, 0)),
        code(fs.symlink(&guest(), c"/x", ro, c"n")),
        code(fs.link(&guest(), file.inode, ro, c"n")),
        code(fs.unlink(&guest(), ro, c"a")),
        code(fs.rmdir(&guest(), ro, c"sub")),
        code(fs.rename(&guest(), ro, c"a", ro, c"b", 0)),
        code(fs.setxattr(&guest(), file.inode, c"user.x", b"1", 0)),
        code(fs.removexattr(&guest(), file.inode, c"user.x")),
        code(fs.fallocate(&guest(), file.inode, 1, 0, 0, 1)),
        code(fs.access(&guest(), file.inode, libc::W_OK.cast_unsigned())),
    ];
    assert_eq!(results, [libc::EROFS; 16]);
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path().join("ro")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a", "sub"]);
}

#[test]
fn the_host_user_is_root_in_the_guest_and_owns_what_is_made() {
    let Fixture { fs, rw, dir, .. } = fixture();
    let (entry, handle, ..) =
        fs.create(&guest(), rw, c"new", create_in(libc::O_RDWR | libc::O_CREAT, 0o106_755)).unwrap();
    assert_eq!((entry.attr.st_uid, entry.attr.st_gid, entry.attr.st_mode & 0o7000), (0, 0, 0));
    fs.release(&guest(), entry.inode, 0, handle.unwrap(), false, false, None).unwrap();
    let made = std::fs::metadata(dir.path().join("rw/new")).unwrap();
    assert_eq!(made.uid(), rustix::process::geteuid().as_raw());
    let mut attr = entry.attr;
    attr.st_mode = 0o106_777;
    fs.setattr(&guest(), entry.inode, attr, None, SetattrValid::MODE).unwrap();
    assert_eq!(std::fs::metadata(dir.path().join("rw/new")).unwrap().permissions().mode() & 0o7777, 0o777);
    // Keeping the owner is allowed, giving the file away is not.
    let owner = SetattrValid::UID | SetattrValid::GID;
    fs.setattr(&guest(), entry.inode, attr, None, owner).unwrap();
    attr.st_uid = 1000;
    assert_eq!(code(fs.setattr(&guest(), entry.inode, attr, None, owner)), libc::EPERM);
    for (kind, expected) in [(libc::S_IFCHR, libc::EPERM), (libc::S_IFBLK, libc::EPERM), (libc::S_IFIFO, 0)] {
        assert_eq!(code(fs.mknod(&guest(), rw, c"node", kind | 0o666, 0x103, 0)), expected);
    }
    // Opening a fifo would block the device.
    let fifo = fs.lookup(&guest(), rw, c"node").unwrap().inode;
    assert_eq!(code(fs.open(&guest(), fifo, 0, 0).map(|_| ())), libc::EBADF);
    assert_eq!(code(fs.rename(&guest(), rw, c"a", rw, c"b", libc::RENAME_WHITEOUT)), libc::EINVAL);
}

#[test]
fn only_user_attributes_are_seen_and_set() {
    let Fixture { fs, rw, dir: _dir, .. } = fixture();
    let file = fs.lookup(&guest(), rw, c"a").unwrap().inode;
    for name in [c"security.capability", c"trusted.overlay.opaque", c"system.posix_acl_access"] {
        assert_eq!(code(fs.setxattr(&guest(), file, name, b"x", 0)), libc::EOPNOTSUPP);
        assert_eq!(code(fs.getxattr(&guest(), file, name, 100).map(|_| ())), libc::EOPNOTSUPP);
        assert_eq!(code(fs.removexattr(&guest(), file, name)), libc::EOPNOTSUPP);
    }
    if code(fs.setxattr(&guest(), file, c"user.color", b"red", 0)) == libc::EOPNOTSUPP {
        eprintln!("skipped: this file system has no user attributes");
        return;
    }
    let Ok(GetxattrReply::Value(value)) = fs.getxattr(&guest(), file, c"user.color", u32::MAX) else {
        panic!()
    };
    assert_eq!(value, b"red");
    let Ok(ListxattrReply::Names(list)) = fs.listxattr(&guest(), file, 100) else { panic!() };
    assert_eq!(list, b"user.color\0");
    assert_eq!(code(fs.listxattr(&guest(), file, 3).map(|_| ())), libc::ERANGE);
}

#[test]
fn shares_do_not_mix() {
    let Fixture { fs, rw, ro, dir: _dir, .. } = fixture();
    let file = fs.lookup(&guest(), ro, c"a").unwrap().inode;
    assert_eq!(code(fs.link(&guest(), file, rw, c"stolen")), libc::EXDEV);
    assert_eq!(code(fs.rename(&guest(), ro, c"a", rw, c"stolen", 0)), libc::EXDEV);
    // Numbers that were never given out.
    for inode in [0, 2, 1 << 56, 3 << 56 | 99, 99 << 56 | 1, u64::MAX] {
        assert_ne!(code(fs.getattr(&guest(), inode, None)), 0, "{inode:#x}");
        assert_ne!(code(fs.open(&guest(), inode, 0, 0).map(|_| ())), 0, "{inode:#x}");
        fs.forget(&guest(), inode, u64::MAX);
    }
    // A handle of one share is no handle of another.
    let (handle, ..) = fs.open(&guest(), file, 0, 0).unwrap();
    let other = fs.lookup(&guest(), rw, c"a").unwrap().inode;
    assert_ne!(code(fs.flush(&guest(), other, handle.unwrap(), 0)), 0);
}

#[test]
fn the_root_lists_the_shares_and_takes_nothing() {
    let Fixture { fs, dir: _dir, .. } = fixture();
    assert_eq!(names(&fs, ROOT_ID), ["vol0", "vol1", "vol2"]);
    assert_eq!(code(fs.mkdir(&guest(), ROOT_ID, c"x", 0o755, 0)), libc::EPERM);
    assert_eq!(code(fs.lookup(&guest(), ROOT_ID, c"vol9")), libc::ENOENT);
    assert_eq!(code(fs.unlink(&guest(), ROOT_ID, c"vol0")), libc::EPERM);
}

#[test]
fn a_single_file_shows_nothing_of_its_directory() {
    let Fixture { fs, file, dir, .. } = fixture();
    assert_eq!(names(&fs, file), ["only"]);
    assert_eq!(code(fs.lookup(&guest(), file, c"other")), libc::ENOENT);
    let only = fs.lookup(&guest(), file, c"only").unwrap().inode;
    let (handle, ..) = fs.open(&guest(), only, libc::O_RDWR.cast_unsigned(), 0).unwrap();
    fs.release(&guest(), only, 0, handle.unwrap(), false, false, None).unwrap();
    let results = [
        code(fs.unlink(&guest(), file, c"only")),
        code(fs.unlink(&guest(), file, c"other")),
        code(fs.create(&guest(), file, c"x", create_in(libc::O_RDWR, 0o644)).map(|_| ())),
        code(fs.rename(&guest(), file, c"other", file, c"only", 0)),
        code(fs.setxattr(&guest(), file, c"user.x", b"", 0)),
    ];
    assert_eq!(results, [libc::EROFS; 5]);
    // A directory in the place of the file is not entered.
    std::fs::remove_file(dir.path().join("one/only")).unwrap();
    std::fs::create_dir(dir.path().join("one/only")).unwrap();
    assert_eq!(code(fs.lookup(&guest(), file, c"only")), libc::ENOENT);
}

#[test]
fn a_guest_that_hoards_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..200 {
        std::fs::write(dir.path().join(n.to_string()), "").unwrap();
    }
    let share = Share { name: "vol0".into(), host: dir.path().into(), access: Access::ReadOnly };
    let fs = SharedDirs::open(&[share], 0).unwrap();
    let root = fs.lookup(&guest(), ROOT_ID, c"vol0").unwrap().inode;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let looked_up = |n: i32| fs.lookup(&guest(), root, &CString::new(n.to_string()).unwrap());
    let refused = (0..200).filter(|n| code(looked_up(*n)) == libc::ENFILE).count();
    assert_eq!(refused, 200 - 56);
    // Other tests open files at the same time; what matters is that not all 200 stayed open.
    assert!(open() < before + 150, "{before} {}", open());
}

#[test]
fn shares_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let share =
        |name: &str, host: &Path| Share { name: name.into(), host: host.into(), access: Access::ReadOnly };
    let cases = [
        (vec![share("a/b", dir.path())], "share name `a/b`"),
        (vec![share("..", dir.path())], "share name `..`"),
        (vec![share("", dir.path())], "share name ``"),
        (vec![share("v", dir.path()), share("v", dir.path())], "used twice"),
        (vec![share("v", &dir.path().join("none"))], "cannot share"),
        (vec![share("v", Path::new("/dev/null"))], "neither a directory nor a regular file"),
        (vec![share("v", dir.path()); 65], "65 shares exceed"),
    ];
    for (shares, text) in cases {
        let error = SharedDirs::open(&shares, FILES).err().unwrap().to_string();
        assert!(error.contains(text), "{error}");
    }
}
