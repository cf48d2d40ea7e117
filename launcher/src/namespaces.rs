//! Namespaces for a container: fresh ones, those that it joins by path, and those of a running one for an exec.

use crate::error::{Context, LaunchError, Result};
use crate::procfs::Procfs;
use crate::tree::Tree;
use crate::user_namespace;
use nacre_protocols::init_launcher::{
    Clock, ContainerPlan, LaunchStage, Mount, Namespace, Propagation, Rootfs, TimeOffset,
};
use nacre_sys::attributes::namespace_kind;
use nacre_sys::exec::unshare;
use nacre_sys::link::bring_loopback_up;
use nacre_sys::mounting::set_attributes;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::thread::{
    Gid, LinkNameSpaceType, ThreadNameSpaceType, Uid, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::os::fd::{AsFd, OwnedFd};

const STAGE: LaunchStage = LaunchStage::Namespaces;

/// Enters a fresh mount namespace out of which, and into which unless the plan asks for it, no mount propagates.
pub fn enter_mounts(plan: &ContainerPlan, also: UnshareFlags) -> Result<()> {
    let flags = UnshareFlags::NEWNS | also;
    unshare(flags).at(STAGE, || format!("making namespaces {flags:?}"))?;
    // Nothing that is mounted here may reach the guest. What the guest mounts later reaches the container only where
    // a mount asks for it.
    let follows = asks_for_slave(plan.rootfs_propagation)
        || plan.mounts.iter().filter_map(|mount: &Mount| mount.propagation).any(asks_for_slave);
    let propagation =
        if follows { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
    Tree::guest("/")
        .and_then(|root| {
            set_attributes(root.fd(), true, MountAttrFlags::empty(), MountAttrFlags::empty(), propagation)
        })
        .at(STAGE, || "taking the guest's mounts out of propagation".to_owned())
}

/// What is fresh besides mounts and users. The root of a fresh cgroup namespace is the cgroup that this process was born
/// in; the pid namespace was made before its birth.
pub fn fresh(plan: &ContainerPlan) -> UnshareFlags {
    let all = &plan.namespaces;
    let mut flags = UnshareFlags::empty();
    for (namespace, flag) in [
        (&all.cgroup, UnshareFlags::NEWCGROUP),
        (&all.ipc, UnshareFlags::NEWIPC),
        (&all.uts, UnshareFlags::NEWUTS),
        (&all.network, UnshareFlags::NEWNET),
        (&all.time, UnshareFlags::NEWTIME),
    ] {
        flags.set(flag, *namespace == Namespace::Fresh);
    }
    flags
}

/// Joins every namespace that the plan names by path, but for those of users and mounts. Each is asked for its kind
/// before it is joined, whatever its path is called.
pub fn join_by_path(plan: &ContainerPlan) -> Result<()> {
    let all = &plan.namespaces;
    for (namespace, kind) in [
        (&all.cgroup, LinkNameSpaceType::ControlGroup),
        (&all.ipc, LinkNameSpaceType::InterProcessCommunication),
        (&all.uts, LinkNameSpaceType::HostNameAndNISDomainName),
        (&all.network, LinkNameSpaceType::Network),
        (&all.time, LinkNameSpaceType::Time),
    ] {
        if let Namespace::At(path) = namespace {
            open(path).and_then(|found| enter(found, kind, path))?;
        }
    }
    Ok(())
}

/// A namespace by its path, which leads over links of proc or a mount; opened before anything of the container is there.
pub fn open(path: &str) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
        .at(STAGE, || format!("opening namespace {path}"))
}

pub fn enter(found: OwnedFd, kind: LinkNameSpaceType, path: &str) -> Result<()> {
    let is =
        namespace_kind(found.as_fd()).at(STAGE, || format!("asking {path} for its kind of namespace"))?;
    if is != kind as u32 {
        return Err(LaunchError::refused(STAGE, format!("{path} is no namespace of kind {kind:?}")));
    }
    move_into_link_name_space(found.as_fd(), Some(kind)).at(STAGE, || format!("joining namespace {path}"))
}

/// Enters the container's user namespace, and fresh ones of every other kind as its own. This process is its root then.
pub fn enter_users(made: user_namespace::Made, plan: &ContainerPlan, also: UnshareFlags) -> Result<()> {
    let user = |fd: OwnedFd| enter(fd, LinkNameSpaceType::User, "of the container's users");
    user(made.user)?;
    let mut flags = also;
    if let Some(network) = made.network {
        enter(network, LinkNameSpaceType::Network, "of the container's network")?;
        flags -= UnshareFlags::NEWNET;
    }
    enter_mounts(plan, flags)?;
    become_root_inside()
}

/// Just after the user namespace was entered, in which this process's user has no number.
fn become_root_inside() -> Result<()> {
    let attempt = || -> Result<(), Errno> {
        let (uid, gid) = (Uid::ROOT, Gid::ROOT);
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    };
    attempt().at(STAGE, || "becoming the root of the user namespace, which must map 0".to_owned())
}

/// Of the time namespace that the command will be born in: nobody is in it before.
pub struct TimeOffsets {
    file: OwnedFd,
    text: String,
}

/// Opened before the user namespace is entered, where the file is nobody's.
pub fn time_offsets(offsets: &[TimeOffset]) -> Result<Option<TimeOffsets>> {
    if offsets.is_empty() {
        return Ok(None);
    }
    let line = |it: &TimeOffset| {
        let clock = match it.clock {
            Clock::Monotonic => "monotonic",
            Clock::Boottime => "boottime",
        };
        format!("{clock} {} {}\n", it.seconds, it.nanoseconds)
    };
    let text: String = offsets.iter().map(line).collect();
    let file = Procfs::detached()?.open_own("timens_offsets");
    Ok(Some(TimeOffsets { file: file.at(STAGE, || "opening the clocks' offsets".to_owned())?, text }))
}

impl TimeOffsets {
    pub fn set(self) -> Result<()> {
        rustix::io::write(self.file, self.text.as_bytes())
            .map(drop)
            .at(STAGE, || format!("setting the clocks' offsets to {:?}", self.text))
    }
}

/// As everywhere, programs of a container reach themselves. The puller's indexer needs no interface at all.
pub fn bring_own_loopback_up(plan: &ContainerPlan) -> Result<()> {
    if plan.namespaces.network == Namespace::Fresh && plan.rootfs != Rootfs::Puller {
        bring_loopback_up().at(STAGE, || "bringing loopback up".to_owned())?;
    }
    Ok(())
}

/// Joins the container of the process behind `target`; its pid namespace was entered before birth. When it has a user
/// namespace of its own, this process is root there then.
pub fn join(target: &OwnedFd) -> Result<()> {
    // One after the other would be possible with parts of them lost; together they are joined or not.
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::TIME;
    // Not asked of the plan: an exec that stayed outside of the container's users would have rights that nothing in it
    // has. The kernel refuses only the namespace that one is in already.
    let at = || "joining the container's namespaces".to_owned();
    match move_into_thread_name_spaces(target.as_fd(), all | ThreadNameSpaceType::USER) {
        Err(Errno::INVAL) => move_into_thread_name_spaces(target.as_fd(), all).at(STAGE, at),
        joined => joined.at(STAGE, at).and_then(|()| become_root_inside()),
    }
}

pub fn propagation_flags(propagation: Propagation) -> (MountPropagationFlags, bool) {
    match propagation {
        Propagation::Private => (MountPropagationFlags::PRIVATE, false),
        Propagation::RecursivePrivate => (MountPropagationFlags::PRIVATE, true),
        Propagation::Slave => (MountPropagationFlags::DOWNSTREAM, false),
        Propagation::RecursiveSlave => (MountPropagationFlags::DOWNSTREAM, true),
        Propagation::Shared => (MountPropagationFlags::SHARED, false),
        Propagation::RecursiveShared => (MountPropagationFlags::SHARED, true),
        Propagation::Unbindable => (MountPropagationFlags::UNBINDABLE, false),
        Propagation::RecursiveUnbindable => (MountPropagationFlags::UNBINDABLE, true),
    }
}

fn asks_for_slave(propagation: Propagation) -> bool {
    matches!(
        propagation,
        Propagation::Slave | Propagation::RecursiveSlave | Propagation::Shared | Propagation::RecursiveShared
    )
}
