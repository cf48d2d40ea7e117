//! Starts one more process in a running container.

use crate::check::{Checked, Origin};
use crate::descriptors::required;
use crate::error::{Context, LaunchError};
use crate::outside::Outside;
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
        process::set_initial_processors(&plan.process);
        let outside = Outside::of_process(&plan.process)?;
        // With the rights and the proc of the pid namespace that this process has before it joins.
        let procfs = Procfs::detached()?;
        process::set_privileged(&plan.process, Some(&procfs))?;
        process::set_labels(&plan.process, Some(&procfs))?;
        drop(procfs);
        process::raise_limits(&plan.process)?;
        namespaces::join(&target)?;
        // The mount namespace's root is the container's since it pivoted.
        let root = Tree::own_root().at(LaunchStage::Rootfs, || "opening the container's root".to_owned())?;
        let account = user::find(&plan.process, &root, origin)?;
        let terminal =
            plan.process.terminal.map(|size| Terminal::open(&root, size, account.uid)).transpose()?;
        let master = process::settle(&plan.process, terminal, &root)?;
        drop(root);
        let candidate = process::become_user(&plan.process, &account, inherited, outside.listener)?;
        status.send(&Status::Ready, master.as_ref())?;
        Ok(candidate)
    };
    match attempt() {
        Ok(candidate) => candidate.execute(),
        Err(error) => error,
    }
}
