//! Laying this program over itself from another opening of the same file, so that the kernel takes that one for what is
//! executed (prctl(2), `PR_SET_MM_EXE_FILE`).

use std::ffi::{CString, c_char, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Segments that a program may have.
const SEGMENTS_MAX: usize = 16;

/// A loaded segment of this program, in whole pages.
#[derive(Clone, Copy)]
struct Segment {
    start: usize,
    /// End of what comes from the file; what is behind is zero memory of no file.
    end: usize,
    offset: usize,
    flags: u32,
}

/// Makes `file`, another opening of the file that is executed, the one that is executed. `PermissionDenied` (EPERM) without
/// CAP_SYS_RESOURCE, before anything has changed.
///
/// For programs of one thread, linked statically: nothing else of a program maps its file.
pub fn replace_own_file(file: impl AsFd) -> io::Result<()> {
    let file = file.as_fd().as_raw_fd();
    // Asked first with nothing to be done: a descriptor that is none is EBADF for who may, EPERM for who may not.
    match set_executed(-1) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
        Err(error) => return Err(error),
        Ok(()) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    let (segments, read_only_after_start) = segments()?;
    for segment in segments.iter().flatten() {
        if segment.flags & libc::PF_W == 0 {
            remap_text(segment, file)?;
        } else {
            remap_data(segment, read_only_after_start)?;
        }
    }
    set_executed(file)
}

fn set_executed(file: i32) -> io::Result<()> {
    // SAFETY: no pointers; the kernel looks at a descriptor.
    let result =
        unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_EXE_FILE, file as libc::c_long, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

type Segments = [Option<Segment>; SEGMENTS_MAX];

/// From the program headers that the kernel has told this program of (getauxval(3)), and the range that became read-only after
/// relocation.
fn segments() -> io::Result<(Segments, (usize, usize))> {
    // SAFETY: no preconditions.
    let (at, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    if at == 0 || count == 0 || count > 64 {
        return Err(io::Error::from_raw_os_error(libc::ENOEXEC));
    }
    // SAFETY: the kernel mapped `count` program headers there, which nobody changes.
    let headers = unsafe { std::slice::from_raw_parts(at as *const libc::Elf64_Phdr, count as usize) };
    // PT_PHDR says where the headers would be if the program were loaded at 0.
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    // A static program may have none; then its first segment begins with the ELF header, whose end the headers are at.
    let base = match own {
        Some(own) => (at as usize).wrapping_sub(own.p_vaddr as usize),
        None => {
            let first = headers.iter().find(|header| header.p_type == libc::PT_LOAD);
            let first = first.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOEXEC))?;
            (at as usize - size_of::<libc::Elf64_Ehdr>()).wrapping_sub(first.p_vaddr as usize)
        }
    };
    let mut segments = [None; SEGMENTS_MAX];
    let mut slots = segments.iter_mut();
    let mut relro = (0, 0);
    for header in headers {
        let start = base.wrapping_add(header.p_vaddr as usize);
        match header.p_type {
            libc::PT_LOAD if header.p_filesz > 0 => {
                let slot = slots.next().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOEXEC))?;
                *slot = Some(Segment {
                    start: start & !(PAGE - 1),
                    end: (start + header.p_filesz as usize).next_multiple_of(PAGE),
                    offset: header.p_offset as usize & !(PAGE - 1),
                    flags: header.p_flags,
                });
            }
            libc::PT_GNU_RELRO => {
                relro = (start & !(PAGE - 1), (start + header.p_memsz as usize) & !(PAGE - 1));
            }
            _ => {}
        }
    }
    Ok((segments, relro))
}

/// The same pages of the same file, mapped anew in their place.
fn remap_text(segment: &Segment, file: i32) -> io::Result<()> {
    let execute = if segment.flags & libc::PF_X != 0 { libc::PROT_EXEC } else { 0 };
    // SAFETY: replaces a private mapping of this program's file, never written to (its segment is not writable, and a
    // position-independent program has no relocations there), by the same bytes of the same file. The kernel exchanges
    // the mapping as a whole, so the instruction after this call is there in either.
    let mapped = unsafe {
        libc::mmap(
            segment.start as *mut c_void,
            segment.end - segment.start,
            libc::PROT_READ | execute,
            libc::MAP_PRIVATE | libc::MAP_FIXED,
            file,
            segment.offset as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What was written there lives on in memory that belongs to no file.
fn remap_data(segment: &Segment, read_only: (usize, usize)) -> io::Result<()> {
    let length = segment.end - segment.start;
    // SAFETY: new memory, at a place of the kernel's choice.
    let copy = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if copy == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both ranges have `length` bytes and are apart. The one thread of this program is here and writes to no static
    // variable until the copy is in place: what follows are two system calls, whose wrapper writes only to the thread's
    // own memory (errno), which is elsewhere. mremap moves the copy over the segment as a whole.
    let moved = unsafe {
        std::ptr::copy_nonoverlapping(segment.start as *const u8, copy.cast::<u8>(), length);
        libc::mremap(
            copy,
            length,
            length,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            segment.start as *mut c_void,
        )
    };
    if moved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let (start, end) = read_only;
    if start < end && start >= segment.start && end <= segment.end {
        // SAFETY: whole pages of the segment that were read-only before.
        let result = unsafe { libc::mprotect(start as *mut c_void, end - start, libc::PROT_READ) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Executes `file` with the arguments and the environment that this process was started with. Comes back only with an error.
pub fn exec_again(file: impl AsFd) -> io::Error {
    let strings = |list: Vec<Vec<u8>>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let environment = std::env::vars_os().map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        entry
    });
    let (Ok(arguments), Ok(environment)) =
        (strings(std::env::args_os().map(OsStringExt::into_vec).collect()), strings(environment.collect()))
    else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let pointers = |list: &[CString]| {
        let mut pointers: Vec<*const c_char> = list.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: an empty path, and null-terminated arrays of strings that are alive until the exec.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
