//! What the layer tests stand on: real tars, real mounts, and the reference tools.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod erofs_utils;
pub mod mounted;
pub mod snapshot;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nacre_layer_check::{CheckLimits, IndexSummary, check_index};
use nacre_puller::layer::{Compression, IndexedLayer, Limits, index_layer};

/// Says why a test does nothing. In CI everything has to be there.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI this must not be missing: {reason}");
    eprintln!("skipped: {reason}");
}

/// Whether a program can be run.
pub fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok()
}

/// Whether this process may mount EROFS images.
pub fn can_mount() -> bool {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    rustix::process::geteuid().is_root()
        && filesystems.contains("erofs")
        && Path::new("/dev/loop-control").exists()
}

/// Runs a command to its good end.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {error}", output.status);
}

/// A layer as it lies in the store.
pub struct Layer {
    pub tar: PathBuf,
    pub index: PathBuf,
    pub indexed: IndexedLayer,
    pub summary: IndexSummary,
}

/// Indexes a plain tar into `directory`, and checks the index as it is before mounting.
pub fn index(tar: &Path, directory: &Path) -> Layer {
    let create = |name: &str| {
        let path = directory.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        (path, file)
    };
    std::fs::create_dir_all(directory).unwrap();
    let ((tar_out, tar_file), (index, index_file)) = (create("layer.tar"), create("index.erofs"));
    let input = File::open(tar).unwrap();
    let limits = Limits::default();
    let indexed = index_layer(input, Compression::Plain, &tar_file, &index_file, &limits, |_| {})
        .unwrap_or_else(|error| panic!("{}: {error}", tar.display()));
    let (index_bytes, tar_bytes) = (index_file.metadata().unwrap().len(), tar_file.metadata().unwrap().len());
    assert_eq!(indexed.index_bytes, index_bytes);
    let summary = check_index(&index_file, index_bytes, tar_bytes, &CheckLimits::default())
        .unwrap_or_else(|error| panic!("{}: {error}", tar.display()));
    Layer { tar: tar_out, index, indexed, summary }
}
