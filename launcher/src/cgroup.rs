//! The container's cgroup v2 directory: limits are written as files beneath its descriptor.

use crate::error::{Context, LaunchError, Result};
use crate::tree::{is_missing, open_child};
use nacre_protocols::init_launcher::{CgroupLimits, CgroupWrite, LaunchStage, Missing};
use rustix::fs::OFlags;
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Cgroup;

/// Writes every file in order. The names were checked: none reaches out of the directory or moves a process.
pub fn apply(directory: &OwnedFd, limits: &CgroupLimits) -> Result<()> {
    if let Some(limit) = limits.memory_at_most {
        let used = memory_used(directory).at(STAGE, || "reading memory.current".to_owned())?;
        if used > limit {
            let message = format!("{used} bytes of memory are in use, more than the new limit of {limit}");
            return Err(LaunchError::refused(STAGE, message));
        }
    }
    limits.writes.iter().try_for_each(|write| self::write(directory, write))
}

fn write(directory: &OwnedFd, wanted: &CgroupWrite) -> Result<()> {
    let (mut file, mut value) = (&wanted.file, &wanted.value);
    let mut written = write_file(directory, file, value);
    if written.as_ref().is_err_and(is_missing) {
        match &wanted.missing {
            Missing::Fails => {}
            Missing::Passes => return Ok(()),
            Missing::Instead { file: other, value: instead } => {
                (file, value) = (other, instead);
                written = write_file(directory, file, value);
            }
        }
    }
    written.map_err(|error| {
        let doing = format!("writing {value:?} to {file}");
        if is_missing(&error) {
            let controller = file.split('.').next().unwrap_or_default();
            let why = format!(
                "{doing}: the kernel has no such file here, or the controller {controller} is not on"
            );
            return LaunchError { message: why, ..LaunchError::system(STAGE, error, "") };
        }
        LaunchError::system(STAGE, error, doing)
    })
}

fn write_file(directory: &OwnedFd, file: &str, value: &str) -> io::Result<()> {
    let file = open_child(directory, file, OFlags::WRONLY)?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}

fn memory_used(directory: &OwnedFd) -> io::Result<u64> {
    let file = open_child(directory, "memory.current", OFlags::RDONLY)?;
    let mut text = [0; 32];
    let length = rustix::io::read(file, &mut text)?;
    let text = text.get(..length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}
