//! A fake init: answers every request as the edge says, with pipes and ptys but without processes. Tests play the processes.

use super::{PATIENCE, eventually};
use nacre_protocols::agent_init::{
    Event, ExitStatus, FRAME_MAX, Failure, FailureKind, FromInit, HeldProcess, HeldState, KernelFile,
    NetworkState, OutputStream, ProcessRef, ProcessReport, ReplyBody, Request, RequestBody, Scratch, Welcome,
};
use nacre_protocols::agent_puller;
use nacre_protocols::frame;
use nacre_protocols::init_launcher::{PLAN_MAX, Plan, StorageStep};
use nacre_sys::{memfd, seqpacket};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

type Picks = fn(&RequestBody) -> bool;

#[derive(Default)]
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
}

#[derive(Default)]
pub struct World {
    agent: Option<OwnedFd>,
    generation: u32,
    /// Every request but Hello and Held, with its plan.
    pub asked: Vec<(RequestBody, Option<Plan>)>,
    pub processes: BTreeMap<ProcessRef, FakeProcess>,
    /// What to answer instead, once, to the next request that the function picks.
    failures: Vec<(Picks, Failure)>,
    /// Requests that are not answered while this is set.
    held_back: Option<Picks>,
    waiting: Vec<(u32, RequestBody, Option<Plan>)>,
    /// The kernel's files by name.
    pub files: BTreeMap<&'static str, String>,
    /// What a network plan finds.
    pub network: NetworkState,
    /// The fetchers' ends, newest last.
    pub pullers: Vec<OwnedFd>,
}

/// The ends that init keeps, and those that the process would have.
pub struct FakeProcess {
    terminal: bool,
    state: HeldState,
    outer: Vec<OwnedFd>,
    stdin_open: bool,
    taken: [u64; 2],
    relayed: [bool; 2],
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

#[derive(Clone)]
pub struct FakeInit(Arc<Shared>);

impl FakeInit {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Makes the socket of a new agent and serves its other end.
    pub fn attach(&self) -> OwnedFd {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let mut world = self.world();
        world.agent = Some(ours.try_clone().unwrap());
        world.generation += 1;
        drop(world);
        let init = self.clone();
        std::thread::spawn(move || init.serve(&ours));
        theirs
    }

    pub fn detach(&self) {
        let mut world = self.world();
        world.agent = None;
        world.waiting.clear();
        world.held_back = None;
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap()
    }

    fn serve(&self, socket: &OwnedFd) {
        let mut buffer = vec![0; FRAME_MAX];
        while let Ok(Some((length, fds))) = seqpacket::receive(socket, &mut buffer) {
            let request: Request = frame::decode(&buffer[..length], FRAME_MAX).unwrap();
            let plan = fds.into_iter().next().map(|fd| {
                let bytes = memfd::read_sealed(fd, PLAN_MAX as u64).unwrap();
                frame::decode::<Plan>(&bytes, PLAN_MAX).unwrap()
            });
            let mut world = self.world();
            if !matches!(request.body, RequestBody::Hello { .. } | RequestBody::Held { .. }) {
                world.asked.push((request.body.clone(), plan.clone()));
            }
            if world.held_back.is_some_and(|picks| picks(&request.body)) {
                world.waiting.push((request.tag, request.body, plan));
            } else {
                world.answer(request.tag, &request.body);
            }
            drop(world);
            self.0.changed.notify_all();
        }
    }

    /// Answers the next request that `picks` picks with a failure.
    pub fn fail_next(&self, picks: fn(&RequestBody) -> bool, kind: FailureKind, message: &str) {
        self.world().failures.push((picks, Failure { kind, message: message.into() }));
    }

    pub fn hold_back(&self, picks: fn(&RequestBody) -> bool) {
        self.world().held_back = Some(picks);
    }

    pub fn let_go(&self) {
        let mut world = self.world();
        world.held_back = None;
        for (tag, body, _) in std::mem::take(&mut world.waiting) {
            world.answer(tag, &body);
        }
    }

    /// Waits until the agent has asked for something that `picks` picks, and gives the first such request.
    #[track_caller]
    pub fn asked(&self, picks: impl Fn(&RequestBody) -> bool) -> (RequestBody, Option<Plan>) {
        let world = self.world();
        let (world, timeout) = self
            .0
            .changed
            .wait_timeout_while(world, PATIENCE, |world| !world.asked.iter().any(|(body, _)| picks(body)))
            .unwrap();
        assert!(!timeout.timed_out(), "never asked; but {:?}", world.asked);
        world.asked.iter().find(|(body, _)| picks(body)).unwrap().clone()
    }

    pub fn count(&self, picks: impl Fn(&RequestBody) -> bool) -> usize {
        self.world().asked.iter().filter(|(body, _)| picks(body)).count()
    }

    /// Every storage step so far.
    pub fn steps(&self) -> Vec<StorageStep> {
        let world = self.world();
        let plans = world.asked.iter().filter_map(|(_, plan)| match plan {
            Some(Plan::Storage(steps)) => Some(steps.clone()),
            _ => None,
        });
        plans.flatten().collect()
    }

    pub fn exit(&self, container: &str, exec: &str, code: u8, out_of_memory: bool) {
        let process = ProcessRef { container: container.into(), exec: exec.into() };
        let status = ExitStatus { code, out_of_memory };
        let mut world = self.world();
        let fake = world.processes.get_mut(&process).unwrap();
        fake.state = HeldState::Exited(status);
        world.tell(Event::Exited { process, status });
    }

    pub fn tell(&self, event: Event) {
        self.world().tell(event);
    }

    /// One of the process's own streams.
    pub fn stream(
        &self,
        container: &str,
        exec: &str,
        which: fn(&FakeProcess) -> &Option<OwnedFd>,
    ) -> std::fs::File {
        let name = ProcessRef { container: container.into(), exec: exec.into() };
        which(&self.world().processes[&name]).as_ref().unwrap().try_clone().unwrap().into()
    }

    /// The streams of a process with a terminal are the host's connections for every agent from the next one on; gives the
    /// host's ends of input and output.
    pub fn relay(&self, container: &str, exec: &str) -> [UnixStream; 2] {
        let name = ProcessRef { container: container.into(), exec: exec.into() };
        let mut world = self.world();
        let fake = world.processes.get_mut(&name).unwrap();
        fake.relayed = [true; 2];
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        fake.outer.extend([read, write]);
        [(); 2].map(|()| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            fake.outer.push(theirs.into());
            ours
        })
    }

    /// Closes all that the process had open, as its death would.
    pub fn close_streams(&self, container: &str, exec: &str) {
        let name = ProcessRef { container: container.into(), exec: exec.into() };
        let mut world = self.world();
        let fake = world.processes.get_mut(&name).unwrap();
        (fake.stdin, fake.stdout, fake.stderr) = (None, None, None);
    }

    /// The newest puller's end of its socket.
    pub fn puller(&self, number: usize) -> FakePuller {
        eventually("a puller", || self.world().pullers.len() > number);
        let socket = self.world().pullers[number].try_clone().unwrap();
        let mut buffer = [0; agent_puller::OPENING_MAX];
        let (length, _) = seqpacket::receive(&socket, &mut buffer).unwrap().expect("no opening");
        let opening: agent_puller::Opening = frame::decode(&buffer[..length], buffer.len()).unwrap();
        FakePuller { socket, ports: opening.ports }
    }

    pub fn drop_puller(&self, number: usize) {
        let (replacement, _) = seqpacket::pair().unwrap();
        self.world().pullers[number] = replacement;
    }
}

impl World {
    fn tell(&self, event: Event) {
        if let Some(agent) = &self.agent {
            let _ = seqpacket::send(agent, &frame::encode(&FromInit::Event(event), FRAME_MAX).unwrap(), &[]);
        }
    }

    fn answer(&mut self, tag: u32, body: &RequestBody) {
        let failure = self.failures.iter().position(|(picks, _)| picks(body));
        let result = match failure {
            Some(index) => Err(self.failures.remove(index).1),
            None => self.result(body),
        };
        let (result, fds) = match result {
            Ok((body, fds)) => (Ok(body), fds),
            Err(failure) => (Err(failure), vec![]),
        };
        let frame = frame::encode(&FromInit::Reply { tag, result }, FRAME_MAX).unwrap();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        if let Some(agent) = &self.agent {
            // An agent that was killed does not take it.
            let _ = seqpacket::send(agent, &frame, &fds);
        }
    }

    fn result(&mut self, body: &RequestBody) -> Result<(ReplyBody, Vec<OwnedFd>), Failure> {
        let done = Ok((ReplyBody::Done, vec![]));
        match body {
            RequestBody::Hello { .. } => {
                let welcome = Welcome {
                    generation: self.generation,
                    boot: vec![("kernel".into(), 1000)],
                    scratch: Scratch::Disk { bytes: 1 << 30 },
                    log: false,
                    passed: false,
                    upgraded: false,
                };
                Ok((ReplyBody::Welcome(welcome), vec![]))
            }
            RequestBody::Held { index } => Ok(match self.processes.iter().nth(*index as usize) {
                Some((name, fake)) => (
                    ReplyBody::Held(HeldProcess {
                        process: name.clone(),
                        pid: 7,
                        terminal: fake.terminal,
                        state: fake.state,
                        stdin_open: fake.stdin_open,
                        taken: fake.taken,
                        relayed: fake.relayed,
                    }),
                    fake.give(),
                ),
                None => (ReplyBody::NoMore, vec![]),
            }),
            RequestBody::CreateContainer { id, terminal, .. } => {
                let name = ProcessRef { container: id.clone(), exec: String::new() };
                Ok((ReplyBody::Created { pid: 7 }, self.make(name, *terminal, HeldState::Created)))
            }
            RequestBody::StartContainer { id } => {
                let name = ProcessRef { container: id.clone(), exec: String::new() };
                self.process(&name)?.state = HeldState::Running;
                done
            }
            RequestBody::Exec { process, terminal, .. } => {
                Ok((ReplyBody::Created { pid: 8 }, self.make(process.clone(), *terminal, HeldState::Running)))
            }
            RequestBody::Signal { process, .. } => {
                self.process(process)?;
                done
            }
            RequestBody::CloseStdin { process } => {
                let fake = self.process(process)?;
                if fake.stdin_open {
                    fake.stdin_open = false;
                    fake.outer.remove(0);
                }
                done
            }
            RequestBody::Take { process, stream, upto } => {
                let fake = self.process(process)?;
                fake.take(*stream, *upto);
                done
            }
            RequestBody::Forget { process } => {
                if process.exec.is_empty() {
                    let fake = self.process(process)?;
                    fake.outer.clear();
                    fake.stdin_open = false;
                } else {
                    self.processes.remove(process);
                }
                done
            }
            RequestBody::RemoveContainer { id } => {
                let before = self.processes.len();
                self.processes.retain(|name, _| name.container != *id);
                if before == self.processes.len() { Err(not_found()) } else { done }
            }
            RequestBody::Network => Ok((ReplyBody::Network(self.network.clone()), vec![])),
            RequestBody::ConnectPuller => {
                let (agents, pullers) = seqpacket::pair().unwrap();
                self.pullers.push(pullers);
                Ok((ReplyBody::Puller, vec![agents]))
            }
            RequestBody::Report => {
                let report =
                    ProcessReport { name: "init".into(), pid: 1, resident_kib: 500, anonymous_kib: 50 };
                Ok((ReplyBody::Report(vec![report]), vec![]))
            }
            RequestBody::Freeze { id, frozen } => {
                self.process(&ProcessRef { container: id.clone(), exec: String::new() })?;
                let text = format!("populated 1\nfrozen {}\n", u8::from(*frozen));
                self.files.insert("cgroup.events", text);
                done
            }
            RequestBody::Open { file } => {
                let name = match file {
                    KernelFile::Guest(file) => file.path(),
                    KernelFile::Agent(file) => file.name(),
                    KernelFile::Cgroup { file, .. } => file.name(),
                };
                let text = self.files.get(name).ok_or_else(not_found)?;
                Ok((ReplyBody::Opened, vec![memfd::sealed("file", text.as_bytes()).unwrap()]))
            }
            RequestBody::Update { .. }
            | RequestBody::Upgrade
            | RequestBody::OnlineCpus { .. }
            | RequestBody::Reseed { .. }
            | RequestBody::Storage
            | RequestBody::SetHostname { .. }
            | RequestBody::SetClock { .. }
            | RequestBody::PowerOff => done,
        }
    }

    fn process(&mut self, name: &ProcessRef) -> Result<&mut FakeProcess, Failure> {
        self.processes.get_mut(name).ok_or_else(not_found)
    }

    fn make(&mut self, name: ProcessRef, terminal: bool, state: HeldState) -> Vec<OwnedFd> {
        let fake = if terminal { FakeProcess::terminal(state) } else { FakeProcess::pipes(state) };
        let given = fake.give();
        self.processes.insert(name, fake);
        given
    }
}

impl FakeProcess {
    fn pipes(state: HeldState) -> Self {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((stdin, input), (output, stdout), (error, stderr)) = (pipe(), pipe(), pipe());
        Self {
            terminal: false,
            state,
            outer: vec![input, output, error],
            stdin_open: true,
            taken: [0; 2],
            relayed: [false; 2],
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
        }
    }

    fn terminal(state: HeldState) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let (stage_read, stage_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        Self {
            terminal: true,
            state,
            outer: vec![master, stage_read, stage_write],
            stdin_open: true,
            taken: [0; 2],
            relayed: [false; 2],
            stdin: Some(slave.try_clone().unwrap()),
            stdout: Some(slave),
            stderr: None,
        }
    }

    /// Out of the stream that init keeps, or the pipe behind its terminal.
    fn take(&mut self, stream: OutputStream, upto: u64) {
        let (number, from) = match stream {
            OutputStream::Output => (0, if self.terminal { 1 } else { self.outer.len() - 2 }),
            OutputStream::Error => (1, self.outer.len() - 1),
        };
        let mut bytes = vec![0; (upto - self.taken[number]) as usize];
        let mut pipe = std::fs::File::from(self.outer[from].try_clone().unwrap());
        std::io::Read::read_exact(&mut pipe, &mut bytes).unwrap();
        self.taken[number] = upto;
    }

    fn give(&self) -> Vec<OwnedFd> {
        self.outer.iter().map(|fd| fd.try_clone().unwrap()).collect()
    }
}

/// The fetcher's end of the edge between agent and puller.
pub struct FakePuller {
    socket: OwnedFd,
    /// What it was told that it may connect to.
    pub ports: Vec<u16>,
}

impl FakePuller {
    pub fn receive(&self) -> Option<agent_puller::Request> {
        let mut buffer = vec![0; agent_puller::FRAME_MAX];
        let (length, _) = seqpacket::receive(&self.socket, &mut buffer).unwrap()?;
        Some(frame::decode(&buffer[..length], agent_puller::FRAME_MAX).unwrap())
    }

    pub fn send(&self, reply: &agent_puller::Reply) {
        seqpacket::send(&self.socket, &frame::encode(reply, agent_puller::FRAME_MAX).unwrap(), &[]).unwrap();
    }
}

fn not_found() -> Failure {
    Failure { kind: FailureKind::NotFound, message: "no such container or process".into() }
}
