//! A layout becomes an EROFS image.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Content, Entry, Error, Layout};

/// High-compression LZ4: packing is slow, reading is as fast as plain LZ4.
const COMPRESSION: &str = "-zlz4hc,12";
/// How much is decompressed for the sake of one page that is read. Larger packs better and reads worse.
const CLUSTER_BYTES: u32 = 16 << 10;
/// The image's identity is its digest; a random identifier would change it.
const UUID: &str = "6e616372-6500-4000-8000-000000000001";

/// Writes the image of `layout` to `image`. `work` is an empty directory that the caller removes.
pub fn pack(layout: &Layout, work: &Path, image: &Path) -> Result<(), Error> {
    let root = work.join("root");
    stage(layout, &root)?;
    let output = Command::new("mkfs.erofs")
        .args([COMPRESSION, "-T0", "--all-root", "-x-1", "--quiet"])
        .arg(format!("-C{CLUSTER_BYTES}"))
        .arg(format!("-U{UUID}"))
        .arg(image)
        .arg(&root)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start { program: "mkfs.erofs".to_owned(), source })?;
    if !output.status.success() {
        let detail = format!(": {}", String::from_utf8_lossy(&output.stderr).trim());
        return Err(Error::Failed { program: "mkfs.erofs".to_owned(), status: output.status, detail });
    }
    Ok(())
}

/// Lays the tree out on disk. Modes are set explicitly: the umask of the caller has no say.
fn stage(layout: &Layout, root: &Path) -> Result<(), Error> {
    make_directory(root, 0o755)?;
    for (path, Entry { mode, content }) in layout.entries() {
        let path = root.join(path);
        match content {
            Content::Directory => make_directory(&path, *mode)?,
            Content::Bytes(bytes) => {
                fs::write(&path, bytes).map_err(Error::io("cannot write", &path))?;
                set_mode(&path, *mode)?;
            }
            Content::File(file) => {
                fs::copy(file, &path).map_err(Error::io("cannot copy", file))?;
                set_mode(&path, *mode)?;
            }
            Content::Link(text) => symlink(text, &path).map_err(Error::io("cannot link", &path))?,
        }
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir(path).map_err(Error::io("cannot make", path))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("cannot set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_layout(folder: &Path) -> Layout {
        let file = folder.join("program");
        fs::write(&file, b"#!/bin/sh\n".repeat(10_000)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        let mut layout = Layout::default();
        layout.extra("sbin/init", &file).unwrap();
        layout.directory("proc").unwrap();
        layout
    }

    #[test]
    fn two_packings_give_the_same_bytes() {
        if Command::new("mkfs.erofs").arg("-V").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "mkfs.erofs is missing");
            eprintln!("skipped: mkfs.erofs (package erofs-utils) is missing");
            return;
        }
        let images: Vec<Vec<u8>> = (0..2)
            .map(|_| {
                let folder = tempfile::tempdir().unwrap();
                let layout = some_layout(folder.path());
                let (work, image) = (folder.path().join("work"), folder.path().join("image"));
                fs::create_dir(&work).unwrap();
                pack(&layout, &work, &image).unwrap();
                fs::read(image).unwrap()
            })
            .collect();
        assert_eq!(images[0][1024..1028], 0xE0F5_E1E2_u32.to_le_bytes(), "the magic number of EROFS");
        assert!(images[0] == images[1]);
    }

    #[test]
    fn the_staged_tree_has_the_modes_of_the_layout() {
        let folder = tempfile::tempdir().unwrap();
        let layout = some_layout(folder.path());
        let root = folder.path().join("root");
        stage(&layout, &root).unwrap();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("proc"), mode("sbin"), mode("sbin/init")), (0o755, 0o755, 0o755, 0o555));
    }
}
