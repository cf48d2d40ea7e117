//! Directories that containers watch, by storage plans, in a mount namespace of the test's own.

mod harness;

use harness::Guest;
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::SHARED_DIR;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

const SOURCE: &str = "/run/kata-containers/shared/containers/volume";
const PLACE: &str = "/run/kata-containers/shared/containers/watchable/volume";

fn guest() -> Option<Guest> {
    let guest = Guest::new()?;
    fs::create_dir_all(SHARED_DIR).unwrap();
    fs::create_dir(SOURCE).unwrap();
    Some(guest)
}

fn show(guest: &Guest) -> Result<(), LaunchFailure> {
    guest.storage(vec![StorageStep::Watched { source: SOURCE.to_owned(), mount_point: PLACE.to_owned() }])
}

fn unmount(guest: &Guest) {
    guest.storage(vec![StorageStep::Unmount { mount_point: PLACE.to_owned() }]).unwrap();
    assert!(!Path::new(PLACE).exists());
}

fn source(name: &str) -> PathBuf {
    Path::new(SOURCE).join(name)
}

/// What is there: paths with what they hold, links with where they lead.
fn tree(root: &str) -> Vec<String> {
    fn add(root: &Path, at: &Path, all: &mut Vec<String>) {
        for entry in fs::read_dir(at).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let found = fs::symlink_metadata(&path).unwrap();
            let rights = format!("{:o} {}:{}", found.mode() & 0o7777, found.uid(), found.gid());
            if found.is_symlink() {
                all.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else if found.is_dir() {
                all.push(format!("{name}/ {rights}"));
                add(root, &path, all);
            } else {
                all.push(format!("{name} {rights} {:?}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut all = Vec::new();
    add(Path::new(root), Path::new(root), &mut all);
    all.sort();
    all
}

#[test]
fn a_small_directory_is_copied_and_follows_every_change() {
    let Some(guest) = guest() else { return };
    // As Kubernetes lays a volume out, and changes it.
    let write = |version: &str, text: &str| {
        fs::create_dir(source(version)).unwrap();
        fs::write(source(version).join("key"), text).unwrap();
        fs::set_permissions(source(version).join("key"), PermissionsExt::from_mode(0o640)).unwrap();
        chown(source(version).join("key"), Some(7), Some(8)).unwrap();
        let _ = fs::remove_file(source("..data_tmp"));
        symlink(version, source("..data_tmp")).unwrap();
        fs::rename(source("..data_tmp"), source("..data")).unwrap();
    };
    write("..one", "old");
    symlink("..data/key", source("key")).unwrap();
    show(&guest).unwrap();
    let expected = ["..data -> ..one", "..one/ 755 0:0", "..one/key 640 7:8 \"old\"", "key -> ..data/key"];
    assert_eq!(tree(PLACE), expected);
    assert_ne!(fs::metadata(PLACE).unwrap().dev(), fs::metadata(SOURCE).unwrap().dev(), "a tmpfs of its own");
    let before = fs::metadata(format!("{PLACE}/..one/key")).unwrap().ino();
    show(&guest).unwrap();
    assert_eq!(
        fs::metadata(format!("{PLACE}/..one/key")).unwrap().ino(),
        before,
        "what is same is left alone"
    );
    write("..two", "new");
    fs::remove_dir_all(source("..one")).unwrap();
    show(&guest).unwrap();
    assert_eq!(fs::read_to_string(format!("{PLACE}/key")).unwrap(), "new");
    assert_eq!(tree(PLACE), tree(SOURCE));
    // Each kind in the place of another.
    fs::remove_dir_all(source("..two")).unwrap();
    fs::write(source("..two"), "a file").unwrap();
    fs::remove_file(source("key")).unwrap();
    fs::create_dir_all(source("key/deeper")).unwrap();
    fs::remove_file(source("..data")).unwrap();
    show(&guest).unwrap();
    assert_eq!(tree(PLACE), ["..two 644 0:0 \"a file\"", "key/ 755 0:0", "key/deeper/ 755 0:0"]);
    fs::remove_dir_all(source("key")).unwrap();
    symlink("..two", source("key")).unwrap();
    show(&guest).unwrap();
    assert_eq!(tree(PLACE), ["..two 644 0:0 \"a file\"", "key -> ..two"]);
    unmount(&guest);
    assert_eq!(tree(SOURCE), ["..two 644 0:0 \"a file\"", "key -> ..two"], "the source is only read");
}

#[test]
fn what_is_too_large_or_a_file_is_bound() {
    let Some(guest) = guest() else { return };
    let is_bound = || {
        let (place, source) = (fs::metadata(PLACE).unwrap(), fs::metadata(SOURCE).unwrap());
        (place.dev(), place.ino()) == (source.dev(), source.ino())
    };
    fs::write(source("large"), vec![0; WATCHED_BYTES_MAX as usize + 1]).unwrap();
    show(&guest).unwrap();
    assert!(is_bound());
    show(&guest).unwrap();
    assert!(source("large").exists(), "it was copied onto itself");
    unmount(&guest);
    fs::remove_file(source("large")).unwrap();
    for number in 0..=WATCHED_FILES_MAX {
        fs::write(source(&number.to_string()), "").unwrap();
    }
    show(&guest).unwrap();
    assert!(is_bound());
    unmount(&guest);
    // One that grows is not shown half.
    fs::remove_file(source("0")).unwrap();
    show(&guest).unwrap();
    assert!(!is_bound());
    fs::write(source("0"), "").unwrap();
    let failure = show(&guest).unwrap_err();
    assert!(failure.message.contains("more than 64 entries"), "{failure:?}");
    assert!(!Path::new(PLACE).join("0").exists());
    unmount(&guest);
    fs::remove_dir_all(SOURCE).unwrap();
    fs::write(SOURCE, "one file").unwrap();
    show(&guest).unwrap();
    show(&guest).unwrap();
    assert!(is_bound());
    unmount(&guest);
    // Nothing is mounted on it: it is somebody's own.
    guest.storage(vec![StorageStep::Unmount { mount_point: SOURCE.to_owned() }]).unwrap();
    assert_eq!(fs::read_to_string(SOURCE).unwrap(), "one file");
}

#[test]
fn nothing_is_followed_out_of_the_directory() {
    let Some(guest) = guest() else { return };
    symlink("/etc", source("etc")).unwrap();
    show(&guest).unwrap();
    assert_eq!(tree(PLACE), ["etc -> /etc"]);
    let step = |source: &str, mount_point: &str| {
        let step = StorageStep::Watched { source: source.to_owned(), mount_point: mount_point.to_owned() };
        guest.storage(vec![step]).unwrap_err()
    };
    assert_eq!(step("/etc", PLACE).stage, LaunchStage::Plan);
    assert_eq!(step(SOURCE, "/etc").stage, LaunchStage::Plan);
    assert_eq!(step(&format!("{SOURCE}/etc"), &format!("{PLACE}2")).errno, 40);
}
