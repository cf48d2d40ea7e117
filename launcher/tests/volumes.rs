//! Storage plans about files that the host sends and volumes that are mounted, in a mount namespace of the test's own.

mod harness;

use harness::Guest;
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{AGENT_UID, SHARED_DIR};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

const KATA: &str = "/run/kata-containers";

fn copy(name: &str, content: Copied) -> FileCopy {
    let path = format!("{SHARED_DIR}/{name}");
    FileCopy { path, content, mode: 0o640, directory_mode: 0o750, uid: Some(1000), gid: Some(1001) }
}

fn part(offset: u64, size: u64, data: &[u8]) -> Copied {
    Copied::Part { offset, size, data: data.to_vec() }
}

/// With the shared directory, which a share or the sandbox makes.
fn guest() -> Option<Guest> {
    let guest = Guest::new()?;
    let shared = StorageStep::Directory { path: SHARED_DIR.to_owned(), mode: 0o755, group: None };
    guest.storage(vec![shared]).unwrap();
    Some(guest)
}

#[test]
fn a_file_gets_its_name_when_its_last_part_is_there() {
    let Some(guest) = guest() else { return };
    let send = |content| guest.storage(vec![StorageStep::Copy(copy("a/b/file", content))]);
    let path = format!("{SHARED_DIR}/a/b/file");
    send(part(0, 3, b"old")).unwrap();
    send(part(0, 8, b"abc")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old", "what was there stays until all is");
    send(part(3, 8, b"def")).unwrap();
    // Sent again, then the rest.
    send(part(3, 8, b"def")).unwrap();
    send(part(6, 8, b"gh")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"abcdefgh");
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 1000, 1001));
    let parent = fs::metadata(format!("{SHARED_DIR}/a")).unwrap();
    assert_eq!((parent.mode() & 0o7777, parent.uid()), (0o750, 1000));
    assert_eq!(fs::read_dir(format!("{SHARED_DIR}/a/b")).unwrap().count(), 1, "something was left beside it");
    // A part that does not follow, and one for which there was no first.
    send(part(0, 100, b"x")).unwrap();
    assert!(send(part(50, 100, b"x")).unwrap_err().message.contains("1 bytes are there"));
    let other = StorageStep::Copy(copy("other", part(5, 10, b"x")));
    assert_eq!(guest.storage(vec![other]).unwrap_err().errno, 2);
    send(part(0, 0, b"")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn directories_and_links_are_copied_and_nothing_leaves_the_shared_directory() {
    let Some(guest) = guest() else { return };
    let send = |name: &str, content| guest.storage(vec![StorageStep::Copy(copy(name, content))]);
    send("dir", Copied::Directory).unwrap();
    send("dir", Copied::Directory).unwrap();
    let found = fs::metadata(format!("{SHARED_DIR}/dir")).unwrap();
    assert!(found.is_dir() && found.mode() & 0o7777 == 0o640 && found.gid() == 1001);
    for target in ["one", "../two"] {
        send("dir/link", Copied::Link { target: target.to_owned() }).unwrap();
        assert_eq!(fs::read_link(format!("{SHARED_DIR}/dir/link")).unwrap().to_str(), Some(target));
    }
    // A link on the way is not followed, one in its place is replaced.
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), format!("{SHARED_DIR}/out")).unwrap();
    assert_eq!(send("out/file", part(0, 1, b"x")).unwrap_err().errno, 40);
    send("out", part(0, 1, b"x")).unwrap();
    assert_eq!(fs::read(format!("{SHARED_DIR}/out")).unwrap(), b"x");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    for bad in [
        FileCopy { path: format!("{KATA}/sandbox/resolv.conf"), ..copy("x", part(0, 0, b"")) },
        FileCopy { path: format!("{SHARED_DIR}/../../x"), ..copy("x", part(0, 0, b"")) },
        FileCopy { uid: Some(AGENT_UID), ..copy("x", part(0, 0, b"")) },
        FileCopy { mode: 0o10640, ..copy("x", part(0, 0, b"")) },
        copy("x", part(5, 5, b"x")),
        copy(&"n".repeat(241), part(0, 0, b"")),
        copy("x", Copied::Link { target: String::new() }),
    ] {
        let failure = guest.storage(vec![StorageStep::Copy(bad.clone())]).unwrap_err();
        assert_eq!(failure.stage, LaunchStage::Plan, "{bad:?}: {failure:?}");
    }
}

#[test]
fn volumes_are_measured_changed_and_read() {
    let Some(guest) = guest() else { return };
    let mount_point = format!("{KATA}/shm");
    let data = vec!["size=1m".to_owned()];
    let attributes = MountAttributes::default();
    let mount = StorageStep::Tmpfs { mount_point: mount_point.clone(), data, attributes };
    guest.storage(vec![mount]).unwrap();
    fs::write(format!("{mount_point}/file"), vec![b'x'; 100_000]).unwrap();
    let ask = |step| match guest.launch(Mode::Storage, &Plan::Storage(vec![step])).next_status() {
        Some((Status::Done(outcome), _)) => Ok(outcome),
        Some((Status::Failed(failure), _)) => Err(failure),
        other => panic!("{other:?}"),
    };
    let usage = |path: &str| match ask(StorageStep::Usage { path: path.to_owned() }).unwrap() {
        Outcome::Usage { bytes, inodes } => (bytes.total, bytes.used, bytes.available, inodes.used),
        other => panic!("{other:?}"),
    };
    assert_eq!(usage(&mount_point), (1 << 20, 102_400, (1 << 20) - 102_400, 2));
    let change = |path: &str| StorageStep::ChangeTmpfs {
        mount_point: path.to_owned(),
        data: vec!["size=2m".to_owned()],
    };
    guest.storage(vec![change(&mount_point)]).unwrap();
    assert_eq!(usage(&mount_point).0, 2 << 20);
    // No mount of its own: that would change somebody else's.
    assert_eq!(guest.storage(vec![change(SHARED_DIR)]).unwrap_err().errno, 22);
    let read = |path: String, length| ask(StorageStep::Read { path, length });
    let content = Outcome::Content { bytes: vec![b'x'; 10] };
    assert_eq!(read(format!("{mount_point}/file"), 10), Ok(content));
    assert!(read(mount_point.clone(), 10).unwrap_err().message.contains("no regular file"));
    assert_eq!(read(format!("{mount_point}/none"), 10).unwrap_err().errno, 2);
    assert_eq!(read("/etc/passwd".to_owned(), 10).unwrap_err().stage, LaunchStage::Plan);
    guest.storage(vec![StorageStep::UnmountStale]).unwrap();
}

#[test]
fn a_directory_may_belong_to_a_group() {
    let Some(guest) = guest() else { return };
    let path = format!("{KATA}/volume");
    let step = |group| StorageStep::Directory { path: path.clone(), mode: 0o2770, group: Some(group) };
    guest.storage(vec![step(4711)]).unwrap();
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o7777, found.gid(), found.uid()), (0o2770, 4711, 0));
    assert_eq!(guest.storage(vec![step(AGENT_UID)]).unwrap_err().stage, LaunchStage::Plan);
}

#[test]
fn a_removal_that_was_broken_off_is_taken_up_again() {
    let Some(guest) = guest() else { return };
    let own = std::path::Path::new(nacre_protocols::names::UPPER_DIR).join("box");
    // What was moved up to be removed, and was not.
    for place in [".0/deep/er", ".1", "upper/a/b/c", "upper/d/e", "work/work"] {
        fs::create_dir_all(own.join(place)).unwrap();
        fs::write(own.join(place).join("file"), "x").unwrap();
    }
    guest.storage(vec![StorageStep::RemoveWritable { container: "box".to_owned() }]).unwrap();
    assert!(!own.exists());
}
