//! Agent to init: what the unprivileged agent may ask of PID 1.
//!
//! Carrier: one `SOCK_SEQPACKET` pair made by init, one frame a packet, descriptors by `SCM_RIGHTS`. The agent sends
//! [`Request`]s, each with a tag of its own choosing that is not in use; init answers every one with a
//! [`FromInit::Reply`] of the same tag, in any order, and sends [`FromInit::Event`]s between. A frame that is malformed,
//! too long, out of phase or beyond [`OUTSTANDING_MAX`] ends the agent; init starts a new one, which begins with
//! [`RequestBody::Hello`] and then asks for what init holds.
//!
//! Order of descriptors is part of each message and written beside it.

use serde::{Deserialize, Serialize};

/// Goes up with every incompatible change; both ends come from one image, so a mismatch is a packing error.
pub const VERSION: u32 = 3;
/// Longest frame either way, in bytes.
pub const FRAME_MAX: usize = 16 * 1024;
/// Most descriptors that one frame carries.
pub const FDS_MAX: usize = 4;
/// Most requests without a reply.
pub const OUTSTANDING_MAX: usize = 16;
/// Size of the agent's state memfd, in bytes.
pub const STATE_BYTES: u64 = 1024 * 1024;
/// Longest text in a [`Failure`], in bytes; init cuts what is longer.
pub const MESSAGE_MAX: usize = 1024;
/// Longest program of an agent, in bytes.
pub const PROGRAM_MAX: u64 = 4 * 1024 * 1024;
/// Most bytes that one [`RequestBody::Reseed`] gives.
pub const SEED_MAX: usize = 4096;

/// The descriptors that the agent is born with, by number. 0 and 1 are `/dev/null`, 2 is the guest's console.
pub mod agent_fd {
    /// Listening `AF_VSOCK` stream socket; init keeps its own copy for the VM's whole life.
    pub const LISTENER: i32 = 3;
    /// The agent's end of this edge.
    pub const INIT: i32 = 4;
    /// Opaque state of the agent: a memfd of [`super::STATE_BYTES`], the same one for every agent of this boot.
    pub const STATE: i32 = 5;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub tag: u32,
    pub body: RequestBody,
}

/// A process of a container: its first one when `exec` is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessRef {
    pub container: String,
    pub exec: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// The first request of every agent. Reply: [`ReplyBody::Welcome`].
    Hello { version: u32 },
    /// The `index`th process that init holds. Reply: [`ReplyBody::Held`] or [`ReplyBody::NoMore`].
    Held { index: u32 },
    /// Create a container up to its start gate. Descriptors: the plan (sealed memfd), then those of `streams`. Reply:
    /// [`ReplyBody::Created`].
    CreateContainer { id: String, pid_namespace: PidNamespace, terminal: bool, streams: Streams },
    /// Open the start gate. Reply: [`ReplyBody::Done`] after the command was executed.
    StartContainer { id: String },
    /// Start a process in a running container. Descriptors: the plan, then those of `streams`. Reply:
    /// [`ReplyBody::Created`].
    Exec { process: ProcessRef, terminal: bool, streams: Streams },
    /// Send `signal` to one process, or to every process of the container's cgroup (only with 9, SIGKILL).
    Signal { process: ProcessRef, signal: u8, whole_container: bool },
    /// Drop init's copy of the process's standard input, so that the agent's close becomes end-of-file.
    CloseStdin { process: ProcessRef },
    /// Take bytes out of a stream of a process, so that `upto` in all have been taken: the host has them. With a terminal
    /// out of the pipe behind it.
    Take { process: ProcessRef, stream: OutputStream, upto: u64 },
    /// Drop the record and descriptors of a process that has exited.
    Forget { process: ProcessRef },
    /// Freeze every process of a container, or let them go on. Reply: [`ReplyBody::Done`] when the kernel was told.
    Freeze { id: String, frozen: bool },
    /// Change a container's limits. Descriptors: the plan. Reply: [`ReplyBody::Done`].
    Update { id: String },
    /// Kill what is left of a container and remove its cgroup and its writable files. Idempotent.
    RemoveContainer { id: String },
    /// Run a storage plan. Descriptors: the plan. Reply: [`ReplyBody::Done`], or what its last step asks for:
    /// [`ReplyBody::Usage`], [`ReplyBody::Content`].
    Storage,
    /// Run a network plan. Descriptors: the plan. Reply: [`ReplyBody::Network`].
    Network,
    /// Connect to a puller that has just been started; one that runs is ended first. Reply: [`ReplyBody::Puller`].
    ConnectPuller,
    /// Set the host name of the sandbox (UTS namespace of init).
    SetHostname { name: String },
    /// Set the wall clock; init refuses a time before its own build.
    SetClock { seconds: i64, microseconds: u32 },
    /// Bring processors up until so many are; those that are up stay. Fails as [`FailureKind::State`] when there are fewer.
    OnlineCpus { count: u32 },
    /// Mix these bytes into the kernel's random numbers and reseed from them. At most [`SEED_MAX`].
    Reseed { data: Vec<u8> },
    /// Open one file of the kernel's for reading. Reply: [`ReplyBody::Opened`].
    Open { file: KernelFile },
    /// What `/proc` says of the guest's own processes. Reply: [`ReplyBody::Report`].
    Report,
    /// From now on agents are started from this program. Descriptors: the program (sealed memfd of at most [`PROGRAM_MAX`]
    /// bytes). Reply: [`ReplyBody::Done`]; who asked then ends itself. A program that fails before it has taken over what
    /// init holds is given up for the one before it.
    Upgrade,
    /// End the VM: kill all, sync, reboot.
    PowerOff,
}

/// What the agent may read of the kernel's own files. It gets a descriptor and reads by itself: init decodes none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelFile {
    /// `/proc/loadavg` and so on.
    Guest(GuestFile),
    /// Of the agent's own process.
    Agent(AgentFile),
    /// A file of a container's cgroup.
    Cgroup { id: String, file: CgroupFile },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFile {
    LoadAverage,
    Stat,
    Memory,
    VirtualMemory,
    Disks,
    NetworkDevices,
    /// Of what memory is added in: bytes, in hex.
    MemoryBlock,
}

impl GuestFile {
    pub fn path(self) -> &'static str {
        match self {
            Self::LoadAverage => "/proc/loadavg",
            Self::Stat => "/proc/stat",
            Self::Memory => "/proc/meminfo",
            Self::VirtualMemory => "/proc/vmstat",
            Self::Disks => "/proc/diskstats",
            Self::NetworkDevices => "/proc/net/dev",
            Self::MemoryBlock => "/sys/devices/system/memory/block_size_bytes",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentFile {
    Stat,
    Status,
    Io,
}

impl AgentFile {
    /// Beneath `/proc/PID`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Status => "status",
            Self::Io => "io",
        }
    }
}

/// By the names of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupFile {
    Events,
    CpuStat,
    MemoryCurrent,
    MemoryMax,
    MemoryPeak,
    MemoryEvents,
    MemoryStat,
    SwapCurrent,
    PidsCurrent,
    PidsMax,
    IoStat,
    HugePages2MibCurrent,
    HugePages2MibEvents,
    HugePages1GibCurrent,
    HugePages1GibEvents,
}

impl CgroupFile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "cgroup.events",
            Self::CpuStat => "cpu.stat",
            Self::MemoryCurrent => "memory.current",
            Self::MemoryMax => "memory.max",
            Self::MemoryPeak => "memory.peak",
            Self::MemoryEvents => "memory.events",
            Self::MemoryStat => "memory.stat",
            Self::SwapCurrent => "memory.swap.current",
            Self::PidsCurrent => "pids.current",
            Self::PidsMax => "pids.max",
            Self::IoStat => "io.stat",
            Self::HugePages2MibCurrent => "hugetlb.2MB.current",
            Self::HugePages2MibEvents => "hugetlb.2MB.events",
            Self::HugePages1GibCurrent => "hugetlb.1GB.current",
            Self::HugePages1GibEvents => "hugetlb.1GB.events",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStream {
    /// Or the terminal.
    Output,
    Error,
}

/// Where the standard streams of a new process come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Streams {
    /// Pipes or a terminal that init keeps.
    Kept,
    /// Connections of the host's: one descriptor for each that is true, of stdin, stdout and stderr.
    ///
    /// They become the process's own, with `/dev/null` for the others: nobody in the guest keeps them, and there is nothing to
    /// read or write for the agent. Those of a terminal, which has no stderr, init keeps, and the agent has the kernel move
    /// what comes from one to the other.
    Passed([bool; 3]),
}

impl Streams {
    /// Descriptors that come with it.
    pub fn count(self) -> usize {
        match self {
            Self::Kept => 0,
            Self::Passed(given) => given.into_iter().filter(|given| *given).count(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A fresh one: the container's process is its PID 1.
    Own,
    /// The one of this running container.
    Container(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInit {
    Reply { tag: u32, result: Result<ReplyBody, Failure> },
    Event(Event),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplyBody {
    Done,
    /// Descriptors: listening vsock sockets for the agent's log and for streams that are passed, as far as it says so.
    Welcome(Welcome),
    /// Descriptors as for [`ReplyBody::Created`].
    Held(HeldProcess),
    NoMore,
    /// Descriptors: with a terminal the pty's master, and read end and write end of a pipe for what the agent takes out of
    /// the master; else stdin's write end, stdout's and stderr's read ends.
    Created {
        pid: u32,
    },
    Network(NetworkState),
    Usage {
        bytes: Usage,
        inodes: Usage,
    },
    Content(Vec<u8>),
    /// Descriptors: the agent's end of the agent-puller edge.
    Puller,
    Report(Vec<ProcessReport>),
    /// Descriptors: the file, open for reading.
    Opened,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// How often an agent was started in this boot, this one included.
    pub generation: u32,
    /// Boot stages in order, each with its end in microseconds after the kernel's start.
    pub boot: Vec<(String, u64)>,
    pub scratch: Scratch,
    /// Whether there is a listener for who reads the agent's log, and one for streams of the host's that become those of
    /// processes.
    pub log: bool,
    pub passed: bool,
    /// The agent's program is not the image's.
    pub upgraded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scratch {
    Disk { bytes: u64 },
    Tmpfs { bytes: u64 },
}

/// One process that init holds, for an agent that has just started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldProcess {
    pub process: ProcessRef,
    pub pid: u32,
    pub terminal: bool,
    pub state: HeldState,
    /// False after [`RequestBody::CloseStdin`]; then the first descriptor is missing.
    pub stdin_open: bool,
    /// Bytes that were taken out of its output and its error stream.
    pub taken: [u64; 2],
    /// Which streams of a terminal are connections of the host's: input, output. If any, the last descriptors are both ends of a pipe
    /// for what comes from the host, and the connections.
    pub relayed: [bool; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldState {
    /// At the start gate.
    Created,
    Running,
    Exited(ExitStatus),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Its exit code, or 128 plus the signal that killed it.
    pub code: u8,
    /// The kernel killed something in its cgroup for want of memory.
    pub out_of_memory: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    Exited {
        process: ProcessRef,
        status: ExitStatus,
    },
    /// The kernel killed a process of this container for want of memory; whichever it was.
    OutOfMemory {
        container: String,
    },
    /// Both processes of the puller are gone, and all that they were doing. Comes before the reply to a
    /// [`RequestBody::ConnectPuller`] that waited for it.
    PullerExited(PullerEnd),
}

/// Which process of the puller ended first; init then kills the other, which is of no use alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullerEnd {
    pub process: PullerProcess,
    /// Its exit code, or 128 plus the signal that killed it.
    pub code: u8,
    /// The kernel killed it for want of memory.
    pub out_of_memory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullerProcess {
    Fetcher,
    Indexer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// One sentence: what was tried on what, and why it failed. At most [`MESSAGE_MAX`] bytes.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such container or process.
    NotFound,
    /// The id is taken.
    Exists,
    /// The manifest does not allow it.
    Refused,
    /// Not in this state of the container (start of a running one, exec in a stopped one).
    State,
    /// The command does not exist in the container: exit code 127 by convention.
    CommandNotFound,
    /// The command cannot be executed: exit code 126 by convention.
    CommandNotExecutable,
    /// No space left on the scratch disk.
    DiskFull,
    /// No interface has the hardware address that was asked for.
    LinkNotFound,
    /// This guest's kernel or machine has no such thing.
    Unsupported,
    /// A system call failed, or the launcher died.
    System,
}

/// How full a file system is: in bytes, or in inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub total: u64,
    pub used: u64,
    pub available: u64,
}

/// Interfaces and main-table routes after a network plan was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    pub interfaces: Vec<InterfaceState>,
    pub routes: Vec<RouteState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceState {
    pub name: String,
    pub hardware_address: [u8; 6],
    /// In bytes.
    pub mtu: u32,
    /// `IFF_*` of netdevice(7).
    pub flags: u32,
    pub addresses: Vec<(core::net::IpAddr, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteState {
    /// `address/prefix`, or empty for the default route.
    pub destination: String,
    pub gateway: String,
    pub device: String,
    pub source: String,
    pub scope: u8,
    pub ipv6: bool,
}

/// Memory of one of the guest's own processes, in KiB, from `/proc/PID/smaps_rollup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub name: String,
    pub pid: u32,
    pub resident_kib: u32,
    pub anonymous_kib: u32,
}
