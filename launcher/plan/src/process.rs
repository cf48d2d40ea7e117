//! The process: command, environment, user, limits, and what the image says where the caller does not.

use super::capabilities::capabilities;
use super::{NamedUser, Place, PlanError, absolute, at_most, attributes};
use crate::oci;
use nacre_protocols::init_launcher::{ARGS_MAX, LIST_MAX, Process, Rlimit, Seccomp, TerminalSize, User};
use nacre_protocols::names::RESERVED_UIDS;
use std::collections::BTreeSet;

/// Longest name of a user with its group, in bytes.
const USER_NAME_MAX: usize = 256;

/// The numbers of `asm-generic/resource.h`, by position.
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// The configuration of an image that was pulled in the sandbox, so that its caller may not have seen it.
///
/// The caller's command stands when there is one; else it is the image's entrypoint and command, and then also the image's
/// user, unless the caller names one. The image's working directory stands in for `/`, and its environment adds what
/// the caller's does not set.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageDefaults<'a> {
    pub entrypoint: &'a [String],
    pub command: &'a [String],
    pub env: &'a [String],
    pub working_directory: &'a str,
    /// `user[:group]`, or empty.
    pub user: &'a str,
    /// Directories that stay writable.
    pub volumes: &'a [String],
}

pub fn process(
    described: &oci::Process,
    user: Option<NamedUser<'_>>,
    image: Option<ImageDefaults<'_>>,
    seccomp: Option<Seccomp>,
    place: Place,
) -> Result<Process, PlanError> {
    let mut args = described.args.clone();
    let mut env = described.env.clone();
    let mut cwd = described.cwd.as_str();
    let mut account = account(described, user, place)?;
    if let Some(image) = image {
        if args.is_empty() {
            args.extend(image.entrypoint.iter().chain(image.command).cloned());
            let is_root = account == User::Ids { uid: 0, gid: 0, additional: Vec::new() };
            if is_root && !image.user.is_empty() {
                account = user_by_name(image.user, Vec::new())?;
            }
        }
        if matches!(cwd, "" | "/") {
            cwd = image.working_directory;
        }
        merge_environment(&mut env, image.env);
    }
    strings("process.args", &args)?;
    strings("process.env", &env)?;
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::invalid("process.args", "no command is given, nor does the image have one"));
    }
    Ok(Process {
        args,
        env,
        cwd: absolute("process.cwd", if cwd.is_empty() { "/" } else { cwd })?,
        user: account,
        terminal: described.terminal.then(|| terminal_size(described.console_size.as_ref())),
        capabilities: capabilities(described.capabilities.as_ref())?,
        rlimits: rlimits(&described.rlimits)?,
        no_new_privileges: described.no_new_privileges,
        oom_score_adj: described.oom_score_adj.map(oom_score_adj).transpose()?,
        seccomp,
        umask: described.user.umask.map(umask).transpose()?,
        attributes: attributes::of_process(described, place)?,
    })
}

/// `user[:group]`, names or numbers, to be looked up in the container.
pub fn user_by_name(name: &str, additional: Vec<u32>) -> Result<User, PlanError> {
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    if name.is_empty() || name.len() > USER_NAME_MAX || !printable {
        let reason = format!("a name is 1 to {USER_NAME_MAX} printable characters");
        return Err(PlanError::invalid("process.user", reason));
    }
    for number in name.split(':').filter_map(|part| part.parse().ok()) {
        refuse_reserved(number)?;
    }
    Ok(User::Named { name: name.to_owned(), additional })
}

/// A name in the request, a name in the process, or numbers.
fn account(described: &oci::Process, named: Option<NamedUser<'_>>, place: Place) -> Result<User, PlanError> {
    let user = &described.user;
    at_most("process.user.additionalGids", user.additional_gids.len(), LIST_MAX)?;
    let additional = user.additional_gids.clone();
    let numbers = [user.uid, user.gid].into_iter().chain(additional.iter().copied());
    if place == Place::Sandbox {
        numbers.into_iter().try_for_each(refuse_reserved)?;
    }
    if let Some(named) = named.filter(|named| !named.user.is_empty()) {
        let name = match named.group {
            "" => named.user.to_owned(),
            group => format!("{}:{group}", named.user),
        };
        return user_by_name(&name, additional);
    }
    if !user.username.is_empty() {
        return user_by_name(&user.username, additional);
    }
    Ok(User::Ids { uid: user.uid, gid: user.gid, additional })
}

fn refuse_reserved(number: u32) -> Result<(), PlanError> {
    if RESERVED_UIDS.contains(&number) {
        return Err(PlanError::invalid("process.user", format!("{number} is reserved for the guest itself")));
    }
    Ok(())
}

fn merge_environment(env: &mut Vec<String>, image: &[String]) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut set = BTreeSet::new();
    for entry in env.iter() {
        set.insert(name(entry));
    }
    env.extend(image.iter().filter(|entry| !set.contains(&name(entry))).cloned());
}

fn strings(field: &'static str, list: &[String]) -> Result<(), PlanError> {
    at_most(field, list.len(), ARGS_MAX)?;
    if list.iter().any(|string| string.contains('\0')) {
        return Err(PlanError::invalid(field, "has a NUL in it"));
    }
    Ok(())
}

fn terminal_size(size: Option<&oci::ConsoleSize>) -> TerminalSize {
    let clamp = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    size.map_or_else(TerminalSize::default, |size| TerminalSize {
        rows: clamp(size.height),
        columns: clamp(size.width),
    })
}

fn rlimits(described: &[oci::Rlimit]) -> Result<Vec<Rlimit>, PlanError> {
    at_most("process.rlimits", described.len(), RLIMITS.len())?;
    let rlimit = |limit: &oci::Rlimit| {
        let invalid =
            |reason: &str| PlanError::invalid("process.rlimits", format!("{} {reason}", limit.r#type));
        let resource =
            RLIMITS.iter().position(|name| *name == limit.r#type).ok_or_else(|| invalid("is unknown"))?;
        if limit.soft > limit.hard {
            return Err(invalid("has a soft limit above the hard one"));
        }
        Ok(Rlimit { resource: resource as u8, soft: limit.soft, hard: limit.hard })
    };
    described.iter().map(rlimit).collect()
}

fn umask(mask: u32) -> Result<u32, PlanError> {
    if mask & !0o777 == 0 {
        Ok(mask)
    } else {
        Err(PlanError::invalid("process.user.umask", format!("{mask:o} has more than permission bits")))
    }
}

fn oom_score_adj(value: i64) -> Result<i16, PlanError> {
    match i16::try_from(value) {
        Ok(value) if (-1000..=1000).contains(&value) => Ok(value),
        _ => Err(PlanError::invalid("process.oomScoreAdj", format!("{value} is not within -1000 and 1000"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|string| (*string).to_owned()).collect()
    }

    fn with_image(described: &oci::Process) -> Process {
        let image = ImageDefaults {
            entrypoint: &strings(&["/entry"]),
            command: &strings(&["serve"]),
            env: &strings(&["PATH=/image", "LANG=C"]),
            working_directory: "/srv",
            user: "web:www",
            volumes: &[],
        };
        process(described, None, Some(image), None, Place::Sandbox).unwrap()
    }

    #[test]
    fn an_image_gives_what_the_caller_left_open() {
        let described = oci::Process { env: strings(&["PATH=/caller"]), ..Default::default() };
        let process = with_image(&described);
        assert_eq!(process.args, ["/entry", "serve"]);
        assert_eq!(process.env, ["PATH=/caller", "LANG=C"]);
        assert_eq!(process.cwd, "/srv");
        assert_eq!(process.user, User::Named { name: "web:www".into(), additional: vec![] });
    }

    #[test]
    fn the_callers_command_user_and_directory_stand() {
        let described = oci::Process { args: strings(&["sh"]), cwd: "/tmp".into(), ..Default::default() };
        let process = with_image(&described);
        assert_eq!((process.args, process.cwd.as_str()), (strings(&["sh"]), "/tmp"));
        assert_eq!(process.user, User::Ids { uid: 0, gid: 0, additional: vec![] });
    }

    #[test]
    fn users_come_by_number_or_by_name() {
        let numbers = oci::User { uid: 1000, gid: 100, additional_gids: vec![7], ..Default::default() };
        let named = oci::User { username: "web".into(), ..numbers.clone() };
        let string = |user: &'static str, group: &'static str| NamedUser { user, group };
        let by_name = |name: &str| User::Named { name: name.into(), additional: vec![7] };
        for (user, request, expected) in [
            (&numbers, None, User::Ids { uid: 1000, gid: 100, additional: vec![7] }),
            (&named, None, by_name("web")),
            (&named, Some(string("db", "")), by_name("db")),
            (&numbers, Some(string("db", "staff")), by_name("db:staff")),
            (&numbers, Some(string("", "staff")), User::Ids { uid: 1000, gid: 100, additional: vec![7] }),
        ] {
            let described = oci::Process { user: user.clone(), ..Default::default() };
            assert_eq!(account(&described, request, Place::Sandbox), Ok(expected), "{user:?} {request:?}");
        }
    }

    #[test]
    fn nobody_becomes_a_user_of_the_guest_itself() {
        for user in [
            oci::User { uid: 0x7ffe_0001, ..Default::default() },
            oci::User { gid: 0x7ffe_0002, ..Default::default() },
            oci::User { additional_gids: vec![0x7ffe_ffff], ..Default::default() },
            oci::User { username: "2147352577".into(), ..Default::default() },
            oci::User { username: "0:2147352577".into(), ..Default::default() },
        ] {
            let described = oci::Process { user, ..Default::default() };
            assert!(account(&described, None, Place::Sandbox).unwrap_err().to_string().contains("reserved"));
        }
    }

    #[test]
    fn bad_processes_are_refused_by_name() {
        let limit = |kind: &str, soft, hard| oci::Rlimit { r#type: kind.into(), soft, hard };
        let base = || oci::Process { args: strings(&["sh"]), ..Default::default() };
        for (described, expected) in [
            (oci::Process::default(), "process.args: no command"),
            (oci::Process { args: strings(&["a\0b"]), ..base() }, "process.args: has a NUL"),
            (oci::Process { cwd: "tmp".into(), ..base() }, "process.cwd: \"tmp\" is not absolute"),
            (oci::Process { oom_score_adj: Some(1001), ..base() }, "process.oomScoreAdj: 1001"),
            (
                oci::Process { rlimits: vec![limit("RLIMIT_NOSE", 1, 1)], ..base() },
                "process.rlimits: RLIMIT_NOSE",
            ),
            (
                oci::Process { rlimits: vec![limit("RLIMIT_CORE", 2, 1)], ..base() },
                "process.rlimits: RLIMIT_CORE",
            ),
            (oci::Process { env: vec![String::new(); ARGS_MAX + 1], ..base() }, "process.env has more than"),
        ] {
            let error = process(&described, None, None, None, Place::Sandbox).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn limits_have_the_numbers_of_the_kernel() {
        for (name, number) in [("RLIMIT_CPU", 0), ("RLIMIT_NOFILE", 7), ("RLIMIT_RTTIME", 15)] {
            let limit = oci::Rlimit { r#type: name.into(), soft: 1, hard: u64::MAX };
            assert_eq!(rlimits(&[limit]).unwrap(), [Rlimit { resource: number, soft: 1, hard: u64::MAX }]);
        }
    }
}
