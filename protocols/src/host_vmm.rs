//! Any launcher to `nacre vmm`: the control socket of a virtual machine.
//!
//! A unix stream socket at the path that the machine's configuration names as `control`, mode 0600, made before the guest runs.
//! One JSON document a line, each way; every request has exactly one reply, in order. A line is at most [`LINE_BYTES_MAX`] bytes,
//! connections at most [`CONNECTIONS_MAX`]; who sends more, or does not read, is cut off. Example:
//!
//! ```text
//! > {"version":1,"request":"pause"}
//! < {"version":1,"reply":"done"}
//! > {"version":1,"request":"status"}
//! < {"version":1,"reply":{"status":{"state":"paused","pid":4711,"processors":1,…}}}
//! > {"version":2,"request":"jump"}
//! < {"version":1,"reply":{"error":"version 2, this program knows 1"}}
//! ```
//!
//! A reply may get new fields within a version; a client passes over those that it does not know.

use serde::{Deserialize, Serialize};

/// Of this form.
pub const VERSION: u32 = 1;
/// Longest line in bytes, its end included.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Connections at one time.
pub const CONNECTIONS_MAX: usize = 8;
/// Seconds that a pause may take; then the machine runs on, and the reply is an error.
pub const PAUSE_SECONDS_MAX: u64 = 5;

/// A line to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToVmm {
    /// [`VERSION`].
    pub version: u32,
    pub request: Request,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// No processor is in the guest and no device works when the reply comes; again is no error. Time goes on for the guest.
    Pause,
    /// What a pause held goes on; again is no error.
    Resume,
    /// The machine ends, the guest is not asked; the process exits with code 4. The reply may be lost.
    Stop,
    /// The machine gets other memory or other processors, up to what its configuration says. Memory that is wanted less the
    /// guest gives back as far as it can; processors are never taken away. What the guest has of it by now is in [`Status`]; it
    /// must bring processors up by itself.
    Resize {
        /// MiB in all; rounded up to an even number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_mib: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        processors: Option<u8>,
    },
    /// Reply: [`Reply::Status`].
    Status,
    /// Reply: [`Reply::Metrics`].
    Metrics,
}

/// A line from the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromVmm {
    pub version: u32,
    pub reply: Reply,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Done,
    Status(Status),
    Metrics(Metrics),
    /// Nothing was done; why.
    Error(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    /// The VMM's process.
    pub pid: u32,
    /// That may run.
    pub processors: u8,
    pub processors_max: u8,
    /// That the guest has, without what its balloon gave back.
    pub memory_mib: u32,
    /// That it should have.
    pub memory_wanted_mib: u32,
    pub memory_max_mib: u32,
    /// Since the machine was made.
    pub uptime_ms: u64,
    /// In the order of their addresses.
    pub devices: Vec<String>,
    /// What the devices noticed of the guest, at most 64 messages.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Paused,
}

/// Counters since the machine was made; they wrap at 2^64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// By number.
    pub processors: Vec<Exits>,
    /// In the order of their addresses.
    pub devices: Vec<DeviceMetrics>,
    /// Bytes that the guest gave back to the host by its balloon, each time counted.
    pub memory_returned_bytes: u64,
}

/// How often a processor left the guest for the VMM; what KVM handles by itself is not seen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    pub mmio_read: u64,
    pub mmio_write: u64,
    pub port_in: u64,
    pub port_out: u64,
    /// A signal: somebody asked for a pause, or stopped the process.
    pub interrupted: u64,
    pub other: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMetrics {
    pub name: String,
    /// How often its thread was woken: by the driver, or by the host's side.
    pub wakeups: u64,
    /// Descriptor chains that it gave back.
    pub requests: u64,
    /// Payload that the device read from the guest.
    pub from_guest_bytes: u64,
    /// Payload that the device wrote to the guest.
    pub to_guest_bytes: u64,
}
