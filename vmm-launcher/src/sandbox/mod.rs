//! Sandboxes of this host: their directories, the monitor that owns each one's VM, and what is asked of the agent.

mod container_log;
mod control;
mod launch;
mod machine;
mod monitor;
mod names;
mod record;
mod root;
pub mod session;
pub mod spec;
pub mod stores;

pub use container_log::{LogReader, Stream};
pub use control::{Booted, Control, ControlError, FromMonitor, Gone, Problem, ToMonitor};
pub use launch::{LaunchError, Launched, launch};
pub use machine::{
    AccelSetting, GuestNetwork, MachineConfig, Publish, ScratchSetting, SharedDirectory, VmmSetting,
};
pub use monitor::run as run_monitor;
pub use names::random_name;
pub use record::{ContainerRecord, ContainerState, Record, now};
pub use root::{Found, NAME_MAX, Place, ROOT_VARIABLE, SandboxDir, StateError, StateRoot};
