//! What block, network, entropy and file system devices have in common: requests are taken off a queue and answered one by one.

use std::io;
use std::os::fd::RawFd;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::meter::Meter;
use super::notes::Notes;
use super::vhost_user::{Device, Memory, Vring};

/// The event number of the host's side, above those of any device's queues.
const STREAM_EVENT: u16 = 64;

/// A device with queues, apart from whatever carries it.
pub trait Queues: Send + Sync + 'static {
    /// For messages.
    const NAME: &'static str;
    const COUNT: usize;
    /// Entries of a queue.
    const SIZE: usize = 256;

    /// What QEMU wants of the connection.
    const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::empty();

    /// Feature bits besides those of the transport and the rings.
    fn features(&self) -> u64;

    /// Where it counts the bytes that pass.
    fn metered(&mut self, meter: Meter);

    /// What the driver took of them.
    fn negotiated(&mut self, _features: u64) {}

    /// Answers what lies in queue `index`; whether anything was given back to the driver.
    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> bool;

    /// Whether the driver is to be told of what was given back though the ring does not ask for it: the ring's own count is of
    /// the last chain alone.
    fn interrupts_anyway(&mut self) -> bool {
        false
    }

    /// A descriptor on the host's side. When it becomes readable or writable, every queue is looked at.
    fn stream(&self) -> Option<RawFd> {
        None
    }
}

/// Such a device as whoever carries it wants it.
pub struct QueueDevice<Q> {
    queues: Q,
    memory: Memory,
    event_idx: bool,
    exit: (EventConsumer, EventNotifier),
    notes: Notes,
}

impl<Q: Queues> QueueDevice<Q> {
    /// # Errors
    /// No descriptor is left.
    pub fn new(queues: Q, memory: Memory, notes: Notes) -> io::Result<Self> {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self { queues, memory, event_idx: false, exit, notes })
    }

    fn run_queue(&mut self, index: usize, vring: &Vring) -> io::Result<()> {
        let memory = self.memory.memory();
        let mut state = vring.get_mut();
        if !state.get_queue().ready() {
            return Ok(());
        }
        let mut used = self.queues.process(index, state.get_queue_mut(), &memory);
        // With EVENT_IDX the driver kicks only past the index it is told: say where we are, and look once more.
        while self.event_idx && state.enable_notification().map_err(io::Error::other)? {
            let more = self.queues.process(index, state.get_queue_mut(), &memory);
            used |= more;
            if !more {
                break;
            }
        }
        let asked = used && state.needs_notification().map_err(io::Error::other)?;
        if asked || self.queues.interrupts_anyway() {
            state.signal_used_queue()?;
        }
        Ok(())
    }
}

impl<Q: Queues> Device for QueueDevice<Q> {
    fn metered(&mut self, meter: Meter) {
        self.queues.metered(meter);
    }

    fn extra_event(&self) -> Option<(RawFd, u16)> {
        Some((self.queues.stream()?, STREAM_EVENT))
    }

    fn extra_event_set(&self) -> EventSet {
        // Once for each change: while the guest has no room, what waits there must not wake us again and again.
        EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED
    }

    fn exit_notifier(&self) -> io::Result<EventNotifier> {
        self.exit.1.try_clone()
    }
}

impl<Q: Queues> VhostUserBackendMut for QueueDevice<Q> {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        Q::COUNT
    }

    fn max_queue_size(&self) -> usize {
        Q::SIZE
    }

    fn features(&self) -> u64 {
        self.queues.features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            // For a vhost-user connection; no driver is shown it.
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&mut self, features: u64) {
        self.queues.negotiated(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        Q::PROTOCOL
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
        for (index, vring) in vrings.iter().enumerate().take(Q::COUNT) {
            if event != STREAM_EVENT && usize::from(event) != index {
                continue;
            }
            if let Err(error) = self.run_queue(index, vring) {
                // A queue that the guest broke: it stays broken until the guest sets it up anew.
                self.notes.add(format_args!("{} queue {index}: {error}", Q::NAME));
            }
        }
        Ok(())
    }
}
