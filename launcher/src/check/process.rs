//! The rules for a process, of a container or of an exec.

use super::{CheckError, Origin, count, length, path, require, unreserved};
use nacre_protocols::init_launcher::{
    ARGS_MAX, Capabilities, LIST_MAX, Process, ProcessAttributes, Rlimit, SECCOMP_MAX, SET_WORDS_MAX,
    Seccomp, User,
};

/// Longest argument and environment entry, in bytes (MAX_ARG_STRLEN).
const STRING_MAX: usize = 128 * 1024 - 1;
/// Longest `user:group`, in bytes.
const USER_MAX: usize = 256;
/// `RLIM_NLIMITS`.
const RESOURCES: u8 = 16;
/// `SECCOMP_FILTER_FLAG_LOG` and `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
const SECCOMP_FLAGS: u32 = 1 << 1 | 1 << 2;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, about a listener.
const WAIT_KILLABLE: u32 = 1 << 5;
/// `OOM_SCORE_ADJ_MIN` and `OOM_SCORE_ADJ_MAX`.
const OOM_SCORES: std::ops::RangeInclusive<i16> = -1000..=1000;

pub(super) fn check(process: &Process, origin: Origin, ceiling: u64) -> Result<(), CheckError> {
    strings(process)?;
    path("cwd", &process.cwd)?;
    user(&process.user, origin)?;
    capabilities(&process.capabilities, ceiling)?;
    count("rlimits", process.rlimits.len(), RESOURCES.into())?;
    process.rlimits.iter().try_for_each(rlimit)?;
    if let Some(score) = process.oom_score_adj {
        require(OOM_SCORES.contains(&score), "oom_score_adj", score)?;
    }
    if let Some(umask) = process.umask {
        require(umask & !0o777 == 0, "umask", format_args!("{umask:o}"))?;
    }
    attributes(&process.attributes)?;
    process.seccomp.as_ref().map_or(Ok(()), |it| seccomp(it, origin))
}

fn strings(process: &Process) -> Result<(), CheckError> {
    count("args", process.args.len(), ARGS_MAX)?;
    count("env", process.env.len(), ARGS_MAX)?;
    if process.args.first().is_none_or(String::is_empty) {
        return Err(CheckError::Missing("the command"));
    }
    process.args.iter().try_for_each(|arg| string("argument", arg))?;
    process.env.iter().try_for_each(|entry| {
        string("environment entry", entry)?;
        let named = entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        require(named, "environment entry", entry)
    })
}

fn string(what: &'static str, text: &str) -> Result<(), CheckError> {
    length(what, text, STRING_MAX)?;
    require(!text.contains('\0'), what, text)
}

fn user(user: &User, origin: Origin) -> Result<(), CheckError> {
    let additional = match user {
        User::Ids { uid, gid, additional } => {
            unreserved("user", *uid, origin)?;
            unreserved("group", *gid, origin)?;
            additional
        }
        User::Named { name, additional } => {
            length("user", name, USER_MAX)?;
            require(!name.contains('\0'), "user", name)?;
            additional
        }
    };
    count("additional groups", additional.len(), LIST_MAX)?;
    additional.iter().try_for_each(|gid| unreserved("additional group", *gid, origin))
}

/// All within the ceiling, and such that capset(2) and the ambient set can take them (capabilities(7)).
fn capabilities(sets: &Capabilities, ceiling: u64) -> Result<(), CheckError> {
    let within = |set, value: u64, beyond, limit: u64| match value & !limit {
        0 => Ok(()),
        excess => Err(CheckError::Capabilities { set, excess, beyond }),
    };
    within("bounding", sets.bounding, "the ceiling", ceiling)?;
    within("permitted", sets.permitted, "the ceiling", ceiling)?;
    within("inheritable", sets.inheritable, "the ceiling", ceiling)?;
    within("inheritable", sets.inheritable, "the bounding set", sets.bounding)?;
    within("effective", sets.effective, "the permitted set", sets.permitted)?;
    within("ambient", sets.ambient, "the permitted set", sets.permitted)?;
    within("ambient", sets.ambient, "the inheritable set", sets.inheritable)
}

fn rlimit(limit: &Rlimit) -> Result<(), CheckError> {
    require(limit.resource < RESOURCES, "resource limit", limit.resource)?;
    require(limit.soft <= limit.hard, "resource limit with soft above hard", limit.resource)
}

fn attributes(attributes: &ProcessAttributes) -> Result<(), CheckError> {
    count("processors", attributes.cpus_initial.len(), SET_WORDS_MAX)?;
    count("processors", attributes.cpus_final.len(), SET_WORDS_MAX)?;
    let nodes = attributes.memory_policy.as_ref().map_or(0, |policy| policy.nodes.len());
    count("memory nodes", nodes, SET_WORDS_MAX)
}

fn seccomp(filter: &Seccomp, origin: Origin) -> Result<(), CheckError> {
    count("seccomp program", filter.program.len(), SECCOMP_MAX)?;
    if filter.program.is_empty() {
        return Err(CheckError::Missing("the seccomp program"));
    }
    require(filter.listener.is_none() || origin == Origin::Host, "seccomp", "listener")?;
    let allowed = if filter.listener.is_some() { SECCOMP_FLAGS | WAIT_KILLABLE } else { SECCOMP_FLAGS };
    require(filter.flags & !allowed == 0, "seccomp flags", format_args!("{:#x}", filter.flags))
}
