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
/// `KVM_SET_GSI_ROUTING` (linux/kvm.h).
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
/// `KVM_SET_USER_MEMORY_REGION` (linux/kvm.h).
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;

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
    /// Memory that comes later.
    Memory,
    Network,
    /// The same over a tap.
    Tap,
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
    why: &'static str,
    /// Not in every life of a machine, but when.
    seldom: Option<&'static str>,
}

enum Values {
    One(u64),
    /// None of these bits.
    Without(u64),
}

const fn any(number: i64, why: &'static str) -> Allowed {
    Allowed { number, argument: None, why, seldom: None }
}

const fn only(number: i64, argument: u8, value: u64, why: &'static str) -> Allowed {
    Allowed { number, argument: Some((argument, Values::One(value))), why, seldom: None }
}

const fn without(number: i64, argument: u8, bits: u64, why: &'static str) -> Allowed {
    Allowed { number, argument: Some((argument, Values::Without(bits))), why, seldom: None }
}

const fn seldom(call: Allowed, when: &'static str) -> Allowed {
    Allowed { seldom: Some(when), ..call }
}

const EXEC: u64 = libc::PROT_EXEC as u64;

const COMMON: &[Allowed] = &[
    any(libc::SYS_futex, "locks and channels"),
    seldom(
        any(libc::SYS_sched_yield, "a channel whose other end was interrupted in the middle of a step"),
        "when the other end is interrupted just there",
    ),
    any(libc::SYS_read, "events, sockets"),
    any(libc::SYS_write, "events, the console, last words"),
    any(libc::SYS_close, "descriptors in the end"),
    seldom(any(libc::SYS_brk, "heap"), "when the first thread needs more heap"),
    seldom(without(libc::SYS_mmap, 2, EXEC, "heap, never executable"), "when the heap has no room left"),
    seldom(without(libc::SYS_mprotect, 2, EXEC, "heap, never executable"), "when a heap grows"),
    seldom(any(libc::SYS_munmap, "heap given back"), "in the end"),
    seldom(any(libc::SYS_mremap, "large buffers that grow"), "with buffers of more than 128 KiB"),
    seldom(any(libc::SYS_madvise, "heap given back"), "when a thread ends, and by the balloon"),
    seldom(
        any(libc::SYS_getrandom, "keys of hash tables"),
        "with the first table of a thread, and for the guest",
    ),
    seldom(
        any(libc::SYS_clock_gettime, "time, where the vDSO cannot tell it"),
        "where the vDSO cannot tell it",
    ),
    seldom(any(libc::SYS_rt_sigprocmask, "a thread's end"), "in the end"),
    seldom(any(libc::SYS_sigaltstack, "a thread's end"), "in the end"),
    seldom(
        any(libc::SYS_restart_syscall, "a wait that a stop and continue interrupted"),
        "after SIGSTOP and SIGCONT",
    ),
    seldom(any(libc::SYS_exit, "a thread's end"), "in the end"),
    seldom(any(libc::SYS_exit_group, "the process's end"), "in the end"),
    // The standard library checks descriptors that it closes, in builds for debugging.
    #[cfg(debug_assertions)]
    seldom(only(libc::SYS_fcntl, 1, libc::F_GETFD as u64, "debug assertions"), "in builds for debugging"),
];

/// Waiting for a driver's kicks.
const DEVICE: &[Allowed] = &[any(libc::SYS_epoll_wait, "kicks")];

const PROCESSOR: &[Allowed] = &[
    only(libc::SYS_ioctl, 1, KVM_RUN, "the guest"),
    only(libc::SYS_ioctl, 1, KVM_SET_GSI_ROUTING, "the guest sets up its I/O APIC"),
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
    seldom(only(libc::SYS_ioctl, 1, KVM_SET_USER_MEMORY_REGION, "memory that comes later"), "when it grows"),
];

const DISK: &[Allowed] = &[
    any(libc::SYS_pread64, "sectors"),
    any(libc::SYS_pwrite64, "sectors"),
    any(libc::SYS_fdatasync, "flush"),
    any(libc::SYS_fallocate, "discard"),
];

const NETWORK: &[Allowed] = &[any(libc::SYS_recvfrom, "frames"), any(libc::SYS_sendto, "frames")];

/// Frames are read and written.
const TAP: &[Allowed] = &[only(libc::SYS_ioctl, 1, libc::TUNSETOFFLOAD, "what the guest lets come")];

const VSOCK: &[Allowed] = &[
    any(libc::SYS_epoll_pwait, "which connections have something"),
    any(libc::SYS_accept4, "a connection of the host"),
    seldom(
        only(libc::SYS_socket, 0, libc::AF_UNIX as u64, "a connection of the guest"),
        "when the guest connects",
    ),
    seldom(any(libc::SYS_connect, "the same"), "when the guest connects"),
    any(libc::SYS_recvfrom, "the greeting of a client"),
    seldom(any(libc::SYS_sendto, "data that had to wait"), "when the host reads slowly"),
    seldom(any(libc::SYS_shutdown, "half-close"), "when the guest closes one direction"),
    any(libc::SYS_epoll_ctl, "connections come and go"),
    only(libc::SYS_ioctl, 1, libc::FIONBIO, "connections do not block"),
];

const FILES: &[Allowed] = &[
    any(libc::SYS_openat, "files of the shares: landlock says which"),
    any(libc::SYS_readlinkat, "links, which the guest follows"),
    any(libc::SYS_newfstatat, "attributes"),
    any(libc::SYS_statx, "attributes"),
    any(libc::SYS_fstatfs, "free space"),
    any(libc::SYS_getdents64, "directories"),
    any(libc::SYS_lseek, "directories, holes"),
    any(libc::SYS_preadv, "data"),
    any(libc::SYS_pwritev, "data"),
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
    seldom(any(libc::SYS_fchmod, "modes"), "by a handle, as no Linux does"),
    any(libc::SYS_fchmodat, "modes"),
    seldom(any(libc::SYS_fchownat, "owners: the kernel lets only one's own"), "when an owner changes"),
    any(libc::SYS_utimensat, "times"),
    any(libc::SYS_getxattr, "attributes"),
    any(libc::SYS_setxattr, "attributes"),
    any(libc::SYS_listxattr, "attributes"),
    any(libc::SYS_removexattr, "attributes"),
    any(libc::SYS_fcntl, "flags of open files, copies of descriptors"),
    any(libc::SYS_dup, "copies of descriptors"),
    seldom(any(libc::SYS_name_to_handle_at, "whether two names are one file"), "before Linux 5.8"),
];

/// A rule of a filter, for whoever compares it with what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Of the system call.
    pub number: i64,
    pub why: &'static str,
    /// When it is used, if not in every life of a machine.
    pub seldom: Option<&'static str>,
}

/// The rules for this kind of thread.
pub fn rules(kind: Kind) -> impl Iterator<Item = Rule> {
    let rule = |allowed: &Allowed| Rule { number: allowed.number, why: allowed.why, seldom: allowed.seldom };
    listed(kind).map(rule)
}

fn listed(kind: Kind) -> impl Iterator<Item = &'static Allowed> {
    let own: &[&[Allowed]] = match kind {
        Kind::Main => &[],
        Kind::Control => &[CONTROL],
        Kind::Processor => &[PROCESSOR],
        Kind::Disk => &[DEVICE, DISK],
        Kind::Balloon | Kind::Console | Kind::Entropy | Kind::Memory => &[DEVICE],
        Kind::Network => &[DEVICE, NETWORK],
        Kind::Tap => &[DEVICE, TAP],
        Kind::Vsock => &[DEVICE, VSOCK],
        Kind::Files => &[DEVICE, FILES],
    };
    std::iter::once(COMMON).chain(own.iter().copied()).flatten()
}

/// Files of a machine without shares: 1,024 vsock connections, devices, and some.
const FILES_MAX: u64 = 2048;
/// Bytes of heap and stacks beside the guest's memory. With a million files known to the guest, and every vsock connection full,
/// a machine needs less.
const DATA_BYTES_MAX: u64 = 1 << 30;

/// Limits of the whole process, when all its threads and files are there.
pub fn limit_process(guest_bytes: u64, has_shares: bool) -> Result<(), JailError> {
    let limit = |name, resource, most: u64| {
        // All that one may have at most, one may have now: the connections of a guest are more than a shell's usual 1,024.
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |known| known.min(most));
        let wanted = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(resource, wanted).map_err(|error| JailError::System(name, error.into()))
    };
    limit("set RLIMIT_CORE", Resource::Core, 0)?;
    limit("set RLIMIT_NPROC", Resource::Nproc, 0)?;
    limit("set RLIMIT_MEMLOCK", Resource::Memlock, 0)?;
    limit("set RLIMIT_DATA", Resource::Data, guest_bytes.saturating_add(DATA_BYTES_MAX))?;
    if !has_shares {
        limit("set RLIMIT_NOFILE", Resource::Nofile, FILES_MAX)?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| JailError::System("give up being dumpable", error.into()))
}

/// Confines this thread, for good.
pub fn confine(kind: Kind) -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| JailError::System("set no_new_privs", error.into()))?;
    if kind != Kind::Files {
        drop_capabilities()?;
        // Landlock would keep its signal from the other threads of this process (before Linux 6.15); the filter lets out no other.
        deny_files(if kind == Kind::Control {
            Scope::AbstractUnixSocket.into()
        } else {
            Scope::from_all(LANDLOCK)
        })?;
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in listed(kind) {
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
        Kind::Memory,
        Kind::Network,
        Kind::Tap,
        Kind::Vsock,
        Kind::Files,
    ];
    /// What each may do; all else on the list of acts kills, for whoever is not named.
    const ACTS: &[(&str, &[Kind])] = &[
        ("write", KINDS),
        ("execute", &[]),
        ("TCP socket", &[]),
        ("unix socket", &[Kind::Vsock]),
        ("half-close", &[Kind::Vsock]),
        ("signal", &[]),
        ("kick a thread", &[Kind::Control]),
        ("end a thread", &[]),
        ("trace", &[]),
        ("executable memory", &[]),
        ("another ioctl", &[]),
        ("read a place", &[Kind::Disk]),
        ("make a directory", &[Kind::Files]),
        ("mount", &[]),
    ];

    /// What the other test runs in processes of their own.
    #[test]
    fn jailed_child() {
        let (Ok(kind), Ok(act)) = (std::env::var(KIND), std::env::var(ACT)) else { return };
        let kind = *KINDS.iter().find(|known| format!("{known:?}") == kind).unwrap();
        let command = std::ffi::CString::new("/bin/true").unwrap();
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        Kick::prepare().unwrap();
        let thread = std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(60)));
        confine(kind).unwrap();
        match act.as_str() {
            "write" => drop(rustix::io::write(std::io::stderr(), b"alive\n")),
            "execute" => drop(nacre_sys::exec::Command::new(command, Vec::new(), Vec::new()).execute()),
            "TCP socket" => drop(std::net::TcpStream::connect("127.0.0.1:1")),
            "unix socket" => drop(std::os::unix::net::UnixDatagram::unbound()),
            "half-close" => drop(stream.shutdown(std::net::Shutdown::Write)),
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
