//! Serves a device to QEMU by the vhost-user protocol (QEMU docs/interop/vhost-user.rst).
//!
//! QEMU gets its end of the connection as an inherited descriptor, so there is no moment at which anybody else
//! could take the place of either side, and nothing to wait for when QEMU does not start.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vhost::vhost_user::{Error as WireError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserBackendMut, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::EventNotifier;

use super::meter::Meter;
use super::notes::Notes;

/// Guest memory as the vhost-user crates hold it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
/// One virtqueue with its event descriptors.
pub type Vring = VringRwLock<Memory>;

/// What a device adds to the backend trait so that it can be served.
pub trait Device: VhostUserBackendMut<Bitmap = (), Vring = Vring> + 'static {
    /// Where it counts the bytes that pass.
    fn metered(&mut self, meter: Meter);
    /// A descriptor besides the queues that wakes the device, with its event number (above the queue count plus 1).
    fn extra_event(&self) -> Option<(std::os::fd::RawFd, u16)>;
    /// What of that descriptor wakes it.
    fn extra_event_set(&self) -> EventSet {
        EventSet::IN
    }
    /// Ends the device's thread.
    fn exit_notifier(&self) -> io::Result<EventNotifier>;
}

/// A device that is being served. Dropping it ends its threads; end QEMU first, or it will notice.
pub struct Served {
    name: &'static str,
    qemu_end: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// A device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("device {name}: {what}")]
    Setup { name: &'static str, what: &'static str, source: io::Error },
    #[error("device {name}: {what}")]
    Make { name: &'static str, what: String },
}

impl Served {
    /// QEMU's end of the connection, to be inherited by it; there once.
    pub fn take_qemu_end(&mut self) -> Option<OwnedFd> {
        self.qemu_end.take()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Without QEMU's end the backend sees the connection close.
        self.qemu_end = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("nacre: the thread of device {} failed", self.name);
        }
    }
}

/// Makes the device by `make` in a thread of its own (so that `make` can confine that thread and those it starts)
/// and serves it there.
///
/// # Errors
/// What `make` says, or the connection cannot be set up.
pub fn serve<D: Device>(
    name: &'static str,
    runtime_dir: &Path,
    memory: Memory,
    notes: Notes,
    make: impl FnOnce(Memory) -> Result<D, String> + Send + 'static,
) -> Result<Served, ServeError> {
    let setup = |what| move |source| ServeError::Setup { name, what, source };
    let (listener, qemu_end) = connected_pair(runtime_dir, name).map_err(setup("cannot connect"))?;
    let (made, report) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("nacre-{name}"))
        .spawn(move || {
            let device = match make(memory.clone()) {
                Ok(device) => device,
                Err(what) => {
                    let _ = made.send(Err(what));
                    return;
                }
            };
            let _ = made.send(Ok(()));
            if let Err(error) = run(name, listener, memory, device) {
                notes.add(format_args!("device {name}: {error}"));
            }
        })
        .map_err(setup("cannot start a thread"))?;
    let served = Served { name, qemu_end: Some(qemu_end), thread: Some(thread) };
    match report.recv() {
        Ok(Ok(())) => Ok(served),
        Ok(Err(what)) => Err(ServeError::Make { name, what }),
        Err(_) => Err(ServeError::Make { name, what: "its thread ended early".to_owned() }),
    }
}

/// A listener with one client already in its queue: the crates below want a listener. Its path is gone again.
fn connected_pair(runtime_dir: &Path, name: &str) -> io::Result<(Listener, OwnedFd)> {
    let path = runtime_dir.join(format!("{name}.vu"));
    let listener = UnixListener::bind(&path)?;
    let client = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((Listener::from(listener), client?.into()))
}

fn run<D: Device>(
    name: &'static str,
    mut listener: Listener,
    memory: Memory,
    device: D,
) -> Result<(), Box<dyn std::error::Error>> {
    let (extra, set) = (device.extra_event(), device.extra_event_set());
    let exit = device.exit_notifier()?;
    let device = Arc::new(Mutex::new(device));
    let mut daemon = VhostUserDaemon::new(format!("nacre-{name}-ctl"), device.clone(), memory)
        .map_err(|e| e.to_string())?;
    if let Some((fd, event)) = extra {
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(fd.as_raw_fd(), set, u64::from(event))?;
        }
    }
    let served = daemon.start(&mut listener).and_then(|()| daemon.wait());
    exit.notify()?;
    // Joins the queue threads.
    drop(daemon);
    match served {
        Ok(()) | Err(DaemonError::HandleRequest(WireError::Disconnected | WireError::PartialMessage)) => {
            Ok(())
        }
        Err(error) => Err(error.to_string().into()),
    }
}
