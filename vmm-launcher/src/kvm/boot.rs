//! What the guest finds in memory when it starts: kernel, initrd, command line, memory map, MP table.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::KvmError;
use super::layout::{
    COMMAND_LINE, COMMAND_LINE_MAX, CONVENTIONAL_END, GAP, HIGH_MEMORY, MEMORY_MAP, MODULES, MP_TABLE,
    PAGE_TABLES, START_INFO, ZERO_PAGE,
};
use super::mp_table;

/// `XEN_HVM_START_MAGIC_VALUE` (xen/include/public/arch-x86/hvm/start_info.h).
const START_INFO_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Where the 64-bit entry of a bzImage is, after its first byte (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
const ENTRY_64: u64 = 0x200;
/// Of `xloadflags`: it has that entry.
const XLF_KERNEL_64: u16 = 1;
/// "Undefined": no boot loader of the kernel's list.
const LOADER_UNDEFINED: u8 = 0xff;

/// How the first processor enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, by the PVH note.
    Pvh(GuestAddress),
    /// Long mode, with page tables that map the first GiB, by the 64-bit boot protocol.
    Long(GuestAddress),
}

/// Loads everything. The MP table tells of so many processors, and lines of the I/O APIC.
pub fn load(
    memory: &GuestMemoryMmap,
    mut kernel: File,
    initrd: Option<File>,
    command_line: &str,
    (processors, lines): (u8, u8),
) -> Result<Entry, KvmError> {
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(KvmError::CommandLine(command_line.len()));
    }
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    let write = |bytes: &[u8], address| {
        memory.write_slice(bytes, GuestAddress(address)).map_err(|_| KvmError::MemoryTooSmall)
    };
    write(&text, COMMAND_LINE)?;
    write(&mp_table::table(processors, lines), MP_TABLE)?;

    let mut magic = [0; 4];
    kernel.read_exact(&mut magic).and_then(|()| kernel.seek(SeekFrom::Start(0))).map_err(KvmError::Kernel)?;
    let high = Some(GuestAddress(HIGH_MEMORY));
    if magic == ELF_MAGIC {
        let loaded = Elf::load(memory, None, &mut kernel, high).map_err(KvmError::Load)?;
        let initrd = initrd.map(|file| load_initrd(memory, file, loaded.kernel_end, u64::MAX)).transpose()?;
        return match loaded.pvh_boot_cap {
            // Linux looks for Xen behind its PVH entry before it knows where it is, at 256 places of CPUID: an exit each.
            PvhBootCapability::PvhEntryPresent(entry) if !is_linux(&kernel).map_err(KvmError::Kernel)? => {
                write_start_info(memory, initrd)?;
                Ok(Entry::Pvh(entry))
            }
            _ => {
                let mut parameters = boot_params::default();
                parameters.hdr.boot_flag = 0xaa55;
                parameters.hdr.header = 0x5372_6448;
                parameters.hdr.kernel_alignment = 0x100_0000;
                write_zero_page(memory, parameters, command_line.len(), initrd)?;
                Ok(Entry::Long(loaded.kernel_load))
            }
        };
    }
    let loaded = BzImage::load(memory, None, &mut kernel, high).map_err(KvmError::Load)?;
    let hdr = loaded.setup_header.unwrap_or_default();
    if hdr.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KvmError::NoEntry);
    }
    let initrd = initrd
        .map(|file| load_initrd(memory, file, loaded.kernel_end, u64::from(hdr.initrd_addr_max)))
        .transpose()?;
    let parameters = boot_params { hdr, ..boot_params::default() };
    write_zero_page(memory, parameters, command_line.len(), initrd)?;
    Ok(Entry::Long(GuestAddress(loaded.kernel_load.raw_value() + ENTRY_64)))
}

/// Whether a note of this ELF file (elf(5)) is by Linux, so that its entry is that of the 64-bit boot protocol.
fn is_linux(kernel: &File) -> std::io::Result<bool> {
    const HEADER_BYTES: usize = 64;
    const SEGMENT_BYTES: usize = 56;
    const NOTE: u64 = 4;
    const OWNER: &[u8] = b"Linux\0";
    /// No kernel has more than a few hundred bytes of notes.
    const NOTES_MAX: u64 = 64 << 10;
    let at = |bytes: &[u8], offset: usize, width: usize| {
        let field = bytes.get(offset..offset + width).unwrap_or_default();
        field.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let mut header = [0; HEADER_BYTES];
    kernel.read_exact_at(&mut header, 0)?;
    let (table, size, count) = (at(&header, 32, 8), at(&header, 54, 2), at(&header, 56, 2));
    for index in 0..count {
        let mut segment = [0; SEGMENT_BYTES];
        let Some(place) = table.checked_add(index * size) else { break };
        kernel.read_exact_at(&mut segment, place)?;
        let (start, length) = (at(&segment, 8, 8), at(&segment, 32, 8));
        if at(&segment, 0, 4) != NOTE || length > NOTES_MAX {
            continue;
        }
        let mut notes = vec![0; length as usize];
        kernel.read_exact_at(&mut notes, start)?;
        // Each note: lengths of owner and content, a type, owner and content, both filled up to four bytes.
        let mut rest = notes.as_slice();
        while rest.len() >= 12 {
            let (owner, content) = (at(rest, 0, 4) as usize, at(rest, 4, 4) as usize);
            if rest.get(12..).is_some_and(|text| text.starts_with(OWNER)) && owner == OWNER.len() {
                return Ok(true);
            }
            let next = 12 + owner.next_multiple_of(4) + content.next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
    Ok(false)
}

/// At the end of low memory, where no kernel unpacks itself to, and not beyond `last`. Address and size.
fn load_initrd(
    memory: &GuestMemoryMmap,
    mut file: File,
    kernel_end: u64,
    last: u64,
) -> Result<(u64, u64), KvmError> {
    const PAGE: u64 = 4096;
    let size = file.metadata().map_err(KvmError::Initrd)?.len();
    let low_end = memory.last_addr().raw_value().saturating_add(1).min(GAP.start).min(last.saturating_add(1));
    let start = low_end.checked_sub(size).map(|start| start / PAGE * PAGE);
    let start = start.filter(|start| *start > kernel_end).ok_or(KvmError::MemoryTooSmall)?;
    let mut address = start;
    let mut chunk = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut chunk).map_err(KvmError::Initrd)?;
        let Some(part @ [_, ..]) = chunk.get(..count) else { break };
        if address + part.len() as u64 > start + size {
            return Err(KvmError::Initrd(std::io::Error::other("it grew while it was read")));
        }
        memory.write_slice(part, GuestAddress(address)).map_err(|_| KvmError::MemoryTooSmall)?;
        address += part.len() as u64;
    }
    Ok((start, size))
}

/// What is memory, and what of it is taken.
fn memory_map(memory: &GuestMemoryMmap) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, CONVENTIONAL_END, RAM), (MP_TABLE, HIGH_MEMORY - MP_TABLE, RESERVED)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(HIGH_MEMORY);
        let end = region.last_addr().raw_value().saturating_add(1);
        map.push((start, end.saturating_sub(start), RAM));
    }
    map
}

fn write_start_info(memory: &GuestMemoryMmap, initrd: Option<(u64, u64)>) -> Result<(), KvmError> {
    let map: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        ..hvm_start_info::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(START_INFO));
    parameters.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some((paddr, size)) = initrd {
        let modules = [hvm_modlist_entry { paddr, size, ..hvm_modlist_entry::default() }];
        parameters.set_modules(&modules, GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|_| KvmError::MemoryTooSmall)
}

fn write_zero_page(
    memory: &GuestMemoryMmap,
    mut parameters: boot_params,
    command_line: usize,
    initrd: Option<(u64, u64)>,
) -> Result<(), KvmError> {
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    parameters.hdr.cmdline_size = command_line as u32;
    if let Some((start, size)) = initrd {
        parameters.hdr.ramdisk_image = start as u32;
        parameters.hdr.ramdisk_size = size as u32;
    }
    let map = memory_map(memory);
    for (place, (addr, size, type_)) in parameters.e820_table.iter_mut().zip(&map) {
        (place.addr, place.size, place.type_) = (*addr, *size, *type_);
    }
    parameters.e820_entries = map.len() as u8;
    memory.write_obj(parameters, GuestAddress(ZERO_PAGE)).map_err(|_| KvmError::MemoryTooSmall)?;
    // One table of each level, and 512 pages of 2 MiB.
    let level = |n: u64| PAGE_TABLES + n * 0x1000;
    let write = |entry: u64, address: u64| {
        memory.write_obj(entry, GuestAddress(address)).map_err(|_| KvmError::MemoryTooSmall)
    };
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    write(level(1) | PRESENT_WRITABLE, level(0))?;
    write(level(2) | PRESENT_WRITABLE, level(1))?;
    (0..512).try_for_each(|page| write(page << 21 | PRESENT_WRITABLE | LARGE, level(2) + page * 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_what_is_no_memory() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let map = memory_map(&memory);
        assert_eq!(map.last(), Some(&(HIGH_MEMORY, 63 << 20, RAM)));
        assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:?}");
    }

    #[test]
    fn linux_is_known_by_its_notes() {
        let note = |owner: &[u8], content: &[u8]| {
            let mut bytes = Vec::new();
            for number in [owner.len(), content.len(), 7] {
                bytes.extend((number as u32).to_le_bytes());
            }
            for part in [owner, content] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let is_linux = |notes: &[u8], length: u64| {
            let mut elf = vec![0; 64 + 2 * 56];
            elf[32] = 64;
            (elf[54], elf[56]) = (56, 2);
            elf[64 + 56] = 4;
            elf[64 + 56 + 8..][..8].copy_from_slice(&(64_u64 + 2 * 56).to_le_bytes());
            elf[64 + 56 + 32..][..8].copy_from_slice(&length.to_le_bytes());
            elf.extend(notes);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&elf, 0).unwrap();
            super::is_linux(&file)
        };
        let whole = |notes: &[u8]| is_linux(notes, notes.len() as u64).unwrap();
        assert!(whole(&[note(b"Xen\0", b"12345"), note(b"Linux\0", b"")].concat()));
        assert!(!whole(&[note(b"Xen\0", b"Linux\0"), note(b"GNU\0", &[1; 20])].concat()));
        assert!(!whole(&[0xff; 40]));
        assert!(!whole(b""));
        assert!(is_linux(b"", 12).is_err(), "notes beyond the end");
        assert!(!is_linux(b"", u64::MAX).unwrap(), "more notes than there can be");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        use std::io::Write;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        for content in [&b""[..], b"\x7f", b"\x7fELF\x02\x01\x01", &[0x5a; 8192]] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            assert!(load(&memory, file, None, "quiet", (1, 5)).is_err());
        }
        let kernel = tempfile::tempfile().unwrap();
        let error = load(&memory, kernel, None, &"x".repeat(COMMAND_LINE_MAX), (1, 5)).unwrap_err();
        assert!(error.to_string().contains("2048"), "{error}");
    }
}
