//! Creates a container: this process, born as its PID 1 in its cgroup, sets everything up around itself, waits at the gate
//! and becomes the command.

use crate::check::{Checked, Origin};
use crate::descriptors::required;
use crate::error::{Context, LaunchError, Result};
use crate::procfs::Procfs;
use crate::status::StatusSocket;
use crate::terminal::Terminal;
use crate::{cgroup, devices, masks, mounts, namespaces, process, rootfs, user};
use nacre_protocols::init_launcher::{ContainerPlan, LaunchStage, Status};
use rustix::fs::Mode as FileMode;
use std::os::fd::OwnedFd;

/// What a create or helper is given besides its plan.
pub struct Given {
    pub gate: Option<OwnedFd>,
    pub cgroup: Option<OwnedFd>,
    pub inherited: Vec<OwnedFd>,
}

/// Comes back when the gate was closed for good (`Ok`) or with what failed.
pub fn create(
    plan: &Checked<Box<ContainerPlan>>,
    origin: Origin,
    mut given: Given,
    status: &StatusSocket,
) -> Result<()> {
    let cgroup = required(given.cgroup, "cgroup")?;
    let gate = required(given.gate, "gate")?;
    if given.inherited.len() < usize::from(plan.inherited) {
        return Err(LaunchError::refused(LaunchStage::Plan, "an inherited descriptor is missing"));
    }
    given.inherited.truncate(plan.inherited.into());

    cgroup::write(&cgroup, &plan.cgroup)?;
    // Modes of what is made here are meant as they are written.
    rustix::process::umask(FileMode::empty());
    namespaces::enter_fresh(plan)?;
    let root = rootfs::build(&plan.rootfs, &plan.id)?;
    let unfinished = mounts::apply(&plan.mounts, &root, origin)?;
    devices::populate(plan, &root)?;
    masks::mask(&plan.masked_paths, &root)?;
    masks::make_read_only(&plan.readonly_paths, &root)?;
    rootfs::pivot(&root, plan.rootfs_propagation)?;

    let procfs = Procfs::detached()?;
    procfs.set_sysctls(&plan.sysctls)?;
    if let Some(hostname) = &plan.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .at(LaunchStage::Namespaces, || format!("setting the host name {hostname:?}"))?;
    }
    let account = user::find(&plan.process.user, &root, origin)?;
    let terminal = plan.process.terminal.map(|size| Terminal::open(&root, size, account.uid)).transpose()?;
    if let Some(terminal) = &terminal {
        terminal.bind_console(&root)?;
    }
    mounts::finish(&unfinished)?;
    drop(unfinished);

    let master = process::settle(&plan.process, terminal, &root, &procfs)?;
    if plan.rootfs_readonly {
        rootfs::make_read_only(&root)?;
    }
    // Not before: the rules count for the making of nodes and terminals too.
    devices::restrict(&plan.device_rules, &cgroup)?;
    drop((root, procfs, cgroup));
    let candidate = process::become_user(&plan.process, &account, given.inherited)?;

    status.send(&Status::Ready, master.as_ref())?;
    drop(master);
    if !wait_at(gate)? {
        return Ok(());
    }
    Err(candidate.execute())
}

/// True when the gate was opened, false when it was closed for good.
fn wait_at(gate: OwnedFd) -> Result<bool> {
    let mut byte = [0];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&gate, &mut byte));
    Ok(read.at(LaunchStage::Exec, || "waiting at the start gate".to_owned())? > 0)
}
