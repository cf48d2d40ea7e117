//! How glibc's allocator keeps freed memory (mallopt(3)).

/// Above this, in bytes, an allocation is a mapping of its own, which goes back to the kernel when it is freed.
#[cfg(not(feature = "lean"))]
const MAPPED_FROM: i32 = 64 * 1024;
/// As much free memory, in bytes, may stay at the heap's end.
#[cfg(not(feature = "lean"))]
const KEPT: i32 = 64 * 1024;

/// Makes a process that serves now and then a large request small again after it: without fixed thresholds glibc raises
/// them to the largest block that was ever freed, and keeps twice as much.
///
/// The guest's own allocator (`crate::lean`) does it by itself.
pub fn give_back_early() {
    #[cfg(not(feature = "lean"))]
    // SAFETY: mallopt changes two numbers of the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Lets the next `bytes` of the heap, below the size of a mapping of its own, be there at once instead of page by page as they are
/// touched: for a program that lives for a moment and is known to need as much. A kernel older than 5.14 does not know the wish.
pub fn populate(bytes: usize) {
    const PAGE: usize = 4096;
    // SAFETY: malloc gives `bytes` bytes or nothing, which are given back untouched; what is populated are whole pages of them.
    unsafe {
        let start = libc::malloc(bytes);
        if !start.is_null() {
            let first = start.align_offset(PAGE);
            let length = bytes.saturating_sub(first) & !(PAGE - 1);
            libc::madvise(start.wrapping_byte_add(first), length, libc::MADV_POPULATE_WRITE);
            libc::free(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_populated_heap_is_usable() {
        populate(0);
        populate(80 * 1024);
        let memory = vec![7u8; 80 * 1024];
        assert!(memory.iter().all(|byte| *byte == 7));
    }
}
