//! An ext4 that nothing was ever on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::contenders::check;

/// Room for the largest image unpacked twice and its blobs. The file is sparse.
const BYTES: u64 = 8 << 30;

/// Mounted until its value ends.
pub struct Disk {
    pub at: PathBuf,
    file: PathBuf,
}

impl Disk {
    pub fn fresh(work: &Path) -> anyhow::Result<Self> {
        let disk = Self { at: work.join("disk"), file: work.join("disk.ext4") };
        let file = File::create(&disk.file).context("cannot make the disk's file")?;
        file.set_len(BYTES).context("cannot size the disk's file")?;
        check(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.file))?;
        std::fs::create_dir_all(&disk.at).context("cannot make the mount point")?;
        let losetup = ["--find", "--show", "--direct-io=on"];
        let device = check(Command::new("losetup").args(losetup).arg(&disk.file))?;
        // The kernel would go on formatting in the background.
        let mounted = check(
            Command::new("mount")
                .args(["-t", "ext4", "-o", "noinit_itable"])
                .arg(device.trim())
                .arg(&disk.at),
        );
        // It stays as long as it is mounted.
        check(Command::new("losetup").arg("--detach").arg(device.trim()))?;
        mounted.map(|_| disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Some of the peers leave mounts of their own behind.
        let outcome = check(Command::new("umount").arg("--recursive").arg(&self.at));
        if outcome.is_err() {
            let _ = check(Command::new("umount").args(["--recursive", "--lazy"]).arg(&self.at));
        }
        let _ = std::fs::remove_file(&self.file);
    }
}
