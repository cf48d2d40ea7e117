//! The indexer's loop: layers of the fetcher in, a thread for each, what became of them out.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nacre_protocols::fetcher_indexer::{
    Compression, FRAME_MAX, IndexFailureKind, IndexLayer, LAYERS_AT_ONCE, MESSAGE_MAX, Reply,
};
use nacre_protocols::frame::{self, FrameError};
use nacre_protocols::names::Sha256;
use nacre_sys::seqpacket;

use crate::layer::{self, LayerError, Limits, TAR_LIMIT};
use crate::store::is_disk_full;

#[derive(Debug, thiserror::Error)]
pub enum IndexerError {
    #[error("cannot receive from the fetcher: {0}")]
    Receive(io::Error),
    #[error("request of the fetcher: {0}")]
    Frame(#[from] FrameError),
    #[error("request of the fetcher: {0}")]
    Protocol(&'static str),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Serves the fetcher until its end closes.
pub fn serve(fetcher: OwnedFd) -> Result<(), IndexerError> {
    let fetcher = Arc::new(fetcher);
    let running = Arc::new(AtomicUsize::new(0));
    let mut buffer = vec![0; FRAME_MAX];
    while let Some((length, fds)) = receive(&fetcher, &mut buffer)? {
        let request: IndexLayer = frame::decode(buffer.get(..length).unwrap_or_default(), FRAME_MAX)?;
        let files: Vec<File> = fds.into_iter().map(File::from).collect();
        if files.len() != if request.tar_max.is_some() { 3 } else { 2 } {
            return Err(IndexerError::Protocol("not the descriptors of a layer"));
        }
        if running.fetch_add(1, Ordering::Relaxed) >= LAYERS_AT_ONCE {
            return Err(IndexerError::Protocol("more layers at once than allowed"));
        }
        let (fetcher, running) = (fetcher.clone(), running.clone());
        let work = move || {
            let reply = index(&request, files);
            // Before the answer: with it, the fetcher may send the next one.
            running.fetch_sub(1, Ordering::Relaxed);
            if let Ok(frame) = frame::encode(&reply, FRAME_MAX) {
                // A fetcher that is gone is noticed by who receives.
                let _ = seqpacket::send(&*fetcher, &frame, &[]);
            }
        };
        std::thread::Builder::new().spawn(work).map_err(IndexerError::Thread)?;
    }
    Ok(())
}

/// `None` when the fetcher is gone; that it left an answer unread (ECONNRESET, unix(7)) is no fault.
fn receive(fetcher: &OwnedFd, buffer: &mut [u8]) -> Result<Option<(usize, Vec<OwnedFd>)>, IndexerError> {
    match seqpacket::receive(fetcher, buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        result => result.map_err(IndexerError::Receive),
    }
}

fn index(request: &IndexLayer, files: Vec<File>) -> Reply {
    let id = request.id;
    let compression = match request.compression {
        Compression::Plain => layer::Compression::Plain,
        Compression::Gzip => layer::Compression::Gzip,
        Compression::Zstd => layer::Compression::Zstd,
    };
    let limits = Limits::default();
    let limits = Limits { tar_bytes: request.tar_max.unwrap_or(limits.tar_bytes), ..limits };
    let mut files = files.into_iter();
    let indexed = match (files.next(), files.next(), files.next()) {
        (Some(pipe), Some(tar), Some(index)) => {
            layer::index_layer(pipe, compression, &tar, &index, &limits, |_| {})
        }
        (Some(pipe), Some(index), None) => {
            layer::index_into(pipe, compression, Nowhere, index, &limits, |_| {})
        }
        _ => Err(LayerError::Io {
            operation: "take the layer's files",
            source: io::ErrorKind::InvalidInput.into(),
        }),
    };
    match indexed {
        Ok(layer) => Reply::Done {
            id,
            diff_id: Sha256(layer.diff_id),
            tar: layer.tar_bytes,
            index: layer.index_bytes,
            entries: layer.entries,
        },
        Err(error) => {
            let mut message = chain(&error);
            let end = (0..=MESSAGE_MAX.min(message.len())).rev().find(|&end| message.is_char_boundary(end));
            message.truncate(end.unwrap_or_default());
            Reply::Failed { id, kind: kind(&error), message }
        }
    }
}

/// Takes the tar of a layer that is there already.
struct Nowhere;

impl layer::WriteAt for Nowhere {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn kind(error: &LayerError) -> IndexFailureKind {
    match error {
        LayerError::Io { source, .. } if is_disk_full(source) => IndexFailureKind::DiskFull,
        LayerError::Io { .. } => IndexFailureKind::System,
        LayerError::LayerLimit { what: TAR_LIMIT, .. } => IndexFailureKind::TarMax,
        LayerError::Limit { .. } | LayerError::LayerLimit { .. } => IndexFailureKind::Limit,
        LayerError::Decompress { .. }
        | LayerError::Header { .. }
        | LayerError::Truncated { .. }
        | LayerError::Entry { .. } => IndexFailureKind::Malformed,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
