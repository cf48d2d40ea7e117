//! Carries a device in this process: a thread of its own that waits for the driver's kicks, as a vhost-user daemon would.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use vhost_user_backend::VringT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::jail::{self, Kind};
use super::life::Life;
use super::{KvmError, STACK_BYTES};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;
use crate::devices::vhost_user::{Device, Memory, Vring};

/// Bits of a vhost-user connection, which no driver may see.
const CONNECTION_FEATURES: u64 = 1 << 30;
const EVENT_IDX: u64 = 1 << virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
const EVENTS: usize = 16;

/// What a driver has set up of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSetup {
    pub size: u16,
    pub ready: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// A device with its thread, as the transport sees it.
pub trait Carried: Send {
    fn features(&self) -> u64;
    fn queue_size_max(&self) -> u16;
    /// The driver is ready: these features, these queues.
    fn start(&mut self, features: u64, queues: &[QueueSetup]) -> Result<(), String>;
    /// The driver is gone: nothing in guest memory is touched any more.
    fn stop(&mut self);
}

/// A device that runs.
pub struct Carrier<D> {
    device: Arc<Mutex<D>>,
    vrings: Vec<Vring>,
    features: u64,
    queue_size_max: u16,
    /// What the driver's notifications write, and we write to have queues looked at from the start.
    kicks: Vec<EventFd>,
}

impl<D: Device> Carrier<D> {
    /// Makes the device in its thread, which it may confine, and lets it wait.
    ///
    /// `interrupt` tells the guest that something was used. The kicks are [`Carrier::kicks`], one for each queue.
    pub fn start(
        (name, kind): (&'static str, Kind),
        memory: &Memory,
        interrupt: &File,
        (notes, life, meter): (Notes, Arc<Life>, Meter),
        make: impl FnOnce(Memory) -> Result<D, String> + Send + 'static,
    ) -> Result<Self, KvmError> {
        let setup = |source| KvmError::Device(name, source);
        let (made, report) = std::sync::mpsc::sync_channel(1);
        let (handed, handover) = std::sync::mpsc::sync_channel::<(Epoll, Vec<Vring>, Vec<EventFd>)>(1);
        let (confirm, confirmed) = std::sync::mpsc::sync_channel(1);
        let own_memory = memory.clone();
        std::thread::Builder::new()
            .name(format!("nacre-{name}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let device = match make(own_memory) {
                    Ok(mut device) => {
                        device.metered(meter.clone());
                        Arc::new(Mutex::new(device))
                    }
                    Err(problem) => return drop(made.send(Err(problem))),
                };
                let _ = made.send(Ok(Arc::clone(&device)));
                let Ok((epoll, vrings, kicks)) = handover.recv() else { return };
                let confined = jail::confine(kind);
                let _ = confirm.send(confined.is_ok());
                match confined {
                    Ok(()) => serve(name, &device, &epoll, (&vrings, &kicks), &notes, (&life, &meter)),
                    Err(error) => notes.add(format_args!("{name}: {error}")),
                }
            })
            .map_err(setup)?;
        let device = report
            .recv()
            .unwrap_or_else(|_| Err("its thread ended early".to_owned()))
            .map_err(|problem| setup(io::Error::other(problem)))?;
        let locked = device.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, largest, features) = (locked.num_queues(), locked.max_queue_size(), locked.features());
        let (extra, set) = (locked.extra_event(), locked.extra_event_set());
        drop(locked);

        let queue_size_max = u16::try_from(largest).map_err(|error| setup(io::Error::other(error)))?;
        let epoll = Epoll::new().map_err(setup)?;
        let (mut vrings, mut kicks) = (Vec::new(), Vec::new());
        for index in 0..count {
            let vring = Vring::new(memory.clone(), queue_size_max).map_err(|e| setup(io::Error::other(e)))?;
            vring.set_call(Some(interrupt.try_clone().map_err(setup)?));
            vring.set_enabled(true);
            let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(setup)?;
            let event = EpollEvent::new(EventSet::IN, index as u64);
            epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), event).map_err(setup)?;
            vrings.push(vring);
            kicks.push(kick);
        }
        if let Some((fd, event)) = extra {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, u64::from(event))).map_err(setup)?;
        }
        let copies = kicks.iter().map(EventFd::try_clone).collect::<io::Result<Vec<_>>>().map_err(setup)?;
        handed
            .send((epoll, vrings.clone(), copies))
            .map_err(|_| setup(io::Error::other("its thread ended early")))?;
        if confirmed.recv() != Ok(true) {
            return Err(setup(io::Error::other("its thread cannot be confined")));
        }
        Ok(Self { device, vrings, features: features & !CONNECTION_FEATURES, queue_size_max, kicks })
    }

    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }
}

/// The device's thread, until the process ends.
fn serve<D: Device>(
    name: &str,
    device: &Mutex<D>,
    epoll: &Epoll,
    (vrings, kicks): (&[Vring], &[EventFd]),
    notes: &Notes,
    (life, meter): (&Life, &Meter),
) {
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return notes.add(format_args!("{name}: {error}")),
        };
        // Not while the machine rests.
        let _work = life.work();
        for event in events.iter().take(count) {
            let number = event.data();
            if let Some(kick) = usize::try_from(number).ok().and_then(|index| kicks.get(index)) {
                // Somebody else may have read it: then there is only nothing to do.
                let _ = kick.read();
            }
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            let before = taken(vrings);
            if let Err(error) = device.handle_event(number as u16, event.event_set(), vrings, 0) {
                notes.add(format_args!("{name}: {error}"));
            }
            meter.woken(
                taken(vrings).zip(before).map(|(now, before)| u64::from(now.wrapping_sub(before))).sum(),
            );
        }
    }
}

/// How far each queue was taken.
fn taken(vrings: &[Vring]) -> impl Iterator<Item = u16> {
    vrings.iter().map(VringT::queue_next_avail).collect::<Vec<_>>().into_iter()
}

impl<D: Device> Carried for Carrier<D> {
    fn features(&self) -> u64 {
        self.features
    }

    fn queue_size_max(&self) -> u16 {
        self.queue_size_max
    }

    fn start(&mut self, features: u64, queues: &[QueueSetup]) -> Result<(), String> {
        let event_idx = features & EVENT_IDX != 0;
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.acked_features(features);
        device.set_event_idx(event_idx);
        for (vring, queue) in self.vrings.iter().zip(queues) {
            vring.set_queue_size(queue.size);
            vring
                .set_queue_info(queue.descriptors, queue.available, queue.used)
                .map_err(|error| format!("a queue that cannot be: {error}"))?;
            vring.set_queue_event_idx(event_idx);
            vring.set_queue_next_avail(0);
            vring.set_queue_next_used(0);
            vring.set_queue_ready(queue.ready);
        }
        drop(device);
        // What the driver queued before it was ready is looked at, too.
        self.kicks.iter().for_each(|kick| drop(kick.write(1)));
        Ok(())
    }

    fn stop(&mut self) {
        let _device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        self.vrings.iter().for_each(|vring| vring.set_queue_ready(false));
    }
}
