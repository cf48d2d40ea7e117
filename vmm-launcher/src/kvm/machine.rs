//! The machine: memory, processors and devices put together, and run.

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
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nacre_sys::guest_memory;

use super::bus::{Bus, Route};
use super::config::{Config, Inherited};
use super::control::{self, About, Control, Kick};
use super::devices::{Devices, FILES};
use super::io_apic::{IoApic, Message};
use super::jail::{self, Kind};
use super::layout::{self, DEVICE_BYTES, DEVICES, IDENTITY_MAP, MAX_DEVICES, SERIAL_INTERRUPT, TSS};
use super::life::{ExitCounters, Life};
use super::memory::{self, Grower, Room};
use super::ports::{Interrupt, Ports};
use super::{End, KvmError, STACK_BYTES, boot, cpu, failed, open};
use crate::devices::meter::Meter;
use crate::devices::notes::Notes;
use crate::devices::vhost_user::Memory;

/// The console: what the guest writes, line by line.
type Console = LineWriter<Stdout>;

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    bus: Bus<Console>,
    life: Arc<Life>,
    control: Option<OwnedFd>,
    about: About,
    grower: Option<Grower>,
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

        let (memory_mib, memory_max_mib) = config.memory();
        let (processors, processors_max) = config.processors();
        let memory = memory::map(&vm, memory_mib, config.memory_pages)?;
        let life = Arc::new(Life::new(processors_max.into(), processors.into()));
        let mut about = About {
            processors_max,
            memory_mib,
            memory_wanted_mib: memory_mib,
            memory_max_mib,
            made: Instant::now(),
            devices: Vec::new(),
            returned: Meter::default(),
            notes: Notes::default(),
        };
        let shared = Memory::new(memory.clone());
        let mut devices =
            Devices { vm: &vm, memory: shared.clone(), life: &life, about: &mut about, made: Vec::new() };
        devices.make(&config, &mut inherited)?;
        let mut grower = None;
        if memory_max_mib > memory_mib {
            let room = Room::map(memory_mib, memory_max_mib, config.memory_pages)?;
            let interrupt = devices.add_growth(&room.growth)?;
            grower = Some(room.into_grower(Arc::clone(&vm), shared, interrupt));
        }
        let transports = devices.made;
        let control = config
            .control
            .map(|path| control::listen(&path).map_err(|source| KvmError::Control { path, source }));
        let control = control.transpose()?;

        let kernel = open("kernel", &config.kernel, false)?;
        let initrd = config.initrd.as_deref().map(|path| open("initrd", path, false)).transpose()?;
        let command_line = command_line(&config.command_line, transports.len(), (processors, processors_max));
        let lines = layout::lines(transports.len());
        let entry = boot::load(&memory, kernel, initrd, &command_line, (processors_max, lines))?;

        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut vcpus = Vec::new();
        for id in 0..processors_max {
            let vcpu = vm.create_vcpu(id.into()).map_err(failed("KVM_CREATE_VCPU"))?;
            cpu::prepare(&vcpu, &cpu::cpuid(&supported, id, processors_max), (id == 0).then_some(entry))?;
            vcpus.push(vcpu);
        }
        let (serial, _) = guest_memory::event().map_err(|error| KvmError::Device("serial", error))?;
        vm.register_irqfd(&serial, SERIAL_INTERRUPT).map_err(failed("KVM_IRQFD"))?;
        let ports = Ports::new(Interrupt(serial), LineWriter::new(io::stdout()));
        let io_apic = IoApic::new(lines, Box::new(move |messages: &[Message]| route(&vm, messages)) as Route);
        Ok(Self { vcpus, bus: Bus::new(ports, io_apic, transports), life, control, about, grower })
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
        let memory_mib = self.about.memory_max_mib;
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
            let (kick, about, grower) = (Kick(threads), self.about, self.grower);
            let control = Control { life, kick, about, grower, ends: sender };
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
fn start_control(mut control: Control, listener: OwnedFd) -> Result<(), KvmError> {
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
    life.wait_for_leave(id);
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

/// With the words of the devices: size, address, interrupt (Documentation/admin-guide/kernel-parameters.txt). What stands behind
/// `--` is for init.
fn command_line(given: &str, devices: usize, (processors, processors_max): (u8, u8)) -> String {
    let (kernels, inits) = given.find(" -- ").map_or((given, ""), |at| given.split_at(at));
    let mut line = kernels.to_owned();
    if processors < processors_max {
        // The others are there, and are brought up when they are asked for.
        line += &format!(" maxcpus={processors}");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gets_the_words_of_the_devices_and_init_its_own() {
        let devices = " virtio_mmio.device=4K@0xd0000000:1 virtio_mmio.device=4K@0xd0001000:2";
        assert_eq!(command_line("quiet", 2, (1, 1)), format!("quiet{devices}"));
        assert_eq!(command_line("quiet -- x", 2, (2, 4)), format!("quiet maxcpus=2{devices} -- x"));
        assert_eq!(
            command_line("quiet -- sh -c \"a -- b\"", 2, (1, 1)),
            format!("quiet{devices} -- sh -c \"a -- b\"")
        );
        assert_eq!(command_line("a--b", 0, (1, 1)), "a--b");
    }
}
