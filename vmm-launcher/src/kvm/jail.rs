//! What the threads of a VMM may still do once the guest runs: no file to be opened, no capability, and a short list of system
//! calls for each kind of thread. Whoever breaks out of a device or a processor finds himself there.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// The newest rights that we name; older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V6;
/// `KVM_RUN` (linux/kvm.h).
const KVM_RUN: u64 = 0xae80;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
/// The first signal that glibc leaves to programs (`SIGRTMIN`).
const KICK: u64 = 34;

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Waits for the end.
    Main,
    /// Answers at the control socket.
    Control,
    Processor,
    Balloon,
    Console,
    Disk,
    Entropy,
    Network,
    Vsock,
    /// Has confined itself to the shared directories already.
    Files,
}

#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
    #[error("landlock: {0}")]
    Landlock(String),
    #[error("seccomp: {0}")]
    Seccomp(String),
}

/// A system call that comes back, which of its arguments do, and what for.
struct Allowed {
    number: i64,
    argument: Option<(u8, Values)>,
    #[allow(dead_code, reason = "the reason is for who reads")]
    why: &'static str,
}

enum Values {
    One(u64),
    /// None of these bits.
    Without(u64),
}

const fn any(number: i64, why: &'static str) -> Allowed {
    Allowed { number, argument: None, why }
}

const fn only(number: i64, argument: u8, value: u64, why: &'static str) -> Allowed {
    Allowed { number, argument: Some((argument, Values::One(value))), why }
}

const fn without(number: i64, argument: u8, bits: u64, why: &'static str) -> Allowed {
    Allowed { number, argument: Some((argument, Values::Without(bits))), why }
}

const EXEC: u64 = libc::PROT_EXEC as u64;

const COMMON: &[Allowed] = &[
    any(libc::SYS_futex, "locks and channels"),
    any(libc::SYS_sched_yield, "a channel whose other end was interrupted in the middle of a step"),
    any(libc::SYS_read, "events, sockets"),
    any(libc::SYS_write, "events, the console, last words"),
    any(libc::SYS_close, "descriptors in the end"),
    any(libc::SYS_brk, "heap"),
    without(libc::SYS_mmap, 2, EXEC, "heap, never executable"),
    without(libc::SYS_mprotect, 2, EXEC, "heap, never executable"),
    any(libc::SYS_munmap, "heap given back"),
    any(libc::SYS_mremap, "large buffers that grow"),
    any(libc::SYS_madvise, "heap given back"),
    any(libc::SYS_getrandom, "keys of hash tables"),
    any(libc::SYS_clock_gettime, "time, where the vDSO cannot tell it"),
    any(libc::SYS_rt_sigprocmask, "a thread's end"),
    any(libc::SYS_sigaltstack, "a thread's end"),
    any(libc::SYS_restart_syscall, "a wait that a stop and continue interrupted"),
    any(libc::SYS_exit, "a thread's end"),
    any(libc::SYS_exit_group, "the process's end"),
    // The standard library checks descriptors that it closes, in builds for debugging.
    #[cfg(debug_assertions)]
    only(libc::SYS_fcntl, 1, libc::F_GETFD as u64, "debug assertions"),
];

/// Waiting for a driver's kicks.
const DEVICE: &[Allowed] =
    &[any(libc::SYS_epoll_wait, "kicks"), any(libc::SYS_epoll_pwait, "the same, by newer libraries")];

const PROCESSOR: &[Allowed] = &[
    only(libc::SYS_ioctl, 1, KVM_RUN, "the guest"),
    only(libc::SYS_ioctl, 1, KVM_KVMCLOCK_CTRL, "the guest is told that it was paused"),
    any(libc::SYS_rt_sigreturn, "back from the signal that makes it leave the guest"),
];

const CONTROL: &[Allowed] = &[
    any(libc::SYS_ppoll, "clients"),
    any(libc::SYS_accept4, "a client"),
    any(libc::SYS_recvfrom, "requests"),
    any(libc::SYS_sendto, "replies"),
    any(libc::SYS_getpid, "to say it, and for the next"),
    only(libc::SYS_tgkill, 2, KICK, "processors leave the guest"),
];

const DISK: &[Allowed] = &[
    any(libc::SYS_pread64, "sectors"),
    any(libc::SYS_pwrite64, "sectors"),
    any(libc::SYS_fdatasync, "flush"),
    any(libc::SYS_fallocate, "discard"),
];

const NETWORK: &[Allowed] = &[any(libc::SYS_recvfrom, "frames"), any(libc::SYS_sendto, "frames")];

const VSOCK: &[Allowed] = &[
    any(libc::SYS_accept4, "a connection of the host"),
    only(libc::SYS_socket, 0, libc::AF_UNIX as u64, "a connection of the guest"),
    any(libc::SYS_connect, "the same"),
    any(libc::SYS_recvfrom, "data"),
    any(libc::SYS_recvmsg, "data"),
    any(libc::SYS_sendto, "data"),
    any(libc::SYS_sendmsg, "data"),
    any(libc::SYS_shutdown, "half-close"),
    any(libc::SYS_epoll_ctl, "connections come and go"),
    only(libc::SYS_ioctl, 1, libc::FIONBIO, "connections do not block"),
    any(libc::SYS_getsockopt, "how a connection ended"),
];

const FILES: &[Allowed] = &[
    any(libc::SYS_openat, "files of the shares: landlock says which"),
    any(libc::SYS_openat2, "the same"),
    any(libc::SYS_readlinkat, "links, which the guest follows"),
    any(libc::SYS_newfstatat, "attributes"),
    any(libc::SYS_fstat, "attributes"),
    any(libc::SYS_statx, "attributes"),
    any(libc::SYS_fstatfs, "free space"),
    any(libc::SYS_statfs, "free space"),
    any(libc::SYS_getdents64, "directories"),
    any(libc::SYS_lseek, "directories, holes"),
    any(libc::SYS_pread64, "data"),
    any(libc::SYS_preadv, "data"),
    any(libc::SYS_preadv2, "data"),
    any(libc::SYS_readv, "data"),
    any(libc::SYS_pwrite64, "data"),
    any(libc::SYS_pwritev, "data"),
    any(libc::SYS_pwritev2, "data"),
    any(libc::SYS_writev, "data"),
    any(libc::SYS_copy_file_range, "data"),
    any(libc::SYS_ftruncate, "sizes"),
    any(libc::SYS_fallocate, "room, holes"),
    any(libc::SYS_fsync, "flush"),
    any(libc::SYS_fdatasync, "flush"),
    any(libc::SYS_mkdirat, "directories"),
    any(libc::SYS_mknodat, "fifos and sockets: the device's rules say which"),
    any(libc::SYS_unlinkat, "removal"),
    any(libc::SYS_renameat2, "renames"),
    any(libc::SYS_linkat, "hard links"),
    any(libc::SYS_symlinkat, "links"),
    any(libc::SYS_fchmod, "modes"),
    any(libc::SYS_fchmodat, "modes"),
    any(libc::SYS_fchmodat2, "modes"),
    any(libc::SYS_fchownat, "owners: the kernel lets only one's own"),
    any(libc::SYS_utimensat, "times"),
    any(libc::SYS_getxattr, "attributes"),
    any(libc::SYS_fgetxattr, "attributes"),
    any(libc::SYS_setxattr, "attributes"),
    any(libc::SYS_fsetxattr, "attributes"),
    any(libc::SYS_listxattr, "attributes"),
    any(libc::SYS_flistxattr, "attributes"),
    any(libc::SYS_removexattr, "attributes"),
    any(libc::SYS_fremovexattr, "attributes"),
    any(libc::SYS_fcntl, "flags of open files, copies of descriptors"),
    any(libc::SYS_dup, "copies of descriptors"),
    any(libc::SYS_flock, "locks of the guest"),
    any(libc::SYS_umask, "modes of new files"),
    any(libc::SYS_getuid, "whose files are root's in the guest"),
    any(libc::SYS_getgid, "the same"),
    any(libc::SYS_getpid, "its own directory of descriptors"),
    any(libc::SYS_name_to_handle_at, "whether two names are one file"),
];

/// Limits of the whole process; before the first thread is confined.
pub fn limit_process() -> Result<(), JailError> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)
        .map_err(|error| JailError::System("set RLIMIT_CORE", error.into()))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| JailError::System("give up being dumpable", error.into()))
}

/// Confines this thread, for good.
pub fn confine(kind: Kind) -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| JailError::System("set no_new_privs", error.into()))?;
    let own: &[&[Allowed]] = match kind {
        Kind::Main => &[],
        Kind::Control => &[CONTROL],
        Kind::Processor => &[PROCESSOR],
        Kind::Disk => &[DEVICE, DISK],
        Kind::Balloon | Kind::Console | Kind::Entropy => &[DEVICE],
        Kind::Network => &[DEVICE, NETWORK],
        Kind::Vsock => &[DEVICE, VSOCK],
        Kind::Files => &[DEVICE, FILES],
    };
    if kind != Kind::Files {
        drop_capabilities()?;
        // Landlock would keep its signal from the other threads of this process (before Linux 6.15); the filter lets out no other.
        deny_files(if kind == Kind::Control {
            Scope::AbstractUnixSocket.into()
        } else {
            Scope::from_all(LANDLOCK)
        })?;
    }
    let listed = || std::iter::once(&COMMON).chain(own).copied().flatten();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in listed() {
        // A call that a second list lets through with any argument is let through so.
        let conditions = conditions(allowed)?;
        match rules.get_mut(&allowed.number) {
            Some(known) if known.is_empty() || conditions.is_empty() => known.clear(),
            Some(known) => known.extend(conditions),
            None => drop(rules.insert(allowed.number, conditions)),
        }
    }
    // Before it gives a thread's heap back, glibc looks into /proc/sys/vm/overcommit_memory, and does without.
    if kind != Kind::Files {
        let refused = BTreeMap::from([(libc::SYS_openat, Vec::new())]);
        rules.insert(libc::SYS_openat, Vec::new());
        load(refused, SeccompAction::Allow, SeccompAction::Errno(libc::EACCES as u32))?;
    }
    load(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// All of them, and that they never come back.
fn drop_capabilities() -> Result<(), JailError> {
    let failed = |error: rustix::io::Errno| JailError::System("drop the capabilities", error.into());
    let current = rustix::thread::capabilities(None).map_err(failed)?;
    if current.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all() {
            // One that this kernel does not know is not there.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
    .map_err(failed)
}

fn deny_files(scope: landlock::BitFlags<Scope>) -> Result<(), JailError> {
    let failed = |error: landlock::RulesetError| JailError::Landlock(error.to_string());
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|rules| rules.scope(scope))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    // Without landlock, seccomp still lets nothing be opened.
    match rules.restrict_self().map_err(failed)?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
            Ok(())
        }
    }
}

fn conditions(allowed: &Allowed) -> Result<Vec<SeccompRule>, JailError> {
    let Some((argument, values)) = &allowed.argument else { return Ok(Vec::new()) };
    let (operator, value) = match values {
        Values::One(value) => (SeccompCmpOp::Eq, *value),
        Values::Without(bits) => (SeccompCmpOp::MaskedEq(*bits), 0),
    };
    let rule = SeccompCondition::new(*argument, SeccompCmpArgLen::Qword, operator, value)
        .and_then(|condition| SeccompRule::new(vec![condition]));
    Ok(vec![rule.map_err(|error| JailError::Seccomp(error.to_string()))?])
}

fn load(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<(), JailError> {
    let failed = |error: &dyn std::fmt::Display| JailError::Seccomp(error.to_string());
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, listed, architecture)
        .and_then(TryInto::try_into)
        .map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use crate::kvm::control::Kick;
    use vmm_sys_util::signal::Killable;

    const KIND: &str = "NACRE_TEST_JAIL";
    const ACT: &str = "NACRE_TEST_ACT";
    const KINDS: &[Kind] = &[
        Kind::Main,
        Kind::Control,
        Kind::Processor,
        Kind::Balloon,
        Kind::Console,
        Kind::Disk,
        Kind::Entropy,
        Kind::Network,
        Kind::Vsock,
        Kind::Files,
    ];
    /// What each may do; all else on the list of acts kills, for whoever is not named.
    const ACTS: &[(&str, &[Kind])] = &[
        ("write", KINDS),
        ("execute", &[]),
        ("TCP socket", &[]),
        ("unix socket", &[Kind::Vsock]),
        ("signal", &[]),
        ("kick a thread", &[Kind::Control]),
        ("end a thread", &[]),
        ("trace", &[]),
        ("executable memory", &[]),
        ("another ioctl", &[]),
        ("read a place", &[Kind::Disk, Kind::Files]),
        ("make a directory", &[Kind::Files]),
        ("mount", &[]),
    ];

    /// What the other test runs in processes of their own.
    #[test]
    fn jailed_child() {
        let (Ok(kind), Ok(act)) = (std::env::var(KIND), std::env::var(ACT)) else { return };
        let kind = *KINDS.iter().find(|known| format!("{known:?}") == kind).unwrap();
        let command = std::ffi::CString::new("/bin/true").unwrap();
        Kick::prepare().unwrap();
        let thread = std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(60)));
        confine(kind).unwrap();
        match act.as_str() {
            "write" => drop(rustix::io::write(std::io::stderr(), b"alive\n")),
            "execute" => drop(nacre_sys::exec::Command::new(command, Vec::new(), Vec::new()).execute()),
            "TCP socket" => drop(std::net::TcpStream::connect("127.0.0.1:1")),
            "unix socket" => drop(std::os::unix::net::UnixDatagram::unbound()),
            "signal" => {
                let own = rustix::process::getpid();
                let _ = rustix::process::kill_process(own, rustix::process::Signal::CONT);
            }
            "kick a thread" => assert!(thread.kill(vmm_sys_util::signal::SIGRTMIN()).is_ok()),
            "end a thread" => drop(Killable::kill(&thread, libc::SIGTERM)),
            "trace" => drop(rustix::process::pidfd_open(
                rustix::process::Pid::INIT,
                rustix::process::PidfdFlags::empty(),
            )),
            "executable memory" => drop(nacre_sys::probe::call_with_nonsense(libc::SYS_mprotect)),
            "another ioctl" => drop(rustix::io::ioctl_fionread(std::io::stdin())),
            "read a place" => drop(rustix::io::pread(std::io::stdin(), &mut [0; 1], 0)),
            "make a directory" => {
                let _ = rustix::fs::mkdirat(rustix::fs::CWD, "/nonexistent/x", rustix::fs::Mode::RWXU);
            }
            "mount" => drop(nacre_sys::probe::call_with_nonsense(libc::SYS_mount)),
            other => panic!("{other}"),
        }
        std::process::exit(0);
    }

    #[test]
    fn a_thread_of_each_kind_can_do_its_work_and_dies_of_anything_else() {
        let program = std::env::current_exe().unwrap();
        for kind in KINDS {
            for (act, who) in ACTS {
                let status = Command::new(&program)
                    .args(["--exact", "kvm::jail::tests::jailed_child", "--test-threads=1"])
                    .env(KIND, format!("{kind:?}"))
                    .env(ACT, act)
                    .output()
                    .unwrap();
                let expected = if who.contains(kind) { None } else { Some(libc::SIGSYS) };
                let said = String::from_utf8_lossy(&status.stderr);
                assert_eq!(status.status.signal(), expected, "{kind:?}: {act}: {}\n{said}", status.status);
            }
        }
    }
}
