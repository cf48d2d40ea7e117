//! Where things lie in guest-physical memory.

use std::ops::Range;

/// `hvm_start_info` of the PVH boot protocol, and what it points to.
pub const START_INFO: u64 = 0x6000;
pub const MEMORY_MAP: u64 = 0x7000;
pub const MODULES: u64 = 0x8000;
/// For the 64-bit boot protocol: the zero page and the page tables.
pub const ZERO_PAGE: u64 = 0x9000;
pub const PAGE_TABLES: u64 = 0xa000;
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of the kernel's command line with its end (`COMMAND_LINE_SIZE` of x86).
pub const COMMAND_LINE_MAX: usize = 2048;
/// From the last KiB of conventional memory on, one of the places where a kernel looks for it (MultiProcessor specification
/// 1.4, section 4). With many processors it goes on where a PC has its screen; here nothing is.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Where the first MiB of a PC is no memory.
pub const CONVENTIONAL_END: u64 = MP_TABLE;
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Below 4 GiB: devices, interrupt controllers, what KVM wants for itself.
pub const GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// The first virtio-mmio device; one page for each.
pub const DEVICES: u64 = 0xd000_0000;
pub const DEVICE_BYTES: u64 = 0x1000;
/// Interrupts of the devices, in their order. Lower ones belong to the PC's own.
pub const FIRST_INTERRUPT: u32 = 5;
pub const MAX_DEVICES: usize = 19;
pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM uses on Intel's processors.
pub const TSS: usize = 0xfffb_d000;
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

pub const SERIAL_PORT: u16 = 0x3f8;
pub const SERIAL_INTERRUPT: u32 = 4;

/// Memory of the guest, as start and size: one range, or two around the gap.
pub fn memory(bytes: u64) -> Vec<(u64, u64)> {
    match bytes.checked_sub(GAP.start) {
        None | Some(0) => vec![(0, bytes)],
        Some(above) => vec![(0, GAP.start), (GAP.end, above)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(memory(1 << 20), [(0, 1 << 20)]);
        assert_eq!(memory(GAP.start), [(0, GAP.start)]);
        assert_eq!(memory(4 << 30), [(0, GAP.start), (4 << 30, 1 << 30)]);
    }
}
