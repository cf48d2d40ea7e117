//! virtio-fs from the guest: reading, writing, read-only, single files.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nacre::devices::fs::{Access, Share};

use crate::support::{Guest, parts};

/// Of 64 MiB of the letter x.
pub const MD5_OF_BIG: &str = "de506679685541efcb501eac224adc64";

#[test]
fn shares_are_used_from_the_guest() {
    let Some(parts) = parts() else { return };
    let host = tempfile::tempdir().unwrap();
    for dir in ["rw", "ro", "one"] {
        std::fs::create_dir(host.path().join(dir)).unwrap();
    }
    std::fs::write(host.path().join("rw/hello"), "hello\n").unwrap();
    std::fs::write(host.path().join("ro/fixed"), "fixed\n").unwrap();
    std::fs::write(host.path().join("one/file"), "one\n").unwrap();
    std::fs::write(host.path().join("one/other"), "other\n").unwrap();
    std::fs::write(host.path().join("rw/big"), vec![b'x'; 64 << 20]).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", host.path().join("rw/escape")).unwrap();
    let share =
        |name: &str, path: &str, access| Share { name: name.into(), host: host.path().join(path), access };
    let shares = vec![
        share("vol0", "rw", Access::ReadWrite),
        share("vol1", "ro", Access::ReadOnly),
        share("vol2", "one/file", Access::ReadWrite),
    ];
    assert_eq!(shares.last().map(Share::guest_path), Some("vol2/file".into()));
    let guest = Guest::boot(parts, |config| config.shares = shares);

    assert!(has_confined_worker(&guest.serving()), "no thread that serves a device has given up its rights");
    let out = guest
        .run("exec 2>&1; mount -t virtiofs kataShared /mnt; ls /mnt; cat /mnt/vol0/hello; id -u 2>/dev/null");
    assert!(out.starts_with("vol0\nvol1\nvol2\nhello\n"), "{out}");

    let out = guest.run(
        "exec 2>&1; cd /mnt/vol0; echo made > made; mkdir -p d/e; mv made d/e/moved; ln -s hello soft; \
         chmod 4755 d/e/moved; stat -c '%u:%g %a' d/e/moved; cat soft; ln hello hard && stat -c %h hello; \
         dd if=/dev/zero of=zeros bs=1M count=32 2>/dev/null; sync; rm hello; ls",
    );
    println!("{out}");
    assert!(out.contains("0:0 755\nhello\n"), "{out}");
    let moved = host.path().join("rw/d/e/moved");
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "made\n");
    assert_eq!(moved.metadata().unwrap().uid(), rustix::process::geteuid().as_raw());
    assert_eq!(host.path().join("rw/zeros").metadata().unwrap().len(), 32 << 20);
    assert!(!host.path().join("rw/hello").exists());

    let out = guest.run("exec 2>&1; cd /mnt/vol1; cat fixed; echo x > new; echo x >> fixed; rm fixed; chmod 777 fixed; mkdir d");
    assert_eq!(out.matches("Read-only file system").count(), 5, "{out}");
    assert_eq!(std::fs::read_to_string(host.path().join("ro/fixed")).unwrap(), "fixed\n");

    let out =
        guest.run("exec 2>&1; cd /mnt/vol2; ls; cat file; echo more >> file; cat other; rm file; echo n > n");
    assert!(out.starts_with("file\none\n") && out.contains("No such file"), "{out}");
    assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
    assert_eq!(std::fs::read_to_string(host.path().join("one/file")).unwrap(), "one\nmore\n");

    // A link of the host points into the guest's own tree, as any link would.
    let out = guest.run("exec 2>&1; cat /mnt/vol0/escape; mknod /mnt/vol0/null c 1 3; ls /mnt/vol0/../..");
    assert!(out.contains("escape': No such file") && out.contains("Operation not permitted"), "{out}");

    let start = std::time::Instant::now();
    let sum = guest.run("cat /mnt/vol0/big | md5sum");
    println!("64 MiB through virtio-fs and md5sum in the guest: {:?}", start.elapsed());
    assert!(sum.starts_with(MD5_OF_BIG), "{sum}");
    assert_eq!(guest.vm.device_notes(), Vec::<String>::new());
}

#[test]
fn many_files_are_read_and_forgotten() {
    let Some(parts) = parts() else { return };
    let host = tempfile::tempdir().unwrap();
    for n in 0..3000 {
        std::fs::write(host.path().join(format!("file-{n:04}")), n.to_string()).unwrap();
    }
    let share = Share { name: "vol0".into(), host: host.path().into(), access: Access::ReadOnly };
    let guest = Guest::boot(parts, |config| config.shares = vec![share]);
    let out = guest.run("mount -t virtiofs kataShared /mnt; cd /mnt/vol0; ls | wc -l; cat file-* | wc -c");
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["3000", "10890"]);
    let files = guest.serving().join("fd");
    let open = std::fs::read_dir(&files).unwrap().count();
    guest.run("echo 2 > /proc/sys/vm/drop_caches");
    // The guest forgets in the background.
    let forgotten = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        std::fs::read_dir(&files).unwrap().count() + 2000 < open
    });
    assert!(forgotten, "{open} files stay open");
}

/// Whether a thread that serves queues can gain no privilege and has no capability beyond file access.
fn has_confined_worker(process: &Path) -> bool {
    /// `CAP_DAC_OVERRIDE` and `CAP_FOWNER`.
    const KEPT: u64 = 1 << 1 | 1 << 3;
    let tasks = std::fs::read_dir(process.join("task")).unwrap();
    tasks.flatten().any(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field =
            |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let capabilities = field("CapPrm:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        matches!(field("Name:").as_deref(), Some("vring_worker" | "nacre-fs"))
            && field("NoNewPrivs:").as_deref() == Some("1")
            && capabilities.is_some_and(|set| set & !KEPT == 0)
    })
}
