//! Judges a plan before anything of it is done. Pure: looks at nothing but the plan, the mode and the ceiling.
//!
//! The agent that writes plans may be compromised; what passes here is what it can reach. Only a [`Checked`] plan can
//! be applied.

mod container;
mod network;
mod process;
mod storage;
#[cfg(test)]
mod tests;

use nacre_protocols::init_launcher::storage::{DISKS, OTHER_ROOTS};
use nacre_protocols::init_launcher::{
    CgroupLimits, ContainerPlan, ExecPlan, LIST_MAX, Mode, NetworkStep, PATH_MAX, Plan, Rootfs, StorageStep,
};
use nacre_protocols::names::RESERVED_UIDS;
use std::ops::Deref;

/// A part of a plan that passed; nothing outside this module can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked<T>(T);

impl<T> Deref for Checked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckedPlan {
    Create(Checked<Box<ContainerPlan>>),
    Exec(Checked<Box<ExecPlan>>),
    Storage(Checked<Vec<StorageStep>>),
    Network(Checked<Vec<NetworkStep>>),
    Update(Checked<CgroupLimits>),
}

/// Why a plan was refused. `what` names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error("a plan of another kind than mode {0}")]
    Mode(&'static str),
    #[error("{what} has {count} entries; the limit is {limit}")]
    TooMany { what: &'static str, count: usize, limit: usize },
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLong { what: &'static str, bytes: usize, limit: usize },
    #[error("{what} {value:?} is not an absolute path without `.`, `..` and NUL")]
    Path { what: &'static str, value: String },
    #[error("{what} {value:?} is not beneath {directory}")]
    Elsewhere { what: &'static str, value: String, directory: &'static str },
    #[error("{what} {value:?} is not allowed")]
    NotAllowed { what: &'static str, value: String },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} {id} is reserved to the guest's own processes")]
    ReservedId { what: &'static str, id: u32 },
    #[error("{set} capabilities {excess:#x} are beyond {beyond}")]
    Capabilities { set: &'static str, excess: u64, beyond: &'static str },
}

/// Checks `plan` against what `mode` may do, the capabilities of `ceiling`, and the kinds of storage that are allowed
/// ([`storage`](nacre_protocols::init_launcher::storage)).
pub fn check(plan: Plan, mode: Mode, ceiling: u64, kinds: u32) -> Result<CheckedPlan, CheckError> {
    match (mode, plan) {
        (Mode::Create | Mode::Helper, Plan::Create(plan)) => {
            if !plan.disks.is_empty() {
                storage::allowed(kinds, DISKS, "a disk")?;
            }
            // Whether layers are an image's is not seen in the plan: `images` looks.
            if mode == Mode::Create && !matches!(plan.rootfs, Rootfs::Layers(_)) {
                storage::allowed(kinds, OTHER_ROOTS, "a root that is no image")?;
            }
            container::check(&plan, Origin::of(mode), ceiling)?;
            Ok(CheckedPlan::Create(Checked(plan)))
        }
        (Mode::Exec, Plan::Exec(plan)) => {
            process::check(&plan.process, Origin::Agent, ceiling)?;
            Ok(CheckedPlan::Exec(Checked(plan)))
        }
        (Mode::Storage, Plan::Storage(steps)) => {
            storage::check(&steps, kinds)?;
            Ok(CheckedPlan::Storage(Checked(steps)))
        }
        (Mode::Network, Plan::Network(steps)) => {
            network::check(&steps)?;
            Ok(CheckedPlan::Network(Checked(steps)))
        }
        (Mode::Update, Plan::Update(limits)) => {
            container::limits(&limits)?;
            Ok(CheckedPlan::Update(Checked(limits)))
        }
        (mode, _) => Err(CheckError::Mode(mode.word())),
    }
}

/// Checks the form of a plan that root made for its own machine.
pub fn check_on_host(plan: Plan) -> Result<CheckedPlan, CheckError> {
    match plan {
        Plan::Create(plan) => {
            container::check(&plan, Origin::Host, u64::MAX)?;
            Ok(CheckedPlan::Create(Checked(plan)))
        }
        Plan::Exec(plan) => {
            process::check(&plan.process, Origin::Host, u64::MAX)?;
            Ok(CheckedPlan::Exec(Checked(plan)))
        }
        Plan::Storage(_) | Plan::Network(_) | Plan::Update(_) => Err(CheckError::Mode("create or exec")),
    }
}

/// Whose plan it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Agent,
    /// Trusted with the guest's own files and users.
    Init,
    /// Root on a machine that is no guest of ours, who could do by hand whatever the plan says: its form is checked, and what
    /// it names is not. No program of the guest makes such a plan.
    Host,
}

impl Origin {
    pub fn of(mode: Mode) -> Self {
        if mode == Mode::Helper { Self::Init } else { Self::Agent }
    }
}

/// Refuses a user or group id that belongs to the guest's own processes. Also asked of what was looked up in an image.
pub fn is_reserved(id: u32) -> bool {
    RESERVED_UIDS.contains(&id)
}

fn count(what: &'static str, count: usize, limit: usize) -> Result<(), CheckError> {
    if count > limit { Err(CheckError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn length(what: &'static str, text: &str, limit: usize) -> Result<(), CheckError> {
    let bytes = text.len();
    if bytes > limit { Err(CheckError::TooLong { what, bytes, limit }) } else { Ok(()) }
}

fn not_allowed(what: &'static str, value: impl ToString) -> CheckError {
    CheckError::NotAllowed { what, value: value.to_string() }
}

fn require(allowed: bool, what: &'static str, value: impl ToString) -> Result<(), CheckError> {
    if allowed { Ok(()) } else { Err(not_allowed(what, value)) }
}

fn unreserved(what: &'static str, id: u32, origin: Origin) -> Result<(), CheckError> {
    if origin == Origin::Agent && is_reserved(id) {
        return Err(CheckError::ReservedId { what, id });
    }
    // The kernel's "no id" and "leave it as it is".
    require(id != u32::MAX, what, id)
}

/// An absolute path in its plain form.
fn path(what: &'static str, value: &str) -> Result<(), CheckError> {
    length(what, value, PATH_MAX)?;
    let plain = value.starts_with('/')
        && !value.contains('\0')
        && !value.split('/').any(|name| name == "." || name == "..");
    if plain { Ok(()) } else { Err(CheckError::Path { what, value: value.to_owned() }) }
}

/// A path strictly beneath `directory`, by its names; links are the resolver's business.
fn path_beneath(what: &'static str, value: &str, directory: &'static str) -> Result<(), CheckError> {
    path(what, value)?;
    let beneath = value
        .strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/') && rest.bytes().any(|byte| byte != b'/'));
    if beneath { Ok(()) } else { Err(CheckError::Elsewhere { what, value: value.to_owned(), directory }) }
}

/// Options of a file system: at most [`LIST_MAX`], each `key` or `key=value` with a key of `allowed`.
fn options(what: &'static str, data: &[String], allowed: &[&str]) -> Result<(), CheckError> {
    count(what, data.len(), LIST_MAX)?;
    data.iter().try_for_each(|option| {
        let key = option.split_once('=').map_or(option.as_str(), |(key, _)| key);
        require(allowed.contains(&key) && !option.contains('\0'), what, option)
    })
}

/// Options of tmpfs that bound or place it.
const TMPFS_OPTIONS: &[&str] = &["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "inode64", "noswap"];
