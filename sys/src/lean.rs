//! What the guest's small programs have instead of parts of glibc.
//!
//! A static program takes along whatever its C library might ever call. glibc's allocator can print statistics, `assert`
//! and `strerror` translate their messages, and behind printing and translating stand wide characters, character sets,
//! locales and a loader of shared objects for them: 350 KiB that no program of the guest ever runs. An allocator of one's
//! own is foreseen by glibc ("Replacing malloc" in its manual, which lists these functions), and so is every other function
//! here, in the way that the linker takes the first definition of a symbol and an archive's only where there is none.
//!
//! For programs of one thread, mostly: the lock of the heap spins.

use crate::characters::{CHARACTERS, cases, classes};
use dlmalloc::Dlmalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// From here on, in bytes, an allocation is a mapping of its own, which goes back to the kernel when it is freed, and of which
/// only what is written is there: no frame's buffer stays in a heap.
const MAPPED_FROM: usize = 16 * 1024;
/// The alignment that a mapping has by itself.
const PAGE: usize = 4096;
/// After so many freed bytes the heap's unused end goes back to the kernel, but for [`KEPT`].
const FREED_MAX: usize = 256 * 1024;
const KEPT: usize = 16 * 1024;
/// Of what malloc gives (`max_align_t`).
const ALIGNMENT: usize = 16;

struct Heap {
    locked: AtomicBool,
    freed: AtomicUsize,
    memory: UnsafeCell<Dlmalloc>,
}

// SAFETY: `memory` is only reached through `Heap::with`, by one thread at a time.
unsafe impl Sync for Heap {}

static HEAP: Heap = Heap {
    locked: AtomicBool::new(false),
    freed: AtomicUsize::new(0),
    memory: UnsafeCell::new(Dlmalloc::new()),
};

impl Heap {
    fn with<T>(&self, act: impl FnOnce(&mut Dlmalloc) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: the lock is held, and `act` calls nothing that allocates.
        let result = act(unsafe { &mut *self.memory.get() });
        self.locked.store(false, Ordering::Release);
        result
    }

    /// # Safety
    /// `block` came from this heap and is not used any more.
    unsafe fn free(&self, block: *mut u8, size: usize) {
        let freed = self.freed.load(Ordering::Relaxed).saturating_add(size);
        let trims = freed >= FREED_MAX;
        self.freed.store(if trims { 0 } else { freed }, Ordering::Relaxed);
        // SAFETY: as the caller says; trimming gives back what nobody uses.
        self.with(|memory| unsafe {
            memory.c_free(block);
            if trims {
                memory.trim(KEPT);
            }
        });
    }
}

/// Rust's own allocations: as C's, but the large ones, of which Rust knows the size when it frees them.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn is_mapped(layout: &Layout) -> bool {
    layout.size() >= MAPPED_FROM && layout.align() <= PAGE
}

// SAFETY: blocks of the heap come from dlmalloc, all others are mappings of at least their size; both are aligned as asked, and
// each goes back to where it came from, because size and alignment, which decide it, are the same then.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapped(&layout) {
            return map(layout.size());
        }
        // SAFETY: any size and any power of two may be asked for.
        HEAP.with(|memory| unsafe { memory.c_memalign(layout.align(), layout.size()) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(&layout) {
            return map(layout.size());
        }
        // SAFETY: as above; a block that was given has as many bytes as were asked for.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block was made here with this layout, and its owner gives it up.
        unsafe {
            if is_mapped(&layout) {
                libc::munmap(block.cast(), layout.size());
            } else {
                HEAP.free(block, layout.size());
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller vouches that the new size fits a layout of the old alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the block was made here with this layout; what is copied fits both blocks.
        unsafe {
            match (is_mapped(&layout), is_mapped(&new)) {
                (true, true) => {
                    let moved = libc::mremap(block.cast(), layout.size(), size, libc::MREMAP_MAYMOVE);
                    if moved == libc::MAP_FAILED { null_mut() } else { moved.cast() }
                }
                (false, false) if layout.align() <= ALIGNMENT => {
                    HEAP.with(|memory| memory.c_realloc(block, size))
                }
                _ => {
                    let other = self.alloc(new);
                    if !other.is_null() {
                        block.copy_to_nonoverlapping(other, size.min(layout.size()));
                        self.dealloc(block, layout);
                    }
                    other
                }
            }
        }
    }
}

fn map(size: usize) -> *mut u8 {
    // SAFETY: a new mapping, where the kernel likes.
    let mapped = unsafe {
        libc::mmap(
            null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED { null_mut() } else { mapped.cast() }
}

fn set_errno(number: c_int) {
    // SAFETY: the C library's own place for it, of this thread.
    unsafe { *libc::__errno_location() = number };
}

fn or_no_memory(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        set_errno(libc::ENOMEM);
    }
    block.cast()
}

/// malloc(3), for the C library itself.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    // SAFETY: any size may be asked for.
    or_no_memory(HEAP.with(|memory| unsafe { memory.c_malloc(size) }))
}

/// calloc(3).
#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else { return or_no_memory(null_mut()) };
    // SAFETY: any size may be asked for.
    or_no_memory(HEAP.with(|memory| unsafe { memory.calloc(bytes, ALIGNMENT) }))
}

/// realloc(3).
///
/// # Safety
/// `block` is null, or came from these functions and is not used any more where another is given.
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: as the caller says.
    or_no_memory(HEAP.with(|memory| unsafe { memory.c_realloc(block.cast(), size) }))
}

/// free(3).
///
/// # Safety
/// `block` is null, or came from these functions and is not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    if !block.is_null() {
        // SAFETY: as the caller says.
        unsafe { HEAP.free(block.cast(), 0) };
    }
}

/// memalign(3).
#[unsafe(no_mangle)]
extern "C" fn memalign(alignment: usize, size: usize) -> *mut c_void {
    if !alignment.is_power_of_two() {
        set_errno(libc::EINVAL);
        return null_mut();
    }
    // SAFETY: any size and any power of two may be asked for.
    or_no_memory(HEAP.with(|memory| unsafe { memory.c_memalign(alignment, size) }))
}

/// aligned_alloc(3).
#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    memalign(alignment, size)
}

/// posix_memalign(3).
///
/// # Safety
/// `place` is a valid place for a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    if !alignment.is_power_of_two() {
        return libc::EINVAL;
    }
    let block = memalign(alignment, size);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: as the caller says.
    unsafe { *place = block };
    0
}

unsafe extern "C" {
    /// strerror(3): the text of an error's number, untranslated; null for a number that is none.
    fn strerrordesc_np(number: c_int) -> *const c_char;
}

/// strerror_r(3), the POSIX one: what the standard library shows of an error.
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xpg_strerror_r(number: c_int, buffer: *mut c_char, length: usize) -> c_int {
    // SAFETY: gives a constant text or null.
    let found = unsafe { strerrordesc_np(number) };
    // SAFETY: a constant text that ends in NUL.
    let text = if found.is_null() { c"unknown error" } else { unsafe { CStr::from_ptr(found) } };
    let Some(room) = length.checked_sub(1) else { return libc::ERANGE };
    let count = room.min(text.count_bytes());
    // SAFETY: `count` and the NUL behind it fit into `length` bytes.
    unsafe {
        text.as_ptr().copy_to_nonoverlapping(buffer, count);
        *buffer.wrapping_add(count) = 0;
    }
    0
}

/// strerror_r(3), the GNU one, under the name by which glibc calls it.
///
/// # Safety
/// As [`__xpg_strerror_r`].
#[unsafe(no_mangle)]
unsafe extern "C" fn __strerror_r(number: c_int, buffer: *mut c_char, length: usize) -> *mut c_char {
    // SAFETY: as the caller says.
    unsafe { __xpg_strerror_r(number, buffer, length) };
    buffer
}

/// What assert(3) calls. Without words: it would take the whole of printing along.
#[unsafe(no_mangle)]
extern "C" fn __assert_fail(
    _what: *const c_char,
    _file: *const c_char,
    _line: c_uint,
    _of: *const c_char,
) -> ! {
    std::process::abort()
}

/// pthread_getattr_np(3): says that nothing is known. It would read `/proc/self/maps` to find the first thread's stack, at
/// every start of a program, for the words "has overflowed its stack" that the standard library has for a fault there.
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_thread: libc::pthread_t, _attributes: *mut c_void) -> c_int {
    libc::ENOSYS
}

/// sysconf(3), as far as anybody here asks.
#[unsafe(no_mangle)]
extern "C" fn sysconf(name: c_int) -> c_long {
    match name {
        libc::_SC_PAGESIZE => PAGE as c_long,
        libc::_SC_CLK_TCK => 100,
        libc::_SC_NPROCESSORS_CONF | libc::_SC_NPROCESSORS_ONLN => processors(),
        _ => {
            set_errno(libc::EINVAL);
            -1
        }
    }
}

/// The same, under the name by which glibc calls it.
#[unsafe(no_mangle)]
extern "C" fn __sysconf(name: c_int) -> c_long {
    sysconf(name)
}

/// Those that this process may use.
fn processors() -> c_long {
    let mut set = [0u64; 16];
    // SAFETY: `set` has as many bytes as are said.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&set), set.as_mut_ptr()) };
    if result < 0 { 1 } else { set.iter().map(|word| c_long::from(word.count_ones())).sum() }
}

/// What the C locale knows of characters (`locale/localeinfo.h`: seven words, then the tables' addresses): classes, their other
/// cases, and nothing behind. glibc looks them up as it starts. Its own table brings the conversion of wide characters along.
#[repr(C)]
struct Locale {
    head: [*const c_void; 7],
    classes: *const u16,
    uppercase: *const u32,
    unused: *const c_void,
    lowercase: *const u32,
    rest: [*const c_void; 117],
}

// SAFETY: only constants are pointed to.
unsafe impl Sync for Locale {}

#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static _nl_C_LC_CTYPE: Locale = {
    static CLASSES: [u16; CHARACTERS] = classes();
    static UPPERCASE: [u32; CHARACTERS] = cases(true);
    static LOWERCASE: [u32; CHARACTERS] = cases(false);
    Locale {
        head: [CLASSES.as_ptr().cast(); 7],
        classes: CLASSES.as_ptr(),
        uppercase: UPPERCASE.as_ptr(),
        unused: CLASSES.as_ptr().cast(),
        lowercase: LOWERCASE.as_ptr(),
        rest: [CLASSES.as_ptr().cast(); 117],
    }
};
