//! For tests of filters: asking the kernel for a system call by its number alone.

use std::io;

/// Makes system call `number` with every argument -1: no descriptor, no aligned address, no length that fits, every flag. One
/// that a filter lets through mostly fails for it; what counts is that it came back at all. Not for exit(2), which does not.
pub fn call_with_nonsense(number: i64) -> io::Result<i64> {
    const NONSENSE: libc::c_long = -1;
    // SAFETY: no call reads, writes, maps or unmaps memory of ours at an address that is neither aligned nor in user space;
    // those without arguments (fork, pause, sync) touch none.
    let result = unsafe { libc::syscall(number, NONSENSE, NONSENSE, NONSENSE, NONSENSE, NONSENSE, NONSENSE) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
