//! A virtual processor: what it says that it is, and how it starts.

use kvm_bindings::{CpuId, kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::KvmError;
use super::boot::Entry;
use super::layout::{PAGE_TABLES, START_INFO, ZERO_PAGE};

// Leaves of CPUID (Intel SDM volume 2A, AMD APM volume 3 appendix E).
const BASIC: u32 = 0x1;
const CACHES: u32 = 0x4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
/// Offsets of the local APIC's LINT0 and LINT1, and their delivery modes after a reset of a PC: the old interrupt
/// controller, and the non-maskable interrupt.
const LINT0: (usize, u32) = (0x350, 0x700);
const LINT1: (usize, u32) = (0x360, 0x400);

const PROTECTED_MODE: u64 = 0x1;
const EXTENSION_TYPE: u64 = 0x10;
const PAGING: u64 = 0x8000_0000;
const PHYSICAL_ADDRESS_EXTENSION: u64 = 0x20;
const LONG_MODE: u64 = 0x500;
const FLAGS: u64 = 0x2;

/// What KVM can, as processor `id` of `count` shows it.
pub fn cpuid(supported: &CpuId, id: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let shift = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            BASIC => {
                entry.ebx = entry.ebx & 0xffff | u32::from(count) << 16 | u32::from(id) << 24;
                // KVM has the deadline timer on every processor, and says so only where the hardware has it. Without it the
                // guest measures its timer, which takes longer than all else of its boot.
                entry.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                if count > 1 {
                    entry.edx |= EDX_HYPER_THREADING;
                }
            }
            // One processor to each cache but the last, all in one package.
            CACHES if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level < 3 { 0 } else { u32::from(count) - 1 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | (u32::from(count) - 1).min(63) << 26;
            }
            TOPOLOGY | TOPOLOGY_V2 => {
                entry.edx = id.into();
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 0x100),
                    1 => (shift, count.into(), 0x201),
                    n => (0, 0, n),
                };
            }
            AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | shift << 12 | (u32::from(count) - 1),
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id.into(), id.into(), 0),
            _ => {}
        }
    }
    cpuid
}

/// Sets a processor up; the first one to enter the kernel, the others to wait for it.
pub fn prepare(vcpu: &VcpuFd, cpuid: &CpuId, entry: Option<Entry>) -> Result<(), KvmError> {
    let failed = |what| move |error: kvm_ioctls::Error| KvmError::Kvm(what, error.into());
    vcpu.set_cpuid2(cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    let mut apic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    for (offset, mode) in [LINT0, LINT1] {
        set_register(&mut apic, offset, mode);
    }
    vcpu.set_lapic(&apic).map_err(failed("KVM_SET_LAPIC"))?;
    let Some(entry) = entry else { return Ok(()) };
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() };
    vcpu.set_fpu(&fpu).map_err(failed("KVM_SET_FPU"))?;
    let mut special = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    set_mode(&mut special, entry);
    vcpu.set_sregs(&special).map_err(failed("KVM_SET_SREGS"))?;
    let registers = match entry {
        Entry::Pvh(address) => {
            kvm_regs { rip: address.0, rbx: START_INFO, rflags: FLAGS, ..kvm_regs::default() }
        }
        Entry::Long(address) => {
            kvm_regs { rip: address.0, rsi: ZERO_PAGE, rflags: FLAGS, ..kvm_regs::default() }
        }
    };
    vcpu.set_regs(&registers).map_err(failed("KVM_SET_REGS"))
}

fn set_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (place, byte) in apic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *place = byte.cast_signed();
    }
}

/// Flat segments; protected mode without paging, or long mode.
fn set_mode(special: &mut kvm_sregs, entry: Entry) {
    let long = matches!(entry, Entry::Long(_));
    let segment = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long && selector == 0x10),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    special.cs = segment(0x10, 0xb);
    let data = segment(0x18, 0x3);
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    special.tr = kvm_segment { limit: 0x67, s: 0, db: 0, g: 0, l: 0, ..segment(0x20, 0xb) };
    special.cr0 = PROTECTED_MODE | EXTENSION_TYPE;
    special.cr4 = 0;
    if long {
        special.cr0 |= PAGING;
        special.cr3 = PAGE_TABLES;
        special.cr4 = PHYSICAL_ADDRESS_EXTENSION;
        special.efer = LONG_MODE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn every_processor_shows_its_own_number() {
        let leaf = |function, index| kvm_cpuid_entry2 { function, index, ..kvm_cpuid_entry2::default() };
        let leaves =
            [leaf(BASIC, 0), leaf(TOPOLOGY, 0), leaf(TOPOLOGY, 1), leaf(AMD_SIZES, 0), leaf(AMD_TOPOLOGY, 0)];
        let supported = CpuId::from_entries(&leaves).unwrap();
        for (id, count, shift) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (63, 64, 6)] {
            let cpuid = cpuid(&supported, id, count);
            let [basic, threads, cores, sizes, amd] = cpuid.as_slice() else { panic!("{cpuid:?}") };
            assert_eq!(basic.ebx >> 16, u32::from(id) << 8 | u32::from(count));
            assert_eq!(basic.ecx & ECX_TSC_DEADLINE, ECX_TSC_DEADLINE);
            assert_eq!((threads.ebx, threads.edx), (1, id.into()));
            assert_eq!((cores.eax, cores.ebx, cores.edx), (shift, count.into(), id.into()));
            assert_eq!((sizes.ecx & 0xff, amd.eax), (u32::from(count) - 1, id.into()));
        }
    }
}
