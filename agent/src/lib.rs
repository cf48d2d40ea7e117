//! The agent: the one process of the guest that listens to the host, and that may do nothing but listen, judge and ask
//! init.
//!
//! | module | what it does |
//! |---|---|
//! | [`confine`] | gives up every right before the first byte from outside |
//! | [`server`] | ttrpc: connections, frames, limits, deadlines |
//! | [`rpc`] | one function a method of the API |
//! | [`plan`] | pure: OCI configurations as the wire has them, for `nacre-plan` to judge |
//! | [`agent`], [`container`], [`process`], [`stream`], [`relay`], [`storage`], [`pulls`], [`store`] | what the sandbox is |
//! | [`stats`], [`metrics`] | pure: files of the kernel's as the API has them |
//! | [`ports`] | pure: what a pull may connect to |
//! | [`verified`] | what the puller says, as an image that can be mounted |
//! | [`state`] | what of it outlives an agent |
//! | [`init`] | the edge to PID 1 |
//! | [`log`], [`passed`] | what else the host may listen to, and connect to |
//!
//! One thread does all of it; nothing blocks but on every event at once.

pub mod agent;
pub mod confine;
pub mod container;
mod devices;
mod disk_address;
mod error;
pub mod init;
mod layered;
pub mod log;
pub mod metrics;
pub mod passed;
pub mod plan;
pub mod ports;
pub mod process;
pub mod pulls;
pub mod relay;
pub mod rpc;
pub mod server;
pub mod state;
pub mod stats;
pub mod storage;
pub mod store;
pub mod stream;
pub mod verified;
mod watched;

pub use error::{AgentError, RpcError};

/// One line of the log: for starts, errors and ends.
pub use log::say;

/// Has the runtime wait for a descriptor.
///
/// The constructor is deprecated in favour of an unsafe one, because a type's descriptor could change or be closed while it is
/// watched. An `OwnedFd` never does either.
#[allow(deprecated)]
fn watch(fd: std::os::fd::OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    tokio::io::unix::AsyncFd::new(fd)
}
