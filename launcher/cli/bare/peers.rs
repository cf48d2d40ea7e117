//! What a peer needs that this machine may not give.

use nacre_sys::seccomp::{Instruction, load};
use rustix::thread::{CapabilitySet, capabilities};
use std::io;

// `linux/bpf_common.h`, `linux/seccomp.h`, and x86-64's number of prlimit64(2).
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
/// The call is not made and gives 0.
const PRETEND: u32 = 0x0005_0000;
const PRLIMIT: u32 = 302;
const LOCKED_MEMORY: u32 = 8;
const CALL_AT: u32 = 0;
const SECOND_ARGUMENT_AT: u32 = 24;

/// crun raises its limit of locked memory before it loads a device program, which Linux has not asked for since 5.11, and gives
/// up where it may not. Without CAP_SYS_RESOURCE it is told that it could. The filter is there for whatever is
/// measured, so that all bear it alike.
pub fn pretend_to_raise_locked_memory() -> io::Result<()> {
    if capabilities(None)?.effective.contains(CapabilitySet::SYS_RESOURCE) {
        return Ok(());
    }
    let step = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let program = [
        step(LOAD_WORD, 0, 0, CALL_AT),
        step(JUMP_IF_EQUAL, 0, 3, PRLIMIT),
        step(LOAD_WORD, 0, 0, SECOND_ARGUMENT_AT),
        step(JUMP_IF_EQUAL, 0, 1, LOCKED_MEMORY),
        step(RETURN, 0, 0, PRETEND),
        step(RETURN, 0, 0, ALLOW),
    ];
    load(&program, 0)
}
