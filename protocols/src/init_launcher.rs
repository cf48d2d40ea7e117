//! Init to launcher: one plan, the descriptors it needs, and one status socket back.
//!
//! The launcher is started as `nacre-launcher MODE CEILING`: MODE is a word of [`Mode`], CEILING the capabilities that
//! the sandbox's manifest allows, in hex. It finds its descriptors at the numbers of [`fd`], reads the whole plan once,
//! checks it against MODE and CEILING, applies it, and either executes the container's command or exits. It asks
//! nothing back. What it reports are [`Status`] frames on the status socket, which closes on exec:
//!
//! | frames | meaning |
//! |---|---|
//! | `Ready`, then end-of-file | created; after the gate opened, the command was executed |
//! | `Ready`, then `Failed` | the command could not be executed |
//! | `Done`, then end-of-file | a storage or network plan was applied |
//! | `Failed` | nothing was left behind but what init removes (cgroup, writable files) |
//! | end-of-file alone | the launcher died |
//!
//! Paths in a plan are absolute. Those under *guest* are resolved in the guest's own tree without following links that
//! leave it; those of the *container* are resolved beneath its root (`openat2` with `RESOLVE_IN_ROOT`).

use crate::names::Sha256;
use serde::{Deserialize, Serialize};

/// Longest encoded plan, in bytes.
pub const PLAN_MAX: usize = 1024 * 1024;
/// Longest status frame, in bytes.
pub const STATUS_MAX: usize = 16 * 1024;
/// Limits of a plan's lists, in entries. The launcher names the list when it refuses one.
pub const ARGS_MAX: usize = 16_384;
pub const MOUNTS_MAX: usize = 1024;
pub const LAYERS_MAX: usize = 128;
pub const DEVICES_MAX: usize = 256;
pub const LIST_MAX: usize = 1024;
/// Longest path, in bytes (PATH_MAX with its final NUL).
pub const PATH_MAX: usize = 4095;
/// Longest seccomp program, in instructions (BPF_MAXINSNS).
pub const SECCOMP_MAX: usize = 4096;

/// What the launcher is started for: its first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A container's first process, from a plan of the agent's.
    Create,
    /// One more process in a running container.
    Exec,
    /// Mounts in init's own mount namespace.
    Storage,
    /// Interfaces and routes.
    Network,
    /// A helper container of the guest's own, from a plan of init's: it alone may use reserved users.
    Helper,
}

impl Mode {
    pub const ALL: [Mode; 5] = [Mode::Create, Mode::Exec, Mode::Storage, Mode::Network, Mode::Helper];

    pub fn word(self) -> &'static str {
        match self {
            Mode::Create => "create",
            Mode::Exec => "exec",
            Mode::Storage => "storage",
            Mode::Network => "network",
            Mode::Helper => "helper",
        }
    }
}

/// The descriptors that a launcher is born with, by number; those that its mode does not need are closed.
/// 0 to 2 are the container's standard streams, or `/dev/null` where a terminal is asked for.
pub mod fd {
    /// Status socket, `SOCK_SEQPACKET`.
    pub const STATUS: i32 = 3;
    /// The plan: a memfd sealed against every change.
    pub const PLAN: i32 = 4;
    /// Create and helper: read end of the start gate. One byte opens it, end-of-file means give up.
    pub const GATE: i32 = 5;
    /// Create, exec and helper: directory of the container's cgroup, in which the launcher was born.
    pub const CGROUP: i32 = 6;
    /// Exec: pidfd of the container's first process.
    pub const TARGET: i32 = 7;
    /// Helper: the first descriptor that the command inherits; they arrive at 3, 4, … in its process.
    pub const INHERITED: i32 = 16;
    /// Most inherited descriptors.
    pub const INHERITED_MAX: u8 = 4;
    /// Most descriptors that a command on a machine that is no guest inherits: numbers up to where the launcher's own begin.
    pub const PRESERVED_MAX: u8 = 60;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    Create(Box<ContainerPlan>),
    Exec(Box<ExecPlan>),
    Storage(Vec<StorageStep>),
    Network(Vec<NetworkStep>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    pub id: String,
    /// Set in a fresh UTS namespace; without one the sandbox's is shared.
    pub hostname: Option<String>,
    /// A fresh IPC namespace, or else the sandbox's.
    pub own_ipc: bool,
    /// A fresh, empty network namespace, or else the sandbox's. Containers share the sandbox's; the indexer has its own.
    pub own_network: bool,
    pub rootfs: Rootfs,
    pub rootfs_readonly: bool,
    pub rootfs_propagation: Propagation,
    /// In order.
    pub mounts: Vec<Mount>,
    pub devices: Vec<DeviceNode>,
    /// The device cgroup: what is allowed, beyond which nothing is.
    pub device_rules: Vec<DeviceRule>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// Files of the container's cgroup v2 directory and what is written to each, in order.
    pub cgroup: Vec<CgroupWrite>,
    /// `net.ipv4.ip_forward` style names.
    pub sysctls: Vec<(String, String)>,
    pub process: Process,
    /// How many descriptors from [`fd::INHERITED`] on the command gets (helper only).
    pub inherited: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    pub process: Process,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// Layers of the store, lowest first, already mounted beneath [`crate::names::LAYERS_DIR`]; a writable overlay
    /// with its upper directory beneath [`crate::names::UPPER_DIR`]`/<container id>`.
    Layers(Vec<Sha256>),
    /// A directory of the guest: a virtio-fs share or another storage.
    Guest(String),
    /// The puller's own tree in the guest image (helper only).
    Puller,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Private,
    RecursivePrivate,
    Slave,
    RecursiveSlave,
    Shared,
    RecursiveShared,
    Unbindable,
    RecursiveUnbindable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// In the container.
    pub destination: String,
    pub kind: MountKind,
    pub attributes: MountAttributes,
    pub propagation: Option<Propagation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// `source` is in the guest. A missing destination is made: a file for a file, a directory for a directory.
    Bind {
        source: String,
        recursive: bool,
    },
    /// `data`: `key=value` or flag options of the file system, as `fsconfig` takes them.
    Proc {
        data: Vec<String>,
    },
    Sysfs,
    /// `copy_up`: what the image has at the destination is copied into it.
    Tmpfs {
        data: Vec<String>,
        copy_up: bool,
    },
    Devpts {
        data: Vec<String>,
    },
    Mqueue,
    Cgroup2,
}

/// Each flag set or cleared as written; what is not set is cleared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttributes {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
    pub no_symlinks: bool,
    pub access_time: AccessTime,
    pub no_dir_access_time: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessTime {
    #[default]
    Relative,
    Strict,
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// In the container, beneath `/dev` or elsewhere.
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// One line of the device cgroup; `None` is any number, and any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupWrite {
    /// A file name such as `memory.max`: no slash, and none of `cgroup.*` but `cgroup.max.*`.
    pub file: String,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The first is looked up in the container's PATH when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// In the container. Made, as root, if it is missing.
    pub cwd: String,
    pub user: User,
    pub terminal: Option<TerminalSize>,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i16>,
    pub seccomp: Option<Seccomp>,
    pub umask: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    Ids {
        uid: u32,
        gid: u32,
        additional: Vec<u32>,
    },
    /// `user[:group]`, names or numbers, looked up in the container's `/etc/passwd` and `/etc/group` as docker does:
    /// supplementary groups come from `/etc/group`, and `additional` is added to them.
    Named {
        name: String,
        additional: Vec<u32>,
    },
}

/// In characters; 0 by 0 leaves the pty's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// Bit n is capability n of `linux/capability.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The number of `asm-generic/resource.h`.
    pub resource: u8,
    pub soft: u64,
    pub hard: u64,
}

/// A classic BPF program, each instruction as in `struct sock_filter`: code, jt, jf, k.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    pub program: Vec<(u16, u8, u8, u32)>,
    /// Flags of `seccomp(2)`, of which the launcher allows LOG and SPEC_ALLOW.
    pub flags: u32,
}

/// One change of init's own mount tree. Steps are applied in order; the first failure ends the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageStep {
    /// Mount the scratch disk at [`crate::names::SCRATCH_DIR`], after formatting it, unless it carries our label. A *kept*
    /// disk is formatted only when it is blank; anything else that is not a whole file system of ours is an error.
    ScratchDisk { device: String, kept: bool },
    /// Mount a tmpfs there instead. Size in bytes.
    ScratchTmpfs { bytes: u64 },
    /// Mount a layer of the store at [`crate::names::LAYERS_DIR`]`/<diff_id>`; nothing to do if it is mounted.
    Layer { diff_id: Sha256 },
    /// Unmount every layer but these. Containers that use one have it still.
    ReleaseLayers { keep: Vec<Sha256> },
    /// A virtio-fs share, mounted at a directory beneath [`crate::names::KATA_RUN_DIR`], no device nodes.
    VirtioFs { tag: String, mount_point: String, read_only: bool },
    /// A tmpfs beneath [`crate::names::KATA_RUN_DIR`].
    Tmpfs { mount_point: String, data: Vec<String>, attributes: MountAttributes },
    /// A directory beneath [`crate::names::KATA_RUN_DIR`].
    Directory { path: String, mode: u32 },
    /// A small file beneath [`crate::names::KATA_RUN_DIR`], replaced atomically, mode 0644.
    File { path: String, content: Vec<u8> },
    /// Unmount and remove a directory beneath [`crate::names::KATA_RUN_DIR`]. Idempotent.
    Unmount { mount_point: String },
    /// Remove [`crate::names::UPPER_DIR`]`/<container>`. Idempotent.
    RemoveWritable { container: String },
}

/// One change of the sandbox's network. The launcher keeps CAP_NET_ADMIN alone before it reads the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkStep {
    Interface(Interface),
    Route(Route),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Which link: by hardware address.
    pub hardware_address: [u8; 6],
    /// Renamed to this; swapped with a link that has the name.
    pub name: String,
    /// In bytes; 0 leaves it.
    pub mtu: u32,
    pub addresses: Vec<(std::net::IpAddr, u8)>,
    pub no_arp: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `None` is the default route of the family.
    pub destination: Option<(std::net::IpAddr, u8)>,
    pub gateway: Option<std::net::IpAddr>,
    pub device: String,
    pub source: Option<std::net::IpAddr>,
    pub scope: u8,
    pub ipv6: bool,
    /// `RTNH_F_*`, such as ONLINK.
    pub flags: u32,
    /// In bytes; 0 leaves it.
    pub mtu: u32,
}

/// What the launcher says on the status socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Descriptors: the pty master, with a terminal.
    Ready,
    Done(Outcome),
    Failed(LaunchFailure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Applied,
    Network { routes: Vec<RouteFound> },
}

/// A route of the main table, as found after a network plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFound {
    pub destination: Option<(std::net::IpAddr, u8)>,
    pub gateway: Option<std::net::IpAddr>,
    pub device: String,
    pub source: Option<std::net::IpAddr>,
    pub scope: u8,
    pub ipv6: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchFailure {
    pub stage: LaunchStage,
    /// `errno`, or 0 where no system call failed.
    pub errno: i32,
    /// What was tried on what object.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchStage {
    /// The plan is malformed, beyond a limit or beyond the ceiling.
    Plan,
    Cgroup,
    Namespaces,
    Rootfs,
    Mounts,
    Devices,
    Sysctls,
    Terminal,
    /// The user or group does not exist in the container.
    User,
    Rights,
    WorkingDirectory,
    /// The command does not exist (ENOENT) or cannot be executed.
    Exec,
    Storage,
    Network,
}
