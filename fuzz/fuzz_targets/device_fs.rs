//! virtio-fs, with a queue that is made up, in a thread that landlock keeps in the shared directories. Nothing outside changes.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use libfuzzer_sys::fuzz_target;
use nacre::devices::fs::backend::{Fs, open_confined};
use nacre::devices::fs::{Access, Share, SharedDirs};
use nacre::devices::notes::Notes;
use nacre_fuzz::{Driver, folder};

/// Files that the guest may have open.
const FILES_MAX: u64 = 256;
/// Requests until the directories are made anew.
const TURNS: usize = 2000;
const SECRET: &str = "nobody writes this";

/// A thread with a device in it.
struct Served {
    drivers: SyncSender<Driver>,
    done: Receiver<()>,
}

struct Worker {
    served: Option<Served>,
    turns: usize,
}

fn serve(folder: &Path) -> Served {
    let make = |name: &str| std::fs::create_dir_all(folder.join(name)).expect("no directory");
    ["rw/sub", "ro"].into_iter().for_each(make);
    let write = |name: &str| std::fs::write(folder.join(name), SECRET).expect("no file");
    ["rw/file", "ro/file", "secret"].into_iter().for_each(write);
    std::os::unix::fs::symlink("../secret", folder.join("rw/link")).expect("no link");
    let share = |name: &str, access| Share { name: name.to_owned(), host: folder.join(name), access };
    let shares = [share("rw", Access::ReadWrite), share("ro", Access::ReadOnly)];
    let (drivers, work) = sync_channel::<Driver>(0);
    let (report, done) = sync_channel(0);
    std::thread::spawn(move || {
        let shared = SharedDirs::open(&shares, FILES_MAX).expect("no shares");
        let mut device: Fs = open_confined(shared, Notes::default()).expect("not confined");
        for mut driver in work {
            driver.drive(&mut device);
            report.send(()).expect("nobody waits");
        }
    });
    Served { drivers, done }
}

static WORKER: OnceLock<std::sync::Mutex<Worker>> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let Some(driver) = Driver::new(bytes) else { return };
    let worker = WORKER.get_or_init(|| {
        // What the guest makes large is refused, rather than filling this machine's disk; then a signal comes.
        let limit = rustix::process::Rlimit { current: Some(1 << 20), maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).expect("no limit");
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        vmm_sys_util::signal::register_signal_handler(libc::SIGXFSZ, nothing).expect("no handler");
        Worker { served: None, turns: 0 }.into()
    });
    let mut worker = worker.lock().expect("a request failed");
    if worker.turns.is_multiple_of(TURNS) {
        worker.served = None;
        worker.served = Some(serve(&folder("fuzz-device-fs")));
    }
    worker.turns += 1;
    let served = worker.served.as_ref().expect("nobody serves");
    served.drivers.send(driver).expect("the device is gone");
    served.done.recv().expect("the device failed");
    if worker.turns.is_multiple_of(64) {
        let read = |name: &str| {
            std::fs::read_to_string(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz-device-fs").join(name),
            )
        };
        assert_eq!(read("secret").expect("no secret"), SECRET);
        assert_eq!(read("ro/file").expect("no file"), SECRET);
    }
});
