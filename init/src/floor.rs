//! The seccomp floor: what no process of this guest may do, whatever else it is allowed. Laid once, inherited by all;
//! the vsock listener is opened before it.
//!
//! It lets through what it does not name: a container keeps the system calls that its own profile gives it. x32 and
//! 32-bit system calls do not exist in our kernel; a foreign architecture is killed all the same.

use crate::InitError;
use nacre_sys::seccomp::{Instruction, load};

/// `linux/audit.h`: EM_X86_64, 64 bit, little endian.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARG0: u32 = 16;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

const SOCKET: u32 = 41;
const SOCKETPAIR: u32 = 53;
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;

/// System call and why nobody needs it here.
pub const DENIED: [(u32, &str); 6] = [
    (246, "kexec_load: the sandbox has one kernel, the host's choice"),
    (320, "kexec_file_load: the same"),
    (175, "init_module: the kernel has no modules"),
    (313, "finit_module: the same"),
    (176, "delete_module: the same"),
    (425, "io_uring_setup: its operations would pass beneath every filter"),
];

/// Address families that are not to be had: the guest's own vsock listener is the only one, and the kernel's
/// crypto API is attack surface that no container needs.
pub const DENIED_FAMILIES: [u32; 2] = [AF_VSOCK, AF_ALG];

pub fn lay() -> Result<(), InitError> {
    load(&program(), 0).map_err(InitError::io("laying the seccomp floor"))
}

fn program() -> Vec<Instruction> {
    let mut program = vec![
        load_word(DATA_ARCH),
        jump_equal(AUDIT_ARCH_X86_64, 1, 0),
        give(KILL_PROCESS),
        load_word(DATA_NR),
        jump_at_least(X32_BIT, 0, 1),
        give(ERRNO | ENOSYS),
    ];
    for (number, _) in DENIED {
        program.extend([jump_equal(number, 0, 1), give(ERRNO | EPERM)]);
    }
    // socket or socketpair: go on to the family; all others are through.
    program.extend([
        jump_equal(SOCKET, 2, 0),
        jump_equal(SOCKETPAIR, 1, 0),
        give(ALLOW),
        load_word(DATA_ARG0),
    ]);
    for family in DENIED_FAMILIES {
        program.extend([jump_equal(family, 0, 1), give(ERRNO | EAFNOSUPPORT)]);
    }
    program.push(give(ALLOW));
    program
}

// Codes of `linux/bpf_common.h`.
fn load_word(offset: u32) -> Instruction {
    Instruction { code: 0x20, jt: 0, jf: 0, k: offset }
}

fn jump_equal(k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code: 0x15, jt, jf, k }
}

fn jump_at_least(k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code: 0x35, jt, jf, k }
}

fn give(action: u32) -> Instruction {
    Instruction { code: 0x06, jt: 0, jf: 0, k: action }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn verdict(arch: u32, number: u32, arg0: u32) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                0x20 => {
                    accumulator = match k {
                        DATA_NR => number,
                        DATA_ARCH => arch,
                        DATA_ARG0 => arg0,
                        other => panic!("loads offset {other}"),
                    }
                }
                0x15 => at += usize::from(if accumulator == k { jt } else { jf }),
                0x35 => at += usize::from(if accumulator >= k { jt } else { jf }),
                0x06 => return k,
                other => panic!("code {other:#x}"),
            }
        }
    }

    #[test]
    fn the_floor_refuses_what_nobody_needs_and_nothing_else() {
        const NATIVE: u32 = AUDIT_ARCH_X86_64;
        const I386: u32 = 0x4000_0003;
        for (arch, number, arg0, expected) in [
            (NATIVE, 0, 0, ALLOW),
            (NATIVE, 59, 0, ALLOW),
            (NATIVE, SOCKET, 1, ALLOW),
            (NATIVE, SOCKET, 2, ALLOW),
            (NATIVE, SOCKET, 16, ALLOW),
            (NATIVE, SOCKET, AF_VSOCK, ERRNO | EAFNOSUPPORT),
            (NATIVE, SOCKET, AF_ALG, ERRNO | EAFNOSUPPORT),
            (NATIVE, SOCKETPAIR, AF_VSOCK, ERRNO | EAFNOSUPPORT),
            (NATIVE, SOCKETPAIR, 1, ALLOW),
            // The family is looked at in these two calls only.
            (NATIVE, 3, AF_VSOCK, ALLOW),
            (NATIVE, 246, 0, ERRNO | EPERM),
            (NATIVE, 313, 0, ERRNO | EPERM),
            (NATIVE, 425, 0, ERRNO | EPERM),
            (NATIVE, X32_BIT | 41, AF_VSOCK, ERRNO | ENOSYS),
            (I386, 102, 0, KILL_PROCESS),
        ] {
            assert_eq!(verdict(arch, number, arg0), expected, "call {number} of {arch:#x} with {arg0}");
        }
    }
}
