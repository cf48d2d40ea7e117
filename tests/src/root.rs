//! Root file systems that need no image.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::tool;

/// Of busybox, beneath a folder that is made.
///
/// # Panics
/// There is no busybox here.
pub fn of_busybox(root: &Path) {
    let busybox = tool::find("busybox").expect("no busybox");
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(folder)).expect("no folder");
    }
    std::fs::copy(busybox, root.join("bin/busybox")).expect("no copy");
    for name in [
        "cat", "cut", "date", "df", "grep", "head", "hostname", "od", "sh", "stat", "test", "sleep", "stty",
        "tail", "tr", "true", "wc",
    ] {
        symlink("busybox", root.join("bin").join(name)).expect("no link");
    }
}
