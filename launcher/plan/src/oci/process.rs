//! The `process` object (`config.md`, "Process"; `config.md`, "Linux Process").

use super::objects;

objects! {
    pub struct Process {
        pub terminal: bool,
        pub console_size: Option<ConsoleSize>,
        pub user: User,
        pub args: Vec<String>,
        pub env: Vec<String>,
        pub cwd: String,
        pub capabilities: Option<Capabilities>,
        pub rlimits: Vec<Rlimit>,
        pub no_new_privileges: bool,
        pub apparmor_profile: String,
        pub oom_score_adj: Option<i64>,
        pub scheduler: Option<Scheduler>,
        pub selinux_label: String,
        pub io_priority: Option<IoPriority>,
        #[cfg_attr(feature = "json", serde(rename = "execCPUAffinity"))]
        pub exec_cpu_affinity: Option<CpuAffinity>,
    }

    /// In characters.
    pub struct ConsoleSize {
        pub height: u32,
        pub width: u32,
    }

    pub struct User {
        pub uid: u32,
        pub gid: u32,
        pub umask: Option<u32>,
        pub additional_gids: Vec<u32>,
        /// `user[:group]`. The specification has it for Windows; engines inside virtual machines use it.
        pub username: String,
    }

    pub struct Capabilities {
        pub bounding: Vec<String>,
        pub effective: Vec<String>,
        pub inheritable: Vec<String>,
        pub permitted: Vec<String>,
        pub ambient: Vec<String>,
    }

    pub struct Rlimit {
        pub r#type: String,
        pub hard: u64,
        pub soft: u64,
    }

    /// As sched_setattr(2).
    pub struct Scheduler {
        pub policy: String,
        pub nice: i32,
        pub priority: i32,
        pub flags: Vec<String>,
        /// In nanoseconds, as the two that follow.
        pub runtime: u64,
        pub deadline: u64,
        pub period: u64,
    }

    pub struct IoPriority {
        pub class: String,
        pub priority: i64,
    }

    /// Lists of processors for an exec, before and after it is in the container's cgroup.
    pub struct CpuAffinity {
        pub initial: String,
        pub r#final: String,
    }
}
