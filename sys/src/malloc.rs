//! How glibc's allocator keeps freed memory (mallopt(3)).

/// Above this, in bytes, an allocation is a mapping of its own, which goes back to the kernel when it is freed.
const MAPPED_FROM: i32 = 64 * 1024;
/// As much free memory, in bytes, may stay at the heap's end.
const KEPT: i32 = 64 * 1024;

/// Makes a process that serves now and then a large request small again after it: without fixed thresholds glibc raises
/// them to the largest block that was ever freed, and keeps twice as much.
pub fn give_back_early() {
    // SAFETY: mallopt changes two numbers of the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
