//! The fetcher's loop: requests of the agent in, a thread for each pull, events out.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use nacre_protocols::agent_puller::{
    FRAME_MAX, MESSAGE_MAX, OPENING_MAX, Opening, PORTS_MAX, PULLS_MAX, Pull, PullFailure, PullFailureKind,
    Reply, Request, StoreCollected, StoreContents,
};
use nacre_protocols::frame::{self, FrameError};
use nacre_protocols::names::Sha256;
use nacre_sys::seqpacket;
use rustix::net::SendFlags;

use crate::digest::Digest;
use crate::index_client::IndexError;
use crate::pull::{self, Context, Event, PullError};
use crate::registry::transport::Cancel;
use crate::store::{ImageRecord, Needed, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum FetcherError {
    #[error("cannot receive from the agent: {0}")]
    Receive(io::Error),
    #[error("request of the agent: {0}")]
    Frame(#[from] FrameError),
    #[error("request of the agent: {0}")]
    Protocol(&'static str),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Exit code of a fetcher whose indexer is gone.
pub const INDEXER_GONE: i32 = 3;

type Active = Arc<Mutex<HashMap<u32, Cancel>>>;

/// The ports that this process is to be confined to. The one thing that it reads before it is: a few numbers, from the
/// agent. `None` if the agent is gone.
pub fn opening(agent: &OwnedFd) -> Result<Option<Vec<u16>>, FetcherError> {
    let mut buffer = [0; OPENING_MAX];
    let Some((length, _)) = seqpacket::receive(agent, &mut buffer).map_err(FetcherError::Receive)? else {
        return Ok(None);
    };
    let Opening { ports } = frame::decode(buffer.get(..length).unwrap_or_default(), OPENING_MAX)?;
    match ports.len() > PORTS_MAX {
        true => Err(FetcherError::Protocol("more ports than allowed")),
        false => Ok(Some(ports)),
    }
}

/// Serves the agent until its end closes. What is under way then ends with the process.
pub fn serve(agent: OwnedFd, context: Context) -> Result<(), FetcherError> {
    let context = Arc::new(context);
    let answers = context.clone();
    spawn(move || {
        answers.indexer.receive();
        // Without it no pull can end well. Both are started anew for the next one, and what is half done is swept then.
        eprintln!("nacre-puller: the indexer is gone");
        std::process::exit(INDEXER_GONE);
    })?;
    let agent = Arc::new(agent);
    let active = Active::default();
    let mut buffer = vec![0; FRAME_MAX];
    while let Some((length, _)) = seqpacket::receive(&*agent, &mut buffer).map_err(FetcherError::Receive)? {
        match frame::decode(buffer.get(..length).unwrap_or_default(), FRAME_MAX)? {
            Request::Pull { id, pull } => {
                let cancel = admit(&active, id)?;
                let (agent, context, active) = (agent.clone(), context.clone(), active.clone());
                spawn(move || answer(&agent, &context, &active, id, &pull, &cancel))?;
            }
            // One that is not known has just ended: its end is on the way.
            Request::Cancel { id } => {
                if let Some(cancel) = lock(&active).get(&id) {
                    cancel.set();
                }
            }
            Request::List { id } => list(&agent, &context, id),
            Request::Collect { id, used, layers, forget, only } => {
                let digests =
                    |list: &[Sha256]| list.iter().map(|digest| Digest::from_bytes(digest.0)).collect();
                let (used, used_layers) = (digests(&used), digests(&layers));
                collect(&agent, &context, id, &Needed { used, used_layers, forget, only });
            }
        }
    }
    Ok(())
}

fn admit(active: &Active, id: u32) -> Result<Cancel, FetcherError> {
    let mut active = lock(active);
    if active.len() >= PULLS_MAX {
        return Err(FetcherError::Protocol("more pulls at once than allowed"));
    }
    let cancel = Cancel::default();
    match active.insert(id, cancel.clone()) {
        Some(_) => Err(FetcherError::Protocol("a second pull under an id that is still in use")),
        None => Ok(cancel),
    }
}

fn answer(agent: &OwnedFd, context: &Context, active: &Active, id: u32, request: &Pull, cancel: &Cancel) {
    let report = |event| match event {
        Event::Layers(layers) => send(agent, &Reply::Layers { id, layers }),
        Event::Stage { index, stage } => send(agent, &Reply::Stage { id, index, stage }),
        Event::Progress { index, fetched } => send_if_room(agent, &Reply::Progress { id, index, fetched }),
        Event::LayerDone { index } => send(agent, &Reply::LayerDone { id, index }),
    };
    let outcome = pull::pull(context, request, cancel, &report);
    lock(active).remove(&id);
    let reply = match outcome {
        // This process is about to end, and who started it knows more.
        Err(PullError::Index { source: IndexError::Gone, .. }) => return,
        Ok(image) => Reply::Done { id, image: Box::new(image) },
        Err(error) => Reply::Failed { id, failure: failure(&error) },
    };
    match frame::encode(&reply, FRAME_MAX) {
        Ok(_) => send(agent, &reply),
        // Of all replies only an image's configuration can be that large.
        Err(_) => {
            let message = format!("configuration of the image is larger than a frame of {FRAME_MAX} bytes");
            send(
                agent,
                &Reply::Failed { id, failure: PullFailure { kind: PullFailureKind::Limit, message } },
            );
        }
    }
}

/// In this thread: it is short, and one at a time.
fn list(agent: &OwnedFd, context: &Context, id: u32) {
    let contents = match context.store.contents() {
        Ok(contents) => contents,
        Err(error) => return send(agent, &Reply::Failed { id, failure: store_failure(&error) }),
    };
    for ImageRecord { image, keep } in contents.images {
        send(agent, &Reply::Stored { id, image: Box::new(image), keep });
    }
    let (free, total) = context.store.space().unwrap_or_default();
    let (layers, used, quota) = (contents.layers, contents.used, contents.quota);
    send(agent, &Reply::Contents { id, contents: StoreContents { layers, used, quota, free, total } });
}

fn collect(agent: &OwnedFd, context: &Context, id: u32, needed: &Needed) {
    let reply = match context.store.collect(needed) {
        Ok(collected) => {
            let count = |length: usize| length as u64;
            let (images, layers) = (count(collected.images.len()), count(collected.layers.len()));
            Reply::Collected { id, collected: StoreCollected { images, layers, bytes: collected.bytes } }
        }
        Err(error) => Reply::Failed { id, failure: store_failure(&error) },
    };
    send(agent, &reply);
}

fn store_failure(error: &StoreError) -> PullFailure {
    PullFailure {
        kind: PullFailureKind::Internal,
        message: crate::manifest::shorten_to(&error.to_string(), MESSAGE_MAX),
    }
}

fn failure(error: &PullError) -> PullFailure {
    let mut message = error.to_string();
    let end = (0..=MESSAGE_MAX.min(message.len())).rev().find(|&end| message.is_char_boundary(end));
    message.truncate(end.unwrap_or_default());
    PullFailure { kind: error.kind(), message }
}

/// An agent that is gone is noticed by who receives.
fn send(agent: &OwnedFd, reply: &Reply) {
    if let Ok(frame) = frame::encode(reply, FRAME_MAX) {
        let _ = seqpacket::send(agent, &frame, &[]);
    }
}

/// Progress that the agent has no time for is not worth waiting.
fn send_if_room(agent: &OwnedFd, reply: &Reply) {
    if let Ok(frame) = frame::encode(reply, FRAME_MAX) {
        let _ = rustix::net::send(agent, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), FetcherError> {
    std::thread::Builder::new().spawn(work).map(drop).map_err(FetcherError::Thread)
}

fn lock(active: &Active) -> std::sync::MutexGuard<'_, HashMap<u32, Cancel>> {
    active.lock().unwrap_or_else(PoisonError::into_inner)
}
