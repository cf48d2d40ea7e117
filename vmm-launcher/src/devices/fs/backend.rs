//! [`SharedDirs`] as a device: requests off a queue, answers back. Under QEMU it is served to `vhost-user-fs-device`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhost::vhost_user::VhostUserProtocolFeatures;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::confine::confine;
use super::{FsError, Share, SharedDirs};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;
use crate::devices::queues::{QueueDevice, Queues};
use crate::devices::vhost_user::{Device, Memory, Served, serve};

/// Descriptors of one request: 256 pages each way and the headers.
const MAX_DESCRIPTORS: usize = 1024;

/// Opens the shares, confines the device's threads and serves it; see [`serve`].
///
/// # Errors
/// See [`FsError`].
pub fn serve_fs(shares: Vec<Share>, runtime_dir: &Path, notes: Notes) -> Result<Served, FsError> {
    let shared = SharedDirs::open(&shares, raise_file_limit())?;
    let memory = Memory::new(GuestMemoryMmap::new());
    let device_notes = notes.clone();
    let served =
        serve("fs", runtime_dir, memory, notes, move |memory| confined(shared, memory, device_notes))?;
    Ok(served)
}

/// The device, in the thread that is to serve it: confines that thread.
pub fn confined(shared: SharedDirs, memory: Memory, notes: Notes) -> Result<impl Device, String> {
    let fs = open_confined(shared, notes.clone())?;
    QueueDevice::new(fs, memory, notes).map_err(|error| error.to_string())
}

/// The same, apart from what carries it.
pub fn open_confined(shared: SharedDirs, notes: Notes) -> Result<Fs, String> {
    let weakness = confine(shared.shares()).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|c| format!(": {c}")).unwrap_or_default();
        format!("{error}{cause}")
    })?;
    if let Some(weakness) = weakness {
        notes.add(weakness);
    }
    Ok(Fs { server: Server::new(shared), notes, meter: Meter::default(), broken: false })
}

/// Every inode that the guest knows is an open file here. Returns how many files this process may have now.
pub fn raise_file_limit() -> u64 {
    const ASKED: u64 = 524_288;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(ASKED).min(ASKED);
    let current = limit.current.unwrap_or(ASKED);
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(_) => current,
    }
}

/// The device apart from its carrier: takes requests off a queue and answers them.
pub struct Fs {
    server: Server<SharedDirs>,
    notes: Notes,
    meter: Meter,
    broken: bool,
}

impl Fs {
    fn answer(&mut self, memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
        if chain.clone().take(MAX_DESCRIPTORS + 1).count() > MAX_DESCRIPTORS {
            self.notes.add(format_args!("virtio-fs: a request of more than {MAX_DESCRIPTORS} descriptors"));
            return 0;
        }
        let reader = Reader::from_descriptor_chain(memory, chain.clone());
        let writer = VirtioFsWriter::new(memory, chain);
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            self.notes.add("virtio-fs: a request outside guest memory");
            return 0;
        };
        self.meter.from_guest(reader.available_bytes() as u64);
        // The FUSE decoder is not ours. A panic in it must not take the program down; the device stops instead.
        let handled = catch_unwind(AssertUnwindSafe(|| {
            self.server.handle_message(reader, Writer::VirtioFs(writer), None, None)
        }));
        match handled {
            Ok(Ok(len)) => u32::try_from(len).unwrap_or(0),
            Ok(Err(error)) => {
                self.notes.add(format_args!("virtio-fs: a malformed request: {error}"));
                0
            }
            Err(_) => {
                self.broken = true;
                self.notes.add("virtio-fs: the FUSE server failed; the device is stopped");
                0
            }
        }
    }
}

impl Queues for Fs {
    const NAME: &'static str = "virtio-fs";
    /// The high-priority queue and one for requests.
    const COUNT: usize = 2;
    /// Over virtio-mmio QEMU offers the driver its largest size whatever the device.
    const SIZE: usize = 1024;
    const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ;

    fn features(&self) -> u64 {
        0
    }

    fn metered(&mut self, meter: Meter) {
        self.meter = meter;
    }

    /// Answers every request in the queue.
    fn process(&mut self, _index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        // Ends when the driver stops adding: each request is answered before the next is looked at.
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            if self.broken {
                queue.go_to_previous_position();
                break;
            }
            let head = chain.head_index();
            let len = self.answer(memory, chain);
            self.meter.to_guest(len.into());
            if let Err(error) = queue.add_used(memory, head, len) {
                self.notes.add(format_args!("virtio-fs used ring: {error}"));
            }
            used = true;
        }
        used
    }
}
