//! Fresh namespaces for a container, and joining those of a running one.

use crate::error::{Context, Result};
use crate::tree::Tree;
use nacre_protocols::init_launcher::{ContainerPlan, LaunchStage, Mount, Propagation, Rootfs};
use nacre_sys::exec::unshare;
use nacre_sys::link::bring_loopback_up;
use nacre_sys::mounting::set_attributes;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};
use std::os::fd::{AsFd, OwnedFd};

/// Enters the namespaces that the plan asks for. The pid namespace is already ours: init's clone3(2) made it. Mount and
/// cgroup namespaces are always fresh; the root of the latter is the cgroup that this process was born in.
pub fn enter_fresh(plan: &ContainerPlan) -> Result<()> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP;
    flags.set(UnshareFlags::NEWIPC, plan.own_ipc);
    flags.set(UnshareFlags::NEWUTS, plan.hostname.is_some());
    flags.set(UnshareFlags::NEWNET, plan.own_network);
    unshare(flags).at(LaunchStage::Namespaces, || format!("making namespaces {flags:?}"))?;
    // As everywhere, programs of a container reach themselves. The puller's indexer needs no interface at all.
    if plan.own_network && plan.rootfs != Rootfs::Puller {
        bring_loopback_up().at(LaunchStage::Namespaces, || "bringing loopback up".to_owned())?;
    }

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
        .at(LaunchStage::Namespaces, || "taking the guest's mounts out of propagation".to_owned())
}

/// Joins the container of the process behind `target`; its pid namespace was entered before birth.
pub fn join(target: &OwnedFd) -> Result<()> {
    // One after the other would be possible with parts of them lost; together they are joined or not.
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(target.as_fd(), all)
        .at(LaunchStage::Namespaces, || "joining the container's namespaces".to_owned())
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
