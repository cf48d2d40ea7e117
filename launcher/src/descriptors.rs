//! The descriptors that the launcher is born with, by name.

use crate::error::{Context, LaunchError, Result};
use nacre_protocols::init_launcher::{LaunchStage, Mode, fd};
use nacre_sys::exec::take_over;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

pub struct Descriptors {
    pub status: OwnedFd,
    pub plan: OwnedFd,
    pub gate: Option<OwnedFd>,
    pub cgroup: Option<OwnedFd>,
    pub target: Option<OwnedFd>,
    /// What a helper's command inherits; only as many as were given.
    pub inherited: Vec<OwnedFd>,
}

impl Descriptors {
    /// The first thing done: all at high numbers and close-on-exec, everything that `mode` does not need closed.
    pub fn take(mode: Mode) -> Result<Self> {
        let mut wanted = vec![fd::STATUS, fd::PLAN];
        wanted.extend(
            match mode {
                Mode::Create | Mode::Helper => [Some(fd::GATE), Some(fd::CGROUP), None],
                Mode::Exec => [None, Some(fd::CGROUP), Some(fd::TARGET)],
                Mode::Update => [None, Some(fd::CGROUP), None],
                Mode::Storage | Mode::Network => [None; 3],
            }
            .map(|number| number.unwrap_or(NOTHING)),
        );
        if mode == Mode::Helper {
            wanted.extend(fd::INHERITED..fd::INHERITED + i32::from(fd::INHERITED_MAX));
        }
        let taken = take_over(&wanted).at(LaunchStage::Plan, || "taking over descriptors".to_owned())?;
        let mut taken = taken.into_iter();
        let mut next = || taken.next().flatten();
        Ok(Self {
            status: required(next(), "status")?,
            plan: required(next(), "plan")?,
            gate: next(),
            cgroup: next(),
            target: next(),
            inherited: taken.map_while(|fd| fd).collect(),
        })
    }
}

/// A number at which no descriptor can be.
const NOTHING: i32 = -1;

/// A descriptor that the mode needs.
pub fn required(fd: Option<OwnedFd>, name: &str) -> Result<OwnedFd> {
    fd.ok_or_else(|| LaunchError {
        stage: LaunchStage::Plan,
        errno: Errno::BADF.raw_os_error(),
        message: format!("the {name} descriptor is missing"),
    })
}
