//! Init to launcher: one plan, the descriptors it needs, and one status socket back.
//!
//! The launcher is started as `nacre-launcher MODE CEILING STORAGE`: MODE is a word of [`Mode`], CEILING the capabilities that
//! the sandbox's manifest allows, in hex, STORAGE the kinds of storage, a sum of [`storage`]'s numbers in hex. It finds its descriptors at the numbers of [`fd`], reads the whole plan once,
//! checks it against MODE and CEILING, applies it, and either executes the container's command or exits. It asks
//! nothing back. What it reports are [`Status`] frames on the status socket, which closes on exec:
//!
//! | frames | meaning |
//! |---|---|
//! | `Prepared`, when the plan asks for it | namespaces and mounts are there; one byte at the gate lets it go on |
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
/// The kernel's limit (UID_GID_MAP_MAX_EXTENTS).
pub const MAPPINGS_MAX: usize = 340;
pub const HOOKS_MAX: usize = 64;
/// Words of a set of processors or memory nodes, 64 each.
pub const SET_WORDS_MAX: usize = 128;
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
    /// The limits of a container's cgroup.
    Update,
    /// A helper container of the guest's own, from a plan of init's: it alone may use reserved users.
    Helper,
}

impl Mode {
    pub const ALL: [Mode; 6] =
        [Mode::Create, Mode::Exec, Mode::Storage, Mode::Network, Mode::Update, Mode::Helper];

    pub fn word(self) -> &'static str {
        match self {
            Mode::Create => "create",
            Mode::Exec => "exec",
            Mode::Storage => "storage",
            Mode::Network => "network",
            Mode::Update => "update",
            Mode::Helper => "helper",
        }
    }
}

/// Kinds of storage that a plan may have, each a bit.
pub mod storage {
    /// The scratch space, and writable files of containers that are gone: init's own plans.
    pub const SCRATCH: u32 = 1;
    /// Directories, small files, files that the host sends, and looking at what is there.
    pub const FILES: u32 = 2;
    /// Layers of the store.
    pub const LAYERS: u32 = 4;
    /// Directories of the host.
    pub const SHARES: u32 = 8;
    /// tmpfs and huge pages.
    pub const MEMORY: u32 = 16;
    /// Disks, mounted or as devices of a container.
    pub const DISKS: u32 = 32;
    /// Overlays of directories.
    pub const OVERLAYS: u32 = 64;
    /// Roots of containers that are no image which the manifest names: other layers of the store, or these in another order, and
    /// directories of the guest. Missing where the manifest names images.
    pub const OTHER_ROOTS: u32 = 128;
    /// Memory on a disk. Missing unless the manifest allows it.
    pub const SWAP: u32 = 256;
    pub const ALL: u32 = 511;
    /// What a manifest can leave out, by its word there.
    pub const WORDS: [(&str, u32); 5] = [
        ("layers", LAYERS),
        ("shares", SHARES),
        ("memory", MEMORY),
        ("disks", DISKS),
        ("overlays", OVERLAYS),
    ];
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
    /// Directory of the container's cgroup. Create, exec and helper were born in it; update was not.
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
    Update(CgroupLimits),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    pub id: String,
    pub namespaces: Namespaces,
    /// Set in a UTS namespace that is not shared.
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub rootfs: Rootfs,
    pub rootfs_readonly: bool,
    pub rootfs_propagation: Propagation,
    /// In order.
    pub mounts: Vec<Mount>,
    pub devices: Vec<DeviceNode>,
    /// The device cgroup: what is allowed, beyond which nothing is.
    pub device_rules: Vec<DeviceRule>,
    pub disks: Vec<Disk>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub cgroup: CgroupLimits,
    /// `net.ipv4.ip_forward` style names.
    pub sysctls: Vec<(String, String)>,
    /// Interfaces that move from the starter's network namespace into the container's own.
    pub net_devices: Vec<NetDevice>,
    pub hooks: Hooks,
    pub process: Process,
    /// How many descriptors from [`fd::INHERITED`] on the command gets (never an agent's plan).
    pub inherited: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    pub process: Process,
}

/// Where the container's process is in each kind of namespace (namespaces(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Made or joined by who starts the launcher, which is born in it.
    pub pid: Namespace,
    pub mount: Namespace,
    pub cgroup: Namespace,
    pub ipc: Namespace,
    pub network: Namespace,
    pub uts: Namespace,
    pub time: Namespace,
    /// Of a fresh time namespace.
    pub time_offsets: Vec<TimeOffset>,
    pub user: Namespace,
    /// Of a fresh user namespace.
    pub user_mappings: IdMappings,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// The one that the launcher was started in.
    #[default]
    Shared,
    Fresh,
    /// The one that this path leads to where the launcher is started.
    At(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    pub clock: Clock,
    pub seconds: i64,
    /// Below 10^9.
    pub nanoseconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clock {
    Monotonic,
    Boottime,
}

/// Of users and of groups, as in user_namespaces(7); at most [`MAPPINGS_MAX`] each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    pub users: Vec<IdMapping>,
    pub groups: Vec<IdMapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    pub outside: String,
    pub inside: String,
}

/// Programs that the launcher runs on the way; those of the runtime's own namespaces are its starter's to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Before the root changes, the launcher reports [`Status::Prepared`] and waits at the gate, so that its starter can
    /// run hooks of its own.
    pub pause: bool,
    /// In the container's namespaces, their paths in the starter's tree, before the root changes.
    pub create_container: Vec<Hook>,
    /// In the container, with the rights of its command, just before that.
    pub start_container: Vec<Hook>,
    /// What hooks of either kind read on standard input.
    pub creating: StateText,
    pub created: StateText,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub path: String,
    /// With the program's own name first.
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// In seconds; after it the hook is killed.
    pub timeout: Option<u32>,
}

/// A text about the container's state, cut where the number of its process, as the starter's `/proc` has it, belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateText(pub Vec<String>);

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
    /// What is set. A fresh file system has no other; a bind keeps what its source has.
    pub attributes: MountAttributes,
    pub changes: MountChanges,
    pub id_mapping: Option<MountMapping>,
    pub propagation: Option<Propagation>,
}

/// What else becomes of a mount's attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountChanges {
    /// What of its source's a bind shall not have.
    pub cleared: MountAttributes,
    /// Set and cleared on every mount beneath as well.
    pub recursive: MountAttributes,
    pub recursive_cleared: MountAttributes,
}

/// The mount shows its file system's ids mapped (mount_setattr(2), "ID-mapped mounts").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountMapping {
    /// `None`: those of the container's user namespace.
    pub mappings: Option<IdMappings>,
    /// Every mount beneath as well.
    pub recursive: bool,
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
    /// Any other file system by its name (never an agent's plan).
    Filesystem {
        name: String,
        source: String,
        data: Vec<String>,
    },
    /// Only attributes and propagation of the mount that is there.
    Remount,
    /// What the container's own root has there, or an empty directory, as a mount of its own: it stays writable where the root
    /// is read-only.
    Own,
}

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
    /// As the source has it; a fresh file system's are relative.
    #[default]
    Unchanged,
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

/// A disk of the host's that the container gets as a device, by the numbers that it has in this guest. One that the guest
/// itself uses is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub address: DiskAddress,
    /// In the container.
    pub path: String,
    pub write: bool,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Where a disk of the host's is in this guest. What is not there yet is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskAddress {
    /// `/dev/vdb` and so on: in the order in which they were found.
    Name(String),
    /// From the root bus on: each but the last is a bridge, and the last is a virtio disk.
    Pci(Vec<PciFunction>),
    /// On channel 0 of the SCSI controller that has such a disk.
    Scsi { target: u8, lun: u16 },
}

/// One of the bus that the one before leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunction {
    /// Up to [`PCI_DEVICE_MAX`].
    pub device: u8,
    /// Up to [`PCI_FUNCTION_MAX`].
    pub function: u8,
}

/// Numbers of a bus (PCI Local Bus 3.0, 6.1), and the longest way to a disk, itself included.
pub const PCI_DEVICE_MAX: u8 = 31;
pub const PCI_FUNCTION_MAX: u8 = 7;
pub const PCI_DEPTH_MAX: usize = 8;
/// A unit of a target (virtio 1.2, 5.6.6.1).
pub const SCSI_LUN_MAX: u16 = 16_383;

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

/// What is written to files of the container's cgroup v2 directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// Refuse, before anything is written, when the cgroup uses more than so many bytes already.
    pub memory_at_most: Option<u64>,
    /// In order.
    pub writes: Vec<CgroupWrite>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupWrite {
    /// A file name such as `memory.max`: no slash, and none of `cgroup.*` but `cgroup.max.*`.
    pub file: String,
    pub value: String,
    pub missing: Missing,
}

/// What becomes of a write when the kernel does not have the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// The plan fails.
    #[default]
    Fails,
    /// Nothing: without the file there is nothing to limit.
    Passes,
    /// This is written to this file.
    Instead { file: String, value: String },
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
    pub attributes: ProcessAttributes,
}

/// What most processes leave as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessAttributes {
    pub scheduler: Option<Scheduler>,
    /// Class and level as ioprio_set(2) takes them.
    pub io_priority: Option<u16>,
    /// As personality(2) takes it.
    pub personality: Option<u32>,
    pub memory_policy: Option<MemoryPolicy>,
    /// Sets of processors, from the beginning and for the command; bit n of word w is processor 64 w + n.
    pub cpus_initial: Vec<u64>,
    pub cpus_final: Vec<u64>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
}

/// `struct sched_attr` (sched_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// In nanoseconds.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// As set_mempolicy(2) takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// With its flags.
    pub mode: u32,
    /// Bit n of word w is node 64 w + n.
    pub nodes: Vec<u64>,
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
    /// Flags of `seccomp(2)`, of which the launcher allows LOG, SPEC_ALLOW and, with a listener, WAIT_KILLABLE_RECV.
    pub flags: u32,
    /// Who answers SECCOMP_RET_USER_NOTIF (never an agent's plan).
    pub listener: Option<SeccompListener>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompListener {
    /// A Unix stream socket where the launcher is started.
    pub path: String,
    /// Sent there along with the listener's descriptor.
    pub message: StateText,
}

/// One change of init's own mount tree. Steps are applied in order; the first failure ends the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageStep {
    /// Mount the scratch disk at [`crate::names::SCRATCH_DIR`], after formatting it, unless it carries our label. A *kept*
    /// disk is formatted only when it is blank; anything else that is not a whole file system of ours is an error.
    ScratchDisk {
        device: String,
        kept: bool,
    },
    /// Mount a tmpfs there instead. Size in bytes.
    ScratchTmpfs {
        bytes: u64,
    },
    /// Mount a layer of the store at [`crate::names::LAYERS_DIR`]`/<diff_id>`; nothing to do if it is mounted.
    Layer {
        diff_id: Sha256,
    },
    /// Unmount every layer but these. Containers that use one have it still.
    ReleaseLayers {
        keep: Vec<Sha256>,
    },
    /// A virtio-fs share, mounted at a directory beneath [`crate::names::KATA_RUN_DIR`], no device nodes.
    VirtioFs {
        tag: String,
        mount_point: String,
        read_only: bool,
    },
    /// A tmpfs beneath [`crate::names::KATA_RUN_DIR`].
    Tmpfs {
        mount_point: String,
        data: Vec<String>,
        attributes: MountAttributes,
    },
    /// Huge pages of one size, beneath [`crate::names::KATA_RUN_DIR`].
    HugePages {
        mount_point: String,
        data: Vec<String>,
        attributes: MountAttributes,
    },
    /// A disk of the host's beneath [`crate::names::KATA_RUN_DIR`]; one that the guest itself uses is refused.
    Disk {
        address: DiskAddress,
        file_system: String,
        data: Vec<String>,
        attributes: MountAttributes,
        mount_point: String,
    },
    Overlay(Overlay),
    /// A directory beneath [`crate::names::KATA_RUN_DIR`], as it is now, in a tmpfs of its own: for who waits for changes, of which a
    /// share does not tell. Again, it brings what is there up to date. A file, or a directory with more than [`WATCHED_FILES_MAX`]
    /// entries or [`WATCHED_BYTES_MAX`] bytes, is bound instead.
    Watched {
        source: String,
        mount_point: String,
    },
    /// Other options for a tmpfs that is mounted beneath [`crate::names::KATA_RUN_DIR`].
    ChangeTmpfs {
        mount_point: String,
        data: Vec<String>,
    },
    /// A directory beneath [`crate::names::KATA_RUN_DIR`]; of this group, where one is given.
    Directory {
        path: String,
        mode: u32,
        group: Option<u32>,
    },
    /// A small file beneath [`crate::names::KATA_RUN_DIR`], replaced atomically, mode 0644.
    File {
        path: String,
        content: Vec<u8>,
    },
    /// A file that the host sends, beneath [`crate::names::SHARED_DIR`].
    Copy(FileCopy),
    /// Unmount shares of the host beneath [`crate::names::SHARED_DIR`] that it does not offer any more.
    UnmountStale,
    /// How full the file system of a path beneath [`crate::names::KATA_RUN_DIR`] is. The plan ends with it, and with
    /// [`Outcome::Usage`].
    Usage {
        path: String,
    },
    /// The ext4 of a disk, mounted at a path beneath [`crate::names::KATA_RUN_DIR`], grows to the size that the disk has now. A disk
    /// of fewer than `bytes` is waited for a while, then an error.
    Grow {
        path: String,
        bytes: u64,
    },
    /// Memory on a disk that was made for it (mkswap(8)).
    Swap {
        address: DiskAddress,
    },
    /// The first bytes of a file beneath [`crate::names::KATA_RUN_DIR`]. The plan ends with it, and with
    /// [`Outcome::Content`].
    Read {
        path: String,
        length: u32,
    },
    /// Unmount and remove a directory beneath [`crate::names::KATA_RUN_DIR`]. Idempotent.
    Unmount {
        mount_point: String,
    },
    /// Remove [`crate::names::UPPER_DIR`]`/<container>`. Idempotent.
    RemoveWritable {
        container: String,
    },
}

/// Longest part of a file in one [`StorageStep::Copy`], and most that one [`StorageStep::Read`] gives, in bytes.
pub const COPY_PART_MAX: usize = 512 * 1024;
pub const READ_MAX: usize = 8 * 1024;

/// Most entries, and most bytes, of a directory that is copied again and again.
pub const WATCHED_FILES_MAX: usize = 64;
pub const WATCHED_BYTES_MAX: u64 = 1024 * 1024;

/// Directories in one, all of them beneath [`crate::names::KATA_RUN_DIR`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Topmost first.
    pub lower: Vec<String>,
    /// Upper and work directory.
    pub writable: Option<(String, String)>,
    pub attributes: MountAttributes,
    pub mount_point: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCopy {
    pub path: String,
    pub content: Copied,
    /// Permission bits.
    pub mode: u32,
    /// Of directories that are made on the way.
    pub directory_mode: u32,
    /// Who owns it, and directories that are made on the way; `None` is root.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Copied {
    Directory,
    Link {
        target: String,
    },
    /// A part of a regular file of `size` bytes. It gets its name when the last one is there: what had the name before has it
    /// until then.
    Part {
        offset: u64,
        size: u64,
        data: Vec<u8>,
    },
}

/// One change of the sandbox's network. The launcher keeps CAP_NET_ADMIN alone before it reads the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkStep {
    Interface(Interface),
    Route(Route),
    Neighbour(Neighbour),
}

/// An entry of the table of neighbours (ARP or neighbour discovery), in place of one that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    pub address: std::net::IpAddr,
    pub device: String,
    pub hardware_address: [u8; 6],
    /// `NUD_*` of rtnetlink(7).
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
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
    /// At [`Hooks::pause`].
    Prepared,
    /// Descriptors: the pty master, with a terminal.
    Ready,
    Done(Outcome),
    Failed(LaunchFailure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Applied,
    /// In bytes, and in inodes.
    Usage {
        bytes: Usage,
        inodes: Usage,
    },
    Content {
        bytes: Vec<u8>,
    },
    Network {
        interfaces: Vec<InterfaceFound>,
        routes: Vec<RouteFound>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub total: u64,
    pub used: u64,
    /// To who is not root.
    pub available: u64,
}

/// An interface, as found after a network plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceFound {
    pub name: String,
    pub hardware_address: [u8; 6],
    /// In bytes.
    pub mtu: u32,
    /// `IFF_*` of netdevice(7).
    pub flags: u32,
    pub addresses: Vec<(std::net::IpAddr, u8)>,
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
    Hooks,
    Rights,
    WorkingDirectory,
    /// The command does not exist (ENOENT) or cannot be executed.
    Exec,
    Storage,
    Network,
}
