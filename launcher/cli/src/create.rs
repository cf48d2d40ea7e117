//! `create` and `run`: bundle to plan, plan to a child that waits at its gate.

use crate::args::{Words, unknown, unsupported};
use crate::birth::{Told, life, listen, send_console, take_descriptors, write_pid_file};
use crate::clock;
use crate::config::Bundle;
use crate::error::{CliError, Context, Result, refused};
use crate::state::{Record, Store, born_and_alive, require_id};
use crate::{cgroup, foreground, hooks, lifecycle, own_binary};
use nacre_launcher::check::{Checked, Origin};
use nacre_launcher::container::{Given, create};
use nacre_launcher::status::StatusSocket;
use nacre_protocols::init_launcher::{CgroupLimits, ContainerPlan, Missing, Namespace, fd};
use nacre_sys::fork::{Birth, fork};
use nacre_sys::process::{Child, PidNamespace};
use nacre_sys::seqpacket;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// What reading a bundle with a usual seccomp profile takes, in bytes.
const HEAP: usize = 88 * 1024;

#[derive(Debug, Default)]
pub struct Options {
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    preserve: u8,
    detach: bool,
    keep: bool,
    id: String,
}

impl Options {
    fn read(words: Vec<String>, is_run: bool) -> Result<Self> {
        let mut words = Words::new(words);
        let mut options = Self { bundle: ".".into(), ..Self::default() };
        while let Some(option) = words.option()? {
            match option.as_str() {
                "--bundle" | "-b" => options.bundle = words.value(&option)?.into(),
                "--console-socket" => options.console_socket = Some(words.value(&option)?.into()),
                "--pid-file" => options.pid_file = Some(words.value(&option)?.into()),
                "--preserve-fds" => options.preserve = preserved(words.number(&option)?)?,
                "--detach" | "-d" if is_run => options.detach = words.flag(&option)?,
                "--keep" if is_run => options.keep = words.flag(&option)?,
                "--no-subreaper" if is_run => {}
                "--no-pivot" => {
                    return Err(unsupported(
                        "--no-pivot",
                        "a chroot can be left; put the root file system on something that can be pivoted from",
                    ));
                }
                // None is ever made.
                "--no-new-keyring" => {}
                "--pidfd-socket" => {
                    return Err(unsupported("--pidfd-socket", "ask for the pid and pidfd_open(2) it"));
                }
                _ => return Err(unknown(&option)),
            }
        }
        options.id = words.only("the container's id")?;
        require_id(&options.id)?;
        Ok(options)
    }
}

/// `--preserve-fds`, and what socket activation passes.
pub fn preserved(count: u8) -> Result<u8> {
    if count > fd::PRESERVED_MAX {
        return Err(refused(format!("--preserve-fds {count}: at most {} descriptors", fd::PRESERVED_MAX)));
    }
    Ok(count)
}

/// A first process, and what leads to it.
struct Born {
    child: Child,
    /// Our end of its status socket.
    status: OwnedFd,
    /// Its gate, while it is closed.
    gate: Option<OwnedFd>,
}

/// A container that is ready.
struct Waiting {
    record: Record,
    born: Born,
    master: Option<OwnedFd>,
}

pub fn create_command(store: &Store, words: Vec<String>) -> Result<u8> {
    let options = Options::read(words, false)?;
    let waiting = make(store, &options, |_| false)?;
    finish(store, &options, waiting)?;
    Ok(0)
}

pub fn run_command(store: &Store, words: Vec<String>) -> Result<u8> {
    let options = Options::read(words, true)?;
    // Where nobody is handed anything before the command runs, nobody has to wait for it either.
    let at_once = |plan: &ContainerPlan| {
        plan.process.terminal.is_none() && !plan.hooks.pause && options.pid_file.is_none()
    };
    let waiting = make(store, &options, at_once)?;
    let (record, Born { child, status, gate, .. }, master) = finish(store, &options, waiting)?;
    let id = record.id.clone();
    let started = open_gate(gate, &status);
    drop(status);
    if let Err(error) = started {
        let _ = lifecycle::destroy(store, &record);
        return Err(error);
    }
    hooks::after_start(&record);
    if options.detach {
        return Ok(0);
    }
    let code = foreground::wait(&child, master);
    // Also where this process cannot stand in for the container any longer: nobody else would.
    if !options.keep {
        match store.read(&id) {
            // Somebody else was faster.
            Err(CliError::NoSuchContainer(_)) => {}
            read => lifecycle::destroy(store, &read.unwrap_or(record))?,
        }
    }
    code
}

/// Opens the gate, if it is not open yet, and waits until the command is executed.
fn open_gate(gate: Option<OwnedFd>, status: &OwnedFd) -> Result<()> {
    if let Some(gate) = gate {
        rustix::io::write(&gate, b"g").doing(|| "opening the start gate".to_owned())?;
    }
    match listen(status)? {
        Told::Closed => Ok(()),
        Told::Failed(failure) => Err(refused(failure.message)),
        Told::Ready(_) | Told::Prepared => Err(refused("the child reported twice")),
    }
}

/// Everything up to the gate, which is opened as soon as the process is born and known if `at_once` says so. What fails leaves
/// nothing behind.
fn make(store: &Store, options: &Options, at_once: impl FnOnce(&ContainerPlan) -> bool) -> Result<Waiting> {
    own_binary::protect()?;
    nacre_sys::malloc::populate(HEAP);
    let inherited = take_descriptors(options.preserve)?;
    let bundle = Bundle::read(&options.bundle)?;
    let described = bundle.spec.process.as_ref();
    if let Some(sets) = described.and_then(|process| process.capabilities.as_ref()) {
        for name in nacre_plan::unknown_capabilities(sets) {
            eprintln!("nacre-launcher: warning: capability {name:?} is unknown and gives nothing");
        }
    }
    let terminal = described.is_some_and(|process| process.terminal);
    if terminal && options.console_socket.is_none() && options.detach {
        return Err(refused(
            "process.terminal needs --console-socket for a container that runs on by itself",
        ));
    }
    if !terminal && options.console_socket.is_some() {
        return Err(refused("--console-socket is for a container with process.terminal"));
    }
    let plan = bundle.plan(&options.id, options.preserve)?;
    let linux = bundle.spec.linux.as_ref();
    let path = cgroup::path_of(linux.map_or("", |linux| &linux.cgroups_path), &options.id)?;
    let mut record = Record {
        id: options.id.clone(),
        bundle: bundle.directory.display().to_string(),
        rootfs: bundle.rootfs.display().to_string(),
        created: clock::now(),
        cgroup_is_ours: !cgroup::file(&path, "")?.exists(),
        cgroup: path,
        annotations: bundle.spec.annotations.clone(),
        hooks: bundle.spec.hooks.clone(),
        ..Record::default()
    };
    let mut entry = store.add(&record)?;
    let at_once = at_once(&plan);
    let attempt = || -> Result<(Born, Option<OwnedFd>)> {
        let mut born = bear(&plan, &mut record, inherited)?;
        record.seccomp = plan.process.seccomp.as_ref().map(crate::exec::seccomp_to_hex);
        record.personality = linux.and_then(|linux| linux.personality.clone());
        record.memory_policy = linux.and_then(|linux| linux.memory_policy.clone());
        record.process = bundle.spec.process.clone().unwrap_or_default();
        if at_once {
            entry.write(&record)?;
            if let Some(gate) = born.gate.take() {
                match rustix::io::write(&gate, b"g") {
                    // It has failed already, and says so below.
                    Err(Errno::PIPE) => {}
                    written => drop(written.doing(|| "opening the start gate".to_owned())?),
                }
            }
        }
        let master = await_ready(&born, &record)?;
        if !at_once {
            entry.write(&record)?;
        }
        Ok((born, master))
    };
    match attempt() {
        Ok((born, master)) => Ok(Waiting { record, born, master }),
        Err(error) => {
            let _ = lifecycle::destroy(store, &record);
            Err(error)
        }
    }
}

/// Starts the first process, and writes its number and its gate into `record`.
fn bear(plan: &Checked<Box<ContainerPlan>>, record: &mut Record, inherited: Vec<OwnedFd>) -> Result<Born> {
    let needed = controllers(&plan.cgroup);
    let cgroup = cgroup::make(&record.cgroup, &needed)?;
    let (ours, theirs) = seqpacket::pair().doing(|| "making the status socket".to_owned())?;
    let (gate, gate_writer) = pipe_with(PipeFlags::CLOEXEC).doing(|| "making the start gate".to_owned())?;
    let pipe = rustix::fs::fstat(&gate).doing(|| "looking at the start gate".to_owned())?.st_ino;
    record.gate = (gate.as_raw_fd(), format!("pipe:[{pipe}]"));
    let directory = cgroup.try_clone().doing(|| "keeping the cgroup".to_owned())?;
    let status = StatusSocket::new(theirs);
    let joined = match &plan.namespaces.pid {
        Namespace::At(path) => Some(
            open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("opening the pid namespace {path}"))?,
        ),
        Namespace::Fresh | Namespace::Shared => None,
    };
    let birth = Birth {
        namespaces: UnshareFlags::empty(),
        pid_namespace: match (&plan.namespaces.pid, &joined) {
            (_, Some(joined)) => PidNamespace::Of(joined.as_fd()),
            (Namespace::Shared, None) => PidNamespace::Same,
            (_, None) => PidNamespace::New,
        },
        cgroup: Some(cgroup.as_fd()),
        sibling: false,
    };
    // The child keeps both ends of the gate, and nobody else has to: `start` opens it by way of `/proc/PID/fd`.
    let child = fork(&birth, || {
        life(&status, || {
            let given = Given { gate: Some(gate), cgroup: Some(directory), inherited };
            create(plan, Origin::Host, given, &status)
        })
    })
    .doing(|| "starting the container's first process".to_owned())?;
    record.pid = child.pid;
    record.born = born_and_alive(child.pid).map_or(0, |(born, _)| born);
    // The status socket's other end is ours no more: it closes when the child's is closed.
    Ok(Born { child, status: ours, gate: Some(gate_writer) })
}

/// Runs the hooks that are to run before the root changes, and waits until all is done but the command. Gives the master of
/// its terminal.
fn await_ready(born: &Born, record: &Record) -> Result<Option<OwnedFd>> {
    let mut told = listen(&born.status)?;
    if matches!(told, Told::Prepared) {
        if let Some(wanted) = &record.hooks {
            hooks::before_create(record, wanted)?;
        }
        if let Some(gate) = &born.gate {
            rustix::io::write(gate, b"g").doing(|| "letting the container go on".to_owned())?;
        }
        told = listen(&born.status)?;
    }
    match told {
        Told::Prepared => Err(refused("the child reported twice")),
        Told::Ready(master) => Ok(master),
        Told::Failed(failure) => Err(refused(failure.message)),
        Told::Closed => {
            let ended = nacre_sys::usage::wait(Some(born.child.pid)).ok().flatten();
            let code = ended.map_or(0, |ended| ended.code);
            let memory =
                cgroup::field(&record.cgroup, "memory.events", "oom_kill").is_some_and(|kills| kills > 0);
            let why = if memory { ": the container's memory limit is too small to start it" } else { "" };
            Err(refused(format!("the container's first process died ({code}){why}")))
        }
    }
}

/// Controllers that limits cannot be without.
pub fn controllers(limits: &CgroupLimits) -> Vec<&str> {
    let mut all: Vec<&str> = limits
        .writes
        .iter()
        .filter(|write| write.missing != Missing::Passes)
        .filter_map(|write| Some(write.file.split_once('.')?.0))
        .filter(|name| *name != "cgroup")
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Hands out what the caller waits for: terminal, then the pid.
fn finish(store: &Store, options: &Options, waiting: Waiting) -> Result<(Record, Born, Option<OwnedFd>)> {
    let Waiting { record, born, mut master } = waiting;
    let mut hand_out = || -> Result<()> {
        if let (Some(socket), Some(terminal)) = (&options.console_socket, &master) {
            send_console(socket, terminal)?;
            master = None;
        }
        options.pid_file.as_ref().map_or(Ok(()), |file| write_pid_file(file, record.pid))
    };
    match hand_out() {
        Ok(()) => Ok((record, born, master)),
        Err(error) => {
            let _ = lifecycle::destroy(store, &record);
            Err(error)
        }
    }
}
