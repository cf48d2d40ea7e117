//! A shell for who looks for a fault in the guest: root's, beneath the seccomp floor, one for each connection of the host's.
//! There is none unless both the host's command line asks for it and its manifest allows it.

use crate::console::say;
use crate::serve::Init;
use nacre_sys::process::{PidNamespace, Program, Spawn, spawn};
use nacre_sys::vsock::{self, HOST_CID};
use rustix::fs::{Access, access};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The guest image has none: who wants a console puts a static one there.
const SHELL: &str = "/bin/sh";

impl Init {
    pub(crate) fn console_connection(&self) {
        let Some(listener) = &self.listeners.console else { return };
        match vsock::accept(listener.as_fd()) {
            Ok((connection, Some(peer))) if peer.cid == HOST_CID => {
                if let Err(error) = shell(&connection) {
                    say(&format!("a debug console does not start: {error}"));
                }
            }
            // From elsewhere, or gone already.
            _ => {}
        }
    }
}

fn shell(connection: &OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(connection, false)?;
    if access(SHELL, Access::EXEC_OK).is_err() {
        rustix::io::write(connection, format!("this guest image has no {SHELL}\n").as_bytes())?;
        return Ok(());
    }
    let stream = connection.as_fd();
    spawn(&Spawn {
        program: Program::At(c"/bin/sh"),
        args: &[c"sh"],
        env: &[c"PATH=/bin:/sbin:/usr/bin:/usr/sbin", c"HOME=/", c"TERM=linux"],
        fds: &[(stream, 0), (stream, 1), (stream, 2)],
        cgroup: None,
        pid_namespace: PidNamespace::Same,
        unprivileged: None,
    })?;
    say("a debug console was opened");
    Ok(())
}
