//! `exec`: one more process in a running container.

use crate::args::{Words, unknown, unsupported, usage};
use crate::birth::{Told, life, listen, send_console, take_descriptors, write_pid_file};
use crate::config::{checked_exec, read_document};
use crate::create::preserved;
use crate::error::{Context, Result, refused};
use crate::state::{Record, Status, Store};
use crate::{cgroup, foreground, own_binary};
use nacre_launcher::check::Origin;
use nacre_launcher::status::StatusSocket;
use nacre_plan::oci;
use nacre_protocols::init_launcher::Seccomp;
use nacre_sys::fork::{Birth, fork};
use nacre_sys::process::PidNamespace;
use nacre_sys::seqpacket;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::UnshareFlags;
use std::os::fd::AsFd;
use std::path::PathBuf;

#[derive(Debug, Default)]
struct Options {
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    process: Option<PathBuf>,
    cgroup: Option<String>,
    preserve: u8,
    detach: bool,
    ignore_paused: bool,
    terminal: bool,
    cwd: Option<String>,
    env: Vec<String>,
    user: Option<String>,
    groups: Vec<u32>,
    capabilities: Vec<String>,
    no_new_privileges: bool,
    id: String,
    command: Vec<String>,
}

impl Options {
    fn read(words: Vec<String>) -> Result<Self> {
        let mut words = Words::new(words);
        let mut options = Self::default();
        while let Some(option) = words.option()? {
            match option.as_str() {
                "--console-socket" => options.console_socket = Some(words.value(&option)?.into()),
                "--pid-file" => options.pid_file = Some(words.value(&option)?.into()),
                "--process" | "-p" => options.process = Some(words.value(&option)?.into()),
                "--cgroup" => options.cgroup = Some(words.value(&option)?),
                "--preserve-fds" => options.preserve = preserved(words.number(&option)?)?,
                "--detach" | "-d" => options.detach = words.flag(&option)?,
                "--ignore-paused" => options.ignore_paused = words.flag(&option)?,
                "--tty" | "-t" => options.terminal = words.flag(&option)?,
                "--cwd" => options.cwd = Some(words.value(&option)?),
                "--env" | "-e" => options.env.push(words.value(&option)?),
                "--user" | "-u" => options.user = Some(words.value(&option)?),
                "--additional-gids" | "-g" => options.groups.push(words.number(&option)?),
                "--cap" | "-c" => options.capabilities.push(words.value(&option)?),
                "--no-new-privs" => options.no_new_privileges = words.flag(&option)?,
                "--no-subreaper" => {}
                "--apparmor" | "--process-label" => {
                    let value = words.value(&option)?;
                    if !value.is_empty() {
                        return Err(unsupported(&option, "write it into the process document of --process"));
                    }
                }
                "--pidfd-socket" => {
                    return Err(unsupported("--pidfd-socket", "ask for the pid and pidfd_open(2) it"));
                }
                _ => return Err(unknown(&option)),
            }
        }
        options.id = words.next().ok_or_else(|| usage("the container's id is missing".to_owned()))?;
        options.command = words.rest();
        if options.command.first().is_some_and(|word| word == "--") {
            options.command.remove(0);
        }
        match (options.command.is_empty(), &options.process) {
            (true, None) => Err(usage("the command is missing".to_owned())),
            (false, Some(_)) => Err(usage("--process and a command: which of them?".to_owned())),
            _ => Ok(options),
        }
    }

    /// The document of `--process`, or the container's own with what the words say in its place.
    fn document(&self, record: &Record) -> Result<oci::Process> {
        let mut process: oci::Process = match &self.process {
            Some(path) => read_document(path)?,
            None => oci::Process { args: self.command.clone(), terminal: false, ..record.process.clone() },
        };
        process.terminal |= self.terminal;
        process.no_new_privileges |= self.no_new_privileges;
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        process.env.extend(self.env.iter().cloned());
        if let Some(user) = &self.user {
            let number = |text: &str| {
                text.parse().map_err(|_| usage(format!("--user {user:?} is not UID[:GID] in numbers")))
            };
            let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
            process.user = oci::User { uid: number(uid)?, gid: number(gid)?, ..oci::User::default() };
        }
        process.user.additional_gids.extend(&self.groups);
        if !self.capabilities.is_empty() {
            let sets = process.capabilities.get_or_insert_default();
            for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
                set.extend(self.capabilities.iter().cloned());
            }
        }
        Ok(process)
    }
}

pub fn command(store: &Store, words: Vec<String>) -> Result<u8> {
    let options = Options::read(words)?;
    own_binary::protect()?;
    let inherited = take_descriptors(options.preserve)?;
    let record = store.read(&options.id)?;
    let pid =
        Pid::from_raw(record.pid.cast_signed()).ok_or_else(|| refused("the container is being created"))?;
    // The descriptor first: if the process is the right one now, the descriptor is of the right one.
    let target = pidfd_open(pid, PidfdFlags::empty());
    match record.status() {
        Status::Running | Status::Created => {}
        Status::Paused if options.ignore_paused => {}
        other => {
            return Err(refused(format!(
                "container {:?} is {}: nothing can be executed in it",
                record.id,
                other.word()
            )));
        }
    }
    let target = target.doing(|| format!("opening the container's first process {}", record.pid))?;
    let document = options.document(&record)?;
    let seccomp = record.seccomp.as_ref().map(seccomp_from_hex).transpose()?;
    let container = oci::Linux {
        personality: record.personality.clone(),
        memory_policy: record.memory_policy.clone(),
        ..oci::Linux::default()
    };
    let input = nacre_plan::Exec {
        process: &document,
        user: None,
        seccomp,
        container: Some(&container),
        place: nacre_plan::Place::Host,
    };
    let plan = nacre_plan::exec(input).map_err(|error| refused(error.to_string()))?;
    let plan = checked_exec(plan)?;
    if document.terminal && options.detach && options.console_socket.is_none() {
        return Err(refused("a terminal needs --console-socket for a process that runs on by itself"));
    }

    let path = match &options.cgroup {
        Some(below) => cgroup::path_of(&format!("{}/{below}", record.cgroup), "")?,
        None => record.cgroup.clone(),
    };
    let directory = cgroup::open_directory(&path)?;
    let (ours, theirs) = seqpacket::pair().doing(|| "making the status socket".to_owned())?;
    let status = StatusSocket::new(theirs);
    let birth = Birth {
        namespaces: UnshareFlags::empty(),
        pid_namespace: PidNamespace::Of(target.as_fd()),
        cgroup: Some(directory.as_fd()),
        sibling: false,
    };
    let given = target.try_clone().doing(|| "keeping the container's first process".to_owned())?;
    let child = fork(&birth, || {
        life(&status, || {
            let error = nacre_launcher::exec::exec(&plan, Origin::Host, Some(given), inherited, &status);
            Err(error)
        })
    })
    .doing(|| "starting a process in the container".to_owned())?;
    drop(status);
    let mut master = None;
    loop {
        match listen(&ours)? {
            Told::Ready(terminal) => master = terminal,
            Told::Failed(failure) => {
                let _ = nacre_sys::usage::wait(Some(child.pid));
                return Err(refused(failure.message));
            }
            Told::Prepared => return Err(refused("the child reported what an exec never does")),
            Told::Closed => break,
        }
    }
    if let (Some(socket), Some(terminal)) = (&options.console_socket, &master) {
        send_console(socket, terminal)?;
        master = None;
    }
    if let Some(file) = &options.pid_file {
        write_pid_file(file, child.pid)?;
    }
    if options.detach { Ok(0) } else { foreground::wait(&child, master) }
}

/// For the record: made once, loaded by every exec.
pub fn seccomp_to_hex(seccomp: &Seccomp) -> (String, u32) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(seccomp.program.len() * 16);
    for (code, jt, jf, k) in &seccomp.program {
        let word = u64::from(*code) << 48 | u64::from(*jt) << 40 | u64::from(*jf) << 32 | u64::from(*k);
        for shift in (0..16).rev() {
            let digit = DIGITS.get((word >> (4 * shift) & 15) as usize).copied().unwrap_or(b'0');
            text.push(char::from(digit));
        }
    }
    (text, seccomp.flags)
}

fn seccomp_from_hex((text, flags): &(String, u32)) -> Result<Seccomp> {
    let mut program = Vec::with_capacity(text.len() / 16);
    for digits in text.as_bytes().chunks(16) {
        let word = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let word = word.ok_or_else(|| refused("the state's seccomp program is damaged"))?;
        program.push(((word >> 48) as u16, (word >> 40) as u8, (word >> 32) as u8, word as u32));
    }
    // An exec's calls have nobody to decide about them but who decides about the container's.
    Ok(Seccomp { program, flags: *flags, listener: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_survives_its_record() {
        let seccomp = Seccomp {
            program: vec![(0x20, 0, 0, 4), (0x15, 1, 255, 0xc000_003e), (6, 0, 0, 0x7fff_0000)],
            flags: 2,
            listener: None,
        };
        assert_eq!(seccomp_from_hex(&seccomp_to_hex(&seccomp)).unwrap(), seccomp);
        assert!(seccomp_from_hex(&("zz".to_owned(), 0)).is_err());
    }
}
