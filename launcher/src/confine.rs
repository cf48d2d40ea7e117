//! What a launcher that starts no command gives up before it reads its plan: capabilities, new privileges, and every
//! system call that its mode does not make. (One that starts a command cannot: the command would inherit it.)

use crate::error::{Context, Result};
use crate::rights::keep_only;
use libc::c_long;
use nacre_protocols::init_launcher::{LaunchStage, Mode};
use nacre_sys::seccomp::{Instruction, load};
use rustix::thread::{CapabilitySet, capabilities};

/// Mounting, formatting, and files of any owner.
const STORAGE_CAPABILITIES: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    // Set-group-ID directories of groups that root is not in.
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LEASE);
/// Growing a file system that is mounted: init has it in a guest, root on another machine (where nothing grows) not always.
const STORAGE_CAPABILITIES_IF_THERE: CapabilitySet = CapabilitySet::SYS_RESOURCE;

/// The allocator, the end, reading the plan, reporting.
const ALWAYS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_sendmsg,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
];

/// One netlink socket.
const NETWORK: &[c_long] =
    &[libc::SYS_socket, libc::SYS_bind, libc::SYS_setsockopt, libc::SYS_sendto, libc::SYS_recvfrom];

/// Files of one directory.
const UPDATE: &[c_long] = &[libc::SYS_openat2];

/// Files beneath directories, file systems, loop devices, disks and the kernel's messages about them. Nothing that starts, traces
/// or talks to a process, and no network: its one kind of socket is netlink, and it has no capability that counts there.
const STORAGE: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchdir,
    libc::SYS_chdir,
    libc::SYS_umask,
    libc::SYS_ioctl,
    libc::SYS_getrandom,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_utimensat,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_umount2,
    libc::SYS_swapon,
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
];

pub fn confine(mode: Mode) -> Result<()> {
    let (kept, calls) = match mode {
        Mode::Create | Mode::Helper | Mode::Exec => return Ok(()),
        Mode::Storage => {
            let own = capabilities(None).at(LaunchStage::Rights, || "reading capabilities".to_owned())?;
            (STORAGE_CAPABILITIES | (own.permitted & STORAGE_CAPABILITIES_IF_THERE), STORAGE)
        }
        Mode::Network => (CapabilitySet::NET_ADMIN, NETWORK),
        // The files of a cgroup are root's own: none is needed.
        Mode::Update => (CapabilitySet::empty(), UPDATE),
    };
    keep_only(kept)?;
    load(&allow_only(calls), 0).at(LaunchStage::Rights, || "loading the launcher's own filter".to_owned())
}

// `linux/bpf_common.h`, `linux/seccomp.h`: the instructions and answers of a filter.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
// Offsets in `struct seccomp_data`, in bytes: the call, the architecture, the low half of the first argument.
const CALL_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_ARGUMENT_AT: u32 = 16;
/// `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Kills on anything but [`ALWAYS`] and `calls`, of which `socket` makes netlink sockets alone.
fn allow_only(calls: &[c_long]) -> Vec<Instruction> {
    let step = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let answer = |answer| step(RETURN, 0, 0, answer);
    let mut program = vec![
        step(LOAD_WORD, 0, 0, ARCHITECTURE_AT),
        step(JUMP_IF_EQUAL, 1, 0, ARCHITECTURE),
        answer(KILL_PROCESS),
        step(LOAD_WORD, 0, 0, CALL_AT),
    ];
    for call in ALWAYS.iter().chain(calls) {
        // System call numbers have 32 bits.
        let number = *call as u32;
        if *call == libc::SYS_socket {
            program.extend([
                step(JUMP_IF_EQUAL, 0, 4, number),
                step(LOAD_WORD, 0, 0, FIRST_ARGUMENT_AT),
                step(JUMP_IF_EQUAL, 0, 1, libc::AF_NETLINK as u32),
                answer(ALLOW),
                answer(KILL_PROCESS),
            ]);
        } else {
            program.extend([step(JUMP_IF_EQUAL, 0, 1, number), answer(ALLOW)]);
        }
    }
    program.push(answer(KILL_PROCESS));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn run(program: &[Instruction], call: c_long, architecture: u32, argument: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let it = program[at];
            at += 1;
            match (it.code, it.k) {
                (LOAD_WORD, CALL_AT) => accumulator = call as u32,
                (LOAD_WORD, ARCHITECTURE_AT) => accumulator = architecture,
                (LOAD_WORD, FIRST_ARGUMENT_AT) => accumulator = argument,
                (JUMP_IF_EQUAL, value) => at += usize::from(if accumulator == value { it.jt } else { it.jf }),
                (RETURN, answer) => return answer,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_mode_makes_its_own_calls_and_no_others() {
        let netlink = libc::AF_NETLINK as u32;
        for (calls, call, argument, allowed) in [
            (NETWORK, libc::SYS_socket, netlink, true),
            (NETWORK, libc::SYS_socket, libc::AF_VSOCK as u32, false),
            (NETWORK, libc::SYS_bind, 0, true),
            (NETWORK, libc::SYS_openat, 0, false),
            (NETWORK, libc::SYS_execve, 0, false),
            (STORAGE, libc::SYS_openat2, 0, true),
            (STORAGE, libc::SYS_umount2, 0, true),
            (STORAGE, libc::SYS_socket, netlink, true),
            (STORAGE, libc::SYS_socket, libc::AF_INET as u32, false),
            (STORAGE, libc::SYS_sendto, 0, false),
            (STORAGE, libc::SYS_clone, 0, false),
            (STORAGE, libc::SYS_bpf, 0, false),
            (UPDATE, libc::SYS_openat2, 0, true),
            (UPDATE, libc::SYS_openat, 0, false),
        ] {
            let expected = if allowed { ALLOW } else { KILL_PROCESS };
            assert_eq!(run(&allow_only(calls), call, ARCHITECTURE, argument), expected, "call {call}");
            assert_eq!(run(&allow_only(calls), call, 0x4000_0003, argument), KILL_PROCESS);
        }
    }
}
