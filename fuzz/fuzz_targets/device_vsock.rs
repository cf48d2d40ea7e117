//! virtio-vsock, with both queues made up, one client of the host and one listener.
#![no_main]

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use nacre::devices::notes::Notes;
use nacre::devices::vsock::{Vsock, VsockConfig};
use nacre_fuzz::{Driver, folder};

const ROUNDS: usize = 3;

struct Host {
    path: PathBuf,
    listener: UnixListener,
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

fn host() -> Host {
    let path = folder("fuzz-device-vsock").join("v");
    let listener = UnixListener::bind(path.with_file_name("v_1")).expect("no listener");
    listener.set_nonblocking(true).expect("no listener");
    Host { path, listener }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&split, rest)) = bytes.split_first() else { return };
    let Some((first, second)) = rest.split_at_checked(usize::from(split) * 8) else { return };
    let (Some(mut tx), Some(mut rx)) = (Driver::new(first), Driver::new(second)) else { return };
    HOST.with_borrow_mut(|known| {
        let host = known.get_or_insert_with(host);
        let _ = std::fs::remove_file(&host.path);
        let config = VsockConfig { guest_cid: 3, path: host.path.clone() };
        let mut vsock = Vsock::new(config, Notes::default()).expect("no device");
        let mut client = UnixStream::connect(&host.path).expect("no client");
        client.write_all(b"connect 5\nwords for the guest").expect("no client");
        let mut guests = Vec::new();
        for round in 0..ROUNDS {
            vsock.host_ready().expect("no events");
            vsock.process_tx(&mut tx.queue, &tx.memory);
            if let Ok((mut stream, _)) = host.listener.accept() {
                let _ = stream.write_all(b"words of the host");
                guests.push(stream);
            }
            vsock.process_rx(&mut rx.queue, &rx.memory);
            if round == 1 {
                let _ = client.shutdown(std::net::Shutdown::Write);
            }
        }
    });
});
