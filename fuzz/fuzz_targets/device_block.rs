//! virtio-blk, with a queue that is made up: the file never grows, and one that is read-only never changes.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nacre::devices::block::Disk;
use nacre::devices::notes::Notes;
use nacre_fuzz::{Driver, folder};

const DISK_BYTES: u64 = 64 << 10;
const MARK: &[u8] = b"the last sector but one";

static FILE: OnceLock<File> = OnceLock::new();

fn file() -> &'static File {
    FILE.get_or_init(|| {
        let mut options = File::options();
        let path = folder("fuzz-device-block").join(std::process::id().to_string());
        let file = options.read(true).write(true).create_new(true).open(&path).expect("no file");
        std::fs::remove_file(path).expect("no file");
        file.set_len(DISK_BYTES).expect("no room");
        file
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((read_only, bytes)) = bytes.split_first() else { return };
    let Some(mut driver) = Driver::new(bytes) else { return };
    let read_only = read_only & 1 == 1;
    file().write_all_at(MARK, DISK_BYTES - 1024).expect("no room");
    let disk = Disk::new(file().try_clone().expect("no descriptor"), read_only, true, Notes::default());
    driver.drive(&mut disk.expect("no disk"));
    assert_eq!(file().metadata().expect("no file").len(), DISK_BYTES);
    let mut mark = [0; MARK.len()];
    file().read_exact_at(&mut mark, DISK_BYTES - 1024).expect("no file");
    assert!(!read_only || mark == MARK);
});
