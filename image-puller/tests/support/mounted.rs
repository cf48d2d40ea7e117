use std::path::{Path, PathBuf};
use std::process::Command;

use super::run;

/// A mount that ends with its value, together with the loop devices made for it.
pub struct Mounted {
    pub at: PathBuf,
    loops: Vec<LoopDevice>,
}

struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &Path) -> Self {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--read-only"]).arg(file);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        LoopDevice(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

impl Mounted {
    /// An index over its tar, at `at`.
    pub fn layer(index: &Path, tar: &Path, at: &Path) -> Self {
        let (index, tar) = (LoopDevice::new(index), LoopDevice::new(tar));
        std::fs::create_dir_all(at).unwrap();
        let options = format!("ro,device={}", tar.0);
        run(Command::new("mount").args(["-t", "erofs", "-o", &options, &index.0]).arg(at));
        Mounted { at: at.to_owned(), loops: vec![index, tar] }
    }

    /// Layers above each other, the topmost first.
    pub fn overlay(layers: &[&Path], at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let layers: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let options = format!("ro,lowerdir={}", layers.join(":"));
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(at));
        Mounted { at: at.to_owned(), loops: Vec::new() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
        self.loops.clear();
    }
}
