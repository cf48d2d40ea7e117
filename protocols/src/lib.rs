//! One file per edge between two processes: requests, replies and their limits with units; no logic.
//!
//! | edge | file | carrier |
//! |---|---|---|
//! | host to agent | [`host_agent`] and `proto/*.proto` | ttrpc over virtio-vsock port 1024 |
//! | agent to init | [`agent_init`] | `SOCK_SEQPACKET`, descriptors by `SCM_RIGHTS` |
//! | init to launcher | [`init_launcher`] | one sealed memfd, inherited descriptors, one status socket |
//! | agent to puller | [`agent_puller`] | `SOCK_SEQPACKET` |
//! | any launcher to the VMM's control socket | [`host_vmm`] | JSON lines over a unix socket |
//! | fetcher to indexer, inside the puller | [`fetcher_indexer`] | `SOCK_SEQPACKET`, descriptors by `SCM_RIGHTS` |
//!
//! Each edge is a feature of this crate, so that a process compiles the edges it has and no others.

#[cfg(feature = "agent-init")]
pub mod agent_init;
#[cfg(feature = "agent-puller")]
pub mod agent_puller;
#[cfg(feature = "fetcher-indexer")]
pub mod fetcher_indexer;
#[cfg(any(
    feature = "agent-init",
    feature = "init-launcher",
    feature = "agent-puller",
    feature = "fetcher-indexer"
))]
pub mod frame;
#[cfg(feature = "host-agent")]
pub mod host_agent;
#[cfg(feature = "host-vmm")]
pub mod host_vmm;
#[cfg(feature = "init-launcher")]
pub mod init_launcher;
pub mod names;
