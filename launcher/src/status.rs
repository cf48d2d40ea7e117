//! The way back to init: frames on the status socket, which closes on exec.

use crate::error::{Context, Result};
use nacre_protocols::frame;
use nacre_protocols::init_launcher::{LaunchStage, STATUS_MAX, Status};
use nacre_sys::seqpacket;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

pub struct StatusSocket(OwnedFd);

impl StatusSocket {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub fn send(&self, status: &Status, terminal: Option<&OwnedFd>) -> Result<()> {
        let fds: Vec<_> = terminal.map(AsFd::as_fd).into_iter().collect();
        frame::encode(status, STATUS_MAX)
            .map_err(io::Error::other)
            .and_then(|frame| seqpacket::send(&self.0, &frame, &fds))
            .at(LaunchStage::Plan, || "reporting to init".to_owned())
    }
}
