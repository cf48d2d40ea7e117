//! A user namespace with its mappings (user_namespaces(7)): made by a child that is gone when it is made, so that this
//! process, which stays outside with its rights, writes the mappings.

use crate::error::{Context, Result};
use crate::procfs::Procfs;
use nacre_protocols::init_launcher::{IdMapping, IdMappings, LaunchStage};
use nacre_sys::exec::unshare;
use nacre_sys::fork::{Birth, fork};
use nacre_sys::process::PidNamespace;
use nacre_sys::usage::wait;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;

/// A fresh user namespace, and in it a fresh network namespace where that is asked for.
pub struct Made {
    pub user: OwnedFd,
    pub network: Option<OwnedFd>,
}

pub fn make(mappings: &IdMappings, network: bool, procfs: &Procfs) -> Result<Made> {
    attempt(mappings, network, procfs)
        .at(LaunchStage::Namespaces, || format!("making a user namespace with {mappings:?}"))
}

fn attempt(mappings: &IdMappings, network: bool, procfs: &Procfs) -> io::Result<Made> {
    let (ready, says) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stays, leave) = pipe_with(PipeFlags::CLOEXEC)?;
    let birth = Birth {
        namespaces: UnshareFlags::empty(),
        pid_namespace: PidNamespace::Same,
        cgroup: None,
        sibling: false,
    };
    let mut flags = UnshareFlags::NEWUSER;
    flags.set(UnshareFlags::NEWNET, network);
    // A copy of ours keeps the pipe open in the child until it ends; the child must not keep the other end itself.
    let (mut leave, mut ready) = (Some(leave), Some(ready));
    let child = fork(&birth, || {
        drop((leave.take(), ready.take()));
        let code = match unshare(flags) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().and_then(|errno| u8::try_from(errno).ok()).unwrap_or(u8::MAX),
        };
        let _ = rustix::io::write(&says, &[code]);
        // Until the other side has let go.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&stays, &mut [0u8; 1]));
        0
    })?;
    drop(says);
    let made = (|| {
        let mut code = [u8::MAX];
        if let Some(ready) = &ready {
            rustix::io::retry_on_intr(|| rustix::io::read(ready, &mut code))?;
        }
        match code {
            [0] => {}
            [code] => return Err(Errno::from_raw_os_error(code.into()).into()),
        }
        procfs.write_of(child.pid, "uid_map", &lines(&mappings.users))?;
        procfs.write_of(child.pid, "gid_map", &lines(&mappings.groups))?;
        let network = network.then(|| procfs.namespace(child.pid, "net")).transpose()?;
        Ok(Made { user: procfs.namespace(child.pid, "user")?, network })
    })();
    drop(leave);
    wait(Some(child.pid))?;
    made
}

fn lines(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, it| {
        let _ = writeln!(text, "{} {} {}", it.inside, it.outside, it.count);
        text
    })
}
