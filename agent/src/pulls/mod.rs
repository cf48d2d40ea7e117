//! Pulls of images, by the puller: started or joined by the host or by the creation of a container, and going on whatever
//! becomes of who asked.
//!
//! The puller runs while there is something to pull and a little longer. When it dies its pulls fail; the next one
//! starts a new puller. So does a pull that needs a port which the puller is not let out to, as soon as that is idle.

mod puller;
mod speed;

use crate::agent::Agent;
use crate::error::RpcError;
use crate::init::Init;
use crate::ports::Ports;
use crate::say;
use crate::state::Kept;
use crate::verified::VerifiedImage;
use nacre_protocols::agent_init::{FailureKind, PullerEnd, ReplyBody, RequestBody};
use nacre_protocols::agent_puller::{
    LayerStage, PORTS_MAX, PULLS_MAX, Platform, Pull as Order, PullFailure, PullFailureKind, REFERENCE_MAX,
    Reply, Request,
};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::names::Sha256;
use puller::Puller;
pub use speed::Speed;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

/// Most pulls that are remembered, those that go on among them.
const REMEMBERED_MAX: usize = 64;
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

#[derive(Debug, Clone)]
pub struct Layer {
    pub digest: Sha256,
    pub size: u64,
    pub fetched: u64,
    pub done: bool,
    pub present: bool,
    pub stage: LayerStage,
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

/// The platform of this guest.
pub fn native_platform() -> Platform {
    Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: String::new() }
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
