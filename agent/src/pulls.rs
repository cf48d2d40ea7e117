//! Pulls of images, by the puller: started or joined by the host or by the creation of a container, and going on whatever
//! becomes of who asked.
//!
//! The puller runs while there is something to pull and a little longer. When it dies its pulls fail; the next one
//! starts a new puller. So does a pull that needs a port which the puller is not let out to, as soon as that is idle.

use crate::agent::Agent;
use crate::error::RpcError;
use crate::init::Init;
use crate::ports::Ports;
use crate::say;
use crate::state::Kept;
use crate::verified::VerifiedImage;
use nacre_protocols::agent_init::{FailureKind, PullerEnd, PullerProcess, ReplyBody, RequestBody};
use nacre_protocols::agent_puller::{
    FRAME_MAX, LAYERS_MAX, LayerStage, OPENING_MAX, Opening, PORTS_MAX, PULLS_MAX, Platform, Pull as Order,
    PullFailure, PullFailureKind, REFERENCE_MAX, Reply, Request,
};
use nacre_protocols::frame;
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::names::{FETCHER_MEMORY, INDEXER_MEMORY, Sha256};
use nacre_sys::seqpacket;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};

/// How long the puller is kept when it has nothing to do.
const LINGER: Duration = Duration::from_secs(2);
/// Most pulls that are remembered, those that go on among them.
const REMEMBERED_MAX: usize = 64;
/// How long init may take to say how a puller ended whose socket has closed.
const END_PATIENCE: Duration = Duration::from_secs(2);

pub struct Pulls {
    init: Rc<Init>,
    /// By the id that the host chose, or that we did.
    pulls: RefCell<BTreeMap<String, Rc<Pull>>>,
    puller: RefCell<Option<Rc<Puller>>>,
    /// One that has gone, and of which init has not said yet how.
    gone: RefCell<Option<Rc<Puller>>>,
    connecting: Mutex<()>,
    next: Cell<u32>,
}

pub struct Pull {
    id: String,
    number: u32,
    pub reference: String,
    /// It is held to a policy.
    judged: bool,
    pub progress: watch::Sender<Progress>,
    /// Who decides what becomes of it when the puller is done with it.
    outcome: RefCell<Option<oneshot::Sender<Outcome>>>,
}

type Outcome = Result<VerifiedImage, PullFailure>;

/// What is known of a pull.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Goes up with every change.
    pub version: u64,
    /// Lowest first; empty until the manifest is verified.
    pub layers: Vec<Layer>,
    pub end: Option<Outcome>,
    pub speed: Speed,
}

/// How fast bytes come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speed {
    since: Option<(Instant, u64)>,
    /// Of late.
    pub bytes_per_second: u64,
}

impl Speed {
    /// Averaged over at least this.
    const INTERVAL: Duration = Duration::from_millis(500);

    /// `bytes` have come by `now`.
    fn update(&mut self, bytes: u64, now: Instant) {
        match self.since {
            Some((since, before)) if now - since >= Self::INTERVAL => {
                let milliseconds = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX).max(1);
                self.bytes_per_second = bytes.saturating_sub(before).saturating_mul(1000) / milliseconds;
                self.since = Some((now, bytes));
            }
            Some(_) => {}
            None => self.since = Some((now, bytes)),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Layer {
    pub digest: Sha256,
    pub size: u64,
    pub fetched: u64,
    pub done: bool,
    pub present: bool,
    pub stage: LayerStage,
}

/// The connection to a running puller.
struct Puller {
    socket: AsyncFd<OwnedFd>,
    /// By the number on the edge.
    active: RefCell<BTreeMap<u32, Rc<Pull>>>,
    /// What else it was asked, by number.
    asked: RefCell<BTreeMap<u32, mpsc::UnboundedSender<Reply>>>,
    end: watch::Sender<Option<PullerEnd>>,
    /// What its fetcher may connect to.
    ports: Ports,
    /// When it has nothing to do.
    idle: Notify,
    /// Another one takes its place: it is not heard any more.
    replaced: Notify,
}

impl Pulls {
    pub fn new(init: Rc<Init>) -> Self {
        Self {
            init,
            pulls: RefCell::default(),
            puller: RefCell::default(),
            gone: RefCell::default(),
            connecting: Mutex::new(()),
            next: Cell::new(0),
        }
    }

    pub fn get(&self, id: &str) -> Result<Rc<Pull>, RpcError> {
        let message = || RpcError::new(Code::NotFound, format!("no pull {id:?}"));
        self.pulls.borrow().get(id).cloned().ok_or_else(message)
    }

    /// A pull of the same image that goes on.
    fn going_on(&self, reference: &str) -> Option<Rc<Pull>> {
        let pulls = self.pulls.borrow();
        pulls.values().find(|pull| pull.reference == reference && !pull.has_ended()).cloned()
    }

    /// What init said: everything that the puller was doing is lost.
    pub fn puller_exited(&self, end: PullerEnd) {
        // The one that is gone already was started before the one that runs.
        let gone = self.gone.borrow_mut().take();
        if let Some(puller) = gone.or_else(|| self.puller.borrow_mut().take()) {
            puller.end.send_replace(Some(end));
        }
    }

    /// No pull begins with this puller any more.
    fn let_go(&self, puller: &Rc<Puller>) -> bool {
        let mut current = self.puller.borrow_mut();
        let is_current = current.as_ref().is_some_and(|current| Rc::ptr_eq(current, puller));
        if is_current {
            *current = None;
        }
        is_current
    }

    fn number(&self) -> u32 {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        number
    }

    fn add(&self, id: String, reference: &str, judged: bool) -> Result<Rc<Pull>, RpcError> {
        if reference.is_empty() || reference.len() > REFERENCE_MAX {
            return Err(RpcError::invalid(format!("a reference has 1 to {REFERENCE_MAX} bytes")));
        }
        let mut pulls = self.pulls.borrow_mut();
        if pulls.values().filter(|pull| !pull.has_ended()).count() >= PULLS_MAX {
            let message = format!("{PULLS_MAX} pulls are going on, the most at once");
            return Err(RpcError::new(Code::ResourceExhausted, message));
        }
        if pulls.len() >= REMEMBERED_MAX {
            let oldest = pulls.values().filter(|pull| pull.has_ended()).min_by_key(|pull| pull.number);
            if let Some(id) = oldest.map(|pull| pull.id.clone()) {
                pulls.remove(&id);
            }
        }
        let number = self.number();
        let (progress, _) = watch::channel(Progress::default());
        let outcome = RefCell::default();
        let reference = reference.to_owned();
        let pull = Pull { id: id.clone(), number, reference, judged, progress, outcome };
        let pull = Rc::new(pull);
        pulls.insert(id, Rc::clone(&pull));
        Ok(pull)
    }
}

impl Agent {
    /// Starts a pull, or joins the one of this id.
    pub fn start_pull(self: &Rc<Self>, id: String, mut order: Order) -> Result<Rc<Pull>, RpcError> {
        if self.kept(|kept| kept.sandbox.is_none()) {
            let message = "no pull before CreateSandbox: the puller has no resolv.conf";
            return Err(RpcError::new(Code::FailedPrecondition, message));
        }
        if let Ok(pull) = self.pulls.get(&id) {
            if pull.reference == order.reference {
                return Ok(pull);
            }
            let message = format!("pull {id:?} exists, of {:?}", pull.reference);
            return Err(RpcError::new(Code::AlreadyExists, message));
        }
        let Some(ports) = Ports::of(&order) else {
            return Err(RpcError::invalid(format!("the pull names more than {PORTS_MAX} ports")));
        };
        order.policy = self.policy(order.policy)?;
        let pull = self.pulls.add(id, &order.reference, !order.policy.is_empty())?;
        let agent = Rc::clone(self);
        let started = Rc::clone(&pull);
        tokio::task::spawn_local(async move { agent.run_pull(&started, order, ports).await });
        Ok(pull)
    }

    /// The policy of the sandbox: the first that it is given, from then on for every pull.
    fn policy(&self, given: String) -> Result<String, RpcError> {
        let kept = self.kept(|kept| kept.policy.clone());
        match (kept.is_empty(), given.is_empty()) {
            (_, true) => Ok(kept),
            (true, false) => {
                self.change(|kept| kept.policy.clone_from(&given))?;
                Ok(given)
            }
            (false, false) if kept == given => Ok(kept),
            (false, false) => {
                let message = "policy: the sandbox has another one already, which stays";
                Err(RpcError::new(Code::FailedPrecondition, message))
            }
        }
    }

    /// The image of this reference: the one that was pulled before, or from a pull that goes on, or from a new one.
    pub async fn image(self: &Rc<Self>, reference: &str) -> Result<VerifiedImage, RpcError> {
        let pull = match self.pulls.going_on(reference) {
            Some(pull) => pull,
            None => {
                // What was pulled before there was a policy is asked for again, and judged.
                let fits = |kept: &Kept| {
                    kept.image(reference)
                        .filter(|image| kept.policy.is_empty() || image.was_judged())
                        .cloned()
                };
                if let Some(image) = self.kept(fits) {
                    return Ok(image);
                }
                let id = format!("container-{}", self.pulls.next.get());
                self.start_pull(id, Order::anonymous(reference, native_platform()))?
            }
        };
        match pull.end().await {
            Ok(image) => Ok(image),
            Err(failure) => Err(RpcError::new(code(failure.kind), failure.message)),
        }
    }

    pub async fn cancel_pull(&self, pull: &Pull) {
        let puller = self.pulls.puller.borrow().clone();
        match puller {
            Some(puller) if puller.active.borrow().contains_key(&pull.number) => {
                // A puller that does not take it is gone, and so is the pull.
                let _ = puller.send(&Request::Cancel { id: pull.number }).await;
            }
            // It has not begun.
            _ => pull.ended(Err(failed(PullFailureKind::Cancelled, "the pull was given up"))),
        }
    }

    async fn run_pull(self: Rc<Self>, pull: &Rc<Pull>, order: Order, ports: Ports) {
        let mut outcome = self.one_pull(pull, &order, &ports).await;
        if let Err(failure) = &outcome
            && matches!(failure.kind, PullFailureKind::DiskFull | PullFailureKind::Quota)
            && !pull.has_ended()
            // Room that nobody needs any more.
            && self.collect(Vec::new(), false).await.is_ok_and(|collected| collected.bytes > 0)
        {
            outcome = self.one_pull(pull, &order, &ports).await;
        }
        pull.ended(outcome);
        match pull.end().await {
            Ok(image) => {
                let remembered = self.change(|kept| kept.remember_image(&pull.reference, image));
                if remembered.is_err() {
                    say("a pulled image is not remembered: the next agent would pull it again");
                }
            }
            Err(failure) => say(&format!("pull of {}: {}", pull.reference, failure.message)),
        }
    }

    async fn one_pull(self: &Rc<Self>, pull: &Rc<Pull>, order: &Order, ports: &Ports) -> Outcome {
        let puller = self.connect_puller(ports).await?;
        let given_up = || failed(PullFailureKind::Cancelled, "the pull was given up");
        if pull.has_ended() {
            return Err(given_up());
        }
        let (sender, outcome) = oneshot::channel();
        pull.outcome.replace(Some(sender));
        puller.active.borrow_mut().insert(pull.number, Rc::clone(pull));
        let request = Request::Pull { id: pull.number, pull: Box::new(order.clone()) };
        if let Err(error) = puller.send(&request).await {
            puller.forget(pull.number);
            return Err(failed(PullFailureKind::Internal, format!("asking the puller: {error}")));
        }
        outcome.await.unwrap_or_else(|_| Err(given_up()))
    }

    /// Asks the puller something that is answered at once: hands each answer to `take` until it says that it was the last.
    pub async fn ask_puller(
        self: &Rc<Self>,
        request: impl FnOnce(u32) -> Request,
        mut take: impl FnMut(Reply) -> bool,
    ) -> Result<(), PullFailure> {
        // About its store: no network is needed for it.
        let puller = self.connect_puller(&Ports::default()).await?;
        let number = self.pulls.number();
        let (sender, mut answers) = mpsc::unbounded_channel();
        puller.asked.borrow_mut().insert(number, sender);
        let sent = puller.send(&request(number)).await;
        let outcome = loop {
            if let Err(error) = &sent {
                break Err(failed(PullFailureKind::Internal, format!("asking the puller: {error}")));
            }
            match answers.recv().await {
                Some(Reply::Failed { failure, .. }) => break Err(failure),
                Some(reply) => {
                    if take(reply) {
                        break Ok(());
                    }
                }
                None => break Err(failed(PullFailureKind::Internal, "the puller ended")),
            }
        };
        puller.forget(number);
        outcome
    }

    /// A puller that is let out to these ports: the one that runs, or, once that has nothing to do, a new one.
    async fn connect_puller(self: &Rc<Self>, ports: &Ports) -> Result<Rc<Puller>, PullFailure> {
        let _turn = loop {
            let turn = self.pulls.connecting.lock().await;
            let current = self.pulls.puller.borrow().clone();
            let Some(puller) = current else { break turn };
            if puller.ports.cover(ports) {
                return Ok(puller);
            }
            if puller.is_idle() {
                // Init ends it, before it starts the next one.
                self.pulls.let_go(&puller);
                puller.replaced.notify_one();
                break turn;
            }
            drop(turn);
            puller.idle.notified().await;
        };
        let internal = |message: String| failed(PullFailureKind::Internal, message);
        let reply = self.pulls.init.ask(RequestBody::ConnectPuller).await.map_err(|failure| {
            let kind = match failure.kind {
                FailureKind::DiskFull => PullFailureKind::DiskFull,
                _ => PullFailureKind::Internal,
            };
            failed(kind, failure.message)
        })?;
        let socket = match (reply.body, reply.fds.into_iter().next()) {
            (ReplyBody::Puller, Some(socket)) => socket,
            _ => return Err(internal("init answered ConnectPuller with what does not fit it".to_owned())),
        };
        let puller =
            Puller::new(socket, ports).map_err(|error| internal(format!("the puller's socket: {error}")))?;
        let puller = Rc::new(puller);
        *self.pulls.puller.borrow_mut() = Some(Rc::clone(&puller));
        let agent = Rc::clone(self);
        let listener = Rc::clone(&puller);
        tokio::task::spawn_local(async move {
            let is_idle = listener.listen().await;
            let is_current = agent.pulls.let_go(&listener);
            if is_idle {
                // Dropping the last owner closes the socket, and the puller goes.
                return;
            }
            if is_current {
                *agent.pulls.gone.borrow_mut() = Some(Rc::clone(&listener));
            }
            listener.fail_active().await;
            let mut gone = agent.pulls.gone.borrow_mut();
            if gone.as_ref().is_some_and(|gone| Rc::ptr_eq(gone, &listener)) {
                *gone = None;
            }
        });
        Ok(puller)
    }
}

impl Pull {
    pub fn has_ended(&self) -> bool {
        self.progress.borrow().end.is_some()
    }

    /// Waits for the end of the pull.
    pub async fn end(&self) -> Result<VerifiedImage, PullFailure> {
        let mut progress = self.progress.subscribe();
        let end = progress.wait_for(|progress| progress.end.is_some()).await;
        let end = end.ok().and_then(|progress| progress.end.clone());
        end.unwrap_or_else(|| Err(failed(PullFailureKind::Internal, "the pull was forgotten")))
    }

    /// The puller is done with it.
    fn settled(&self, outcome: Outcome) {
        if let Some(sender) = self.outcome.take() {
            // Nobody there: it was given up.
            let _ = sender.send(outcome);
        }
    }

    fn ended(&self, end: Outcome) {
        self.change(|progress| {
            progress.end.get_or_insert(end);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(|progress| {
            change(progress);
            progress.version += 1;
        });
    }
}

impl Puller {
    /// Tells it first what it may connect to.
    fn new(socket: OwnedFd, ports: &Ports) -> io::Result<Self> {
        let opening =
            frame::encode(&Opening { ports: ports.list() }, OPENING_MAX).map_err(io::Error::other)?;
        seqpacket::send(&socket, &opening, &[])?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: crate::watch(socket)?,
            active: RefCell::default(),
            asked: RefCell::default(),
            end: watch::channel(None).0,
            ports: ports.clone(),
            idle: Notify::new(),
            replaced: Notify::new(),
        })
    }

    async fn send(&self, request: &Request) -> io::Result<()> {
        let bytes = frame::encode(request, FRAME_MAX).map_err(io::Error::other)?;
        self.socket.async_io(Interest::WRITABLE, |socket| seqpacket::send(socket, &bytes, &[])).await
    }

    fn is_idle(&self) -> bool {
        self.active.borrow().is_empty() && self.asked.borrow().is_empty()
    }

    /// What it was told under this number is over.
    fn forget(&self, number: u32) {
        self.active.borrow_mut().remove(&number);
        self.asked.borrow_mut().remove(&number);
        self.tell_if_idle();
    }

    fn tell_if_idle(&self) {
        if self.is_idle() {
            self.idle.notify_waiters();
        }
    }

    /// Hears the puller until it is gone (false) or was idle for [`LINGER`] (true).
    async fn listen(&self) -> bool {
        let mut buffer = vec![0; FRAME_MAX];
        let mut end = self.end.subscribe();
        loop {
            let is_idle = self.is_idle();
            let received = tokio::select! {
                received = self.receive(&mut buffer) => received,
                _ = end.wait_for(Option::is_some) => None,
                () = self.replaced.notified() => return true,
                () = tokio::time::sleep(LINGER), if is_idle => {
                    // A pull may have come at this very moment.
                    if self.is_idle() { return true }
                    continue;
                }
            };
            match received {
                Some(reply) => self.heard(reply),
                None => return false,
            }
        }
    }

    /// What was still active has failed. Init knows why; it says so when both of the puller's processes are gone.
    async fn fail_active(&self) {
        let mut end = self.end.subscribe();
        let told = tokio::time::timeout(END_PATIENCE, end.wait_for(Option::is_some)).await;
        let end = told.ok().and_then(Result::ok).and_then(|end| *end);
        self.asked.borrow_mut().clear();
        for pull in std::mem::take(&mut *self.active.borrow_mut()).into_values() {
            pull.settled(Err(puller_died(end)));
        }
        self.tell_if_idle();
    }

    /// `None` when the puller is gone, or does not keep to the edge: it is not heard any more.
    async fn receive(&self, buffer: &mut [u8]) -> Option<Reply> {
        let received =
            self.socket.async_io(Interest::READABLE, |socket| seqpacket::try_receive(socket, buffer)).await;
        let (length, _) = received.ok()??;
        match frame::decode(buffer.get(..length)?, FRAME_MAX) {
            Ok(reply) => Some(reply),
            Err(error) => {
                say(&format!("the puller's frame: {error}"));
                None
            }
        }
    }

    fn heard(&self, reply: Reply) {
        let id = match &reply {
            Reply::Layers { id, .. }
            | Reply::Progress { id, .. }
            | Reply::LayerDone { id, .. }
            | Reply::Stage { id, .. }
            | Reply::Done { id, .. }
            | Reply::Failed { id, .. }
            | Reply::Stored { id, .. }
            | Reply::Contents { id, .. }
            | Reply::Collected { id, .. } => *id,
        };
        if let Some(asked) = self.asked.borrow().get(&id) {
            // Images of one store, at most: bounded by its disk.
            let _ = asked.send(reply);
            return;
        }
        let Some(pull) = self.active.borrow().get(&id).cloned() else { return };
        match reply {
            Reply::Layers { layers, .. } => pull.change(|progress| {
                let layers = layers.into_iter().take(LAYERS_MAX);
                progress.layers = layers
                    .map(|layer| Layer {
                        digest: layer.digest,
                        size: layer.size,
                        fetched: 0,
                        done: layer.present,
                        present: layer.present,
                        stage: LayerStage::Waiting,
                    })
                    .collect();
            }),
            // Answers to what else it is asked.
            Reply::Stored { .. } | Reply::Contents { .. } | Reply::Collected { .. } => {}
            Reply::Stage { index, stage, .. } => pull.change(|progress| {
                if let Some(layer) = progress.layers.get_mut(usize::from(index)) {
                    layer.stage = stage;
                }
            }),
            Reply::Progress { index, fetched, .. } => {
                pull.change(|progress| {
                    if let Some(layer) = progress.layers.get_mut(usize::from(index)) {
                        layer.fetched = fetched;
                    }
                    let sum = progress.layers.iter().map(|layer| layer.fetched).sum();
                    progress.speed.update(sum, Instant::now());
                });
            }
            Reply::LayerDone { index, .. } => pull.change(|progress| {
                if let Some(layer) = progress.layers.get_mut(usize::from(index)) {
                    (layer.fetched, layer.done) = (layer.size, true);
                }
            }),
            Reply::Done { image, .. } => {
                self.forget(id);
                pull.settled(VerifiedImage::new(*image, pull.judged));
            }
            Reply::Failed { failure, .. } => {
                self.forget(id);
                pull.settled(Err(failure));
            }
        }
    }
}

/// The platform of this guest.
pub fn native_platform() -> Platform {
    Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: String::new() }
}

fn puller_died(end: Option<PullerEnd>) -> PullFailure {
    let (name, limit) = match end.map(|end| end.process) {
        Some(PullerProcess::Fetcher) => ("fetcher", FETCHER_MEMORY),
        Some(PullerProcess::Indexer) => ("indexer", INDEXER_MEMORY),
        None => return failed(PullFailureKind::Internal, "the puller ended in the middle of the pull"),
    };
    let (kind, how) = match end {
        Some(PullerEnd { out_of_memory: true, .. }) => {
            (PullFailureKind::Limit, format!("reached its memory limit of {limit} bytes"))
        }
        Some(PullerEnd { code: code @ 129.., .. }) => {
            (PullFailureKind::Internal, format!("was killed by signal {}", code - 128))
        }
        Some(PullerEnd { code, .. }) => (PullFailureKind::Internal, format!("ended with code {code}")),
        None => (PullFailureKind::Internal, "ended".to_owned()),
    };
    failed(kind, format!("the puller's {name} {how} in the middle of the pull"))
}

fn failed(kind: PullFailureKind, message: impl Into<String>) -> PullFailure {
    PullFailure { kind, message: message.into() }
}

pub fn code(kind: PullFailureKind) -> Code {
    match kind {
        PullFailureKind::Reference | PullFailureKind::Platform => Code::InvalidArgument,
        PullFailureKind::NameResolution | PullFailureKind::Connect | PullFailureKind::Stalled => {
            Code::Unavailable
        }
        PullFailureKind::Unauthorized | PullFailureKind::Policy | PullFailureKind::Port => {
            Code::PermissionDenied
        }
        PullFailureKind::NotFound => Code::NotFound,
        PullFailureKind::DiskFull | PullFailureKind::Quota | PullFailureKind::Limit => {
            Code::ResourceExhausted
        }
        PullFailureKind::Cancelled => Code::Cancelled,
        PullFailureKind::Tls
        | PullFailureKind::Digest
        | PullFailureKind::Malformed
        | PullFailureKind::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_late() {
        let (mut speed, begun) = (Speed::default(), Instant::now());
        for (milliseconds, bytes, expected) in [
            (0, 1000, 0),
            // Too short a while to tell.
            (499, 500_000, 0),
            (1000, 2_001_000, 2_000_000),
            (1100, 9_000_000, 2_000_000),
            (3000, 2_001_000, 0),
            // A layer that begins anew has less than before.
            (4000, 1000, 0),
        ] {
            speed.update(bytes, begun + Duration::from_millis(milliseconds));
            assert_eq!(speed.bytes_per_second, expected, "after {milliseconds} ms");
        }
    }
}
