//! [`Vsock`] as a vhost-user device for QEMU's `vhost-user-vsock-device`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::{Vsock, VsockConfig};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;
use crate::devices::vhost_user::{Device, Memory, ServeError, Served, Vring, serve};

/// Entries of a queue: over virtio-mmio QEMU offers the driver its largest size whatever the device.
pub const QUEUE_SIZE: usize = 1024;
const RX: usize = 0;
const TX: usize = 1;
/// QEMU keeps the event queue to itself.
const QUEUES: usize = 2;
/// The event number of the host sockets; the numbers up to `QUEUES` are taken.
const HOST_EVENT: u16 = QUEUES as u16 + 1;
/// Rounds over both queues before the thread looks at its other events.
const MAX_ROUNDS: usize = 64;

/// Makes the device and serves it; see [`serve`].
///
/// # Errors
/// See [`ServeError`].
pub fn serve_vsock(config: VsockConfig, runtime_dir: &Path, notes: Notes) -> Result<Served, ServeError> {
    let memory = Memory::new(vm_memory::GuestMemoryMmap::new());
    let device_notes = notes.clone();
    serve("vsock", runtime_dir, memory, notes, move |memory| device(config, memory, device_notes))
}

/// The device, apart from what carries it.
///
/// # Errors
/// The host's socket cannot be made.
pub fn device(config: VsockConfig, memory: Memory, notes: Notes) -> Result<impl Device, String> {
    Backend::new(config, memory, notes).map_err(|error| {
        let cause = std::error::Error::source(&*error).map(|c| format!(": {c}")).unwrap_or_default();
        format!("{error}{cause}")
    })
}

struct Backend {
    vsock: Vsock,
    memory: Memory,
    event_idx: bool,
    exit: (EventConsumer, EventNotifier),
    notes: Notes,
}

impl Backend {
    fn new(config: VsockConfig, memory: Memory, notes: Notes) -> Result<Backend, Box<dyn std::error::Error>> {
        let vsock = Vsock::new(config, notes.clone())?;
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Backend { vsock, memory, event_idx: false, exit, notes })
    }

    /// Moves packets both ways until there is nothing to do or the rounds are over; then `true` asks to come again.
    fn pump(&mut self, rx: &Vring, tx: &Vring) -> io::Result<bool> {
        for _ in 0..MAX_ROUNDS {
            let sent = self.run_queue(tx, Vsock::process_tx)?;
            let received = self.run_queue(rx, Vsock::process_rx)?;
            let host = self.vsock.host_ready().map_err(io::Error::other)?;
            if !(sent || received || host) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn run_queue(
        &mut self,
        vring: &Vring,
        process: impl Fn(&mut Vsock, &mut virtio_queue::Queue, &vm_memory::GuestMemoryMmap) -> bool,
    ) -> io::Result<bool> {
        let memory = self.memory.memory();
        let mut state = vring.get_mut();
        if !virtio_queue::QueueT::ready(state.get_queue()) {
            return Ok(false);
        }
        let mut used = process(&mut self.vsock, state.get_queue_mut(), &memory);
        // With EVENT_IDX the driver kicks only past the index it is told: say where we are, and look once more.
        if self.event_idx && state.enable_notification().map_err(io::Error::other)? {
            used |= process(&mut self.vsock, state.get_queue_mut(), &memory);
        }
        if used && state.needs_notification().map_err(io::Error::other)? {
            state.signal_used_queue()?;
        }
        Ok(used)
    }
}

impl Device for Backend {
    fn metered(&mut self, meter: Meter) {
        self.vsock.metered(meter);
    }

    fn extra_event(&self) -> Option<(RawFd, u16)> {
        Some((self.vsock.poll_fd().as_raw_fd(), HOST_EVENT))
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

    fn acked_features(&mut self, _features: u64) {
        // The driver negotiates once per start.
        self.vsock.reset();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.vsock.config_space();
        let start = offset as usize;
        space.get(start..start.saturating_add(size as usize)).unwrap_or_default().to_vec()
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
        let (Some(rx), Some(tx)) = (vrings.get(RX), vrings.get(TX)) else { return Ok(()) };
        // Host sockets are looked at even while the driver is not there: clients must be able to leave.
        if event == HOST_EVENT {
            self.vsock.host_ready().map_err(io::Error::other)?;
        }
        match self.pump(rx, tx) {
            Ok(false) => {}
            // The driver may not kick again for what it has queued already.
            Ok(true) => self.vsock.wake(),
            // A queue that the guest broke: it stays broken until the guest sets it up anew.
            Err(error) => self.notes.add(format_args!("vsock queue: {error}")),
        }
        Ok(())
    }
}
