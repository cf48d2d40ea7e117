//! What the agent may ask, and in which phase: every request is matched here, once.

use crate::agent::{Phase, failure};
use crate::cgroup::Cgroup;
use crate::launch::{Grant, Purpose, StatusSocket, launch};
use crate::ports::Listeners;
use crate::serve::Init;
use crate::table::{Container, EXECS_MAX, Process, Relay, Removal, State, Stdio};
use crate::{hardware, report};
use nacre_protocols::agent_init::{
    Failure, FailureKind, PROGRAM_MAX, PidNamespace, ProcessRef, ReplyBody, Request, RequestBody, Streams,
    VERSION, Welcome,
};
use nacre_protocols::init_launcher::{Mode, PLAN_MAX};
use nacre_protocols::names::is_valid_id;
use nacre_sys::process::PidNamespace as BornIn;
use nacre_sys::{memfd, process, signals};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Init sets no clock before this: 2026-11-01, when this line was written. In seconds since 1970.
const CLOCK_FLOOR: i64 = 1_793_491_200;
/// Highest signal number of Linux.
const SIGNAL_MAX: u8 = 64;
/// Longest host name (HOST_NAME_MAX), in bytes.
const HOSTNAME_MAX: usize = 64;

/// `None`: the reply comes later, when a launcher has answered.
type Answer = Result<Option<ReplyBody>, Failure>;

impl Init {
    pub(crate) fn request(&mut self, request: Request, fds: Vec<OwnedFd>) {
        let Some(agent) = self.agent.as_mut() else { return };
        match (agent.phase, &request.body) {
            (Phase::Greeted, RequestBody::Hello { .. }) => return agent.condemn("a second Hello"),
            (Phase::Greeted, _) | (Phase::Born, RequestBody::Hello { .. }) => {}
            (Phase::Born, _) => return agent.condemn("a request before Hello"),
            (Phase::Condemned, _) => return,
        }
        let (wanted, length_max) = match &request.body {
            RequestBody::CreateContainer { streams, .. } | RequestBody::Exec { streams, .. } => {
                (1 + streams.count(), PLAN_MAX as u64)
            }
            RequestBody::Storage | RequestBody::Network | RequestBody::Update { .. } => (1, PLAN_MAX as u64),
            RequestBody::Upgrade => (1, PROGRAM_MAX),
            _ => (0, 0),
        };
        if fds.len() != wanted {
            return agent.condemn("a frame with a wrong number of descriptors");
        }
        let mut fds = fds.into_iter();
        let plan = fds.next();
        let streams: Vec<OwnedFd> = fds.collect();
        if plan.as_ref().is_some_and(|plan| !memfd::is_sealed(plan, length_max).unwrap_or(false)) {
            return agent.condemn("a plan or a program that is not sealed or too long");
        }
        let tag = request.tag;
        let answer = match request.body {
            // These send descriptors along.
            RequestBody::Hello { version } => return self.hello(tag, version),
            RequestBody::Held { index } => return self.held(tag, index),
            RequestBody::ConnectPuller => return self.connect_puller(tag),
            RequestBody::Open { file } => return self.open_file(tag, &file),
            body => self.answer(tag, body, plan, streams),
        };
        if let Some(reply) = answer.transpose()
            && let Some(agent) = self.agent.as_mut()
        {
            agent.reply(tag, reply, &[]);
        }
    }

    fn answer(&mut self, tag: u32, body: RequestBody, plan: Option<OwnedFd>, passed: Vec<OwnedFd>) -> Answer {
        match (body, plan) {
            (RequestBody::CreateContainer { id, pid_namespace, terminal, streams }, Some(plan)) => {
                let streams = Given::new(streams, passed, terminal)?;
                self.create_container(tag, id, &pid_namespace, streams, &plan)
            }
            (RequestBody::StartContainer { id }, _) => self.start_container(tag, &id),
            (RequestBody::Exec { process, terminal, streams }, Some(plan)) => {
                let streams = Given::new(streams, passed, terminal)?;
                self.exec(tag, process, streams, &plan)
            }
            (RequestBody::Upgrade, Some(program)) => self.upgrade(program),
            (RequestBody::Signal { process, signal, whole_container }, _) => {
                self.signal(&process, signal, whole_container)
            }
            (RequestBody::CloseStdin { process }, _) => {
                let process = self.process_mut(&process)?;
                if !process.terminal {
                    process.stdio.input = None;
                }
                Ok(Some(ReplyBody::Done))
            }
            (RequestBody::Take { process, stream, upto }, _) => {
                let null = self.null.try_clone().map_err(system("/dev/null"))?;
                let process = self.process_mut(&process)?;
                process.take(stream, upto, &null).map_err(system("taking bytes out of a stream"))?;
                Ok(Some(ReplyBody::Done))
            }
            (RequestBody::Forget { process }, _) => self.forget(&process),
            (RequestBody::Freeze { id, frozen }, _) => self.freeze(&id, frozen),
            (RequestBody::Update { id }, Some(plan)) => self.update(tag, &id, &plan),
            (RequestBody::RemoveContainer { id }, _) => self.remove_container(tag, &id),
            (RequestBody::Storage, Some(plan)) => {
                self.start_job(Mode::Storage, &plan, Purpose::Storage { tag })
            }
            (RequestBody::Network, Some(plan)) => {
                self.start_job(Mode::Network, &plan, Purpose::Network { tag })
            }
            (RequestBody::SetHostname { name }, _) => set_hostname(&name),
            (RequestBody::SetClock { seconds, microseconds }, _) => set_clock(seconds, microseconds),
            (RequestBody::OnlineCpus { count }, _) => {
                hardware::online_cpus(count).map(|()| Some(ReplyBody::Done))
            }
            (RequestBody::Reseed { data }, _) => hardware::reseed(&data).map(|()| Some(ReplyBody::Done)),
            (RequestBody::Report, _) => Ok(Some(ReplyBody::Report(self.report()))),
            (RequestBody::PowerOff, _) => self.power_off(),
            // Answered by the caller, or refused by it for want of a plan.
            (
                RequestBody::Hello { .. }
                | RequestBody::Held { .. }
                | RequestBody::Upgrade
                | RequestBody::ConnectPuller
                | RequestBody::Open { .. }
                | RequestBody::Update { .. }
                | RequestBody::CreateContainer { .. }
                | RequestBody::Exec { .. }
                | RequestBody::Storage
                | RequestBody::Network,
                _,
            ) => Err(failure(FailureKind::System, "a request without its plan")),
        }
    }

    fn hello(&mut self, tag: u32, version: u32) {
        let Some(agent) = self.agent.as_mut() else { return };
        if version != VERSION {
            let message = format!("the agent speaks version {version} of this edge, init {VERSION}");
            return agent.reply(tag, Err(failure(FailureKind::System, message)), &[]);
        }
        agent.phase = Phase::Greeted;
        if agent.generation == 1 {
            self.timeline.end("agent");
        }
        let Listeners { log, passed, .. } = &self.listeners;
        let welcome = Welcome {
            generation: agent.generation,
            boot: self.timeline.stages(),
            scratch: self.scratch,
            log: log.is_some(),
            passed: passed.is_some(),
            upgraded: agent.upgraded,
        };
        let fds: Vec<BorrowedFd<'_>> = [log, passed].into_iter().flatten().map(AsFd::as_fd).collect();
        agent.reply(tag, Ok(ReplyBody::Welcome(welcome)), &fds);
        self.tell_of_memory();
    }

    /// The program of every agent from the next one on.
    fn upgrade(&mut self, program: OwnedFd) -> Answer {
        if !self.manifest.upgrade {
            let message = "the sandbox's manifest does not allow the agent to be upgraded";
            return Err(failure(FailureKind::Refused, message));
        }
        self.agent_program = Some(program);
        if let Some(agent) = self.agent.as_mut() {
            agent.leaving = true;
        }
        Ok(Some(ReplyBody::Done))
    }

    fn held(&mut self, tag: u32, index: u32) {
        let processes = self.containers.iter().flat_map(|(id, container)| {
            container
                .processes
                .iter()
                .filter_map(move |(exec, process)| Some((process.held(id, exec)?, process)))
        });
        let found = processes.into_iter().nth(index as usize);
        let Some(agent) = self.agent.as_mut() else { return };
        match found {
            Some((held, process)) => {
                agent.reply(tag, Ok(ReplyBody::Held(held)), &stdio_fds(&process.stdio));
            }
            None => {
                agent.settled = true;
                agent.reply(tag, Ok(ReplyBody::NoMore), &[]);
            }
        }
    }

    fn create_container(
        &mut self,
        tag: u32,
        id: String,
        pid_namespace: &PidNamespace,
        streams: Given,
        plan: &OwnedFd,
    ) -> Answer {
        if !is_valid_id(&id) {
            return Err(failure(FailureKind::Refused, format!("container id {id:?} is not a valid name")));
        }
        if self.containers.contains_key(&id) {
            return Err(failure(FailureKind::Exists, format!("container {id} exists")));
        }
        let limit = self.manifest.containers;
        if self.containers.len() >= limit {
            let message = format!("the sandbox has {limit} containers, its limit");
            return Err(failure(FailureKind::Refused, message));
        }
        let shared = match pid_namespace {
            PidNamespace::Own => None,
            PidNamespace::Container(other) => {
                Some(self.running(other)?.pidfd.try_clone().map_err(system("pidfd"))?)
            }
        };
        let cgroup = Cgroup::create(&id).map_err(system("making the container's cgroup"))?;
        let memory = self.watch_memory(&cgroup).map_err(|error| {
            let _ = cgroup.remove();
            system("watching the container's memory")(error)
        })?;
        let born_in = shared.as_ref().map_or(BornIn::New, |target| BornIn::Of(target.as_fd()));
        let started = self.launch_process(Mode::Create, plan, streams, &cgroup, born_in, None);
        let (process, gate, status) = started.map_err(|error| {
            let _ = cgroup.remove();
            system("starting the launcher")(error)
        })?;
        let pid = process.pid;
        let process = Process { state: State::Launching { tag }, ..process };
        let processes = BTreeMap::from([(String::new(), process)]);
        let container = Container { cgroup, gate, processes, frozen: false, memory, removal: None };
        self.containers.insert(id.clone(), container);
        self.follow(pid, status, Purpose::Process { container: id, exec: String::new() });
        Ok(None)
    }

    fn exec(&mut self, tag: u32, name: ProcessRef, streams: Given, plan: &OwnedFd) -> Answer {
        if !is_valid_id(&name.exec) {
            return Err(failure(
                FailureKind::Refused,
                format!("exec id {:?} is not a valid name", name.exec),
            ));
        }
        let target = self.running(&name.container)?.pidfd.try_clone().map_err(system("pidfd"))?;
        let Some(container) = self.containers.get(&name.container) else { return Ok(None) };
        if container.processes.contains_key(&name.exec) {
            return Err(failure(FailureKind::Exists, format!("process {} exists", name.exec)));
        }
        if container.frozen {
            return Err(failure(FailureKind::State, format!("container {} is paused", name.container)));
        }
        if container.processes.len() > EXECS_MAX {
            let message = format!("container {} has {EXECS_MAX} exec processes, its limit", name.container);
            return Err(failure(FailureKind::Refused, message));
        }
        let born_in = BornIn::Of(target.as_fd());
        let (process, _gate, status) = self
            .launch_process(Mode::Exec, plan, streams, &container.cgroup, born_in, Some(target.as_fd()))
            .map_err(system("starting the launcher"))?;
        let pid = process.pid;
        let process = Process { state: State::Launching { tag }, ..process };
        if let Some(container) = self.containers.get_mut(&name.container) {
            container.processes.insert(name.exec.clone(), process);
        }
        self.follow(pid, status, Purpose::Process { container: name.container, exec: name.exec });
        Ok(None)
    }

    /// Starts a launcher that becomes a process of a container, with streams of our making or those that were given.
    fn launch_process(
        &self,
        mode: Mode,
        plan: &OwnedFd,
        given: Given,
        cgroup: &Cgroup,
        pid_namespace: BornIn<'_>,
        target: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Process, Option<OwnedFd>, StatusSocket)> {
        let null = || self.null.try_clone();
        let terminal = matches!(given, Given::Terminal(_));
        let (streams, stdio) = match given {
            Given::Terminal(connections) => {
                let (stage_read, stage_write) = pipe()?;
                let relay = match connections {
                    Some([input, output]) => Some(Relay { stage: pipe()?, input, output }),
                    None => None,
                };
                let (output, error) = (Some(stage_read), Some(stage_write));
                ([null()?, null()?, null()?], Stdio { output, error, relay, ..Stdio::default() })
            }
            Given::Pipes => {
                let (input_read, input_write) = pipe()?;
                let (output_read, output_write) = pipe()?;
                let (error_read, error_write) = pipe()?;
                let stdio = Stdio {
                    input: Some(input_write),
                    output: Some(output_read),
                    error: Some(error_read),
                    ..Stdio::default()
                };
                ([input_read, output_write, error_write], stdio)
            }
            // Ours are closed with the launch: their end is the process's.
            Given::Passed([input, output, error]) => {
                let or_null = |stream: Option<OwnedFd>| stream.map_or_else(null, Ok);
                ([or_null(input)?, or_null(output)?, or_null(error)?], Stdio::default())
            }
        };
        let gate = if mode == Mode::Create { Some(pipe()?) } else { None };
        let [input, output, error] = &streams;
        let status = self.expect_launcher()?;
        let grant = Grant {
            mode,
            ceiling: self.manifest.capabilities,
            storage: self.manifest.kinds(),
            plan: plan.as_fd(),
            stdio: [input.as_fd(), output.as_fd(), error.as_fd()],
            gate: gate.as_ref().map(|(read, _)| read.as_fd()),
            cgroup: Some(cgroup.directory.as_fd()),
            target,
            inherited: &[],
            pid_namespace,
        };
        let child = launch(&grant, status.theirs.as_fd())?;
        let process = Process { pid: child.pid, pidfd: child.pidfd, terminal, stdio, state: State::Running };
        Ok((process, gate.map(|(_, write)| write), status))
    }

    fn start_container(&mut self, tag: u32, id: &str) -> Answer {
        let container = self.container_mut(id)?;
        let process = container.processes.get_mut("").filter(|process| process.state == State::Created);
        let (Some(process), Some(gate)) = (process, container.gate.take()) else {
            return Err(failure(FailureKind::State, format!("container {id} is not waiting to be started")));
        };
        process.state = State::Starting { tag };
        // Nobody there to read it: the launcher has died, and reaping it answers.
        let _ = rustix::io::write(&gate, &[1]);
        Ok(None)
    }

    fn signal(&mut self, name: &ProcessRef, signal: u8, whole_container: bool) -> Answer {
        if signal > SIGNAL_MAX {
            return Err(failure(FailureKind::Refused, format!("signal {signal} is beyond {SIGNAL_MAX}")));
        }
        if whole_container {
            if i32::from(signal) != signals::SIGKILL {
                return Err(failure(FailureKind::Refused, "only SIGKILL goes to a whole container"));
            }
            self.container_mut(&name.container)?.cgroup.kill().map_err(system("killing the container"))?;
            return Ok(Some(ReplyBody::Done));
        }
        let process = self.process_mut(name)?;
        if !process.is_alive() {
            return Ok(Some(ReplyBody::Done));
        }
        // The first process of a pid namespace ignores what it has no handler for; asked to end, it shall.
        let ignored = name.exec.is_empty()
            && i32::from(signal) == signals::SIGTERM
            && !report::handles_signal(process.pid, signal);
        let signal = if ignored { signals::SIGKILL } else { i32::from(signal) };
        match process::signal(process.pidfd.as_fd(), signal) {
            Ok(()) => Ok(Some(ReplyBody::Done)),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Ok(Some(ReplyBody::Done))
            }
            Err(error) => Err(system("sending the signal")(error)),
        }
    }

    fn forget(&mut self, name: &ProcessRef) -> Answer {
        let process = self.process_mut(name)?;
        if process.is_alive() {
            return Err(failure(FailureKind::State, format!("process {:?} has not exited", name.exec)));
        }
        if name.exec.is_empty() {
            // The container stays until it is removed; its streams are done.
            process.stdio = Stdio::default();
        } else if let Some(container) = self.containers.get_mut(&name.container) {
            container.processes.remove(&name.exec);
        }
        Ok(Some(ReplyBody::Done))
    }

    fn freeze(&mut self, id: &str, frozen: bool) -> Answer {
        self.running(id)?;
        let container = self.container_mut(id)?;
        container.cgroup.freeze(frozen).map_err(system("freezing the container"))?;
        container.frozen = frozen;
        Ok(Some(ReplyBody::Done))
    }

    fn update(&mut self, tag: u32, id: &str, plan: &OwnedFd) -> Answer {
        let container = self.container_mut(id)?;
        let directory = container.cgroup.directory.try_clone().map_err(system("cgroup"))?;
        let grant =
            Grant { cgroup: Some(directory.as_fd()), ..self.storage_grant(Mode::Update, plan.as_fd()) };
        let status = self.expect_launcher().map_err(system("watching the launcher"))?;
        let child = launch(&grant, status.theirs.as_fd()).map_err(system("starting the launcher"))?;
        self.follow(child.pid, status, Purpose::Update { tag });
        Ok(None)
    }

    fn remove_container(&mut self, tag: u32, id: &str) -> Answer {
        let container = self.container_mut(id)?;
        match &mut container.removal {
            None => {}
            // One that never came to be, whose removal nobody waits for yet.
            Some(removal) if removal.tag.is_none() => {
                removal.tag = Some(tag);
                return Ok(None);
            }
            Some(_) => {
                return Err(failure(FailureKind::State, format!("container {id} is being removed")));
            }
        }
        container.removal = Some(Removal { tag: Some(tag), since: Instant::now(), files: false });
        container.gate = None;
        container.cgroup.kill().map_err(system("killing the container"))?;
        Ok(None)
    }

    fn start_job(&mut self, mode: Mode, plan: &OwnedFd, purpose: Purpose) -> Answer {
        let grant = self.storage_grant(mode, plan.as_fd());
        let status = self.expect_launcher().map_err(system("watching the launcher"))?;
        let child = launch(&grant, status.theirs.as_fd()).map_err(system("starting the launcher"))?;
        self.follow(child.pid, status, purpose);
        Ok(None)
    }

    fn report(&self) -> Vec<nacre_protocols::agent_init::ProcessReport> {
        let mut processes = vec![("init", 1)];
        processes.extend(self.agent.as_ref().map(|agent| ("agent", agent.pid)));
        if let Some(puller) = &self.puller {
            processes.extend(puller.processes());
        }
        processes.into_iter().filter_map(|(name, pid)| report::process(name, pid)).collect()
    }

    fn container_mut(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| failure(FailureKind::NotFound, format!("no container {id:?}")))
    }

    pub(crate) fn process_mut(&mut self, name: &ProcessRef) -> Result<&mut Process, Failure> {
        self.container_mut(&name.container)?.processes.get_mut(&name.exec).ok_or_else(|| {
            let message = format!("no process {:?} in container {}", name.exec, name.container);
            failure(FailureKind::NotFound, message)
        })
    }

    /// The first process of a running container.
    fn running(&mut self, id: &str) -> Result<&Process, Failure> {
        match self.container_mut(id)?.processes.get("") {
            Some(process) if process.state == State::Running => Ok(process),
            _ => Err(failure(FailureKind::State, format!("container {id} is not running"))),
        }
    }
}

/// Standard streams of a new process.
enum Given {
    /// With the host's connections for its input and output, if any.
    Terminal(Option<[Option<OwnedFd>; 2]>),
    Pipes,
    /// The host's; `None` is `/dev/null`.
    Passed([Option<OwnedFd>; 3]),
}

impl Given {
    fn new(streams: Streams, passed: Vec<OwnedFd>, terminal: bool) -> Result<Self, Failure> {
        let mut passed = passed.into_iter();
        let mut next = |given: bool| if given { passed.next() } else { None };
        match streams {
            Streams::Kept if terminal => Ok(Self::Terminal(None)),
            Streams::Kept => Ok(Self::Pipes),
            Streams::Passed([_, _, true]) if terminal => {
                Err(failure(FailureKind::Refused, "a terminal has no stderr"))
            }
            Streams::Passed([input, output, _]) if terminal => {
                Ok(Self::Terminal(Some([next(input), next(output)])))
            }
            Streams::Passed(given) => Ok(Self::Passed(given.map(next))),
        }
    }
}

fn set_hostname(name: &str) -> Answer {
    if name.is_empty() || name.len() > HOSTNAME_MAX || name.bytes().any(|b| !b.is_ascii_graphic()) {
        let message = format!("host name {name:?} is not 1 to {HOSTNAME_MAX} printable characters");
        return Err(failure(FailureKind::Refused, message));
    }
    rustix::system::sethostname(name.as_bytes())
        .map_err(|errno| system("setting the host name")(errno.into()))?;
    Ok(Some(ReplyBody::Done))
}

fn set_clock(seconds: i64, microseconds: u32) -> Answer {
    if seconds < CLOCK_FLOOR || microseconds >= 1_000_000 {
        let message = format!("time {seconds}.{microseconds:06} is before {CLOCK_FLOOR} or no time");
        return Err(failure(FailureKind::Refused, message));
    }
    let time = rustix::time::Timespec { tv_sec: seconds, tv_nsec: i64::from(microseconds) * 1_000 };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)
        .map_err(|errno| system("setting the clock")(errno.into()))?;
    Ok(Some(ReplyBody::Done))
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| failure(FailureKind::System, format!("{what}: {error}"))
}

/// Read end and write end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// In the order of the edge: the terminal's master and the pipe behind it; or stdin (unless closed), stdout, stderr. Then what a relay
/// needs.
pub(crate) fn stdio_fds(stdio: &Stdio) -> Vec<BorrowedFd<'_>> {
    let own = [&stdio.input, &stdio.output, &stdio.error].into_iter().flatten();
    let relay = stdio.relay.iter().flat_map(|Relay { stage: (read, write), input, output }| {
        [Some(read), Some(write), input.as_ref(), output.as_ref()].into_iter().flatten()
    });
    own.chain(relay).map(AsFd::as_fd).collect()
}
