//! The devices of a machine, each with its registers, interrupt and kicks.

use std::fs::File;
use std::io::{self, Stdout};
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use nacre_sys::{guest_memory, tap};
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_MEM, VIRTIO_ID_NET,
    VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};
use vmm_sys_util::eventfd::EventFd;

use super::carrier::Carrier;
use super::config::{Config, Inherited, NetworkConfig, Source, Tap};
use super::control::About;
use super::jail::Kind;
use super::layout::{self, DEVICE_BYTES, DEVICES, MAX_DEVICES};
use super::life::Life;
use super::transport::{QUEUE_NOTIFY, Transport};
use super::{KvmError, failed, open};
use crate::devices::balloon::Balloon;
use crate::devices::block::Disk;
use crate::devices::config_space::ConfigSpace;
use crate::devices::console;
use crate::devices::entropy::Entropy;
use crate::devices::ethernet::Card;
use crate::devices::fs::{self, Access, Share, SharedDirs};
use crate::devices::growth::{GrowingMemory, Growth};
use crate::devices::meter::Meter;
use crate::devices::queues::{QueueDevice, Queues};
use crate::devices::tap::TapCard;
use crate::devices::vhost_user::{Device, Memory};
use crate::devices::vsock::{self, VsockConfig};

/// The device that opens files while it runs.
pub const FILES: &str = "fs";
/// Bytes of a virtio-fs tag (virtio 1.2, section 5.11.4).
pub const TAG_BYTES: usize = 36;

/// Makes them.
pub struct Devices<'a> {
    pub vm: &'a VmFd,
    pub memory: Memory,
    pub life: &'a Arc<Life>,
    pub about: &'a mut About,
    pub made: Vec<Transport>,
}

impl Devices<'_> {
    /// All that the configuration names, in its order; nothing has run yet.
    pub fn make(&mut self, config: &Config, inherited: &mut Inherited) -> Result<(), KvmError> {
        for disk in &config.disks {
            let file = match &disk.file {
                Source::Path(path) => open("disk", path, !disk.read_only)?,
                Source::Fd(fd) => File::from(inherited.get(*fd)?),
            };
            let disk = Disk::new(file, disk.read_only, disk.durable, self.about.notes.clone());
            let disk = disk.map_err(|error| KvmError::Device("disk", error))?;
            let space = disk.config_space();
            self.add_queues(("disk", Kind::Disk), VIRTIO_ID_BLOCK, space, disk)?;
        }
        let entropy = Entropy::new(self.about.notes.clone());
        self.add_queues(("rng", Kind::Entropy), VIRTIO_ID_RNG, Vec::new(), entropy)?;
        if let Some(vsock) = &config.vsock {
            let settings = VsockConfig { guest_cid: vsock.guest_cid, path: vsock.socket.clone() };
            let space = u64::from(vsock.guest_cid).to_le_bytes().to_vec();
            let notes = self.about.notes.clone();
            // The third queue is for events, of which there are none.
            self.add(("vsock", Kind::Vsock), VIRTIO_ID_VSOCK, 3, space, move |memory| {
                vsock::backend::device(settings, memory, notes)
            })?;
        }
        self.add_shares(config)?;
        if let Some(network) = &config.network {
            self.add_network(network, inherited)?;
        }
        if config.balloon {
            let balloon = Balloon::new(self.about.returned.clone(), self.about.notes.clone());
            self.add_queues(("balloon", Kind::Balloon), VIRTIO_ID_BALLOON, Balloon::config_space(), balloon)?;
        }
        if config.virtio_console {
            let console = console::Console::new(io::stdout(), self.about.notes.clone());
            let space = console::Console::<Stdout>::config_space();
            self.add_queues(("console", Kind::Console), VIRTIO_ID_CONSOLE, space, console)?;
        }
        Ok(())
    }

    /// Memory that comes later. Gives what interrupts its driver.
    pub fn add_growth(&mut self, growth: &Growth) -> Result<EventFd, KvmError> {
        let (space, notes) = (growth.config_space(), self.about.notes.clone());
        let device = GrowingMemory::new(growth.clone(), self.about.returned.clone(), notes);
        self.add_queues(("memory", Kind::Memory), VIRTIO_ID_MEM, space, device)
    }

    fn add_network(&mut self, network: &NetworkConfig, inherited: &mut Inherited) -> Result<(), KvmError> {
        let failed = |error| KvmError::Device("network", error);
        let (mac, mtu, notes) = (network.mac, network.mtu, self.about.notes.clone());
        let tap = match (&network.tap, network.fd) {
            (Some(Tap::Name(name)), _) => tap::open(name).map_err(failed)?,
            (Some(Tap::Fd(fd)), _) => inherited.get(*fd)?,
            (None, fd) => {
                let stream = inherited.get(fd.unwrap_or(-1))?;
                let card = Card::new(stream, mac, mtu, notes).map_err(failed)?;
                let space = card.config_space();
                return self.add_queues(("network", Kind::Network), VIRTIO_ID_NET, space, card).map(drop);
            }
        };
        let card = TapCard::new(tap, mac, mtu, notes).map_err(failed)?;
        let space = card.config_space();
        self.add_queues(("network", Kind::Tap), VIRTIO_ID_NET, space, card).map(drop)
    }

    /// One device for each tag, in the order in which they are first named.
    fn add_shares(&mut self, config: &Config) -> Result<(), KvmError> {
        let mut tags: Vec<(&str, Vec<Share>)> = Vec::new();
        for share in &config.shares {
            let access = if share.read_only { Access::ReadOnly } else { Access::ReadWrite };
            let (name, host) = (share.name.clone(), share.path.clone());
            let share = (share.tag.as_str(), Share { name, host, access });
            match tags.iter_mut().find(|(tag, _)| *tag == share.0) {
                Some((_, shares)) => shares.push(share.1),
                None => tags.push((share.0, vec![share.1])),
            }
        }
        let files_max = fs::backend::raise_file_limit() / tags.len().max(1) as u64;
        for (tag, shares) in tags {
            let shared = SharedDirs::open(&shares, files_max)
                .map_err(|error| KvmError::Device(FILES, io::Error::other(error)))?;
            // The tag, then the number of request queues.
            let mut space = tag.as_bytes().to_vec();
            space.resize(TAG_BYTES, 0);
            space.extend(1_u32.to_le_bytes());
            let notes = self.about.notes.clone();
            self.add((FILES, Kind::Files), VIRTIO_ID_FS, 2, space, move |memory| {
                fs::backend::confined(shared, memory, notes)
            })?;
        }
        Ok(())
    }

    fn add_queues<Q: Queues>(
        &mut self,
        thread: (&'static str, Kind),
        id: u32,
        space: impl Into<ConfigSpace>,
        queues: Q,
    ) -> Result<EventFd, KvmError> {
        let notes = self.about.notes.clone();
        self.add(thread, id, Q::COUNT, space, move |memory| {
            QueueDevice::new(queues, memory, notes).map_err(|error| error.to_string())
        })
    }

    fn add<D: Device>(
        &mut self,
        thread: (&'static str, Kind),
        id: u32,
        queues: usize,
        space: impl Into<ConfigSpace>,
        make: impl FnOnce(Memory) -> Result<D, String> + Send + 'static,
    ) -> Result<EventFd, KvmError> {
        let (index, name) = (self.made.len(), thread.0);
        if index >= MAX_DEVICES {
            return Err(KvmError::TooManyDevices(index + 1));
        }
        let (interrupt, file) = guest_memory::event().map_err(|error| KvmError::Device(name, error))?;
        self.vm.register_irqfd(&interrupt, layout::interrupt(index)).map_err(failed("KVM_IRQFD"))?;
        let meter = Meter::default();
        let host = (self.about.notes.clone(), Arc::clone(self.life), meter.clone());
        let carrier = Carrier::start(thread, &self.memory, &file, host, make)?;
        self.about.devices.push((name, meter));
        let notify = IoEventAddress::Mmio(DEVICES + index as u64 * DEVICE_BYTES + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(carrier.kicks()) {
            self.vm.register_ioevent(kick, &notify, queue).map_err(failed("KVM_IOEVENTFD"))?;
        }
        let notes = self.about.notes.clone();
        self.made.push(Transport::new(name, id, queues, space.into(), Box::new(carrier), notes));
        Ok(interrupt)
    }
}
