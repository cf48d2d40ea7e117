//! The edge to init: one socket, requests with tags, replies in any order, events between them.

use crate::AgentError;
use crate::say;
use nacre_protocols::agent_init::{
    Event, FRAME_MAX, Failure, FailureKind, FromInit, KernelFile, OUTSTANDING_MAX, ReplyBody, Request,
    RequestBody, VERSION, Welcome,
};
use nacre_protocols::{frame, init_launcher};
use nacre_sys::{memfd, seqpacket};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, oneshot};

/// Of the requests that may be outstanding, so many are kept for those that init answers at once: a signal must not
/// queue behind containers that are being made.
const KEPT_FOR_QUICK: usize = 4;
/// What is read of a file of the kernel's, and how much at a time, in bytes.
const FILE_MAX: usize = 256 * 1024;
const FILE_PART: usize = 8 * 1024;

/// The bare socket: for the start, when one request is asked at a time.
pub struct Edge {
    socket: AsyncFd<OwnedFd>,
    next_tag: Cell<u32>,
    /// Of what is received: a mapping of its own, of which only what frames have filled is there.
    buffer: RefCell<Vec<u8>>,
}

impl Edge {
    pub fn new(socket: OwnedFd) -> Result<Self, AgentError> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(AgentError::system("init's socket"))?;
        let socket = crate::watch(socket).map_err(AgentError::io("watching init's socket"))?;
        Ok(Self { socket, next_tag: Cell::new(0), buffer: vec![0; FRAME_MAX].into() })
    }

    /// The first exchange of every agent.
    pub async fn greet(&mut self) -> Result<(Welcome, Ports), AgentError> {
        match self.ask_first(RequestBody::Hello { version: VERSION }, |_| ()).await? {
            Ok(Reply { body: ReplyBody::Welcome(welcome), fds }) => {
                let mut fds = fds.into_iter();
                let mut next = |is_there: bool| if is_there { fds.next() } else { None };
                let ports = Ports { log: next(welcome.log), passed: next(welcome.passed) };
                Ok((welcome, ports))
            }
            Ok(_) => Err(AgentError::unfitting("Hello")),
            Err(failure) => Err(AgentError::Answer { request: "Hello", answer: failure.message }),
        }
    }

    /// Asks and waits for the answer; events that come first are given to `event`.
    pub async fn ask_first(
        &mut self,
        body: RequestBody,
        mut event: impl FnMut(Event),
    ) -> Result<Result<Reply, Failure>, AgentError> {
        let tag = self.tag();
        self.send(&Request { tag, body }, &[]).await?;
        loop {
            match self.receive().await? {
                (FromInit::Reply { tag: of, result }, fds) if of == tag => {
                    return Ok(result.map(|body| Reply { body, fds }));
                }
                (FromInit::Reply { .. }, _) => {}
                (FromInit::Event(happened), _) => event(happened),
            }
        }
    }

    fn tag(&self) -> u32 {
        let tag = self.next_tag.get();
        self.next_tag.set(tag.wrapping_add(1));
        tag
    }

    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), AgentError> {
        let frame = frame::encode(request, FRAME_MAX)?;
        self.socket
            .async_io(Interest::WRITABLE, |socket| seqpacket::send(socket, &frame, fds))
            .await
            .map_err(|_| AgentError::InitGone)
    }

    async fn receive(&self) -> Result<(FromInit, Vec<OwnedFd>), AgentError> {
        let received = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                seqpacket::try_receive(socket, &mut self.buffer.borrow_mut())
            })
            .await
            .map_err(AgentError::io("receiving from init"))?;
        let (length, fds) = received.ok_or(AgentError::InitGone)?;
        let buffer = self.buffer.borrow();
        Ok((frame::decode(buffer.get(..length).unwrap_or_default(), FRAME_MAX)?, fds))
    }
}

/// Listening sockets beside the agent's own, as far as the host asked for them.
pub struct Ports {
    pub log: Option<OwnedFd>,
    pub passed: Option<OwnedFd>,
}

/// An answer and the descriptors that came with it.
#[derive(Debug)]
pub struct Reply {
    pub body: ReplyBody,
    pub fds: Vec<OwnedFd>,
}

/// The edge while the agent serves: many ask at once.
pub struct Init {
    edge: Edge,
    waiting: RefCell<BTreeMap<u32, Waiting>>,
    slots: Rc<Semaphore>,
    slow: Rc<Semaphore>,
    ended: Notify,
}

/// The slots are held until init has answered, whether or not somebody still waits.
struct Waiting {
    answer: oneshot::Sender<Result<Reply, Failure>>,
    _slots: Slots,
}

type Slots = (LocalPermit, Option<LocalPermit>);

/// A permit of a semaphore that is shared within the thread.
struct LocalPermit(Rc<Semaphore>);

impl Drop for LocalPermit {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

impl Init {
    pub fn new(edge: Edge) -> Self {
        Self {
            edge,
            waiting: RefCell::default(),
            slots: Rc::new(Semaphore::new(OUTSTANDING_MAX)),
            slow: Rc::new(Semaphore::new(OUTSTANDING_MAX - KEPT_FOR_QUICK)),
            ended: Notify::new(),
        }
    }

    /// Receives for as long as init is there: answers go to who asked, events to `event`, in init's order.
    pub async fn listen(&self, event: impl Fn(Event)) {
        loop {
            match self.edge.receive().await {
                Ok((FromInit::Reply { tag, result }, fds)) => {
                    let waiting = self.waiting.borrow_mut().remove(&tag);
                    if let Some(waiting) = waiting {
                        // Who asked may have given up; then the descriptors are closed here.
                        let _ = waiting.answer.send(result.map(|body| Reply { body, fds }));
                    }
                }
                Ok((FromInit::Event(happened), _)) => event(happened),
                Err(error) => {
                    say(&error.to_string());
                    return self.ended.notify_one();
                }
            }
        }
    }

    /// Waits for the end of the edge, which is the end of the agent.
    pub async fn ended(&self) -> AgentError {
        self.ended.notified().await;
        AgentError::InitGone
    }

    /// Asks init and waits for its answer.
    pub async fn ask(&self, body: RequestBody) -> Result<Reply, Failure> {
        self.ask_with(body, Vec::new()).await
    }

    /// Asks init to have `plan` applied.
    pub async fn ask_with_plan(
        &self,
        body: RequestBody,
        plan: &init_launcher::Plan,
    ) -> Result<Reply, Failure> {
        self.ask_for_process(body, plan, Vec::new()).await
    }

    /// Asks init to make a process after `plan`, with these streams of the host's.
    pub async fn ask_for_process(
        &self,
        body: RequestBody,
        plan: &init_launcher::Plan,
        streams: Vec<OwnedFd>,
    ) -> Result<Reply, Failure> {
        let bytes = frame::encode(plan, init_launcher::PLAN_MAX)
            .map_err(|error| refused(format!("the plan of the launcher: {error}")))?;
        let plan = memfd::sealed("plan", &bytes).map_err(|error| system("making a plan's memfd", &error))?;
        let given = std::iter::once(plan).chain(streams).collect();
        self.ask_with(body, given).await
    }

    /// Asks init to start agents from this program.
    pub async fn upgrade(&self, program: &[u8]) -> Result<(), Failure> {
        let program = memfd::sealed("agent", program).map_err(|error| system("making a memfd", &error))?;
        self.ask_with(RequestBody::Upgrade, vec![program]).await.map(drop)
    }

    /// As [`Init::ask`], where init has nothing to say but that it is done.
    pub async fn order(&self, body: RequestBody) -> Result<(), Failure> {
        self.ask(body).await.map(drop)
    }

    /// The text of a file of the kernel's, its first [`FILE_MAX`] bytes.
    pub async fn read(&self, file: KernelFile) -> Result<String, Failure> {
        let reply = self.ask(RequestBody::Open { file }).await?;
        let opened = reply.fds.into_iter().next();
        let opened = opened.ok_or_else(|| refused("init opened no file".to_owned()))?;
        let mut bytes = Vec::new();
        let mut part = [0; FILE_PART];
        while bytes.len() < FILE_MAX {
            let count = rustix::io::read(&opened, &mut part)
                .map_err(|errno| system("reading a file of the kernel's", &errno.into()))?;
            if count == 0 {
                break;
            }
            bytes.extend(part.get(..count).unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same; empty where the kernel has no such file, or does not let it be read.
    pub async fn read_if_there(&self, file: KernelFile) -> Result<String, Failure> {
        match self.read(file).await {
            Err(Failure { kind: FailureKind::NotFound | FailureKind::System, .. }) => Ok(String::new()),
            result => result,
        }
    }

    async fn ask_with(&self, body: RequestBody, given: Vec<OwnedFd>) -> Result<Reply, Failure> {
        let slots = self.slots(is_slow(&body)).await?;
        let tag = self.edge.tag();
        let (answer, answered) = oneshot::channel();
        self.waiting.borrow_mut().insert(tag, Waiting { answer, _slots: slots });
        let fds: Vec<BorrowedFd<'_>> = given.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.edge.send(&Request { tag, body }, &fds).await {
            self.waiting.borrow_mut().remove(&tag);
            return Err(refused(error.to_string()));
        }
        drop(given);
        answered.await.map_err(|_| refused("init is gone".to_owned()))?
    }

    async fn slots(&self, slow: bool) -> Result<Slots, Failure> {
        let second = if slow { Some(permit(&self.slow).await?) } else { None };
        Ok((permit(&self.slots).await?, second))
    }
}

async fn permit(of: &Rc<Semaphore>) -> Result<LocalPermit, Failure> {
    let permit = of.acquire().await.map_err(|_| refused("the edge to init is closed".to_owned()))?;
    permit.forget();
    Ok(LocalPermit(Rc::clone(of)))
}

/// What a launcher has to run for.
fn is_slow(body: &RequestBody) -> bool {
    matches!(
        body,
        RequestBody::CreateContainer { .. }
            | RequestBody::StartContainer { .. }
            | RequestBody::Exec { .. }
            | RequestBody::RemoveContainer { .. }
            | RequestBody::Storage
            | RequestBody::Network
            | RequestBody::Update { .. }
            | RequestBody::ConnectPuller
    )
}

fn refused(message: String) -> Failure {
    Failure { kind: FailureKind::Refused, message }
}

fn system(what: &str, error: &io::Error) -> Failure {
    Failure { kind: FailureKind::System, message: format!("{what}: {error}") }
}
