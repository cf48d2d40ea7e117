//! Storage plans in a mount namespace of the test's own. See `harness` for what that needs; layers and disks also need loop
//! devices and EROFS in the kernel, `tar`, `losetup` and `blockdev` (util-linux), `dumpe2fs` and `e2fsck` (e2fsprogs).

mod harness;

use harness::{Guest, ROOTFS, container, make_rootfs};
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{
    FETCHER_UID, LAYERS_DIR, SCRATCH_DIR, SHARED_DIR, STORE_DIR, Sha256, UPPER_DIR,
};
use nacre_puller::layer::{Compression, Limits, index_layer};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const KATA: &str = "/run/kata-containers";

/// What is mounted at `path`: kind and options.
fn mounted(path: &str) -> Option<(String, String)> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(path))?;
    let mut fields = line.split(' ').skip(2).map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

fn tool(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
    text
}

fn path(name: &str) -> String {
    format!("{KATA}/{name}")
}

#[test]
fn directories_files_and_mounts_are_made_and_unmade() {
    let Some(guest) = Guest::new() else { return };
    let file =
        |content: &[u8]| StorageStep::File { path: path("sandbox/a/resolv.conf"), content: content.to_vec() };
    let attributes = MountAttributes { no_exec: true, ..Default::default() };
    let tmpfs = StorageStep::Tmpfs { mount_point: path("shm"), data: vec!["size=1m".to_owned()], attributes };
    guest
        .storage(vec![
            StorageStep::Directory { path: path("shared/x/y"), mode: 0o1750, group: None },
            StorageStep::Directory { path: path("shared/x/y"), mode: 0o1770, group: None },
            file(b"one"),
            file(b"two"),
            tmpfs,
        ])
        .unwrap();
    assert_eq!(fs::metadata(path("shared/x/y")).unwrap().mode() & 0o7777, 0o1770);
    assert_eq!(fs::read(path("sandbox/a/resolv.conf")).unwrap(), b"two");
    assert_eq!(fs::metadata(path("sandbox/a/resolv.conf")).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(path("sandbox/a")).unwrap().count(), 1, "something was left beside the file");
    let (kind, options) = mounted(&path("shm")).unwrap();
    assert!(kind == "tmpfs" && options.contains("noexec") && options.contains("size=1024k"), "{options}");
    let unmount = || vec![StorageStep::Unmount { mount_point: path("shm") }];
    guest.storage(unmount()).unwrap();
    guest.storage(unmount()).unwrap();
    assert!(!Path::new(&path("shm")).exists());
}

#[test]
fn no_link_leads_a_step_out() {
    let Some(guest) = Guest::new() else { return };
    fs::create_dir_all("/run/outside/target").unwrap();
    symlink("/run/outside", path("absolute")).unwrap();
    symlink("../outside", path("upwards")).unwrap();
    for link in ["absolute", "upwards"] {
        let beneath = |name: &str| path(&format!("{link}/{name}"));
        for step in [
            StorageStep::Directory { path: beneath("new"), mode: 0o755, group: None },
            StorageStep::File { path: beneath("new"), content: vec![1] },
            StorageStep::Tmpfs {
                mount_point: beneath("target"),
                data: vec![],
                attributes: Default::default(),
            },
            StorageStep::Unmount { mount_point: beneath("target") },
        ] {
            let failure = guest.storage(vec![step.clone()]).unwrap_err();
            assert_eq!((failure.stage, failure.errno), (LaunchStage::Storage, 40), "{step:?}: {failure:?}");
        }
    }
    let names: Vec<_> =
        fs::read_dir("/run/outside").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["target"]);
    assert!(mounted("/run/outside/target").is_none());
    // A link that a file replaces is replaced, not followed.
    symlink("/run/outside/target", path("link")).unwrap();
    guest.storage(vec![StorageStep::File { path: path("link"), content: b"x".to_vec() }]).unwrap();
    assert!(fs::symlink_metadata(path("link")).unwrap().is_file());
}

/// CVE-2026-41326: first a link in the one place where a host may copy files to, then a file by way of it, wherever it leads in
/// the guest.
#[test]
fn a_host_leaves_no_link_and_writes_no_file_by_copying() {
    let Some(guest) = Guest::new() else { return };
    fs::create_dir_all("/run/outside").unwrap();
    fs::create_dir_all(SHARED_DIR).unwrap();
    let copy = |name: &str, content| {
        let path = format!("{SHARED_DIR}/{name}");
        let copied = FileCopy { path, content, mode: 0o755, directory_mode: 0o755, uid: None, gid: None };
        guest.storage(vec![StorageStep::Copy(copied)])
    };
    let file = || Copied::Part { offset: 0, size: 8, data: b"attacked".to_vec() };
    for (link, target) in
        [("absolute", "/run/outside"), ("upwards", "../../../outside"), ("file", "/run/outside/x")]
    {
        copy(link, Copied::Link { target: target.to_owned() }).unwrap();
        for content in [file(), Copied::Directory, Copied::Link { target: "x".to_owned() }] {
            let failure = copy(&format!("{link}/written"), content).unwrap_err();
            assert_eq!((failure.stage, failure.errno), (LaunchStage::Storage, 40), "{link}: {failure:?}");
        }
    }
    // In the place of a link a file is that file; and a directory never is what a link leads to.
    copy("file", file()).unwrap();
    assert_eq!(fs::read(Path::new(SHARED_DIR).join("file")).unwrap(), b"attacked");
    copy("absolute", Copied::Directory).unwrap_err();
    assert_eq!(fs::read_dir("/run/outside").unwrap().count(), 0);
}

#[test]
fn a_writable_layer_is_removed_however_it_looks() {
    let Some(guest) = Guest::new() else { return };
    fs::create_dir_all("/run/outside").unwrap();
    fs::write("/run/outside/kept", "").unwrap();
    let top = Path::new(UPPER_DIR).join("box");
    fs::create_dir_all(top.join("upper")).unwrap();
    // Deeper than any path or number of descriptors reaches.
    let depth = 5000;
    let mut here = File::open(top.join("upper")).unwrap();
    for level in 0..depth {
        let mode = rustix::fs::Mode::from_raw_mode(if level % 3 == 0 { 0 } else { 0o755 });
        rustix::fs::mkdirat(&here, "d", mode).unwrap();
        rustix::fs::symlinkat("/run/outside", &here, "link").unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        here = rustix::fs::openat(&here, "d", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    for number in 0..2000 {
        fs::write(top.join(format!("upper/{number}")), "").unwrap();
    }
    fs::create_dir_all(top.join("work/work")).unwrap();
    fs::set_permissions(top.join("work/work"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(Path::new(UPPER_DIR).join("other")).unwrap();
    let steps = || vec![StorageStep::RemoveWritable { container: "box".to_owned() }];
    guest.storage(steps()).unwrap();
    guest.storage(steps()).unwrap();
    assert!(!top.exists() && Path::new(UPPER_DIR).join("other").exists());
    assert!(Path::new("/run/outside/kept").exists());
}

fn assert_furnished() {
    for (path, mode, owner) in
        [(STORE_DIR, 0o700, FETCHER_UID), (UPPER_DIR, 0o711, 0), (LAYERS_DIR, 0o755, 0)]
    {
        let found = fs::metadata(path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, owner, owner), "{path}");
    }
}

#[test]
fn scratch_space_can_be_a_tmpfs() {
    let Some(guest) = Guest::new() else { return };
    guest.storage(vec![StorageStep::ScratchTmpfs { bytes: 8 << 20 }]).unwrap();
    let (kind, options) = mounted(SCRATCH_DIR).unwrap();
    assert_eq!(kind, "tmpfs");
    for option in ["nosuid", "nodev", "noexec", "noatime", "size=8192k"] {
        assert!(options.split(',').any(|it| it == option), "{option} in {options}");
    }
    assert_furnished();
}

/// A loop device under the name of a virtio disk, in a `/dev` of the test's own.
struct Disk {
    image: tempfile::NamedTempFile,
    device: String,
}

impl Disk {
    fn new(bytes: u64) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(bytes).unwrap();
        let device = tool(&format!("losetup --find --show {}", image.path().display())).trim().to_owned();
        fs::write("/run/vdb", "").unwrap();
        let flags = rustix::mount::MountFlags::empty();
        // The thread's namespace is private: an overlay of /dev for it alone.
        for directory in ["/run/dev-upper", "/run/dev-work"] {
            fs::create_dir_all(directory).unwrap();
        }
        rustix::mount::mount_bind_recursive("/dev", "/run/dev-upper").unwrap();
        rustix::mount::mount("tmpfs", "/dev", "tmpfs", flags, c"mode=755").unwrap();
        for name in ["null", "loop-control"] {
            fs::write(format!("/dev/{name}"), "").unwrap();
            rustix::mount::mount_bind(format!("/run/dev-upper/{name}"), format!("/dev/{name}")).unwrap();
        }
        let number =
            fs::metadata(format!("/run/dev-upper/{}", device.trim_start_matches("/dev/"))).unwrap().rdev();
        let block = rustix::fs::FileType::BlockDevice;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, "/dev/vdb", block, mode, number).unwrap();
        Self { image, device }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(SCRATCH_DIR, rustix::mount::UnmountFlags::DETACH);
        let _ = rustix::mount::unmount("/dev", rustix::mount::UnmountFlags::DETACH);
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

#[test]
fn a_scratch_disk_is_formatted_mounted_and_known_again() {
    let Some(guest) = Guest::new() else { return };
    let disk = Disk::new(64 << 20);
    let steps = || vec![StorageStep::ScratchDisk { device: "/dev/vdb".to_owned(), kept: false }];
    guest.storage(steps()).unwrap();
    let (kind, options) = mounted(SCRATCH_DIR).unwrap();
    assert_eq!(kind, "ext4");
    for option in ["nosuid", "nodev", "noexec", "noatime", "discard"] {
        assert!(options.split(',').any(|it| it == option), "{option} in {options}");
    }
    assert_furnished();
    fs::write(Path::new(STORE_DIR).join("mark"), "kept").unwrap();
    // While it is mounted, nobody formats it.
    let busy = guest.storage(steps()).unwrap_err();
    assert_eq!((busy.stage, busy.errno), (LaunchStage::Storage, 16), "{busy:?}");

    rustix::mount::unmount(SCRATCH_DIR, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(tool(&format!("dumpe2fs -h {}", disk.image.path().display())).contains("nacre-scratch"));
    guest.storage(steps()).unwrap();
    assert_eq!(fs::read(Path::new(STORE_DIR).join("mark")).unwrap(), b"kept");
    rustix::mount::unmount(SCRATCH_DIR, rustix::mount::UnmountFlags::empty()).unwrap();

    // Of another label: formatted afresh.
    tool(&format!("e2label {} other", disk.image.path().display()));
    tool("blockdev --flushbufs /dev/vdb");
    guest.storage(steps()).unwrap();
    assert!(!Path::new(STORE_DIR).join("mark").exists());
    rustix::mount::unmount(SCRATCH_DIR, rustix::mount::UnmountFlags::empty()).unwrap();
    tool(&format!("e2fsck -fn {}", disk.image.path().display()));
}

/// Puts a tar of `directory` into the store as a layer, as the puller does.
fn store_layer(directory: &Path, digest: Sha256) {
    let place = Path::new(STORE_DIR).join("layers").join(digest.to_string());
    fs::create_dir_all(&place).unwrap();
    let plain = tempfile::NamedTempFile::new().unwrap();
    tool(&format!("tar -C {} -cf {} .", directory.display(), plain.path().display()));
    let tar = File::create(place.join("layer.tar")).unwrap();
    let index = File::create(place.join("index.erofs")).unwrap();
    let input = File::open(plain.path()).unwrap();
    index_layer(input, Compression::Plain, &tar, &index, &Limits::default(), |_| ()).unwrap();
    for name in ["layer.tar", "index.erofs"] {
        std::os::unix::fs::chown(place.join(name), Some(FETCHER_UID), Some(FETCHER_UID)).unwrap();
    }
}

fn layer_step(digest: Sha256) -> Vec<StorageStep> {
    vec![StorageStep::Layer { diff_id: digest }]
}

fn loop_devices() -> usize {
    tool("losetup --list --noheadings --output BACK-FILE")
        .lines()
        .filter(|line| line.contains("layer.tar"))
        .count()
}

#[test]
fn layers_of_the_store_are_mounted_inert_and_run_as_a_container() {
    let Some(guest) = Guest::new() else { return };
    let (lower, upper) = (Sha256([0x11; 32]), Sha256([0x22; 32]));
    make_rootfs(Path::new("/run/image"));
    let device = rustix::fs::FileType::CharacterDevice;
    let (cwd, mode) = (rustix::fs::CWD, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(cwd, "/run/image/zero", device, mode, rustix::fs::makedev(1, 5)).unwrap();
    store_layer(Path::new("/run/image"), lower);
    fs::create_dir_all("/run/change/etc").unwrap();
    fs::write("/run/change/etc/hostname", "changed\n").unwrap();
    fs::write("/run/change/.wh.secret", "").unwrap();
    store_layer(Path::new("/run/change"), upper);

    guest.storage([layer_step(lower), layer_step(upper)].concat()).unwrap();
    let (kind, options) = mounted(&format!("{LAYERS_DIR}/{lower}")).unwrap();
    assert_eq!(kind, "erofs");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|it| it == option), "{option} in {options}");
    }
    let mounts = || fs::read_to_string("/proc/thread-self/mounts").unwrap().matches("erofs").count();
    let before = mounts();
    guest.storage(layer_step(lower)).unwrap();
    assert_eq!(mounts(), before, "the layer was mounted a second time");
    // The puller cannot change any more what was verified.
    for name in ["layer.tar", "index.erofs"] {
        let found = fs::metadata(Path::new(STORE_DIR).join(format!("layers/{lower}/{name}"))).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o444), "{name}");
    }

    // Programs run and devices open through the overlay, whatever the flags of the layers' mounts are.
    let mut plan = container(
        "cat /etc/hostname; ls -d /secret; head -c3 /zero | wc -c; mount | head -n1; touch /x && echo ok",
    );
    plan.rootfs = Rootfs::Layers(vec![lower, upper]);
    plan.masked_paths.clear();
    let (output, code) = guest.run(plan);
    assert!(output.starts_with("changed\n") && output.contains("/secret: No such file"), "{output}");
    assert!(output.contains("\n3\n") && output.contains("overlay on / type overlay (rw"), "{output}");
    assert!(output.ends_with("ok\n") && code == 0, "{output}");
    assert!(!Path::new(ROOTFS).join("x").exists());
}

#[test]
fn pages_of_a_layer_are_not_cached_twice_and_its_loop_devices_go_with_it() {
    let Some(guest) = Guest::new() else { return };
    // On a disk: a tmpfs has no direct I/O to offer.
    let disk = Disk::new(64 << 20);
    guest.storage(vec![StorageStep::ScratchDisk { device: "/dev/vdb".to_owned(), kept: false }]).unwrap();
    for device in 0..64 {
        let name = format!("/run/dev-upper/loop{device}");
        if Path::new(&name).exists() {
            fs::write(format!("/dev/loop{device}"), "").unwrap();
            rustix::mount::mount_bind(name, format!("/dev/loop{device}")).unwrap();
        }
    }
    let layer = Sha256([0x33; 32]);
    fs::create_dir("/run/data").unwrap();
    fs::write("/run/data/file", vec![7u8; 8 << 20]).unwrap();
    store_layer(Path::new("/run/data"), layer);
    let before = loop_devices();
    guest.storage(layer_step(layer)).unwrap();
    assert_eq!(loop_devices(), before + 1);
    let dio = tool("losetup --list --noheadings --output BACK-FILE,DIO,LOG-SEC,RO,AUTOCLEAR");
    let lines: Vec<_> = dio.lines().filter(|line| line.contains(&layer.to_string())).collect();
    assert_eq!(lines.len(), 2, "{dio}");
    for line in lines {
        let fields: Vec<_> = line.split_whitespace().rev().take(4).collect();
        assert_eq!(fields, ["1", "1", "512", "1"], "{line}");
    }
    let mount_point = format!("{LAYERS_DIR}/{layer}");
    assert_eq!(fs::read(format!("{mount_point}/file")).unwrap(), vec![7u8; 8 << 20]);
    rustix::mount::unmount(&mount_point, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(loop_devices(), before);
    drop(disk);
}

#[test]
fn what_is_no_layer_of_the_puller_is_not_mounted() {
    let Some(guest) = Guest::new() else { return };
    let layer = Sha256([0x44; 32]);
    fs::create_dir("/run/data").unwrap();
    fs::write("/run/data/file", "data").unwrap();
    let place = Path::new(STORE_DIR).join("layers").join(layer.to_string());
    let refuse = |errno: i32, why: &str| {
        let failure = guest.storage(layer_step(layer)).unwrap_err();
        assert_eq!((failure.stage, failure.errno), (LaunchStage::Storage, errno), "{why}: {failure:?}");
        assert!(mounted(&format!("{LAYERS_DIR}/{layer}")).is_none());
        let _ = fs::remove_dir_all(&place);
        store_layer(Path::new("/run/data"), layer);
    };
    refuse(2, "missing");
    let tar = place.join("layer.tar");
    std::os::unix::fs::chown(&tar, Some(1000), Some(0)).unwrap();
    refuse(1, "another owner");
    fs::hard_link(&tar, place.join("other")).unwrap();
    refuse(22, "a second link");
    fs::remove_file(&tar).unwrap();
    symlink("/etc/passwd", &tar).unwrap();
    refuse(40, "a link");
    fs::remove_file(&tar).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &tar, fifo, rustix::fs::Mode::from_raw_mode(0o666), 0).unwrap();
    refuse(22, "a fifo");
    let writer = File::options().write(true).open(&tar).unwrap();
    refuse(26, "a writer");
    drop(writer);
    File::options().write(true).open(&tar).unwrap().set_len(1000).unwrap();
    refuse(0, "not whole blocks");
    let index = place.join("index.erofs");
    fs::write(&index, vec![0; 4096]).unwrap();
    // Refused by the launcher's own check (no errno): the kernel never parses them.
    refuse(0, "no file system");
    let mut bent = fs::read(&index).unwrap();
    let last = bent.len() - 1;
    bent.resize(last + 513, 0xff);
    fs::write(&index, bent).unwrap();
    refuse(0, "an index with more than the puller writes");
    guest.storage(layer_step(layer)).unwrap();
}
