//! The one use of bpf(2): a device program on a cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Longest program, in instructions (BPF_MAXINSNS of an unprivileged loader; ours are far shorter).
pub const PROGRAM_MAX: usize = 4096;

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of ancestors and of descendants count as well: access needs the consent of all.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `struct bpf_insn`: `registers` is the destination in the low and the source in the high four bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// The fields of `union bpf_attr` for BPF_PROG_LOAD up to the last one used.
#[repr(C)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The fields of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttr {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
}

/// Loads `program` and attaches it to the cgroup v2 whose directory `cgroup` is. The cgroup keeps it.
pub fn attach_device_program(cgroup: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let loaded = load(program)?;
    let attr = AttachAttr {
        target: cgroup.as_fd().as_raw_fd(),
        program: loaded.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: a live structure with its size, in the layout that this command reads.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<AttachAttr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    if program.is_empty() || program.len() > PROGRAM_MAX {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let attr = LoadAttr {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        // No helper that is reserved to GPL programs is called.
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"nacre_devices\0\0\0",
        interface: 0,
        attach_type: BPF_CGROUP_DEVICE,
    };
    // SAFETY: a live structure with its size; it points at `program` and at a static string, both alive for the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (close-on-exec), nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
