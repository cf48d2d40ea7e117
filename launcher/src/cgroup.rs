//! The container's cgroup v2 directory: limits are written as files beneath its descriptor.

use crate::error::{Context, Result};
use crate::tree::open_child;
use nacre_protocols::init_launcher::{CgroupWrite, LaunchStage};
use rustix::fs::OFlags;
use std::os::fd::OwnedFd;

/// Writes every file in order. The names were checked: none reaches out of the directory or moves a process.
pub fn write(directory: &OwnedFd, writes: &[CgroupWrite]) -> Result<()> {
    writes.iter().try_for_each(|write| {
        open_child(directory, &write.file, OFlags::WRONLY)
            .and_then(|file| Ok(rustix::io::write(file, write.value.as_bytes())?))
            .map(drop)
            .at(LaunchStage::Cgroup, || format!("writing {:?} to {}", write.value, write.file))
    })
}
