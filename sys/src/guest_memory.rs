//! Memory of a KVM guest: mapped where huge pages fit, handed to KVM, and given back to the host.

use std::io;
use std::ops::Range;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The size of a huge page of x86-64, in bytes.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Maps `size` bytes (a multiple of the page size) at a multiple of [`HUGE_PAGE_BYTES`], for as long as the process lives.
/// With `huge` the kernel backs them by huge pages where it can; without, by small ones alone. No core dump shows them.
pub fn map(size: usize, huge: bool) -> io::Result<MmapRegion> {
    const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    const FLAGS: libc::c_int = libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_PRIVATE;
    let room = size.checked_add(HUGE_PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), room, PROTECTION, FLAGS, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = start.align_offset(HUGE_PAGE_BYTES);
    let aligned = start.wrapping_byte_add(before);
    let after = HUGE_PAGE_BYTES - before;
    // SAFETY: both lie in the mapping just made, beside the part that is used, and nothing refers to them.
    unsafe {
        if before > 0 {
            libc::munmap(start, before);
        }
        if after > 0 {
            libc::munmap(aligned.wrapping_byte_add(size), after);
        }
    }
    let pages = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    for advice in [pages, libc::MADV_DONTDUMP] {
        // SAFETY: advice about a mapping of ours; neither changes what is in it.
        if unsafe { libc::madvise(aligned, size, advice) } != 0 {
            let error = io::Error::last_os_error();
            // A kernel without huge pages has nothing to advise.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
    }
    // SAFETY: the mapping is there with this size and protection, and is never unmapped: a region that was built from a
    // pointer does not own it.
    unsafe { MmapRegion::build_raw(aligned.cast(), size, PROTECTION, FLAGS) }.map_err(io::Error::other)
}

/// A part of what [`map`] mapped, as a region of its own.
///
/// # Errors
/// It is no part of it.
pub fn part(whole: &MmapRegion, range: Range<usize>) -> io::Result<MmapRegion> {
    if range.start > range.end || range.end > whole.size() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let start = whole.as_ptr().wrapping_byte_add(range.start);
    // SAFETY: it lies in a mapping of this protection, which is never unmapped; the region does not own it.
    unsafe { MmapRegion::build_raw(start, range.len(), whole.prot(), whole.flags()) }
        .map_err(io::Error::other)
}

/// Makes a region that [`map`] mapped memory of the guest.
pub fn give(vm: &VmFd, slot: u32, region: &GuestRegionMmap) -> io::Result<()> {
    let memory = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: what `map` maps stays mapped as long as the process, so longer than the VM; the guest may do with it what it
    // likes, since everybody else looks at it through volatile accesses of vm-memory.
    Ok(unsafe { vm.set_user_memory_region(memory) }?)
}

/// Gives pages of guest memory back to the host: they read as zeros from now on, and take no memory until they are written to.
///
/// # Errors
/// The range is not in one region of guest memory, or is not made of whole pages.
pub fn give_back(memory: &GuestMemoryMmap, address: GuestAddress, bytes: u64) -> io::Result<()> {
    let outside = |_| io::Error::new(io::ErrorKind::InvalidInput, "a range outside guest memory");
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let slice = memory.get_slice(address, bytes).map_err(outside)?;
    // SAFETY: the range lies in a mapping that lives as long as `memory`. Its content changes as if the guest had written
    // zeros, which it may at any time: all access to it is volatile.
    match unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), bytes, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An event for KVM, and the same one as a file.
pub fn event() -> io::Result<(EventFd, std::fs::File)> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let event = EventFd::new(EFD_NONBLOCK)?;
    let copy = event.try_clone()?;
    // SAFETY: the clone's descriptor is given up by it and owned by nobody else.
    Ok((event, unsafe { std::fs::File::from_raw_fd(copy.into_raw_fd()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_for_huge_pages_and_reads_as_zeros() {
        use vm_memory::{Bytes, VolatileMemory};
        for (size, huge) in [(4096, false), (HUGE_PAGE_BYTES, true), (3 * HUGE_PAGE_BYTES + 4096, true)] {
            let region = map(size, huge).unwrap();
            assert_eq!(region.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
            let slice = region.get_slice(0, size).unwrap();
            slice.write(&[7], size - 1).unwrap();
            let mut bytes = [1; 2];
            slice.read_slice(&mut bytes, size - 2).unwrap();
            assert_eq!(bytes, [0, 7]);
        }
    }
}
