//! Creates a container: this process, born as its PID 1 in its cgroup, sets everything up around itself, waits at the gate
//! and becomes the command.

use crate::check::{Checked, Origin};
use crate::descriptors::required;
use crate::error::{Context, LaunchError, Result};
use crate::procfs::Procfs;
use crate::status::StatusSocket;
use crate::terminal::Terminal;
use crate::tree::Tree;
use crate::{
    cgroup, devices, disks, hooks, masks, mounts, namespaces, net_devices, outside, process, rootfs, user,
    user_namespace,
};
use nacre_protocols::init_launcher::{ContainerPlan, LaunchStage, Namespace, Status};
use rustix::fs::Mode as FileMode;
use rustix::thread::UnshareFlags;
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
    let plan = &*disks::resolve(plan)?;
    let cgroup = required(given.cgroup, "cgroup")?;
    let gate = required(given.gate, "gate")?;
    if given.inherited.len() < usize::from(plan.inherited) {
        return Err(LaunchError::refused(LaunchStage::Plan, "an inherited descriptor is missing"));
    }
    given.inherited.truncate(plan.inherited.into());

    cgroup::apply(&cgroup, &plan.cgroup)?;
    // Modes of what is made here are meant as they are written.
    rustix::process::umask(FileMode::empty());
    let outside = outside::Outside::of(plan)?;
    namespaces::join_by_path(plan)?;
    let own_users = plan.namespaces.user != Namespace::Shared;
    let Entered { root, ahead, nodes, procfs } =
        if own_users { enter_with_users(plan, origin, &cgroup)? } else { enter(plan, origin, &cgroup)? };
    let unfinished = mounts::apply(&plan.mounts, &root, origin, ahead)?;
    devices::populate(plan, &root, nodes)?;
    masks::mask(&plan.masked_paths, &root)?;
    masks::make_read_only(&plan.readonly_paths, &root)?;
    if plan.hooks.pause {
        status.send(&Status::Prepared, None)?;
        if !wait_at(&gate)? {
            return Ok(());
        }
    }
    let in_container = &plan.hooks.create_container;
    hooks::run("createContainer", in_container, &plan.hooks.creating, outside.pid, || Ok(()))?;
    rootfs::pivot(&root, plan.rootfs_propagation)?;

    let procfs = match procfs {
        None => Procfs::detached_for(plan)?,
        procfs => procfs,
    };
    if let Some(procfs) = &procfs {
        procfs.set_sysctls(&plan.sysctls)?;
    }
    set_names(plan)?;
    let account = user::find(&plan.process, &root, origin)?;
    let terminal = plan.process.terminal.map(|size| Terminal::open(&root, size, account.uid)).transpose()?;
    if let Some(terminal) = &terminal {
        terminal.bind_console(&root)?;
    }
    mounts::finish(&unfinished)?;
    drop(unfinished);

    let master = process::settle(&plan.process, terminal, &root)?;
    if !own_users {
        process::set_privileged(&plan.process, procfs.as_ref())?;
    }
    process::set_labels(&plan.process, procfs.as_ref())?;
    if plan.rootfs_readonly {
        rootfs::make_read_only(&root)?;
    }
    if !own_users {
        // Not before: the rules count for the making of nodes and terminals too.
        devices::restrict(&plan.device_rules, &cgroup)?;
    }
    drop((root, procfs, cgroup));
    let candidate = process::become_user(&plan.process, &account, given.inherited, outside.listener)?;

    status.send(&Status::Ready, master.as_ref())?;
    drop(master);
    if !wait_at(&gate)? {
        return Ok(());
    }
    let start = &plan.hooks.start_container;
    hooks::run("startContainer", start, &plan.hooks.created, outside.pid, || candidate.give_up())?;
    Err(candidate.execute())
}

struct Entered {
    root: Tree,
    ahead: Option<mounts::Ahead>,
    nodes: Option<devices::Nodes>,
    /// A process in a user namespace cannot make one of a pid namespace that its users do not own.
    procfs: Option<Procfs>,
}

/// Fresh namespaces that the starter's users own, and the root in them.
fn enter(plan: &ContainerPlan, origin: Origin, cgroup: &OwnedFd) -> Result<Entered> {
    // A mapped file system keeps its own mount out of any namespace until it is attached.
    let ahead = mounts::needs_preparation(plan).then(|| mounts::prepare(plan, origin)).transpose()?;
    let ahead = mounts::see_cgroup(plan, cgroup, ahead);
    let moving = net_devices::Moving::start(&plan.net_devices, None)?;
    let offsets = namespaces::time_offsets(&plan.namespaces.time_offsets)?;
    namespaces::enter_mounts(plan, namespaces::fresh(plan))?;
    finish_namespaces(plan, offsets, moving)?;
    Ok(Entered { root: rootfs::build(&plan.rootfs, &plan.id)?, ahead, nodes: None, procfs: None })
}

/// A user namespace of the container's own, and namespaces that it owns. What needs the starter's rights is done before.
fn enter_with_users(plan: &ContainerPlan, origin: Origin, cgroup: &OwnedFd) -> Result<Entered> {
    let procfs = Procfs::detached()?;
    process::set_privileged(&plan.process, Some(&procfs))?;
    process::raise_limits(&plan.process)?;
    let offsets = namespaces::time_offsets(&plan.namespaces.time_offsets)?;
    let own_network = plan.namespaces.network == Namespace::Fresh && !plan.net_devices.is_empty();
    let made = match &plan.namespaces.user {
        Namespace::At(path) => user_namespace::Made { user: namespaces::open(path)?, network: None },
        _ => user_namespace::make(&plan.namespaces.user_mappings, own_network, &procfs)?,
    };
    let moving = net_devices::Moving::start(&plan.net_devices, made.network.as_ref())?;
    namespaces::enter_mounts(plan, UnshareFlags::empty())?;
    let root = rootfs::build(&plan.rootfs, &plan.id)?;
    let (ahead, nodes) = (mounts::prepare(plan, origin)?, devices::prepare(plan)?);
    devices::restrict(&plan.device_rules, cgroup)?;
    rustix::process::fchdir(root.fd())
        .at(LaunchStage::Rootfs, || "entering the root file system".to_owned())?;
    drop(root);
    namespaces::enter_users(made, plan, namespaces::fresh(plan))?;
    let root = rootfs::rebind()?;
    finish_namespaces(plan, offsets, moving)?;
    Ok(Entered { root, ahead: Some(ahead), nodes: Some(nodes), procfs: Some(procfs) })
}

fn finish_namespaces(
    plan: &ContainerPlan,
    offsets: Option<namespaces::TimeOffsets>,
    moving: Option<net_devices::Moving>,
) -> Result<()> {
    if let Some(offsets) = offsets {
        offsets.set()?;
    }
    namespaces::bring_own_loopback_up(plan)?;
    moving.map_or(Ok(()), net_devices::Moving::finish)
}

fn set_names(plan: &ContainerPlan) -> Result<()> {
    if let Some(hostname) = &plan.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .at(LaunchStage::Namespaces, || format!("setting the host name {hostname:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        nacre_sys::attributes::set_domain_name(name)
            .at(LaunchStage::Namespaces, || format!("setting the domain name {name:?}"))?;
    }
    Ok(())
}

/// True when the gate was opened, false when it was closed for good.
fn wait_at(gate: &OwnedFd) -> Result<bool> {
    let mut byte = [0];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(gate, &mut byte));
    Ok(read.at(LaunchStage::Exec, || "waiting at the start gate".to_owned())? > 0)
}
