//! What the two processes give up before the first byte from outside, and check that they never had.
//!
//! Common to both: no core dumps and no ptrace by equals, few descriptors, no_new_privs, no capability in any set;
//! then landlock, then a seccomp list. Each entry of a list says what it is for; whatever is not listed kills the
//! process.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use nacre_protocols::names::RESOLVER_MOUNT;

use crate::registry::tls::SYSTEM_ROOTS;

/// Most descriptors that the fetcher has: four for each layer that one of its pulls has in hand, connections, the edges.
const FETCHER_DESCRIPTORS_MAX: u64 = 512;
/// The same for the indexer: three for each layer, the edge.
const INDEXER_DESCRIPTORS_MAX: u64 = 32;

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("this process has capabilities ({0}); it must be started without any")]
    Capabilities(String),
    #[error("landlock: {0}")]
    Landlock(String),
    #[error("landlock is not (fully) enforced by this kernel")]
    LandlockMissing,
    #[error("seccomp: {0}")]
    Seccomp(String),
}

/// The process with the network and the store. It connects by TCP to `ports` alone.
pub fn fetcher(store: &Path, ports: &[u16]) -> Result<(), ConfineError> {
    common(FETCHER_DESCRIPTORS_MAX)?;
    let rules = deny_files()?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)
        .map_err(landlock)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)
        .map_err(landlock)?
        .create()
        .map_err(landlock)?;
    let rules = allow(rules, store, AccessFs::from_all(FILE_ABI) & !forbidden_in_store())?;
    let rules = allow(rules, Path::new(SYSTEM_ROOTS), AccessFs::ReadFile.into())?;
    let mut rules = allow(rules, Path::new(RESOLVER_MOUNT), AccessFs::ReadFile.into())?;
    for &port in ports {
        rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp)).map_err(landlock)?;
    }
    enforce(rules)?;
    install(&[COMMON, FETCHER], &[NO_CLONE3])
}

/// The process that reads archives: nothing but the descriptors it is handed.
pub fn indexer() -> Result<(), ConfineError> {
    common(INDEXER_DESCRIPTORS_MAX)?;
    let rules = deny_files()?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)
        .map_err(landlock)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)
        .map_err(landlock)?
        .create()
        .map_err(landlock)?;
    enforce(rules)?;
    install(&[COMMON, INDEXER], &[NO_CLONE3, NO_OPEN])
}

fn common(descriptors: u64) -> Result<(), ConfineError> {
    let limit = |resource, limit: u64, name| {
        // Whoever started this may have given less already.
        let limit = rustix::process::getrlimit(resource).maximum.map_or(limit, |given| given.min(limit));
        rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
            .map_err(|error| ConfineError::System(name, error.into()))
    };
    limit(Resource::Core, 0, "set RLIMIT_CORE")?;
    limit(Resource::Nofile, descriptors, "set RLIMIT_NOFILE")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| ConfineError::System("give up being dumpable", error.into()))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| ConfineError::System("set no_new_privs", error.into()))?;
    check_capabilities()
}

fn check_capabilities() -> Result<(), ConfineError> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|error| ConfineError::System("read the capabilities", error.into()))?;
    let CapabilitySets { effective, permitted, inheritable } = sets;
    let mut any = effective | permitted | inheritable;
    for capability in CapabilitySet::all() {
        // One that this kernel does not know is not there.
        if rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false) {
            any |= capability;
        }
    }
    if any.is_empty() { Ok(()) } else { Err(ConfineError::Capabilities(format!("{any:?}"))) }
}

/// Rights over files as of Linux 6.12 (landlock ABI 6), with the device ioctls.
const FILE_ABI: ABI = ABI::V6;

/// What even the store's owner does not need there.
fn forbidden_in_store() -> landlock::BitFlags<AccessFs> {
    AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeSock
        | AccessFs::MakeFifo
        | AccessFs::MakeSym
        | AccessFs::IoctlDev
}

fn deny_files() -> Result<Ruleset, ConfineError> {
    // A guest whose kernel cannot do this must not run as if it did.
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(FILE_ABI))
        .map_err(landlock)
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)).map_err(landlock),
        // What is not there needs no rule.
        Err(_) => Ok(rules),
    }
}

fn enforce(rules: RulesetCreated) -> Result<(), ConfineError> {
    let status = rules.restrict_self().map_err(landlock)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(ConfineError::LandlockMissing),
    }
}

fn landlock(error: impl std::error::Error) -> ConfineError {
    ConfineError::Landlock(error.to_string())
}

/// A system call, which of its arguments are allowed, and why it is.
struct Allowed {
    number: i64,
    arguments: Arguments,
    #[allow(dead_code, reason = "the reason is for who reads, and for the table that the tests print")]
    why: &'static str,
}

/// What an argument must be; any other value kills.
enum Arguments {
    Any,
    /// Argument number, one of these values.
    OneOf(u8, &'static [u64]),
    /// Argument number, bits that are looked at, what they must be.
    Bits(u8, u64, u64),
    /// Of socket(2): a family, a type whatever its flags, no protocol but the type's own.
    Socket(&'static [(libc::c_int, libc::c_int)]),
}

const fn any(number: i64, why: &'static str) -> Allowed {
    Allowed { number, arguments: Arguments::Any, why }
}

const FCNTL_COMMANDS: &[u64] = if cfg!(debug_assertions) {
    &[libc::F_SETPIPE_SZ as u64, libc::F_SETFL as u64, libc::F_GETFD as u64]
} else {
    &[libc::F_SETPIPE_SZ as u64, libc::F_SETFL as u64]
};
const SOCKET_FLAGS: u64 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
const THREAD_FLAGS: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;

/// Threads, memory, time and the edges: what both processes do.
const COMMON: &[Allowed] = &[
    any(libc::SYS_read, "pipe, files, eventual sockets"),
    any(libc::SYS_write, "pipe, files, last words on stderr"),
    any(libc::SYS_close, "every descriptor in the end"),
    any(libc::SYS_recvmsg, "frames of the edges"),
    Allowed {
        number: libc::SYS_sendmsg,
        arguments: Arguments::Bits(2, libc::MSG_FASTOPEN as u64, 0),
        why: "frames of the edges; not what connects beside connect(2), where landlock does not look",
    },
    any(libc::SYS_futex, "locks, channels, joining threads"),
    any(libc::SYS_sched_yield, "a channel whose other end was interrupted in the middle of a step"),
    any(libc::SYS_brk, "heap"),
    Allowed {
        number: libc::SYS_mmap,
        arguments: Arguments::Bits(2, libc::PROT_EXEC as u64, 0),
        why: "heap and stacks, never executable",
    },
    Allowed {
        number: libc::SYS_mprotect,
        arguments: Arguments::Bits(2, libc::PROT_EXEC as u64, 0),
        why: "guard pages and heap growth of threads, never executable",
    },
    any(libc::SYS_munmap, "heap and stacks given back"),
    any(libc::SYS_mremap, "large buffers that grow"),
    any(libc::SYS_madvise, "stacks of ended threads"),
    Allowed {
        number: libc::SYS_clone,
        arguments: Arguments::Bits(0, THREAD_FLAGS, THREAD_FLAGS),
        why: "threads, never processes",
    },
    any(libc::SYS_set_robust_list, "a new thread's start"),
    any(libc::SYS_rseq, "a new thread's start"),
    any(libc::SYS_rt_sigprocmask, "a new thread's start and end"),
    any(libc::SYS_rt_sigaction, "the first thread's start: glibc's own signal"),
    any(libc::SYS_sigaltstack, "a new thread's start and end"),
    any(libc::SYS_sched_getaffinity, "a new thread's start: how large its stack is"),
    any(libc::SYS_gettid, "a new thread's start"),
    any(libc::SYS_exit, "a thread's end"),
    any(libc::SYS_exit_group, "the process's end"),
    any(libc::SYS_clock_gettime, "time, where the vDSO cannot tell it"),
    Allowed {
        number: libc::SYS_fcntl,
        arguments: Arguments::OneOf(1, FCNTL_COMMANDS),
        why: "size of a layer's pipe; direct I/O of a layer's tar; debug builds look whether what they close is open",
    },
    any(libc::SYS_restart_syscall, "a wait that a stop and continue interrupted"),
];

const FETCHER: &[Allowed] = &[
    Allowed {
        number: libc::SYS_socket,
        arguments: Arguments::Socket(&[
            (libc::AF_INET, libc::SOCK_STREAM),
            (libc::AF_INET, libc::SOCK_DGRAM),
            (libc::AF_INET6, libc::SOCK_STREAM),
            (libc::AF_INET6, libc::SOCK_DGRAM),
        ]),
        why: "TCP to registries, UDP to name servers; no other protocol, whose ports landlock does not know",
    },
    any(libc::SYS_connect, "the same"),
    any(libc::SYS_setsockopt, "timeouts, no delay"),
    any(libc::SYS_getsockopt, "how a connect with a timeout ended"),
    any(libc::SYS_recvfrom, "network"),
    Allowed {
        number: libc::SYS_sendto,
        arguments: Arguments::Bits(3, libc::MSG_FASTOPEN as u64, 0),
        why: "network; progress without waiting; not what connects beside connect(2), where landlock does not look",
    },
    any(libc::SYS_shutdown, "an indexer that is not understood"),
    any(libc::SYS_poll, "connect with a timeout; room in a layer's pipe"),
    any(libc::SYS_ppoll, "the same"),
    Allowed {
        number: libc::SYS_ioctl,
        arguments: Arguments::OneOf(1, &[libc::FIONBIO]),
        why: "connect with a timeout; a layer's pipe never blocks",
    },
    any(libc::SYS_pipe2, "a layer's pipe"),
    any(libc::SYS_clock_nanosleep, "waits between tries"),
    any(libc::SYS_getrandom, "TLS keys, ids of DNS questions"),
    any(libc::SYS_openat, "store, roots of trust, resolver: landlock says which"),
    any(libc::SYS_statx, "sizes of files in the store"),
    any(libc::SYS_newfstatat, "reading a directory"),
    any(libc::SYS_statfs, "how full the disk is"),
    any(libc::SYS_mkdir, "a layer's directory"),
    any(libc::SYS_rename, "commit"),
    any(libc::SYS_fsync, "commit on a kept disk"),
    any(libc::SYS_unlink, "sweep"),
    any(libc::SYS_rmdir, "sweep"),
    any(libc::SYS_getdents64, "sweep"),
];

const INDEXER: &[Allowed] = &[
    any(libc::SYS_pwrite64, "tar and index"),
    any(libc::SYS_ftruncate, "tar and index, brought to their full length"),
    any(libc::SYS_getrandom, "keys of hash tables"),
];

/// A system call that is always answered with an error, for who asks in good faith and does without.
struct Failing {
    number: i64,
    errno: i32,
}

/// glibc starts threads by clone3(2), whose flags lie in memory, where no filter looks; without it, it falls back to clone(2).
const NO_CLONE3: Failing = Failing { number: libc::SYS_clone3, errno: libc::ENOSYS };

/// Before it gives a thread's heap back, glibc looks into /proc/sys/vm/overcommit_memory.
const NO_OPEN: Failing = Failing { number: libc::SYS_openat, errno: libc::EACCES };

fn install(lists: &[&[Allowed]], failing: &[Failing]) -> Result<(), ConfineError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in lists.iter().copied().flatten() {
        rules.insert(allowed.number, conditions(&allowed.arguments)?);
    }
    // The kernel asks every filter and takes the strictest answer: an error goes before "allowed", a kill before an error.
    let failing_rules = |failing: &Failing| (failing.number, Vec::new());
    rules.extend(failing.iter().map(failing_rules));
    let listed = compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)?;
    for failing in failing {
        let error = SeccompAction::Errno(failing.errno.unsigned_abs());
        load(&compile(BTreeMap::from([failing_rules(failing)]), SeccompAction::Allow, error)?)?;
    }
    load(&listed)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    let failed = |error: seccompiler::BackendError| ConfineError::Seccomp(error.to_string());
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    SeccompFilter::new(rules, otherwise, listed, architecture).and_then(TryInto::try_into).map_err(failed)
}

fn conditions(arguments: &Arguments) -> Result<Vec<SeccompRule>, ConfineError> {
    let failed = |error: seccompiler::BackendError| ConfineError::Seccomp(error.to_string());
    let condition = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value).map_err(failed)
    };
    let one = |argument, operator, value| {
        SeccompRule::new(vec![condition(argument, operator, value)?]).map_err(failed)
    };
    match *arguments {
        Arguments::Any => Ok(Vec::new()),
        Arguments::OneOf(argument, values) => {
            values.iter().map(|&value| one(argument, SeccompCmpOp::Eq, value)).collect()
        }
        Arguments::Bits(argument, mask, value) => {
            Ok(vec![one(argument, SeccompCmpOp::MaskedEq(mask), value)?])
        }
        Arguments::Socket(kinds) => {
            let rule = |&(family, kind): &(libc::c_int, libc::c_int)| {
                let is = SeccompCmpOp::Eq;
                let conditions = vec![
                    condition(0, is.clone(), u64::from(family.unsigned_abs()))?,
                    condition(1, SeccompCmpOp::MaskedEq(!SOCKET_FLAGS), u64::from(kind.unsigned_abs()))?,
                    condition(2, is, 0)?,
                ];
                SeccompRule::new(conditions).map_err(failed)
            };
            kinds.iter().map(rule).collect()
        }
    }
}

fn load(program: &BpfProgram) -> Result<(), ConfineError> {
    seccompiler::apply_filter(program).map_err(|error| ConfineError::Seccomp(error.to_string()))
}
