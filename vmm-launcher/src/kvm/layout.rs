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
pub const MAX_DEVICES: usize = 19;
pub const IO_APIC: u32 = 0xfec0_0000;
pub const IO_APIC_BYTES: u64 = 0x1000;
/// Of the processors' local ones none has it: they count from 0, and there are 64 at most.
pub const IO_APIC_ID: u8 = 0xfe;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM uses on Intel's processors.
pub const TSS: usize = 0xfffb_d000;
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

pub const SERIAL_PORT: u16 = 0x3f8;
/// Where a kernel expects it without being told.
pub const SERIAL_INTERRUPT: u32 = 4;

/// The interrupt of a device by its place: 1, 2, 3, 5, 6 and so on. A kernel takes 0 for none, and 4 is the serial port's.
pub fn interrupt(device: usize) -> u32 {
    let number = device as u32 + 1;
    if number < SERIAL_INTERRUPT { number } else { number + 1 }
}

/// Lines of an I/O APIC for so many devices: numbers from 0 to that of the last.
pub fn lines(devices: usize) -> u8 {
    let last = devices.checked_sub(1).map_or(0, interrupt).max(SERIAL_INTERRUPT);
    u8::try_from(last + 1).unwrap_or(u8::MAX)
}

/// Where memory that comes later begins, behind so much from the start: at a multiple of the largest step in which Linux adds
/// memory on x86.
pub fn growth(bytes: u64) -> u64 {
    const STEP: u64 = 2 << 30;
    memory(bytes).last().map_or(0, |(start, size)| start + size).max(GAP.end).next_multiple_of(STEP)
}

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
    fn every_device_has_a_line_of_its_own() {
        let interrupts: Vec<u32> = (0..6).map(interrupt).collect();
        assert_eq!(interrupts, [1, 2, 3, 5, 6, 7]);
        assert_eq!([0, 1, 3, 4, MAX_DEVICES].map(lines), [5, 5, 5, 6, 21]);
    }

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(memory(1 << 20), [(0, 1 << 20)]);
        assert_eq!(memory(GAP.start), [(0, GAP.start)]);
        assert_eq!(memory(4 << 30), [(0, GAP.start), (4 << 30, 1 << 30)]);
        for (bytes, start) in [(1 << 20, 4), (GAP.start, 4), (4 << 30, 6), (6 << 30, 8)] {
            assert_eq!(growth(bytes), start << 30, "{bytes}");
        }
    }
}
