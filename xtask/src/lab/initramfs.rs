//! What the outer machine boots: Debian's cloud kernel, and an initramfs with its modules that enters this machine's files.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cache::{Cache, Key};

/// Depends on the kernel of the day.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
/// In the order in which they depend on each other.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_console",
    "fuse",
    "virtiofs",
    "overlay",
    "tun",
    "irqbypass",
    "kvm",
    "kvm-amd",
];
const BUSYBOX: &str = "/bin/busybox";
/// Enters the files of the machine outside, with memory above them for what is written.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in MODULES; do $b insmod /modules/$module.ko || echo "lab: no module $module"; done
$b mount -t virtiofs -o ro host /host
$b mount -t tmpfs -o mode=755 upper /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work root /root
$b mount -t proc proc /root/proc
$b mount -t sysfs sys /root/sys
$b mount -t devtmpfs dev /root/dev
$b mkdir -p /root/dev/pts /root/dev/shm
$b ln -s /proc/self/fd /root/dev/fd
for n in 0:stdin 1:stdout 2:stderr; do $b ln -s /proc/self/fd/${n%:*} /root/dev/${n#*:}; done
$b mount -t devpts -o ptmxmode=666 pts /root/dev/pts
$b mount -t tmpfs shm /root/dev/shm
$b mount -t cgroup2 cgroup /root/sys/fs/cgroup
$b mount -t tmpfs -o mode=755 run /root/run
$b cp /command /root/run/lab
$b umount /proc /sys
exec $b switch_root /root /bin/busybox sh /run/lab
"#;

/// A kernel and the initramfs that belongs to it.
pub struct Kernel {
    pub image: PathBuf,
    /// Wants one more archive behind it, with the command.
    pub initramfs: PathBuf,
}

/// Debian's kernel of the day, looked into without installing it: the machine outside boots what it did before.
pub fn kernel(cache: &Cache) -> anyhow::Result<Kernel> {
    let package = package()?;
    let key =
        Key::new().part("package", &package).part("init", INIT).part("modules", MODULES.join(" ")).finish();
    let folder = cache.get_or_make("lab", &key, |folder| make(&package, folder))?;
    Ok(Kernel { image: folder.join("vmlinuz"), initramfs: folder.join("initramfs") })
}

fn package() -> anyhow::Result<String> {
    let ask = || -> anyhow::Result<Option<String>> {
        let output = Command::new("apt-cache")
            .args(["depends", METAPACKAGE])
            .output()
            .context("cannot run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned))
    };
    if let Some(name) = ask()? {
        return Ok(name);
    }
    // A machine that has never asked Debian what there is.
    run(Command::new("apt-get").args(["update", "--quiet=2"]))?;
    ask()?.with_context(|| format!("apt-cache knows no package {METAPACKAGE}"))
}

fn make(package: &str, folder: &Path) -> anyhow::Result<()> {
    eprintln!("lab: fetching {package}");
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let download =
        || run(Command::new("apt-get").args(["download", "--quiet=2", package]).current_dir(scratch.path()));
    if download().is_err() {
        // What apt knows may be older than what the archive still has.
        run(Command::new("apt-get").args(["update", "--quiet=2"]))?;
        download()?;
    }
    let archive =
        find(scratch.path(), &|name| name.ends_with(".deb"))?.context("apt-get downloaded no package")?;
    let files = scratch.path().join("files");
    run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(&files))?;
    let image = find(&files.join("boot"), &|name| name.starts_with("vmlinuz-"))?
        .context("the package has no vmlinuz")?;
    fs::copy(image, folder.join("vmlinuz")).context("cannot copy the kernel")?;

    let mut archive =
        Archive::new(fs::File::create(folder.join("initramfs")).context("cannot make the initramfs")?);
    for name in ["bin", "modules", "proc", "sys", "dev", "host", "upper", "root"] {
        archive.directory(name)?;
    }
    archive.file("bin/busybox", &fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?)?;
    archive.file("init", INIT.replace("MODULES", &MODULES.join(" ")).as_bytes())?;
    for module in MODULES {
        let wanted = format!("{module}.ko");
        let path = find(&files.join("lib/modules"), &|name| name == wanted)?
            .with_context(|| format!("{package} has no {wanted}"))?;
        archive.file(&format!("modules/{wanted}"), &fs::read(path).context("cannot read a module")?)?;
    }
    archive.finish().context("cannot write the initramfs")
}

/// The first file below `folder` whose name fits.
fn find(folder: &Path, fits: &dyn Fn(&str) -> bool) -> anyhow::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
        if kind.is_dir() {
            if let Some(found) = find(&entry.path(), fits)? {
                return Ok(Some(found));
            }
        } else if kind.is_file() && fits(&entry.file_name().to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// A cpio archive in the form that the kernel unpacks (`Documentation/driver-api/early-userspace/buffer-format.rst`: newc).
pub struct Archive<W: Write> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    pub fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_755, content)
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // Inode, mode, owner, group, links, time, size, device twice, node twice, name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        header.resize(header.len().next_multiple_of(4), 0);
        self.out.write_all(&header)?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 3][..content.len().next_multiple_of(4) - content.len()])
    }
}
