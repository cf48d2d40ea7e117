//! The agent's end of the edge to a running puller.

use super::{Layer, Pull, failed};
use crate::ports::Ports;
use crate::say;
use crate::verified::VerifiedImage;
use nacre_protocols::agent_init::{PullerEnd, PullerProcess};
use nacre_protocols::agent_puller::{
    FRAME_MAX, LAYERS_MAX, LayerStage, OPENING_MAX, Opening, PullFailure, PullFailureKind, Reply, Request,
};
use nacre_protocols::frame;
use nacre_protocols::names::{FETCHER_MEMORY, INDEXER_MEMORY};
use nacre_sys::seqpacket;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};

/// How long the puller is kept when it has nothing to do.
const LINGER: Duration = Duration::from_secs(2);
/// How long init may take to say how a puller ended whose socket has closed.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The connection to a running puller.
pub struct Puller {
    socket: AsyncFd<OwnedFd>,
    /// By the number on the edge.
    pub active: RefCell<BTreeMap<u32, Rc<Pull>>>,
    /// What else it was asked, by number.
    pub asked: RefCell<BTreeMap<u32, mpsc::UnboundedSender<Reply>>>,
    pub end: watch::Sender<Option<PullerEnd>>,
    /// What its fetcher may connect to.
    pub ports: Ports,
    /// When it has nothing to do.
    pub idle: Notify,
    /// Another one takes its place: it is not heard any more.
    pub replaced: Notify,
}

impl Puller {
    /// Tells it first what it may connect to.
    pub fn new(socket: OwnedFd, ports: &Ports) -> io::Result<Self> {
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

    pub async fn send(&self, request: &Request) -> io::Result<()> {
        let bytes = frame::encode(request, FRAME_MAX).map_err(io::Error::other)?;
        self.socket.async_io(Interest::WRITABLE, |socket| seqpacket::send(socket, &bytes, &[])).await
    }

    pub fn is_idle(&self) -> bool {
        self.active.borrow().is_empty() && self.asked.borrow().is_empty()
    }

    /// What it was told under this number is over.
    pub fn forget(&self, number: u32) {
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
    pub async fn listen(&self) -> bool {
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
    pub async fn fail_active(&self) {
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
