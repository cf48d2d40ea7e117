//! The OCI runtime configuration of a container, as the agent gets it: docker's defaults, the image's configuration, and
//! what the command line asks for, in this order.

mod capabilities;
mod mounts;
mod process;
mod seccomp;
mod seccomp_table;
mod signals;

use std::path::PathBuf;

use nacre_protocols::host_agent::{OWN_NAMESPACES_ANNOTATION, kata};
use nacre_protocols::names::SANDBOX_DIR;
use serde::{Deserialize, Serialize};

pub use capabilities::{CapabilityError, DEFAULT_CAPABILITIES, capability_set};
pub use process::{ExecSettings, ProcessDefaults, ProcessError, exec_process};
pub use seccomp::{SeccompChoice, SeccompError};
pub use signals::{SIGKILL, SIGTERM, signal_number};

/// The period in which `--cpus` is counted, in microseconds (the kernel's and docker's default).
const CPU_PERIOD_US: u64 = 100_000;
const OCI_VERSION: &str = "1.1.0";

/// What the command line says about a container.
#[derive(Debug, Clone, Default)]
pub struct ContainerSettings {
    /// Takes the place of the image's entrypoint; its command is then dropped.
    pub entrypoint: Option<Vec<String>>,
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub hostname: String,
    pub terminal: Option<TerminalSize>,
    pub read_only: bool,
    pub volumes: Vec<Volume>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: SeccompChoice,
    pub limits: Limits,
    /// Nothing but a loopback of its own.
    pub no_network: bool,
}

/// In characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// `-v`: a directory of the host, already shared with the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub host: PathBuf,
    /// Where the share stands in the guest.
    pub source: String,
    /// In the container.
    pub destination: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// In bytes.
    pub memory: Option<u64>,
    /// Processors, such as 1.5.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<i64>,
}

/// What an image says of the process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProcess {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub working_directory: String,
    pub user: String,
    pub stop_signal: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// The whole configuration; and what a later exec takes over from it.
pub fn container_spec(
    id: &str,
    image: &ImageProcess,
    settings: &ContainerSettings,
) -> Result<(kata::Spec, ProcessDefaults), SpecError> {
    let capabilities = capability_set(&settings.cap_add, &settings.cap_drop)?;
    let seccomp = seccomp::profile(&settings.seccomp, &capabilities)?;
    let (process, defaults) = process::container_process(image, settings, &capabilities)?;
    let spec = kata::Spec {
        version: OCI_VERSION.into(),
        process: Some(process),
        root: Some(kata::Root {
            path: format!("/run/kata-containers/{id}/rootfs"),
            readonly: settings.read_only,
        }),
        hostname: settings.hostname.clone(),
        annotations: [(OWN_NAMESPACES_ANNOTATION.to_owned(), own_namespaces(settings).to_owned())].into(),
        mounts: mounts::all(settings),
        linux: Some(kata::Linux {
            resources: Some(resources(&settings.limits)),
            cgroups_path: format!("/nacre/{id}"),
            // No pid namespace here: by the Kata convention the agent adds it. The network is the sandbox's.
            namespaces: ["mount", "ipc", "uts", "cgroup"].map(namespace).into(),
            seccomp,
            masked_paths: MASKED_PATHS.map(Into::into).into(),
            readonly_paths: READONLY_PATHS.map(Into::into).into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Ok((spec, defaults))
}

/// Host facts that a container has no business to see, as docker masks them.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Controls of the kernel that must stay as they are.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files that the agent makes with the sandbox, by their place in the container.
const SANDBOX_FILES: [(&str, &str); 3] =
    [("/etc/resolv.conf", "resolv.conf"), ("/etc/hosts", "hosts"), ("/etc/hostname", "hostname")];

fn sandbox_file(name: &str) -> String {
    format!("{SANDBOX_DIR}/{name}")
}

/// The containers of a sandbox share its network, and nothing else.
fn own_namespaces(settings: &ContainerSettings) -> &'static str {
    if settings.no_network { "ipc,uts,network" } else { "ipc,uts" }
}

fn namespace(kind: &str) -> kata::LinuxNamespace {
    kata::LinuxNamespace { r#type: kind.into(), path: String::new() }
}

/// What the container's cgroup is told; what is not limited is left as it is.
pub fn resources(limits: &Limits) -> kata::LinuxResources {
    kata::LinuxResources {
        memory: limits.memory.map(|bytes| kata::LinuxMemory {
            limit: i64::try_from(bytes).unwrap_or(i64::MAX),
            // There is no swap in a sandbox.
            swap: i64::try_from(bytes).unwrap_or(i64::MAX),
            ..Default::default()
        }),
        cpu: limits.cpus.map(|cpus| kata::LinuxCpu {
            quota: (cpus * CPU_PERIOD_US as f64).round() as i64,
            period: CPU_PERIOD_US,
            ..Default::default()
        }),
        pids: limits.pids.map(|limit| kata::LinuxPids { limit }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busybox() -> ImageProcess {
        ImageProcess {
            command: vec!["sh".into()],
            env: vec!["PATH=/bin".into()],
            working_directory: String::new(),
            ..Default::default()
        }
    }

    #[test]
    fn the_agent_adds_the_pid_namespace_and_the_network_is_shared() {
        let settings = ContainerSettings { hostname: "h".into(), ..Default::default() };
        let (spec, _) = container_spec("c", &busybox(), &settings).unwrap();
        let kinds: Vec<_> = spec.linux.unwrap().namespaces.into_iter().map(|one| one.r#type).collect();
        assert_eq!(kinds, ["mount", "ipc", "uts", "cgroup"]);
    }

    #[test]
    fn limits_become_the_numbers_of_the_cgroup() {
        let limits = Limits { memory: Some(64 << 20), cpus: Some(1.5), pids: Some(100) };
        let resources = resources(&limits);
        assert_eq!(resources.memory.unwrap().limit, 64 << 20);
        let cpu = resources.cpu.unwrap();
        assert_eq!((cpu.quota, cpu.period), (150_000, 100_000));
        assert_eq!(resources.pids.unwrap().limit, 100);
        let none = super::resources(&Limits::default());
        assert!(none.memory.is_none() && none.cpu.is_none() && none.pids.is_none());
    }
}
