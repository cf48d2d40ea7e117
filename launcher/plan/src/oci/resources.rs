//! The `linux.resources` object (`config-linux.md`, "Control groups").

use super::objects;
use std::collections::BTreeMap;

objects! {
    pub struct Resources {
        pub unified: BTreeMap<String, String>,
        pub devices: Vec<DeviceRule>,
        pub memory: Option<Memory>,
        pub cpu: Option<Cpu>,
        pub pids: Option<Pids>,
        #[cfg_attr(feature = "json", serde(rename = "blockIO"))]
        pub block_io: Option<BlockIo>,
        pub hugepage_limits: Vec<HugepageLimit>,
        pub network: Option<Network>,
        /// By device.
        pub rdma: BTreeMap<String, Rdma>,
    }

    /// A number that is absent, or -1, is any.
    pub struct DeviceRule {
        pub allow: bool,
        pub r#type: String,
        pub major: Option<i64>,
        pub minor: Option<i64>,
        pub access: String,
    }

    /// In bytes; -1 is no limit.
    pub struct Memory {
        pub limit: Option<i64>,
        pub reservation: Option<i64>,
        pub swap: Option<i64>,
        pub kernel: Option<i64>,
        #[cfg_attr(feature = "json", serde(rename = "kernelTCP"))]
        pub kernel_tcp: Option<i64>,
        pub swappiness: Option<u64>,
        #[cfg_attr(feature = "json", serde(rename = "disableOOMKiller"))]
        pub disable_oom_killer: Option<bool>,
        pub use_hierarchy: Option<bool>,
        pub check_before_update: Option<bool>,
    }

    /// Times in microseconds.
    pub struct Cpu {
        pub shares: Option<u64>,
        pub quota: Option<i64>,
        pub burst: Option<u64>,
        pub period: Option<u64>,
        pub realtime_runtime: Option<i64>,
        pub realtime_period: Option<u64>,
        pub cpus: String,
        pub mems: String,
        pub idle: Option<i64>,
    }

    pub struct Pids {
        pub limit: Option<i64>,
    }

    pub struct BlockIo {
        pub weight: Option<u16>,
        pub leaf_weight: Option<u16>,
        pub weight_device: Vec<WeightDevice>,
        pub throttle_read_bps_device: Vec<ThrottleDevice>,
        pub throttle_write_bps_device: Vec<ThrottleDevice>,
        #[cfg_attr(feature = "json", serde(rename = "throttleReadIOPSDevice"))]
        pub throttle_read_iops_device: Vec<ThrottleDevice>,
        #[cfg_attr(feature = "json", serde(rename = "throttleWriteIOPSDevice"))]
        pub throttle_write_iops_device: Vec<ThrottleDevice>,
    }

    pub struct WeightDevice {
        pub major: i64,
        pub minor: i64,
        pub weight: Option<u16>,
        pub leaf_weight: Option<u16>,
    }

    /// Bytes or operations a second.
    pub struct ThrottleDevice {
        pub major: i64,
        pub minor: i64,
        pub rate: u64,
    }

    /// In bytes.
    pub struct HugepageLimit {
        pub page_size: String,
        pub limit: u64,
    }

    pub struct Network {
        #[cfg_attr(feature = "json", serde(rename = "classID"))]
        pub class_id: Option<u32>,
        pub priorities: Vec<InterfacePriority>,
    }

    pub struct InterfacePriority {
        pub name: String,
        pub priority: u32,
    }

    pub struct Rdma {
        pub hca_handles: Option<u32>,
        pub hca_objects: Option<u32>,
    }
}
