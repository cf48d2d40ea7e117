//! Gives up every right, once, before the first byte from outside.
//!
//! init has dropped user, group and capabilities before the agent was executed; here that is checked, not trusted. Then come
//! landlock (no file, no network, no signal beyond itself) and the list of system calls, each with its reason. A
//! call that is not on the list kills the process.

use crate::AgentError;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};
use nacre_plan::bpf::{Action, Clause, Comparison, Condition, Filter};
use nacre_protocols::names::AGENT_UID;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;
use std::collections::BTreeMap;

/// What kernel 6.12 has, the guest's.
const LANDLOCK: ABI = ABI::V6;

/// Descriptors that the agent must be allowed, at least: the kernel's own hard limit.
pub const FILES_MIN: u64 = 4096;

pub fn confine() -> Result<(), AgentError> {
    check_identity()?;
    check_capabilities()?;
    limit_resources()?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(AgentError::system("giving up being dumpable"))?;
    let status = landlock().map_err(|error| AgentError::Rights(format!("landlock: {error}")))?;
    if status != RulesetStatus::FullyEnforced {
        return Err(AgentError::Rights(format!("landlock is {status:?} by this kernel")));
    }
    install_filter()
}

fn check_identity() -> Result<(), AgentError> {
    let uids = [rustix::process::getuid(), rustix::process::geteuid()].map(rustix::process::Uid::as_raw);
    let gids = [rustix::process::getgid(), rustix::process::getegid()].map(rustix::process::Gid::as_raw);
    let groups = rustix::process::getgroups().map_err(AgentError::system("reading groups"))?;
    if uids != [AGENT_UID; 2] || gids != [AGENT_UID; 2] || !groups.is_empty() {
        let message = format!("users {uids:?}, groups {gids:?} {groups:?} instead of {AGENT_UID} alone");
        return Err(AgentError::Rights(message));
    }
    match rustix::thread::no_new_privs() {
        Ok(true) => Ok(()),
        _ => Err(AgentError::Rights("no_new_privs is not set".to_owned())),
    }
}

fn check_capabilities() -> Result<(), AgentError> {
    let sets = rustix::thread::capabilities(None).map_err(AgentError::system("reading capabilities"))?;
    let held = sets.effective | sets.permitted | sets.inheritable;
    if !held.is_empty() {
        return Err(AgentError::Rights(format!("capabilities {held:?} are held")));
    }
    for capability in CapabilitySet::all().iter() {
        // EINVAL: the kernel does not know it.
        if rustix::thread::capability_is_in_bounding_set(capability) == Ok(true) {
            return Err(AgentError::Rights(format!("{capability:?} is in the bounding set")));
        }
    }
    Ok(())
}

/// No core file, and as many descriptors as init allows.
fn limit_resources() -> Result<(), AgentError> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(AgentError::system("forbidding core files"))?;
    let files = rustix::process::getrlimit(Resource::Nofile);
    if let Some(maximum) = files.maximum.filter(|maximum| *maximum < FILES_MIN) {
        return Err(AgentError::Rights(format!("{maximum} descriptors are allowed, fewer than {FILES_MIN}")));
    }
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })
        .map_err(AgentError::system("raising the limit of descriptors"))
}

fn landlock() -> Result<RulesetStatus, RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

fn install_filter() -> Result<(), AgentError> {
    let program = filter().assemble().map_err(|error| AgentError::Rights(format!("filter: {error:?}")))?;
    let program: Vec<_> = program
        .into_iter()
        .map(|(code, jt, jf, k)| nacre_sys::seccomp::Instruction { code, jt, jf, k })
        .collect();
    nacre_sys::seccomp::load(&program, 0).map_err(AgentError::io("installing the filter"))
}

/// A call, which of its arguments are allowed (all, when empty), and why the agent makes it.
pub type Allowed = (u32, &'static [(u8, Comparison)], &'static str);

const PROT_EXEC: u64 = 4;
const NOT_EXECUTABLE: Comparison = Comparison::MaskedEqual { mask: PROT_EXEC, value: 0 };

/// There is no open, socket, connect, clone, execve, ptrace or prctl among them.
pub const ALLOWED: &[Allowed] = &[
    (0, &[], "read: streams of processes, the runtime's wake-up"),
    (1, &[], "write: streams of processes, plans into memfds, the console"),
    (3, &[], "close"),
    (8, &[], "lseek: back to a plan's start"),
    (9, &[(2, NOT_EXECUTABLE)], "mmap: memory, never executable"),
    (10, &[(2, NOT_EXECUTABLE)], "mprotect: the allocator's growing heap, never executable"),
    (11, &[], "munmap: memory"),
    (12, &[], "brk: memory"),
    (15, &[], "rt_sigreturn: the end of a signal handler"),
    (16, &[(1, Comparison::Equal(0x5414))], "ioctl TIOCSWINSZ: the size of a terminal"),
    (16, &[(1, Comparison::Equal(0x5421))], "ioctl FIONBIO: descriptors that init gives"),
    (16, &[(1, Comparison::Equal(0x541b))], "ioctl FIONREAD: what is left in a pipe"),
    (17, &[], "pread64: the state of the last agent"),
    (18, &[], "pwrite64: the state for the next agent"),
    (25, &[], "mremap: memory"),
    (28, &[], "madvise: giving memory back"),
    (44, &[], "sendto: replies to the host"),
    (45, &[], "recvfrom: requests of the host"),
    (46, &[], "sendmsg: requests to init and the puller"),
    (47, &[], "recvmsg: their replies, with descriptors"),
    (48, &[], "shutdown: the end of a connection"),
    (60, &[], "exit"),
    (72, &[(1, Comparison::Equal(1033))], "fcntl F_ADD_SEALS: a plan is final"),
    (131, &[], "sigaltstack: taken down at the end of the main thread"),
    (202, &[], "futex: locks of the runtime, contended only at its end"),
    (228, &[], "clock_gettime: deadlines, where the vDSO cannot tell"),
    (231, &[], "exit_group"),
    (232, &[], "epoll_wait: everything is waited for here"),
    (233, &[], "epoll_ctl: which descriptors"),
    (275, &[], "splice: between a terminal, the pipes behind it and connections of the host"),
    (276, &[], "tee: looking into a stream without taking from it"),
    (281, &[], "epoll_pwait: the same"),
    (288, &[], "accept4: connections of the host"),
    (318, &[], "getrandom: seeds of hash tables and of the runtime"),
    (319, &[], "memfd_create: plans"),
];

/// What only a build with debug assertions makes.
const ALLOWED_IN_DEBUG: &[Allowed] = &[(
    72,
    &[(1, Comparison::Equal(1))],
    "fcntl F_GETFD: the standard library's check of a descriptor it closes",
)];

fn filter() -> Filter {
    let mut calls: BTreeMap<u32, Vec<Clause>> = BTreeMap::new();
    let debug = if cfg!(debug_assertions) { ALLOWED_IN_DEBUG } else { &[] };
    for (number, conditions, _) in ALLOWED.iter().chain(debug) {
        let conditions = conditions
            .iter()
            .map(|(argument, comparison)| Condition { argument: *argument, comparison: *comparison })
            .collect();
        calls.entry(*number).or_default().push(Clause { conditions, action: Action::ALLOW });
    }
    Filter { calls, default: Action::KILL_PROCESS, beyond: None, foreign: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_plan::bpf::interpreter::{native, run};

    #[test]
    fn the_reasons_name_the_calls_that_the_numbers_mean() {
        let names: BTreeMap<u32, &str> = nacre_plan::CALLS
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(number, name)| (number.parse().unwrap(), name))
            .collect();
        for (number, _, reason) in ALLOWED {
            let named = reason.split([':', ' ']).next().unwrap();
            assert_eq!(names.get(number), Some(&named));
        }
    }

    #[test]
    fn what_would_give_a_right_back_kills() {
        let program = filter().assemble().unwrap();
        let killed =
            |number, arguments| run(&program, &native(number, arguments)) == Action::KILL_PROCESS.value();
        for number in [2, 41, 42, 56, 57, 59, 101, 105, 157, 165, 257, 272, 308, 322, 425, 435, 437] {
            assert!(killed(number, [0; 6]), "{number}");
        }
        assert!(killed(9, [0, 0, 7, 0, 0, 0]), "mmap of executable memory");
        assert!(killed(10, [0, 0, 4, 0, 0, 0]), "mprotect to executable");
        assert!(!killed(9, [0, 0, 3, 0, 0, 0]));
        assert!(killed(16, [0, 0x5412, 0, 0, 0, 0]), "TIOCSTI");
        assert!(killed(72, [0, 4, 0, 0, 0, 0]), "F_SETFL");
    }
}
