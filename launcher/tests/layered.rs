//! A root of several disks: a writable one and layers that are an EROFS each, as the agent makes it of a shim's storages. In a mount
//! namespace of the test's own; needs what `harness` needs, loop devices and EROFS in the kernel, `losetup` (util-linux),
//! `mkfs.ext4` (e2fsprogs) and `mkfs.erofs` (erofs-utils).

mod harness;

use harness::{Guest, ROOTFS, container, make_rootfs};
use nacre_protocols::init_launcher::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

const DIRECTORY: &str = "/run/kata-containers/box/layers";
const ROOT: &str = "/run/kata-containers/box/rootfs";

fn tool(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Files as virtio disks, in a `/dev` of the test's own: `/dev/vdb` and so on.
struct Disks(Vec<String>);

impl Disks {
    fn new(files: &[&Path]) -> Self {
        let attach = |file: &&Path| tool(&["losetup", "--find", "--show", file.to_str().unwrap()]);
        let devices: Vec<String> = files.iter().map(attach).collect();
        let numbers: Vec<u64> = devices.iter().map(|device| fs::metadata(device).unwrap().rdev()).collect();
        fs::create_dir_all("/run/dev").unwrap();
        rustix::mount::mount_bind_recursive("/dev", "/run/dev").unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", "/dev", "tmpfs", flags, c"mode=755").unwrap();
        fs::write("/dev/null", "").unwrap();
        rustix::mount::mount_bind("/run/dev/null", "/dev/null").unwrap();
        for (letter, number) in ('b'..).zip(numbers) {
            let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::from_raw_mode(0o600));
            rustix::fs::mknodat(rustix::fs::CWD, format!("/dev/vd{letter}"), kind, mode, number).unwrap();
        }
        Self(devices)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount("/dev", rustix::mount::UnmountFlags::DETACH);
        for device in &self.0 {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

fn disk(letter: char, file_system: &str, name: &str) -> StorageStep {
    StorageStep::Disk {
        address: DiskAddress::Name(format!("/dev/vd{letter}")),
        file_system: file_system.to_owned(),
        data: vec![],
        attributes: MountAttributes { read_only: file_system == "erofs", ..Default::default() },
        mount_point: format!("{DIRECTORY}/{name}"),
    }
}

#[test]
fn layers_on_disks_of_their_own_become_a_root() {
    let Some(guest) = Guest::new() else { return };
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let [base, top] = ["base", "top"].map(|name| {
        let directory = at(&format!("{name}-files"));
        if name == "base" {
            make_rootfs(&directory);
        }
        fs::create_dir_all(directory.join("etc")).unwrap();
        fs::write(directory.join("etc/which"), name).unwrap();
        tool(&["mkfs.erofs", at(name).to_str().unwrap(), directory.to_str().unwrap()]);
        at(name)
    });
    let upper = at("upper");
    fs::File::create(&upper).unwrap().set_len(16 << 20).unwrap();
    tool(&["mkfs.ext4", "-q", upper.to_str().unwrap()]);
    let disks = Disks::new(&[&upper, &top, &base]);
    let overlay = StorageStep::Overlay(Overlay {
        lower: ["0", "1"].map(|name| format!("{DIRECTORY}/{name}")).into(),
        writable: Some((format!("{DIRECTORY}/writable/upper"), format!("{DIRECTORY}/writable/work"))),
        attributes: MountAttributes::default(),
        mount_point: ROOT.to_owned(),
    });
    // One step a plan, as the agent asks.
    let steps = [disk('b', "ext4", "writable"), disk('c', "erofs", "0"), disk('d', "erofs", "1"), overlay];
    for step in steps {
        guest.storage(vec![step]).unwrap();
    }
    assert_eq!(fs::read_to_string(format!("{ROOT}/etc/which")).unwrap(), "top", "the first is the topmost");
    let plan = ContainerPlan {
        rootfs: Rootfs::Guest(ROOT.to_owned()),
        ..container("cat /etc/which; echo changed > /etc/which; ls -d /home")
    };
    assert_eq!(guest.run(plan), ("top/home\n".to_owned(), 0));
    let written = format!("{DIRECTORY}/writable/upper/etc/which");
    assert_eq!(fs::read_to_string(&written).unwrap(), "changed\n");
    // A disk that is a layer is nobody else's.
    let again = guest.storage(vec![disk('b', "ext4", "other")]).unwrap_err();
    assert_eq!(again.errno, 16, "{again:?}");
    let mount_points = [
        ROOT.to_owned(),
        format!("{DIRECTORY}/1"),
        format!("{DIRECTORY}/0"),
        format!("{DIRECTORY}/writable"),
    ];
    for mount_point in mount_points {
        guest.storage(vec![StorageStep::Unmount { mount_point: mount_point.clone() }]).unwrap();
        assert!(!Path::new(&mount_point).exists(), "{mount_point}");
    }
    // All of them are free again.
    guest.storage(vec![disk('b', "ext4", "other")]).unwrap();
    guest.storage(vec![StorageStep::Unmount { mount_point: format!("{DIRECTORY}/other") }]).unwrap();
    drop(disks);
    assert!(Path::new(ROOTFS).exists());
}
