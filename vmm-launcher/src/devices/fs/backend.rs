//! [`SharedDirs`] as a vhost-user device for QEMU's `vhost-user-fs-device`.

use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::confine::confine;
use super::{FsError, Share, SharedDirs};
use crate::devices::notes::Notes;
use crate::devices::vhost_user::{Device, Memory, Served, Vring, serve};

/// The high-priority queue and one for requests.
const QUEUES: usize = 2;
/// Entries of a queue: over virtio-mmio QEMU offers the driver its largest size whatever the device.
const QUEUE_SIZE: usize = 1024;
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
    let weakness = confine(shared.shares()).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|c| format!(": {c}")).unwrap_or_default();
        format!("{error}{cause}")
    })?;
    if let Some(weakness) = weakness {
        notes.add(weakness);
    }
    let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
    let exit = exit.map_err(|e| e.to_string())?;
    let fs = Fs { server: Server::new(shared), notes, broken: false };
    Ok(Backend { fs, memory, event_idx: false, exit })
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
    broken: bool,
}

impl Fs {
    /// Answers every request in the queue; returns whether there was one.
    pub fn process(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool {
        let mut used = false;
        // Ends when the driver stops adding: each request is answered before the next is looked at.
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            if self.broken {
                queue.go_to_previous_position();
                break;
            }
            let head = chain.head_index();
            let len = self.answer(memory, chain);
            if let Err(error) = queue.add_used(memory, head, len) {
                self.notes.add(format_args!("virtio-fs used ring: {error}"));
            }
            used = true;
        }
        used
    }

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

struct Backend {
    fs: Fs,
    memory: Memory,
    event_idx: bool,
    exit: (EventConsumer, EventNotifier),
}

impl Backend {
    fn run_queue(&mut self, vring: &Vring) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut state = vring.get_mut();
        if !state.get_queue().ready() {
            return Ok(());
        }
        let mut used = self.fs.process(state.get_queue_mut(), &memory);
        // With EVENT_IDX the driver kicks only past the index it is told: say where we are, and look once more.
        while self.event_idx && state.enable_notification().map_err(io::Error::other)? {
            let more = self.fs.process(state.get_queue_mut(), &memory);
            used |= more;
            if !more {
                break;
            }
        }
        if used && state.needs_notification().map_err(io::Error::other)? {
            state.signal_used_queue()?;
        }
        Ok(())
    }
}

impl Device for Backend {
    fn extra_event(&self) -> Option<(RawFd, u16)> {
        None
    }

    fn exit_notifier(&self) -> io::Result<EventNotifier> {
        self.exit.1.try_clone()
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(event)) else { return Ok(()) };
        if let Err(error) = self.run_queue(vring) {
            self.fs.notes.add(format_args!("virtio-fs queue: {error}"));
        }
        Ok(())
    }
}
