//! What the sandbox is, as far as the agent knows: kept state, containers, pulls, and the edge to init.

use crate::container::Containers;
use crate::error::{AgentError, RpcError};
use crate::init::{Edge, Init};
use crate::passed::Passed;
use crate::pulls::Pulls;
use crate::say;
use crate::server::Limits;
use crate::state::{Kept, StateFile};
use crate::stream::Mirror;
use nacre_protocols::agent_init::{Event, HeldProcess, ReplyBody, RequestBody, Welcome};
use nacre_protocols::host_agent::ttrpc::Code;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::sync::{Mutex, Notify};

/// Most processes that init can hold: its own limits, containers times execs, are far lower in practice.
const HELD_MAX: u32 = 256 * 1024;
/// Most events of memory that wait for somebody to ask; the oldest are dropped.
const OOM_EVENTS_MAX: usize = 64;

pub struct Agent {
    pub init: Rc<Init>,
    pub welcome: Welcome,
    pub containers: Containers,
    pub mirror: Mirror,
    pub pulls: Pulls,
    pub passed: Passed,
    pub limits: Rc<Limits>,
    /// One change of mounts at a time, so that two containers that share one wait for each other.
    pub mounting: Mutex<()>,
    /// There is something to watch.
    pub watching: Notify,
    oom: RefCell<VecDeque<String>>,
    oom_happened: Notify,
    scrapes: Cell<u64>,
    kept: RefCell<Kept>,
    file: RefCell<StateFile>,
}

impl Agent {
    /// Takes back what init holds, gives up what the last agent left half done, and begins to listen to init.
    pub async fn resume(
        mut edge: Edge,
        welcome: Welcome,
        state: OwnedFd,
        mirror: Mirror,
    ) -> Result<Rc<Self>, AgentError> {
        let (file, kept) = StateFile::open(state).map_err(AgentError::io("reading the state"))?;
        let containers = Containers::default();
        let mut early = Vec::new();
        for index in 0..HELD_MAX {
            match edge.ask_first(RequestBody::Held { index }, |event| early.push(event)).await? {
                Ok(reply) => match reply.body {
                    ReplyBody::Held(held) => take_back(&containers, held, reply.fds)?,
                    ReplyBody::NoMore => break,
                    _ => return Err(AgentError::unfitting("Held")),
                },
                Err(failure) => {
                    return Err(AgentError::Answer { request: "Held", answer: failure.message });
                }
            }
        }
        let init = Rc::new(Init::new(edge));
        let agent = Rc::new(Self {
            pulls: Pulls::new(Rc::clone(&init)),
            init,
            welcome,
            containers,
            mirror,
            passed: Passed::default(),
            limits: Rc::default(),
            mounting: Mutex::new(()),
            watching: Notify::new(),
            oom: RefCell::default(),
            oom_happened: Notify::new(),
            scrapes: Cell::new(0),
            kept: RefCell::new(kept),
            file: RefCell::new(file),
        });
        early.into_iter().for_each(|event| agent.event(event));
        let listener = Rc::clone(&agent);
        tokio::task::spawn_local(async move {
            listener.init.listen(|event| listener.event(event)).await;
        });
        agent.forget_waited();
        agent.give_up_half_made();
        Ok(agent)
    }

    fn event(&self, event: Event) {
        match event {
            Event::Exited { process, status } => self.containers.exited(&process, status),
            Event::OutOfMemory { container } => {
                let mut events = self.oom.borrow_mut();
                if events.len() >= OOM_EVENTS_MAX {
                    events.pop_front();
                }
                events.push_back(container);
                self.oom_happened.notify_one();
            }
            Event::PullerExited(end) => self.pulls.puller_exited(end),
        }
    }

    /// The container of the next process that the kernel killed for want of memory.
    pub async fn next_oom(&self) -> String {
        loop {
            let next = self.oom.borrow_mut().pop_front();
            if let Some(container) = next {
                // There may be more, for somebody else who waits.
                self.oom_happened.notify_one();
                return container;
            }
            self.oom_happened.notified().await;
        }
    }

    /// How often metrics were asked of this agent, this time included.
    pub fn count_scrape(&self) -> u64 {
        self.scrapes.set(self.scrapes.get().saturating_add(1));
        self.scrapes.get()
    }

    /// First processes that were waited for before the last agent died are not waited for again.
    fn forget_waited(&self) {
        let kept = self.kept.borrow();
        for (id, _) in kept.containers.iter().filter(|(_, container)| container.waited) {
            self.containers.forget_process(id, "");
        }
    }

    /// Containers that the last agent was making when it died: init does not have them, or not whole.
    fn give_up_half_made(self: &Rc<Self>) {
        let half_made: Vec<String> = self
            .kept
            .borrow()
            .containers
            .keys()
            .filter(|id| !self.containers.contains(id))
            .cloned()
            .collect();
        for id in half_made {
            say(&format!("giving up container {id}, which was being made"));
            self.containers.begin_removal(&id);
            let agent = Rc::clone(self);
            tokio::task::spawn_local(async move { agent.roll_back(&id).await });
        }
    }

    pub fn kept<T>(&self, look: impl FnOnce(&Kept) -> T) -> T {
        look(&self.kept.borrow())
    }

    /// Changes the kept state and writes it for the next agent. When it cannot be written the change is undone.
    pub fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> Result<T, RpcError> {
        let mut changed = self.kept.borrow().clone();
        let result = change(&mut changed);
        self.keep(changed)?;
        Ok(result)
    }

    fn keep(&self, changed: Kept) -> Result<(), RpcError> {
        if let Err(error) = self.file.borrow_mut().save(&changed) {
            say(&error.to_string());
            return Err(RpcError::new(Code::ResourceExhausted, error.to_string()));
        }
        *self.kept.borrow_mut() = changed;
        Ok(())
    }
}

fn take_back(containers: &Containers, held: HeldProcess, fds: Vec<OwnedFd>) -> Result<(), AgentError> {
    containers.take_back(&held, fds).map_err(AgentError::io("taking back a process"))
}
