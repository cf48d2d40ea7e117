//! Memory on a disk (swapon(2)): only one that was made for it, for what else it has would be lost.

use super::STAGE;
use crate::disks::{self, shown};
use crate::error::{Context, Result};
use crate::filesystem::explained;
use nacre_protocols::init_launcher::DiskAddress;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// At the end of the first page (`union swap_header` of linux/swap.h).
const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
const SIGNATURE_AT: u64 = 4096 - SIGNATURE.len() as u64;
/// Where the kernel lists them, if it has swap at all.
const LIST: &str = "/proc/swaps";

pub fn add(address: &DiskAddress) -> Result<()> {
    let attempt = || -> io::Result<()> {
        if openat(CWD, LIST, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_err() {
            return Err(explained(Errno::OPNOTSUPP, ": this guest's kernel has no swap"));
        }
        let disk = disks::find(address, false)?;
        let file = File::from(disk.file);
        let mut signature = [0; SIGNATURE.len()];
        file.read_exact_at(&mut signature, SIGNATURE_AT)?;
        if &signature != SIGNATURE {
            return Err(io::Error::other("it was not made for swap: it has no SWAPSPACE2 in its first page"));
        }
        // The kernel claims it for itself.
        drop(file);
        nacre_sys::swap::on(&disk.path)
    };
    attempt().at(STAGE, || format!("adding swap on the disk {}", shown(address)))
}
