//! The `linux` object (`config-linux.md`), but for its resources.

use super::{IdMapping, Resources, objects};
use std::collections::BTreeMap;

objects! {
    pub struct Linux {
        pub uid_mappings: Vec<IdMapping>,
        pub gid_mappings: Vec<IdMapping>,
        pub sysctl: BTreeMap<String, String>,
        pub resources: Option<Resources>,
        pub cgroups_path: String,
        pub namespaces: Vec<Namespace>,
        pub devices: Vec<Device>,
        /// By the name outside.
        pub net_devices: BTreeMap<String, NetDevice>,
        pub seccomp: Option<Seccomp>,
        pub rootfs_propagation: String,
        pub masked_paths: Vec<String>,
        pub readonly_paths: Vec<String>,
        pub mount_label: String,
        pub intel_rdt: Option<IntelRdt>,
        pub memory_policy: Option<MemoryPolicy>,
        pub personality: Option<Personality>,
        /// By clock: `monotonic`, `boottime`.
        pub time_offsets: BTreeMap<String, TimeOffset>,
    }

    pub struct Namespace {
        pub r#type: String,
        /// Empty for a fresh one.
        pub path: String,
    }

    pub struct Device {
        pub path: String,
        pub r#type: String,
        pub major: i64,
        pub minor: i64,
        pub file_mode: Option<u32>,
        pub uid: Option<u32>,
        pub gid: Option<u32>,
    }

    pub struct NetDevice {
        /// Inside; empty for the same as outside.
        pub name: String,
    }

    pub struct IntelRdt {
        #[cfg_attr(feature = "json", serde(rename = "closID"))]
        pub clos_id: String,
        pub schemata: Vec<String>,
        pub l3_cache_schema: String,
        pub mem_bw_schema: String,
        pub enable_monitoring: bool,
        #[cfg_attr(feature = "json", serde(rename = "enableCMT"))]
        pub enable_cmt: bool,
        #[cfg_attr(feature = "json", serde(rename = "enableMBM"))]
        pub enable_mbm: bool,
    }

    /// As set_mempolicy(2).
    pub struct MemoryPolicy {
        pub mode: String,
        pub nodes: String,
        pub flags: Vec<String>,
    }

    pub struct Personality {
        pub domain: String,
        pub flags: Vec<String>,
    }

    pub struct TimeOffset {
        pub secs: i64,
        pub nanosecs: u32,
    }

    pub struct Seccomp {
        pub default_action: String,
        pub default_errno_ret: Option<u32>,
        pub architectures: Vec<String>,
        pub flags: Vec<String>,
        pub listener_path: String,
        pub listener_metadata: String,
        pub syscalls: Vec<Syscall>,
    }

    pub struct Syscall {
        pub names: Vec<String>,
        pub action: String,
        pub errno_ret: Option<u32>,
        pub args: Vec<SeccompArg>,
    }

    pub struct SeccompArg {
        pub index: u64,
        pub value: u64,
        pub value_two: u64,
        pub op: String,
    }
}
