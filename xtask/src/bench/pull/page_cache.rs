//! How many pages an image takes in memory after all of it was read: those of its files, and those of what lies below.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use nacre_layer_check::{CheckLimits, check_index};
use nacre_sys::loop_device;
use nacre_sys::page_cache::cached_pages;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::contenders::check;

const PAGE_BYTES: u64 = 4096;
/// As in the guest: what the tar is made of.
const BLOCK_BYTES: u32 = 512;

/// Mounts every layer of a store, each as the launcher does it, reads them and counts. Gives what is cached as a multiple of
/// what the files have, `None` where this kernel cannot tell.
pub fn ratio(store: &Path, mount_point: &Path) -> anyhow::Result<Option<f64>> {
    let mut sum = Sum::default();
    for layer in fs::read_dir(store.join("layers")).context("cannot list the store")? {
        let layer = layer.context("cannot list the store")?.path();
        match read_layer(&layer, mount_point, &mut sum) {
            Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => return Ok(None),
            outcome => outcome.with_context(|| format!("cannot read {} through a mount", layer.display()))?,
        }
    }
    eprintln!(
        "    pages: {} of files, cached {} of files, {} of devices, {} of tars and indexes",
        sum.whole, sum.files, sum.devices, sum.backing
    );
    Ok(Some((sum.files + sum.devices + sum.backing) as f64 / sum.whole.max(1) as f64))
}

/// In pages.
#[derive(Default)]
struct Sum {
    whole: u64,
    files: u64,
    devices: u64,
    backing: u64,
}

fn read_layer(layer: &Path, mount_point: &Path, sum: &mut Sum) -> io::Result<()> {
    let index = File::open(layer.join("index.erofs"))?;
    let tar = File::open(layer.join("layer.tar"))?;
    let (index_bytes, tar_bytes) = (index.metadata()?.len(), tar.metadata()?.len());
    check_index(&index, index_bytes, tar_bytes, &CheckLimits::default()).map_err(io::Error::other)?;
    fadvise(&index, 0, None, Advice::DontNeed)?;
    let index_device = loop_device::attach(&index, BLOCK_BYTES)?;
    let tar_device = loop_device::attach(&tar, BLOCK_BYTES)?;
    fs::create_dir_all(mount_point)?;
    let options = format!("ro,device={}", tar_device.path);
    let mount = ["-t", "erofs", "-o", &options, &index_device.path];
    check(Command::new("mount").args(mount).arg(mount_point)).map_err(io::Error::other)?;
    let counted = read_tree(mount_point, sum).and_then(|()| {
        for device in [&index_device.fd, &tar_device.fd] {
            sum.devices += cached_pages(device)?;
        }
        for file in [&index, &tar] {
            sum.backing += cached_pages(file)?;
        }
        Ok(())
    });
    check(Command::new("umount").arg(mount_point)).map_err(io::Error::other)?;
    counted
}

fn read_tree(directory: &Path, sum: &mut Sum) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut todo: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                let mut file = File::open(entry.path())?;
                let mut size = 0;
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        count => size += count as u64,
                    }
                }
                sum.whole += size.div_ceil(PAGE_BYTES);
                sum.files += cached_pages(&file)?;
            }
        }
    }
    Ok(())
}
