//! Starts one more process in a running container.

use crate::check::{Checked, Origin};
use crate::descriptors::required;
use crate::error::{Context, LaunchError};
use crate::procfs::Procfs;
use crate::status::StatusSocket;
use crate::terminal::Terminal;
use crate::tree::Tree;
use crate::{namespaces, process, user};
use nacre_protocols::init_launcher::{ExecPlan, LaunchStage, Status};
use std::os::fd::OwnedFd;

/// Comes back only with what failed.
/// `inherited`: what the command gets from descriptor 3 on.
pub fn exec(
    plan: &Checked<Box<ExecPlan>>,
    origin: Origin,
    target: Option<OwnedFd>,
    inherited: Vec<OwnedFd>,
    status: &StatusSocket,
) -> LaunchError {
    let attempt = || {
        let target = required(target, "target")?;
        namespaces::join(&target)?;
        // The mount namespace's root is the container's since it pivoted.
        let root = Tree::own_root().at(LaunchStage::Rootfs, || "opening the container's root".to_owned())?;
        let procfs = Procfs::detached()?;
        let account = user::find(&plan.process.user, &root, origin)?;
        let terminal =
            plan.process.terminal.map(|size| Terminal::open(&root, size, account.uid)).transpose()?;
        let master = process::settle(&plan.process, terminal, &root, &procfs)?;
        drop((root, procfs));
        let candidate = process::become_user(&plan.process, &account, inherited)?;
        status.send(&Status::Ready, master.as_ref())?;
        Ok(candidate)
    };
    match attempt() {
        Ok(candidate) => candidate.execute(),
        Err(error) => error,
    }
}
