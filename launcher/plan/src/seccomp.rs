//! A seccomp profile, with its names of system calls, to a program for the kernel.
//!
//! The meaning of a profile is libseccomp's, as runc uses it: an entry without arguments decides for its names; conditions
//! on different arguments must all hold; several on the same argument are alternatives; names that the guest's kernel
//! does not have are ignored. Numbers beyond all that the profile names fail with ENOSYS where the default is to fail,
//! so that a library of a newer time falls back instead of giving up.

use super::{Place, PlanError, absolute, at_most, hooks};
use crate::bpf::{AUDIT_ARCH_I386, Action, AssembleError, Clause, Comparison, Condition, Filter};
use crate::oci;
use nacre_protocols::init_launcher::{LIST_MAX, SECCOMP_MAX, Seccomp, SeccompListener, StateText};
use std::collections::BTreeMap;

/// `number name` of every 64-bit call of Linux 6.12 on x86-64, a line each.
pub const CALLS: &str = include_str!("syscalls_x86_64.txt");
/// The same of the calls of 32-bit programs.
const CALLS_I386: &str = include_str!("syscalls_i386.txt");
const EPERM: u32 = 1;
/// Flags of seccomp(2) that a profile can ask for.
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;
/// What a launcher does itself between loading a program and executing the command: were the listener asked, it would
/// wait for a descriptor that has not been sent yet.
const NEVER_NOTIFIED: [&str; 5] = ["sendmsg", "capset", "capget", "prctl", "close"];

/// `state`: what a listener is told of the container.
pub fn program(
    profile: &oci::Seccomp,
    place: Place,
    state: impl Fn() -> StateText,
) -> Result<Seccomp, PlanError> {
    at_most("linux.seccomp.syscalls", profile.syscalls.len(), LIST_MAX)?;
    at_most("linux.seccomp.flags", profile.flags.len(), LIST_MAX)?;
    let listener = listener(profile, place, state)?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let (calls, last) = calls(profile, default, &Numbers::NATIVE)?;
    let foreign = match has_32_bit(&profile.architectures)? {
        true => Some((AUDIT_ARCH_I386, self::calls(profile, default, &Numbers::I386)?.0)),
        false => None,
    };
    let fails = default == Action::errno(EPERM);
    let beyond = last.filter(|_| fails).map(|last| (last, Action::NO_SUCH_CALL));
    let filter = Filter { calls, default, beyond, foreign };
    let program = filter.assemble().map_err(|error| match error {
        AssembleError::TooLong => {
            PlanError::TooMany { field: "the program of linux.seccomp", limit: SECCOMP_MAX }
        }
        AssembleError::NoSuchArgument { argument } => {
            PlanError::invalid("linux.seccomp.syscalls.args", format!("index {argument} is above 5"))
        }
    })?;
    let mut flags = flags(&profile.flags)?;
    if listener.is_none() {
        // About a listener; without one the kernel refuses it.
        flags &= !FLAG_WAIT_KILLABLE_RECV;
    }
    Ok(Seccomp { program, flags, listener })
}

/// Who is asked about SCMP_ACT_NOTIFY; there must be somebody exactly when something asks.
fn listener(
    profile: &oci::Seccomp,
    place: Place,
    state: impl Fn() -> StateText,
) -> Result<Option<SeccompListener>, PlanError> {
    const NOTIFY: &str = "SCMP_ACT_NOTIFY";
    let asks = |action: &str| action == NOTIFY;
    if asks(&profile.default_action) {
        return Err(PlanError::invalid("linux.seccomp.defaultAction", format!("{NOTIFY} can be no default")));
    }
    let notified: Vec<_> = profile.syscalls.iter().filter(|entry| asks(&entry.action)).collect();
    let never =
        notified.iter().flat_map(|entry| &entry.names).find(|name| NEVER_NOTIFIED.contains(&name.as_str()));
    if let Some(name) = never {
        let reason = format!("{NOTIFY} for {name}, which the launcher itself calls");
        return Err(PlanError::invalid("linux.seccomp.syscalls", reason));
    }
    match (profile.listener_path.as_str(), notified.is_empty()) {
        ("", true) if profile.listener_metadata.is_empty() => Ok(None),
        ("", _) => Err(PlanError::invalid("linux.seccomp.listenerPath", format!("is missing for {NOTIFY}"))),
        _ if place == Place::Sandbox => {
            Err(PlanError::unsupported("linux.seccomp.listenerPath, which no guest has,"))
        }
        // Nobody would ever be asked.
        (_, true) => Ok(None),
        (path, false) => Ok(Some(SeccompListener {
            path: absolute("linux.seccomp.listenerPath", path)?,
            message: hooks::listener_state(&profile.listener_metadata, state()),
        })),
    }
}

/// True when calls of 32-bit programs are spoken of too; the machine's own always are. x32 calls do not exist whatever the
/// profile says.
fn has_32_bit(architectures: &[String]) -> Result<bool, PlanError> {
    at_most("linux.seccomp.architectures", architectures.len(), 32)?;
    for word in architectures {
        // One of another machine never runs here.
        if !word.starts_with("SCMP_ARCH_") {
            return Err(PlanError::invalid("linux.seccomp.architectures", format!("{word:?} is unknown")));
        }
    }
    Ok(architectures.iter().any(|word| word == "SCMP_ARCH_X86"))
}

type Calls = BTreeMap<u32, Vec<Clause>>;

/// Clauses by number, and the highest number that the profile names.
fn calls(
    profile: &oci::Seccomp,
    default: Action,
    numbers: &Numbers,
) -> Result<(Calls, Option<u32>), PlanError> {
    let mut calls = Calls::new();
    let mut last = None;
    let mut total = 0;
    for entry in &profile.syscalls {
        let action = action(&entry.action, entry.errno_ret)?;
        let alternatives = alternatives(&entry.args)?;
        for number in entry.names.iter().filter_map(|name| numbers.of(name)) {
            last = last.max(Some(number));
            // libseccomp, too, makes no rule of what the default says anyway.
            if action == default {
                continue;
            }
            let clauses = calls.entry(number).or_default();
            if clauses.last().is_some_and(|clause| clause.conditions.is_empty()) {
                continue;
            }
            total += alternatives.len();
            if total > SECCOMP_MAX {
                let field = "linux.seccomp.syscalls, with their names and conditions,";
                return Err(PlanError::TooMany { field, limit: SECCOMP_MAX });
            }
            // Most calls have one, and there are hundreds.
            clauses.reserve_exact(alternatives.len());
            clauses.extend(
                alternatives.iter().map(|conditions| Clause { conditions: conditions.clone(), action }),
            );
        }
    }
    Ok((calls, last))
}

/// A table of calls, with an index by name that was made when this was compiled: a profile has hundreds of names.
struct Numbers {
    table: &'static str,
    index: &'static [Slot; SLOTS],
}

/// Where a name begins in the table, never at its very beginning, and its number. The next free slot is taken by the second name of
/// one hash.
#[derive(Clone, Copy)]
struct Slot {
    at: u16,
    number: u16,
}

const SLOTS: usize = 1024;
static NATIVE_INDEX: [Slot; SLOTS] = index(CALLS.as_bytes());
static I386_INDEX: [Slot; SLOTS] = index(CALLS_I386.as_bytes());

impl Numbers {
    const NATIVE: Self = Self { table: CALLS, index: &NATIVE_INDEX };
    const I386: Self = Self { table: CALLS_I386, index: &I386_INDEX };

    fn of(&self, name: &str) -> Option<u32> {
        let mut slot = name.bytes().fold(HASH_START, hash) as usize % SLOTS;
        loop {
            let found = self.index.get(slot).filter(|slot| slot.at != 0)?;
            let rest = self.table.as_bytes().get(found.at.into()..)?.strip_prefix(name.as_bytes());
            let ends = rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'\n')));
            if ends && !name.contains('\n') {
                return Some(found.number.into());
            }
            slot = (slot + 1) % SLOTS;
        }
    }
}

/// FNV-1a.
const HASH_START: u32 = 0x811c_9dc5;

const fn hash(before: u32, byte: u8) -> u32 {
    (before ^ byte as u32).wrapping_mul(0x0100_0193)
}

/// Of a table of lines `number name`. When this is compiled it may index as it likes.
const fn index(table: &[u8]) -> [Slot; SLOTS] {
    assert!(table.len() < u16::MAX as usize);
    let mut index = [Slot { at: 0, number: 0 }; SLOTS];
    let mut at = 0;
    while at < table.len() {
        let mut number = 0;
        while table[at] != b' ' {
            number = number * 10 + (table[at] - b'0') as u16;
            at += 1;
        }
        at += 1;
        let name = at as u16;
        let mut sum = HASH_START;
        while at < table.len() && table[at] != b'\n' {
            sum = hash(sum, table[at]);
            at += 1;
        }
        at += 1;
        let mut slot = sum as usize % SLOTS;
        while index[slot].at != 0 {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = Slot { at: name, number };
    }
    index
}

/// The lists of conditions of which one must hold: a single list, or one for each condition when an argument
/// comes twice.
fn alternatives(args: &[oci::SeccompArg]) -> Result<Vec<Vec<Condition>>, PlanError> {
    at_most("linux.seccomp.syscalls.args", args.len(), 16)?;
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut seen = 0u8;
    let repeated = conditions.iter().any(|condition| {
        let bit = 1 << condition.argument;
        let again = seen & bit != 0;
        seen |= bit;
        again
    });
    Ok(if repeated {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    })
}

fn condition(arg: &oci::SeccompArg) -> Result<Condition, PlanError> {
    let invalid = |reason: String| PlanError::invalid("linux.seccomp.syscalls.args", reason);
    let argument = match u8::try_from(arg.index) {
        Ok(index) if index <= 5 => index,
        _ => return Err(invalid(format!("index {} is above 5", arg.index))),
    };
    let comparison = match arg.op.as_str() {
        "SCMP_CMP_NE" => Comparison::NotEqual(arg.value),
        "SCMP_CMP_LT" => Comparison::Less(arg.value),
        "SCMP_CMP_LE" => Comparison::LessOrEqual(arg.value),
        "SCMP_CMP_EQ" => Comparison::Equal(arg.value),
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual(arg.value),
        "SCMP_CMP_GT" => Comparison::Greater(arg.value),
        "SCMP_CMP_MASKED_EQ" => Comparison::MaskedEqual { mask: arg.value, value: arg.value_two },
        other => return Err(invalid(format!("comparison {other:?} is unknown"))),
    };
    Ok(Condition { argument, comparison })
}

fn action(word: &str, errno: Option<u32>) -> Result<Action, PlanError> {
    Ok(match word {
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_ERRNO" => Action::errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Action::KILL_PROCESS,
        "SCMP_ACT_LOG" => Action::LOG,
        "SCMP_ACT_TRAP" => Action::trap(0),
        "SCMP_ACT_TRACE" => Action::trace(u16::try_from(errno.unwrap_or(EPERM)).unwrap_or(u16::MAX)),
        "SCMP_ACT_NOTIFY" => Action::NOTIFY,
        _ => return Err(PlanError::invalid("linux.seccomp", format!("action {word:?} is unknown"))),
    })
}

fn flags(words: &[String]) -> Result<u32, PlanError> {
    words.iter().try_fold(0, |flags, word| match word.as_str() {
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | FLAG_SPEC_ALLOW),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => Ok(flags | FLAG_WAIT_KILLABLE_RECV),
        // The launcher has one thread.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        _ => Err(PlanError::invalid("linux.seccomp.flags", format!("{word:?} is unknown"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::interpreter::{Call, native, run};

    const READ: u32 = 0;
    const SOCKET: u32 = 41;
    const CLONE: u32 = 56;
    const PERSONALITY: u32 = 135;
    const CLONE3: u32 = 435;
    const MSEAL: u32 = 462;

    fn entry(names: &[&str], action: &str, args: &[(u64, &str, u64, u64)]) -> oci::Syscall {
        oci::Syscall {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            action: action.into(),
            errno_ret: None,
            args: args
                .iter()
                .map(|(index, op, value, value_two)| oci::SeccompArg {
                    index: *index,
                    value: *value,
                    value_two: *value_two,
                    op: (*op).into(),
                })
                .collect(),
        }
    }

    fn profile(default: &str, syscalls: Vec<oci::Syscall>) -> oci::Seccomp {
        oci::Seccomp { default_action: default.into(), syscalls, ..Default::default() }
    }

    fn program(profile: &oci::Seccomp) -> Result<Seccomp, PlanError> {
        super::program(profile, Place::Sandbox, StateText::default)
    }

    #[test]
    fn the_table_of_calls_is_the_kernels() {
        let numbers = Numbers::NATIVE;
        for (table, numbers) in [(CALLS, Numbers::NATIVE), (CALLS_I386, Numbers::I386)] {
            for (number, name) in table.lines().map(|line| line.split_once(' ').unwrap()) {
                assert_eq!(numbers.of(name), number.parse().ok(), "{name}");
            }
            for name in ["", "rea", "readx", "0 read", "read\n"] {
                assert_eq!(numbers.of(name), None, "{name:?}");
            }
        }
        for (name, number) in [
            ("read", READ),
            ("socket", SOCKET),
            ("clone", CLONE),
            ("personality", PERSONALITY),
            ("execveat", 322),
            ("pidfd_send_signal", 424),
            ("clone3", CLONE3),
            ("mseal", MSEAL),
        ] {
            assert_eq!(numbers.of(name), Some(number), "{name}");
        }
        let numbers = Numbers::I386;
        for (name, number) in [("exit", 1), ("socketcall", 102), ("clone3", CLONE3), ("mseal", MSEAL)] {
            assert_eq!(numbers.of(name), Some(number), "{name}");
        }
    }

    /// The forms that the default profiles of docker and containerd use.
    #[test]
    fn a_usual_profile_decides_as_it_says() {
        let mut no_clone3 = entry(&["clone3"], "SCMP_ACT_ERRNO", &[]);
        no_clone3.errno_ret = Some(38);
        let profile = profile(
            "SCMP_ACT_ERRNO",
            vec![
                entry(&["read", "write", "not_yet_invented"], "SCMP_ACT_ALLOW", &[]),
                entry(&["socket"], "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_NE", 40, 0)]),
                entry(&["personality"], "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_EQ", 0, 0)]),
                entry(&["personality"], "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_EQ", 0xffff_ffff, 0)]),
                entry(&["clone"], "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0)]),
                no_clone3,
            ],
        );
        let program = program(&profile).unwrap().program;
        let allow = Action::ALLOW;
        let denied = Action::errno(1);
        let missing = Action::errno(38);
        for (number, argument, expected) in [
            (READ, 0, allow),
            (2, 0, denied),
            (SOCKET, 2, allow),
            (SOCKET, 40, denied),
            (PERSONALITY, 0, allow),
            (PERSONALITY, 0xffff_ffff, allow),
            (PERSONALITY, 8, denied),
            (PERSONALITY, 0x1_0000_0000, denied),
            (CLONE, 0x0001_0000, allow),
            (CLONE, 0x1000_0000, denied),
            (CLONE3, 0, missing),
            (CLONE3 + 1, 0, missing),
            (400, 0, denied),
            (0x4000_0000, 0, missing),
        ] {
            let result = run(&program, &native(number, [argument, 0, 0, 0, 0, 0]));
            assert_eq!(result, expected.value(), "call {number} with {argument:#x}");
        }
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let profile = profile(
            "SCMP_ACT_KILL_PROCESS",
            vec![entry(
                &["socket"],
                "SCMP_ACT_ALLOW",
                &[(0, "SCMP_CMP_EQ", 1, 0), (0, "SCMP_CMP_EQ", 2, 0), (1, "SCMP_CMP_EQ", 9, 0)],
            )],
        );
        let program = program(&profile).unwrap().program;
        for (arguments, allowed) in
            [([1, 0], true), ([2, 0], true), ([3, 9], true), ([3, 0], false), ([0, 0], false)]
        {
            let [first, second] = arguments;
            let result = run(&program, &native(SOCKET, [first, second, 0, 0, 0, 0]));
            assert_eq!(result == Action::ALLOW.value(), allowed, "{arguments:?}");
        }
    }

    #[test]
    fn a_deny_list_leaves_new_calls_alone() {
        let profile = profile(
            "SCMP_ACT_ALLOW",
            vec![
                entry(&["clone3"], "SCMP_ACT_TRAP", &[]),
                entry(&["socket"], "SCMP_ACT_LOG", &[]),
                entry(&["read"], "SCMP_ACT_KILL", &[]),
            ],
        );
        let program = program(&profile).unwrap().program;
        for (number, expected) in [
            (READ, Action::KILL_THREAD),
            (SOCKET, Action::LOG),
            (CLONE3, Action::trap(0)),
            (MSEAL, Action::ALLOW),
        ] {
            assert_eq!(run(&program, &native(number, [0; 6])), expected.value(), "{number}");
        }
    }

    #[test]
    fn a_second_architecture_has_its_own_numbers() {
        let mut profile =
            profile("SCMP_ACT_ERRNO", vec![entry(&["read", "socket", "socketcall"], "SCMP_ACT_ALLOW", &[])]);
        let i386 = |number| Call { arch: AUDIT_ARCH_I386, ..native(number, [0; 6]) };
        let alone = program(&profile).unwrap().program;
        assert_eq!(run(&alone, &i386(3)), Action::KILL_PROCESS.value());
        profile.architectures =
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec();
        let both = program(&profile).unwrap().program;
        for (call, expected) in [
            (native(READ, [0; 6]), Action::ALLOW),
            (native(SOCKET, [0; 6]), Action::ALLOW),
            (native(3, [0; 6]), Action::errno(1)),
            (i386(3), Action::ALLOW),
            (i386(102), Action::ALLOW),
            (i386(359), Action::ALLOW),
            (i386(0), Action::errno(1)),
            (Call { arch: 0xc000_00b7, ..native(READ, [0; 6]) }, Action::KILL_PROCESS),
        ] {
            assert_eq!(run(&both, &call), expected.value(), "{:#x} {}", call.arch, call.number);
        }
    }

    #[test]
    fn a_listener_is_told_and_a_tracer_gets_its_number() {
        let mut trace = entry(&["socket"], "SCMP_ACT_TRACE", &[]);
        trace.errno_ret = Some(7);
        let mut profile = profile("SCMP_ACT_ALLOW", vec![entry(&["read"], "SCMP_ACT_NOTIFY", &[]), trace]);
        profile.listener_path = "/run/agent.sock".into();
        profile.flags = vec!["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".into()];
        let state = || StateText(vec!["{\"pid\":".into(), "}".into()]);
        let seccomp = super::program(&profile, Place::Host, state).unwrap();
        assert_eq!(run(&seccomp.program, &native(READ, [0; 6])), 0x7fc0_0000);
        assert_eq!(run(&seccomp.program, &native(SOCKET, [0; 6])), 0x7ff0_0007);
        assert_eq!(seccomp.flags, FLAG_WAIT_KILLABLE_RECV);
        assert_eq!(seccomp.listener.unwrap().path, "/run/agent.sock");
    }

    #[test]
    fn what_needs_a_supervisor_or_is_unknown_is_refused() {
        let with_arg = |op, index| {
            profile("SCMP_ACT_ALLOW", vec![entry(&["read"], "SCMP_ACT_ERRNO", &[(index, op, 0, 0)])])
        };
        for (profile, expected) in [
            (profile("SCMP_ACT_NOTIFY", vec![]), "SCMP_ACT_NOTIFY"),
            (profile("SCMP_ACT_ALLOW", vec![entry(&["read"], "SCMP_ACT_NOTIFY", &[])]), "listenerPath"),
            (profile("SCMP_ACT_ALLOW", vec![entry(&["sendmsg"], "SCMP_ACT_NOTIFY", &[])]), "sendmsg"),
            (
                oci::Seccomp {
                    listener_path: "/agent".into(),
                    ..profile("SCMP_ACT_ALLOW", vec![entry(&["read"], "SCMP_ACT_NOTIFY", &[])])
                },
                "listenerPath, which no guest has",
            ),
            (
                oci::Seccomp { architectures: vec!["x86".into()], ..profile("SCMP_ACT_ALLOW", vec![]) },
                "\"x86\"",
            ),
            (profile("", vec![]), "action \"\""),
            (with_arg("SCMP_CMP_EQ", 6), "index 6"),
            (with_arg("SCMP_CMP_ABOUT", 0), "SCMP_CMP_ABOUT"),
            (oci::Seccomp { flags: vec!["FLAG_X".into()], ..profile("SCMP_ACT_ALLOW", vec![]) }, "FLAG_X"),
        ] {
            let error = program(&profile).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_profile_that_would_need_much_memory_is_refused() {
        let names: Vec<&str> = CALLS.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        let one = entry(&names, "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_EQ", 1, 0)]);
        assert!(program(&profile("SCMP_ACT_ERRNO", vec![one; 12])).is_err());
    }
}
