//! Init's loop: one epoll over signals, the agent, and the status sockets of launchers.

use crate::agent::{Agent, Deaths, Phase};
use crate::boot::Timeline;
use crate::cgroup::{Cgroup, Hierarchy, out_of_memory_kills_in};
use crate::cmdline::{Cmdline, ScratchChoice};
use crate::console::say;
use crate::launch::{Grant, Launch, Purpose, StatusSocket, launch};
use crate::manifest::Manifest;
use crate::ports::Listeners;
use crate::puller::{Puller, StoreOptions};
use crate::table::{Container, MemoryWatch};
use crate::{InitError, boot};
use nacre_protocols::agent_init::{Event, FRAME_MAX, OUTSTANDING_MAX, Request, STATE_BYTES, Scratch};
use nacre_protocols::frame;
use nacre_protocols::init_launcher::{
    LaunchFailure, Mode, PLAN_MAX, Plan, STATUS_MAX, Status, StorageStep, storage,
};
use nacre_sys::process::PidNamespace;
use nacre_sys::{memfd, seqpacket, signals};
use rustix::event::epoll;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Tokens of the epoll set; launches have the numbers from here on.
const SIGNALS: u64 = 0;
const AGENT: u64 = 1;
const DEBUG_CONSOLE: u64 = 2;
const FIRST_LAUNCH: u64 = 16;
/// Added to the numbers of containers' memory events.
const MEMORY_EVENTS: u64 = 1 << 63;
/// Events taken in one turn.
const EVENTS_MAX: usize = 32;
/// How often a removal that waits for its last process is tried again.
const REMOVAL_TICK: Duration = Duration::from_millis(2);

pub struct Init {
    pub(crate) listener: OwnedFd,
    pub(crate) cgroups: Hierarchy,
    pub(crate) timeline: Timeline,
    pub(crate) scratch: Scratch,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) launches: BTreeMap<u64, Launch>,
    pub(crate) puller: Option<Puller>,
    pub(crate) store: StoreOptions,
    pub(crate) manifest: Manifest,
    pub(crate) agent: Option<Agent>,
    pub(crate) null: OwnedFd,
    pub(crate) listeners: Listeners,
    /// What agents are started from instead of the image's, since an upgrade.
    pub(crate) agent_program: Option<OwnedFd>,
    agent_state: OwnedFd,
    agent_deaths: Deaths,
    generation: u32,
    next_launch: Cell<u64>,
    signals: OwnedFd,
    epoll: OwnedFd,
    /// What is received, one frame at a time. A mapping of its own, of which only what the longest frame so far has filled is there.
    pub(crate) frame: Vec<u8>,
}

/// Longest frame that init receives, in bytes.
const RECEIVED_MAX: usize = if FRAME_MAX > STATUS_MAX { FRAME_MAX } else { STATUS_MAX };

impl Init {
    pub fn new(
        (listener, listeners): (OwnedFd, Listeners),
        cgroups: Hierarchy,
        timeline: Timeline,
        manifest: Manifest,
    ) -> Result<Self, InitError> {
        let signals = signals::descriptor(&[signals::SIGCHLD, signals::SIGTERM, signals::SIGINT])
            .map_err(InitError::io("watching signals"))?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(InitError::system("making the epoll set"))?;
        watch(&epoll, signals.as_fd(), SIGNALS).map_err(InitError::io("watching signals"))?;
        if let Some(console) = &listeners.console {
            watch(&epoll, console.as_fd(), DEBUG_CONSOLE).map_err(InitError::io("watching a port"))?;
        }
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        Ok(Self {
            listener,
            cgroups,
            timeline,
            scratch: Scratch::Tmpfs { bytes: 0 },
            containers: BTreeMap::new(),
            launches: BTreeMap::new(),
            puller: None,
            store: StoreOptions::default(),
            manifest,
            agent: None,
            null: null.map_err(InitError::io("opening /dev/null"))?.into(),
            listeners,
            agent_program: None,
            agent_state: memfd::fixed("agent-state", STATE_BYTES)
                .map_err(InitError::io("making the agent's state"))?,
            agent_deaths: Deaths::default(),
            generation: 0,
            next_launch: Cell::new(FIRST_LAUNCH),
            signals,
            epoll,
            frame: vec![0; RECEIVED_MAX],
        })
    }

    /// Gives the sandbox its scratch space, by a launcher, and waits for it: nothing else is there to serve yet.
    pub fn mount_scratch(&mut self, cmdline: &Cmdline) -> Result<(), InitError> {
        let scratch_error = |message: String| InitError::Scratch { message };
        let step = match &cmdline.scratch {
            ScratchChoice::Disk(device) => StorageStep::ScratchDisk { device: device.clone(), kept: false },
            ScratchChoice::Kept(device) => StorageStep::ScratchDisk { device: device.clone(), kept: true },
            ScratchChoice::Tmpfs(bytes) => {
                let half = rustix::system::sysinfo().totalram / 2;
                StorageStep::ScratchTmpfs { bytes: bytes.unwrap_or(half) }
            }
        };
        let plan =
            self.seal_plan(&Plan::Storage(vec![step])).map_err(|error| scratch_error(error.to_string()))?;
        let grant = self.own_grant(Mode::Storage, plan.as_fd());
        let (status, theirs) =
            seqpacket::pair().map_err(InitError::io("making a launcher's status socket"))?;
        launch(&grant, theirs.as_fd()).map_err(InitError::io("starting the launcher"))?;
        // Its end is the only one: that it died is seen.
        drop(theirs);
        match seqpacket::receive(&status, &mut self.frame) {
            Ok(Some((length, _))) => match decode_status(&self.frame, length) {
                Some(Status::Done(_)) => {}
                Some(Status::Failed(LaunchFailure { message, .. })) => return Err(scratch_error(message)),
                _ => return Err(scratch_error("the launcher's answer does not decode".to_owned())),
            },
            _ => return Err(scratch_error("the launcher died".to_owned())),
        }
        let space = rustix::fs::statvfs(nacre_protocols::names::SCRATCH_DIR)
            .map_err(InitError::system("measuring the scratch space"))?;
        let bytes = space.f_blocks.saturating_mul(space.f_frsize);
        self.scratch = match cmdline.scratch {
            ScratchChoice::Disk(_) | ScratchChoice::Kept(_) => Scratch::Disk { bytes },
            ScratchChoice::Tmpfs(_) => Scratch::Tmpfs { bytes },
        };
        self.store.quota = cmdline.store_quota;
        self.store.images = self.manifest.images.clone();
        if matches!(cmdline.scratch, ScratchChoice::Kept(_)) {
            self.store.boot = Some(boot::name().map_err(InitError::system("naming this boot"))?);
        }
        if matches!(self.scratch, Scratch::Tmpfs { .. }) {
            self.cgroups.lift_puller_limit();
        }
        self.timeline.end("scratch");
        Ok(())
    }

    pub fn start_agent(&mut self) -> Result<(), InitError> {
        self.generation = self.generation.saturating_add(1);
        let agent = Agent::start(
            self.generation,
            self.agent_program.as_ref().map(AsFd::as_fd),
            self.listener.as_fd(),
            self.agent_state.as_fd(),
            self.cgroups.agent.as_fd(),
        )?;
        watch(&self.epoll, agent.socket.as_fd(), AGENT).map_err(InitError::io("watching the agent"))?;
        self.agent = Some(agent);
        Ok(())
    }

    pub fn serve(&mut self) -> Result<Infallible, InitError> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let removing = self.containers.values().any(|container| container.removal.is_some());
            let timeout = removing
                .then(|| rustix::event::Timespec { tv_sec: 0, tv_nsec: REMOVAL_TICK.as_nanos() as i64 });
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(InitError::system("waiting for events")(errno)),
            }
            for event in &events {
                match event.data.u64() {
                    SIGNALS => self.signals()?,
                    AGENT => self.requests(),
                    DEBUG_CONSOLE => self.console_connection(),
                    number if number & MEMORY_EVENTS != 0 => self.memory_event(number),
                    launch => self.launch_progress(launch),
                }
            }
            self.go_on_removing();
        }
    }

    /// Ends the VM. What is on a kept disk is for a later one: the journal would bring it back in order, and this makes it all
    /// that was written.
    pub(crate) fn power_off(&self) -> ! {
        if self.store.boot.is_some() {
            rustix::fs::sync();
        }
        boot::power_off()
    }

    fn signals(&mut self) -> Result<(), InitError> {
        while let Ok(Some(signal)) = signals::next(self.signals.as_fd()) {
            if signal != signals::SIGCHLD {
                self.power_off();
            }
        }
        while let Some(ended) = nacre_sys::process::reap().map_err(InitError::io("reaping"))? {
            match self.agent.take_if(|agent| agent.pid == ended.pid) {
                Some(agent) => self.agent_ended(&agent, ended.code)?,
                None => self.child_ended(ended.pid, ended.code),
            }
        }
        Ok(())
    }

    fn agent_ended(&mut self, agent: &Agent, code: u8) -> Result<(), InitError> {
        if agent.leaving {
            say("the agent made room for another program");
        } else {
            say(&format!("the agent ended with code {code}; starting another"));
            let kept_dying = self.agent_deaths.record(code);
            if agent.upgraded && (!agent.settled || kept_dying.is_err()) {
                say("the program that the agent was upgraded to is of no use: back to the image's");
                self.agent_program = None;
                self.agent_deaths = Deaths::default();
            } else {
                kept_dying?;
            }
        }
        self.start_agent()
    }

    /// Reads what the agent asks. All that is there is read in one turn: its number is bounded by the tags.
    fn requests(&mut self) {
        loop {
            let Some(agent) = self.agent.as_mut().filter(|agent| agent.phase != Phase::Condemned) else {
                return;
            };
            let (length, fds) = match seqpacket::try_receive(&agent.socket, &mut self.frame) {
                Ok(Some(received)) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its end: reaping it comes next.
                Ok(None) => {
                    let _ = epoll::delete(&self.epoll, &agent.socket);
                    return;
                }
                Err(error) => return agent.condemn(&format!("its frame cannot be received: {error}")),
            };
            let received = self.frame.get(..length).unwrap_or_default();
            let request: Request = match frame::decode(received, FRAME_MAX) {
                Ok(request) => request,
                Err(error) => return agent.condemn(&error.to_string()),
            };
            if agent.outstanding.len() >= OUTSTANDING_MAX {
                return agent.condemn("too many requests without a reply");
            }
            if !agent.outstanding.insert(request.tag) {
                return agent.condemn("a tag that is in use");
            }
            self.request(request, fds);
        }
    }

    /// Before a launcher is started: its status socket, watched under a number of its own.
    pub(crate) fn expect_launcher(&self) -> io::Result<StatusSocket> {
        let (ours, theirs) = seqpacket::pair()?;
        let number = self.next_number();
        watch(&self.epoll, ours.as_fd(), number)?;
        Ok(StatusSocket { ours, theirs, number })
    }

    /// After it was started.
    pub(crate) fn follow(&mut self, child_pid: u32, status: StatusSocket, purpose: Purpose) {
        let StatusSocket { ours, number, .. } = status;
        self.launches.insert(number, Launch { child_pid, status: ours, purpose, answered: false });
    }

    fn next_number(&self) -> u64 {
        self.next_launch.replace(self.next_launch.get().wrapping_add(1))
    }

    /// Watches the kernel's kills in a container that was just made.
    pub(crate) fn watch_memory(&mut self, cgroup: &Cgroup) -> io::Result<MemoryWatch> {
        let events = cgroup.memory_events()?;
        let number = MEMORY_EVENTS | self.next_number();
        // What is there already is read, so that the next is news.
        let kills = out_of_memory_kills_in(&events);
        let data = epoll::EventData::new_u64(number);
        // By edge: what is left of a cgroup that is gone would be ready for ever.
        epoll::add(&self.epoll, &events, data, epoll::EventFlags::PRI | epoll::EventFlags::ET)?;
        Ok(MemoryWatch { events, number, kills, untold: false })
    }

    fn memory_event(&mut self, number: u64) {
        for container in self.containers.values_mut().filter(|container| container.memory.number == number) {
            let kills = out_of_memory_kills_in(&container.memory.events);
            container.memory.untold |= kills > container.memory.kills;
            container.memory.kills = kills;
        }
        self.tell_of_memory();
    }

    /// Tells the agent of kills that none was told of; one that comes later is told when it greets.
    pub(crate) fn tell_of_memory(&mut self) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.phase == Phase::Greeted) else { return };
        for (id, container) in self.containers.iter_mut().filter(|(_, container)| container.memory.untold) {
            container.memory.untold = false;
            agent.tell(Event::OutOfMemory { container: id.clone() });
        }
    }

    pub(crate) fn forget_launch(&mut self, number: u64) -> Option<Launch> {
        let launch = self.launches.remove(&number)?;
        let _ = epoll::delete(&self.epoll, &launch.status);
        Some(launch)
    }

    pub(crate) fn seal_plan(&self, plan: &Plan) -> io::Result<OwnedFd> {
        memfd::sealed("plan", &frame::encode(plan, PLAN_MAX).map_err(io::Error::other)?)
    }

    /// For plans of init's own: the manifest bounds the agent's.
    pub(crate) fn own_grant<'a>(&'a self, mode: Mode, plan: BorrowedFd<'a>) -> Grant<'a> {
        let grant = self.storage_grant(mode, plan);
        Grant { ceiling: Manifest::default().capabilities, storage: storage::SCRATCH, ..grant }
    }

    /// For launchers that start no container: streams from nowhere, errors to the console.
    pub(crate) fn storage_grant<'a>(&'a self, mode: Mode, plan: BorrowedFd<'a>) -> Grant<'a> {
        Grant {
            mode,
            ceiling: self.manifest.capabilities,
            storage: self.manifest.kinds(),
            plan,
            stdio: [self.null.as_fd(), self.null.as_fd(), rustix::stdio::stderr()],
            gate: None,
            cgroup: None,
            target: None,
            inherited: &[],
            pid_namespace: PidNamespace::Same,
        }
    }
}

pub(crate) fn decode_status(buffer: &[u8], length: usize) -> Option<Status> {
    frame::decode(buffer.get(..length)?, STATUS_MAX).ok()
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
    Ok(())
}
