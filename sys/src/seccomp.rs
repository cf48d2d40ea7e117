//! Loading a seccomp program (seccomp(2)) without touching no_new_privs: PID 1's floor must not take set-user-ID away
//! from containers.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One instruction of classic BPF, as in `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Longest program that the kernel takes (BPF_MAXINSNS).
pub const PROGRAM_MAX: usize = 4096;

/// Installs `program` for the calling thread and all that it will start. Needs CAP_SYS_ADMIN or no_new_privs.
/// `flags` are those of `SECCOMP_SET_MODE_FILTER`.
pub fn load(program: &[Instruction], flags: u32) -> io::Result<()> {
    set_filter(program, flags).map(drop)
}

/// As [`load`]; gives the descriptor (close-on-exec) of whoever is to decide about SECCOMP_RET_USER_NOTIF.
pub fn load_with_listener(program: &[Instruction], flags: u32) -> io::Result<OwnedFd> {
    let listener = set_filter(program, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32)?;
    // SAFETY: with this flag the result is a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

fn set_filter(program: &[Instruction], flags: u32) -> io::Result<i32> {
    if program.is_empty() || program.len() > PROGRAM_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let prog =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr() as *mut libc::sock_filter };
    // SAFETY: `prog` points at `len` instructions of the kernel's own layout (`Instruction` is repr(C) with the
    // fields of `struct sock_filter`), alive for the whole call; the kernel copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
