//! From a launcher to the command: what a container's first process and an exec have in common.

use crate::accounts::Account;
use crate::error::{Context, LaunchError, Result};
use crate::outside::Listener;
use crate::procfs::Procfs;
use crate::rights::{self, LastRights};
use crate::terminal::Terminal;
use crate::tree::Tree;
use nacre_protocols::init_launcher::{LaunchStage, Process};
use nacre_sys::attributes::{
    SchedulerAttributes, set_io_priority, set_memory_policy, set_personality, set_processors, set_scheduler,
};
use nacre_sys::exec::{Command, default_sigpipe, leave_to_command, raise_limit, set_limit};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, statat};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

/// Where a command is looked for when the environment has no PATH (as docker and the images it makes have it).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_UMASK: u32 = 0o022;
/// The first number at which a command gets what it inherits.
const INHERITED_FIRST: i32 = 3;

/// A process that is all that the command is to be, and has only to execute it.
pub struct Candidate {
    command: Command,
    rights: LastRights,
    inherited: Vec<OwnedFd>,
}

/// Everything that needs rights which the command will not have: session, terminal, working directory. Gives the master
/// of the terminal, if there is one.
pub fn settle(process: &Process, terminal: Option<Terminal>, root: &Tree) -> Result<Option<OwnedFd>> {
    // A session of its own also without a terminal: nothing that happens to other sessions' terminals reaches it.
    rustix::process::setsid().at(LaunchStage::Terminal, || "starting a session".to_owned())?;
    let master = terminal.map(Terminal::become_standard).transpose()?;
    enter_working_directory(&process.cwd, root)?;
    Ok(master)
}

/// What needs rights outside of every user namespace of the container's own.
pub fn set_privileged(process: &Process, procfs: Option<&Procfs>) -> Result<()> {
    const STAGE: LaunchStage = LaunchStage::Rights;
    if let (Some(score), Some(procfs)) = (process.oom_score_adj, procfs) {
        procfs.set_oom_score_adj(score)?;
    }
    let wanted = &process.attributes;
    if let Some(it) = wanted.scheduler {
        set_scheduler(SchedulerAttributes {
            policy: it.policy,
            flags: it.flags,
            nice: it.nice,
            priority: it.priority,
            runtime: it.runtime,
            deadline: it.deadline,
            period: it.period,
            ..Default::default()
        })
        .at(STAGE, || format!("process.scheduler: {it:?}"))?;
    }
    if let Some(priority) = wanted.io_priority {
        set_io_priority(priority).at(STAGE, || format!("process.ioPriority: {priority:#x}"))?;
    }
    if let Some(policy) = &wanted.memory_policy {
        set_memory_policy(policy.mode, &policy.nodes)
            .at(STAGE, || format!("linux.memoryPolicy: {policy:?}"))?;
    }
    if let Some(personality) = wanted.personality {
        set_personality(personality).at(STAGE, || format!("linux.personality: {personality:#x}"))?;
    }
    if !wanted.cpus_final.is_empty() {
        set_processors(&wanted.cpus_final)
            .at(STAGE, || format!("process.execCPUAffinity.final: {:x?}", wanted.cpus_final))?;
    }
    Ok(())
}

/// Before a user namespace is entered, in which no hard limit can be raised; to be lowered and set later.
pub fn raise_limits(process: &Process) -> Result<()> {
    process.rlimits.iter().try_for_each(|limit| {
        raise_limit(limit.resource, limit.hard)
            .at(LaunchStage::Rights, || format!("raising resource limit {}", limit.resource))
    })
}

/// From the very beginning; processors outside of what the container's cgroup allows are none.
pub fn set_initial_processors(process: &Process) {
    let wanted = &process.attributes.cpus_initial;
    if !wanted.is_empty() {
        // This process is born in the cgroup, so that a set for the time before can be impossible, and is over.
        let _ = set_processors(wanted);
    }
}

/// Labels that count from the next execve(2) on. A kernel without the module has no such file.
pub fn set_labels(process: &Process, procfs: Option<&Procfs>) -> Result<()> {
    let wanted = &process.attributes;
    let write = |module: &str, file: &str, value: &str| {
        let written = procfs.ok_or(io::ErrorKind::NotFound.into()).and_then(|it| it.write_own(file, value));
        written.map_err(|error| {
            let why =
                format!("{module}: setting the label {value:?}, for which the kernel needs that module");
            LaunchError::system(LaunchStage::Rights, error, why)
        })
    };
    if let Some(profile) = &wanted.apparmor_profile {
        write("AppArmor", "attr/apparmor/exec", &format!("exec {profile}"))?;
    }
    if let Some(label) = &wanted.selinux_label {
        write("SELinux", "attr/exec", label)?;
    }
    Ok(())
}

/// Gives up all rights but the command's, and finds it with the user's eyes.
pub fn become_user(
    process: &Process,
    account: &Account,
    inherited: Vec<OwnedFd>,
    listener: Option<Listener>,
) -> Result<Candidate> {
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(DEFAULT_UMASK)));
    for limit in &process.rlimits {
        set_limit(limit.resource, limit.soft, limit.hard)
            .at(LaunchStage::Rights, || format!("setting resource limit {}", limit.resource))?;
    }
    let rights = rights::give_up(process, account, listener)?;
    let command = find_command(process, account)?;
    Ok(Candidate { command, rights, inherited })
}

impl Candidate {
    /// The last rights, for a hook that is to have no more than the command.
    pub fn give_up(&self) -> Result<()> {
        self.rights.give_up()
    }

    /// Comes back only with what went wrong.
    pub fn execute(self) -> LaunchError {
        default_sigpipe();
        if let Err(error) = leave_to_command(self.inherited, INHERITED_FIRST) {
            return LaunchError::system(LaunchStage::Exec, error, "placing descriptors");
        }
        if let Err(error) = self.rights.give_up() {
            return error;
        }
        let error = self.command.execute();
        LaunchError::system(LaunchStage::Exec, error, format_args!("executing {:?}", self.command.path()))
    }
}

/// Made if it is missing. Entered by a descriptor resolved beneath the root, so that no descriptor of the guest's can be
/// where it lands, and asked back (CVE-2024-21626).
fn enter_working_directory(path: &str, root: &Tree) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let directory = match root.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => root.make_directory(path)?,
            found => found?,
        };
        rustix::process::fchdir(directory)?;
        // "(unreachable)" is in front of a directory that the root does not lead to.
        let here = rustix::process::getcwd(Vec::new())?;
        if here.to_bytes().first() == Some(&b'/') { Ok(()) } else { Err(Errno::XDEV.into()) }
    };
    attempt().at(LaunchStage::WorkingDirectory, || format!("entering {path}"))
}

/// As the user that is to execute it.
fn find_command(process: &Process, account: &Account) -> Result<Command> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let path = look_up(name, search_path(&process.env))
        .at(LaunchStage::Exec, || format!("looking for the command {name:?}"))?;
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", account.home.as_deref().unwrap_or("/")));
    }
    let strings = |list: Vec<String>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    CString::new(path)
        .and_then(|path| Ok(Command::new(path, strings(process.args.clone())?, strings(env)?)))
        .map_err(|_| LaunchError::refused(LaunchStage::Exec, "a string of the command has a NUL"))
}

fn search_path(env: &[String]) -> &str {
    env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH)
}

/// As execvp(3): a name with a slash is a path; an empty element of PATH is the working directory; a file that may not be
/// executed does not end the search, but is what is reported when nothing better is found.
fn look_up(name: &str, search: &str) -> Result<String, Errno> {
    if name.contains('/') {
        return is_executable(name).map(|()| name.to_owned());
    }
    let mut result = Errno::NOENT;
    for directory in search.split(':') {
        let candidate = format!("{}/{name}", if directory.is_empty() { "." } else { directory });
        match is_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => result = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(result)
}

fn is_executable(path: &str) -> Result<(), Errno> {
    let stat = statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}
