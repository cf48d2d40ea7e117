//! The machine: memory, processors and devices put together, and run.

use std::fs::{File, OpenOptions};
use std::io::{self, LineWriter, Stdout};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use nacre_sys::{guest_memory, tap};
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_RNG,
    VIRTIO_ID_VSOCK,
};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap};

use super::bus::{Bus, Route};
use super::carrier::Carrier;
use super::config::{Config, Inherited, NetworkConfig, Pages, Source, Tap};
use super::control::{self, About, Control, Kick};
use super::io_apic::{IoApic, Message};
use super::jail::{self, Kind};
use super::layout::{self, DEVICE_BYTES, DEVICES, IDENTITY_MAP, MAX_DEVICES, SERIAL_INTERRUPT, TSS};
use super::life::{ExitCounters, Life};
use super::ports::{Interrupt, Ports};
use super::transport::{QUEUE_NOTIFY, Transport};
use super::{End, KvmError, STACK_BYTES, boot, cpu};
use crate::devices::balloon::Balloon;
use crate::devices::block::Disk;
use crate::devices::console;
use crate::devices::entropy::Entropy;
use crate::devices::ethernet::Card;
use crate::devices::fs::{self, Access, Share, SharedDirs, TAG};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;
use crate::devices::queues::QueueDevice;
use crate::devices::tap::TapCard;
use crate::devices::vhost_user::{Device, Memory};
use crate::devices::vsock::{self, VsockConfig};

/// The device that opens files while it runs.
const FILES: &str = "fs";
/// Bytes of a virtio-fs tag.
const TAG_BYTES: usize = 36;

/// The console: what the guest writes, line by line.
type Console = LineWriter<Stdout>;

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    bus: Bus<Console>,
    life: Arc<Life>,
    control: Option<OwnedFd>,
    about: About,
}

impl Machine {
    /// Makes everything; the guest has not run an instruction yet.
    ///
    /// # Errors
    /// What cannot be opened, mapped or made.
    pub fn new(config: Config) -> Result<Self, KvmError> {
        let mut inherited =
            Inherited::take(&config).map_err(|e| KvmError::Kvm("taking over descriptors", e))?;
        let kvm = Kvm::new().map_err(|error| KvmError::Open(error.into()))?;
        let vm = Arc::new(kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?);
        vm.set_identity_map_address(IDENTITY_MAP).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
        split.args[0] = layout::lines(MAX_DEVICES).into();
        vm.enable_cap(&split).map_err(failed("KVM_CAP_SPLIT_IRQCHIP"))?;

        let memory = map_memory(&vm, config.memory_mib, config.memory_pages)?;
        let life = Arc::new(Life::new(config.processors.into()));
        let mut about = About {
            processors: config.processors,
            memory_mib: config.memory_mib,
            made: Instant::now(),
            devices: Vec::new(),
            returned: Meter::default(),
            notes: Notes::default(),
        };
        let mut devices = Devices {
            vm: &vm,
            memory: Memory::new(memory.clone()),
            life: &life,
            about: &mut about,
            made: Vec::new(),
        };
        devices.make(&config, &mut inherited)?;
        let transports = devices.made;
        let control = config
            .control
            .map(|path| control::listen(&path).map_err(|source| KvmError::Control { path, source }));
        let control = control.transpose()?;

        let kernel = open("kernel", &config.kernel, false)?;
        let initrd = config.initrd.as_deref().map(|path| open("initrd", path, false)).transpose()?;
        let command_line = command_line(&config.command_line, transports.len());
        let lines = layout::lines(transports.len());
        let entry = boot::load(&memory, kernel, initrd, &command_line, (config.processors, lines))?;

        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut vcpus = Vec::new();
        for id in 0..config.processors {
            let vcpu = vm.create_vcpu(id.into()).map_err(failed("KVM_CREATE_VCPU"))?;
            cpu::prepare(&vcpu, &cpu::cpuid(&supported, id, config.processors), (id == 0).then_some(entry))?;
            vcpus.push(vcpu);
        }
        let (serial, _) = guest_memory::event().map_err(|error| KvmError::Device("serial", error))?;
        vm.register_irqfd(&serial, SERIAL_INTERRUPT).map_err(failed("KVM_IRQFD"))?;
        let ports = Ports::new(Interrupt(serial), LineWriter::new(io::stdout()));
        let io_apic = IoApic::new(lines, Box::new(move |messages: &[Message]| route(&vm, messages)) as Route);
        Ok(Self { vcpus, bus: Bus::new(ports, io_apic, transports), life, control, about })
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// A processor that cannot go on.
    pub fn run(self) -> Result<End, KvmError> {
        let bus = Arc::new(self.bus);
        // No processor runs before every thread is where it belongs.
        let ready = Arc::new(Barrier::new(self.vcpus.len() + 1));
        let (life, notes) = (self.life, self.about.notes.clone());
        let memory_mib = self.about.memory_mib;
        let has_shares = self.about.devices.iter().any(|(name, _)| *name == FILES);
        Kick::prepare().map_err(|error| KvmError::Kvm("preparing a signal", error))?;
        let mut threads = Vec::new();
        let (sender, ends): (Sender<_>, Receiver<_>) = channel();
        for (id, mut vcpu) in (0..).zip(self.vcpus) {
            let (bus, sender, ready) = (Arc::clone(&bus), sender.clone(), Arc::clone(&ready));
            let life = Arc::clone(&life);
            let thread = std::thread::Builder::new()
                .name(format!("nacre-vcpu{id}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    let confined = jail::confine(Kind::Processor);
                    ready.wait();
                    let end = confined
                        .map_err(KvmError::from)
                        .and_then(|()| run_processor(&mut vcpu, id, &bus, &life));
                    drop(sender.send(end));
                })
                .map_err(KvmError::Thread)?;
            threads.push(thread);
        }
        if let Some(listener) = self.control {
            let control = Control { life, kick: Kick(threads), about: self.about, ends: sender };
            start_control(control, listener)?;
        }
        jail::limit_process(u64::from(memory_mib) << 20, has_shares)?;
        jail::confine(Kind::Main)?;
        ready.wait();
        // The first that ends, ends the machine: the process is about to exit, and the other threads with it.
        let end = ends.recv().unwrap_or(Ok(End::Reset));
        bus.flush();
        for note in notes.list() {
            eprintln!("nacre vmm: {note}");
        }
        end
    }
}

/// In a thread of its own, which is confined when this returns.
fn start_control(control: Control, listener: OwnedFd) -> Result<(), KvmError> {
    let (report, confined) = sync_channel(1);
    std::thread::Builder::new()
        .name("nacre-control".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let confined = jail::confine(Kind::Control);
            let ready = confined.is_ok();
            let _ = report.send(confined);
            if ready {
                control.serve(&listener);
            }
        })
        .map_err(KvmError::Thread)?;
    Ok(confined.recv().unwrap_or(Ok(()))?)
}

fn run_processor(vcpu: &mut VcpuFd, id: u8, bus: &Bus<Console>, life: &Life) -> Result<End, KvmError> {
    let stopped = |what: String| Err(KvmError::Processor { id, what });
    let nobody = ExitCounters::default();
    let exits = life.exits(id).unwrap_or(&nobody);
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    loop {
        // With this KVM only finishes the instruction that the guest is in, and says that it was interrupted.
        let pausing = life.is_paused();
        vcpu.set_kvm_immediate_exit(pausing.into());
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&exits.mmio_read);
                bus.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&exits.mmio_write);
                if let Err(error) = bus.write(address, data) {
                    return stopped(format!("an interrupt that KVM does not route: {error}"));
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&exits.port_in);
                bus.read_port(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&exits.port_out);
                if bus.write_port(port, data) {
                    return Ok(End::Reset);
                }
            }
            Ok(VcpuExit::Shutdown) => return Ok(End::TripleFault),
            Ok(VcpuExit::Intr | VcpuExit::Hlt) => count(&exits.other),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return stopped(format!("the hardware refuses to enter the guest, reason {reason:#x}"));
            }
            Ok(VcpuExit::InternalError) => {
                return stopped("KVM cannot execute an instruction of the guest".to_owned());
            }
            Ok(other) => return stopped(format!("an exit that makes no sense: {other:?}")),
            Err(error) if error.errno() == libc::EINTR => {
                count(&exits.interrupted);
                if pausing {
                    life.park();
                    // So that the guest takes the time that has passed for no hang of its own; it may have no such clock.
                    let _ = vcpu.kvmclock_ctrl();
                }
            }
            // It waited to be started by another one.
            Err(error) if error.errno() == libc::EAGAIN => count(&exits.other),
            Err(error) => return stopped(format!("KVM_RUN fails: {}", io::Error::from(error))),
        }
    }
}

/// Makes devices, each with its registers, interrupt and kicks.
struct Devices<'a> {
    vm: &'a VmFd,
    memory: Memory,
    life: &'a Arc<Life>,
    about: &'a mut About,
    made: Vec<Transport>,
}

impl Devices<'_> {
    fn make(&mut self, config: &Config, inherited: &mut Inherited) -> Result<(), KvmError> {
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
        if !config.shares.is_empty() {
            self.add_shares(config)?;
        }
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
                return self.add_queues(("network", Kind::Network), VIRTIO_ID_NET, space, card);
            }
        };
        let card = TapCard::new(tap, mac, mtu, notes).map_err(failed)?;
        let space = card.config_space();
        self.add_queues(("network", Kind::Tap), VIRTIO_ID_NET, space, card)
    }

    fn add_shares(&mut self, config: &Config) -> Result<(), KvmError> {
        let access = |read_only| if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let shares: Vec<Share> = config
            .shares
            .iter()
            .map(|share| Share {
                name: share.name.clone(),
                host: share.path.clone(),
                access: access(share.read_only),
            })
            .collect();
        let shared = SharedDirs::open(&shares, fs::backend::raise_file_limit())
            .map_err(|error| KvmError::Device("fs", io::Error::other(error)))?;
        // The tag, then the number of request queues.
        let mut space = TAG.as_bytes().to_vec();
        space.resize(TAG_BYTES, 0);
        space.extend(1_u32.to_le_bytes());
        let notes = self.about.notes.clone();
        self.add((FILES, Kind::Files), VIRTIO_ID_FS, 2, space, move |memory| {
            fs::backend::confined(shared, memory, notes)
        })
    }

    fn add_queues<Q: crate::devices::queues::Queues>(
        &mut self,
        thread: (&'static str, Kind),
        id: u32,
        space: Vec<u8>,
        queues: Q,
    ) -> Result<(), KvmError> {
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
        space: Vec<u8>,
        make: impl FnOnce(Memory) -> Result<D, String> + Send + 'static,
    ) -> Result<(), KvmError> {
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
        self.made.push(Transport::new(name, id, queues, space, Box::new(carrier), self.about.notes.clone()));
        Ok(())
    }
}

fn map_memory(vm: &VmFd, mib: u32, pages: Pages) -> Result<GuestMemoryMmap, KvmError> {
    let failed = |error| KvmError::Memory(mib, error);
    let mut regions = Vec::new();
    for (slot, (start, size)) in (0..).zip(layout::memory(u64::from(mib) << 20)) {
        let size = usize::try_from(size).map_err(|e| failed(io::Error::other(e)))?;
        let mapping = guest_memory::map(size, pages == Pages::Latency).map_err(failed)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| failed(io::Error::other("it ends beyond all addresses")))?;
        guest_memory::give(vm, slot, &region).map_err(|e| KvmError::Kvm("KVM_SET_USER_MEMORY_REGION", e))?;
        regions.push(region);
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))?;
    debug_assert!(memory.num_regions() > 0);
    Ok(memory)
}

/// With the words of the devices: size, address, interrupt (Documentation/admin-guide/kernel-parameters.txt). What stands behind
/// `--` is for init.
fn command_line(given: &str, devices: usize) -> String {
    let (kernels, inits) = given.find(" -- ").map_or((given, ""), |at| given.split_at(at));
    let mut line = kernels.to_owned();
    for index in 0..devices {
        let address = DEVICES + index as u64 * DEVICE_BYTES;
        line += &format!(" virtio_mmio.device=4K@{address:#x}:{}", layout::interrupt(index));
    }
    line + inits
}

/// Has KVM deliver these interrupts and no others.
fn route(vm: &VmFd, messages: &[Message]) -> io::Result<()> {
    let entry = |message: &Message| {
        let msi = kvm_irq_routing_msi {
            address_lo: message.address,
            data: message.data,
            ..kvm_irq_routing_msi::default()
        };
        let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
        kvm_irq_routing_entry { gsi: message.line, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() }
    };
    let entries: Vec<_> = messages.iter().map(entry).collect();
    let table =
        KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
    Ok(vm.set_gsi_routing(&table)?)
}

fn open(what: &'static str, path: &std::path::Path, write: bool) -> Result<File, KvmError> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map_err(|source| KvmError::File { what, path: path.to_owned(), source })
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Kvm(what, error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_the_words_of_the_devices_and_init_its_own() {
        let devices = " virtio_mmio.device=4K@0xd0000000:1 virtio_mmio.device=4K@0xd0001000:2";
        assert_eq!(command_line("quiet", 2), format!("quiet{devices}"));
        assert_eq!(
            command_line("quiet -- sh -c \"a -- b\"", 2),
            format!("quiet{devices} -- sh -c \"a -- b\"")
        );
        assert_eq!(command_line("a--b", 0), "a--b");
    }
}
