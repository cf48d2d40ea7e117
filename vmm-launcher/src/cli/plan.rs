//! `run`'s command line, checked and completed before anything is started.

use std::path::Path;
use std::time::Duration;

use nacre_protocols::names::SHARED_DIR;

use super::args::{AccelArg, Network, Run, VmmArg, first_word};
use super::attach::Streams;
use super::error::Failure;
use super::registry::{Loopback, Order};
use super::run::absolute;
use super::values::{ScratchArg, Security, VolumeArg, mib};
use super::{environment, find, guest_files, terminal};
use crate::images::ImageSource;
use crate::sandbox::session::Wanted;
use crate::sandbox::spec::{ContainerSettings, SeccompChoice, Volume};
use crate::sandbox::stores::{Stores, StoresError};
use crate::sandbox::{AccelSetting, MachineConfig, ScratchSetting, SharedDirectory, VmmSetting, random_name};
use crate::vmm::MAX_VCPUS;

/// Memory of a VM unless more is asked for, in MiB.
const VM_MEMORY_MIB: u32 = 512;
/// What kernel, agent and page tables need besides the container's own, in MiB.
const VM_OVERHEAD_MIB: u32 = 192;
/// Size of the scratch disk; the file is sparse, so this is a limit.
const SCRATCH_BYTES: u64 = 32 << 30;
/// On disk rather than in memory, unlike `/run` and often `/tmp`.
const SCRATCH_DIRECTORY: &str = "/var/tmp";
const SCRATCH_VARIABLE: &str = "NACRE_SCRATCH_DIR";

pub struct Plan {
    pub name: String,
    pub source: ImageSource,
    /// The image argument, its path absolute.
    pub image: String,
    /// Registries and proxies on this host's loopback.
    pub loopback: Vec<Loopback>,
    /// All but what only the sandbox's network tells.
    pub wanted: Wanted,
    pub settings: ContainerSettings,
    pub streams: Streams,
    pub detach: bool,
    pub keep: bool,
    pub place: Place,
    pub boot_timeout: Duration,
    /// One line each for the user.
    pub notices: Vec<String>,
}

/// Where the container goes.
// There is one at a time.
#[allow(clippy::large_enum_variant)]
pub enum Place {
    New(MachineConfig),
    /// The sandbox of this container.
    In(String),
}

impl Plan {
    pub fn new(args: Run) -> Result<Self, Failure> {
        let (image, command) = first_word(&args.words)
            .map_err(|problem| Failure::new("arguments", problem).next("see nacre run --help"))?;
        let (source, image) = source(image)?;
        if args.interactive && args.tty && !args.detach && !terminal::stdin_is_terminal() {
            return Err(
                Failure::new("arguments", "-it, but standard input is not a terminal").next("leave -t out")
            );
        }
        let name = name(args.name.as_deref(), args.within.is_none())?;
        let mut notices = Vec::new();
        let vcpus = vcpus(args.limits.cpus, std::thread::available_parallelism().map_or(1, usize::from));
        if args.limits.cpus.is_some_and(|cpus| cpus > f64::from(vcpus)) {
            notices.push(format!("--cpus is more than this host has or a sandbox can have: it gets {vcpus}"));
        }
        let Order { wanted, loopback } = match &source {
            ImageSource::Registry(reference) => {
                args.registry.order(reference, |name| std::env::var(name).ok(), &mut notices)?
            }
            _ => Order { wanted: args.registry.rules()?, loopback: Vec::new() },
        };
        if let [only] = loopback.as_slice()
            && wanted.mirrors.is_empty()
        {
            only.check_listener()?;
        }
        let shares = args.volume.iter().map(share).collect::<Result<Vec<_>, _>>()?;
        let place = match &args.within {
            Some(name) => Place::In(name.clone()),
            None => Place::New(machine(&args, &name, vcpus, &shares, &loopback)?),
        };
        Ok(Self {
            wanted,
            settings: settings(&args, command.to_vec(), &name, &shares)?,
            streams: Streams { interactive: args.interactive, terminal: args.tty },
            detach: args.detach,
            keep: args.keep || !args.rm,
            boot_timeout: Duration::from_secs(args.machine.boot_timeout.into()),
            name,
            source,
            image,
            loopback,
            place,
            notices,
        })
    }
}

/// The image, and its text with an absolute path for the monitor.
fn source(text: &str) -> Result<(ImageSource, String), Failure> {
    let failed = |error| Failure::new("arguments", format!("{text}: {error}"));
    let source = ImageSource::parse(text).map_err(failed)?;
    let (kind, path, tag) = match &source {
        ImageSource::Registry(reference) => return Ok((source.clone(), reference.clone())),
        ImageSource::OciLayout { directory, tag } => ("oci", directory, tag),
        ImageSource::OciArchive { file, tag } => ("oci-archive", file, tag),
        ImageSource::DockerArchive { file, tag } => ("docker-archive", file, tag),
    };
    // A wrong path or tag is told before a VM is booted for it.
    source.open().map_err(failed)?;
    let path = absolute(path)?;
    let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    Ok((source.clone(), format!("{kind}:{}{tag}", path.display())))
}

/// Of a new container, and of its sandbox, if it gets one.
fn name(given: Option<&str>, has_own_sandbox: bool) -> Result<String, Failure> {
    match given {
        None => random_name().map_err(|error| Failure::new("start", error)),
        Some(name) => {
            let taken = Failure::new("arguments", format!("the name {name:?} is taken"));
            let targets = find::all()?;
            if targets.iter().any(|target| target.container.name == name) {
                return Err(taken.next(format!("choose another, or nacre rm {name}")));
            }
            // A sandbox keeps the name of its first container, though that may have ended before the others.
            let of_sandbox = |target: &&find::Target| has_own_sandbox && target.sandbox.name == name;
            if let Some(other) = targets.iter().find(of_sandbox) {
                let other = &other.container.name;
                return Err(taken.next(format!(
                    "{other:?} is in the sandbox of that name: choose another, or nacre rm -f {other}"
                )));
            }
            Ok(name.to_owned())
        }
    }
}

fn share(volume: &VolumeArg) -> Result<SharedDirectory, Failure> {
    let host = absolute(&volume.host)?;
    std::fs::metadata(&host).map_err(|error| {
        Failure::new("arguments", format!("-v {}: {error}", host.display())).next("make the directory first")
    })?;
    Ok(SharedDirectory { host, read_only: volume.read_only })
}

/// Virtual processors for `--cpus`: enough for it, and no more than the host has. A share of one is the container's limit.
fn vcpus(cpus: Option<f64>, host: usize) -> u8 {
    let most = host.clamp(1, MAX_VCPUS.into()) as f64;
    cpus.unwrap_or(1.0).ceil().clamp(1.0, most) as u8
}

/// MiB of a virtual machine for a container that may have so many bytes.
pub fn with_overhead(memory: u64) -> u32 {
    mib(memory).saturating_add(VM_OVERHEAD_MIB)
}

fn machine(
    args: &Run,
    name: &str,
    vcpus: u8,
    shares: &[SharedDirectory],
    loopback: &[Loopback],
) -> Result<MachineConfig, Failure> {
    let memory_mib = match (args.machine.vm_memory, args.limits.memory) {
        (Some(whole), _) => mib(whole),
        (None, Some(container)) => VM_MEMORY_MIB.max(with_overhead(container)),
        (None, None) => VM_MEMORY_MIB,
    };
    Ok(MachineConfig {
        name: name.to_owned(),
        kernel: guest_files::kernel(args.machine.kernel.as_deref())?,
        image: guest_files::image(args.machine.image_file.as_deref())?,
        memory_mib,
        memory_max_mib: args.machine.vm_memory_max.map(mib),
        vcpus_max: args.machine.vm_cpus_max,
        image_quota: args.image_quota,
        bounds: args.bound.clone(),
        vcpus,
        scratch: match &args.scratch {
            _ if args.store.is_some() => store(args.store.as_deref().unwrap_or_default())?,
            Some(ScratchArg::Tmpfs) => ScratchSetting::Tmpfs,
            Some(ScratchArg::Disk(bytes)) => {
                ScratchSetting::Disk { bytes: *bytes, directory: scratch_directory()? }
            }
            None => ScratchSetting::Disk { bytes: SCRATCH_BYTES, directory: scratch_directory()? },
        },
        unfiltered_network: args.net == Network::Slirp,
        shares: shares.to_vec(),
        publish: args.publish.clone(),
        loopback_ports: loopback_ports(loopback),
        vmm: match args.machine.vmm {
            VmmArg::Auto => VmmSetting::Auto,
            VmmArg::Kvm => VmmSetting::Kvm,
            VmmArg::Qemu => VmmSetting::Qemu,
        },
        accel: match args.machine.accel {
            AccelArg::Auto => AccelSetting::Auto,
            AccelArg::Kvm => AccelSetting::Kvm,
            AccelArg::Tcg => AccelSetting::Tcg,
        },
    })
}

fn store(name: &str) -> Result<ScratchSetting, Failure> {
    let stores = Stores::open().map_err(|error| Failure::new("store", error))?;
    let disk = stores.disk(name).map_err(|error| match error {
        StoresError::Missing { .. } => {
            Failure::new("store", error).next(format!("nacre store create {name}"))
        }
        error => Failure::new("store", error),
    })?;
    if let Some(other) = find::of_store(name)? {
        let cause = format!("the store {name:?} is in use by the sandbox of {:?}", other.container.name);
        return Err(Failure::new("store", cause).next(format!("nacre run --in {} …", other.container.name)));
    }
    Ok(ScratchSetting::Store { name: name.to_owned(), disk })
}

/// Where scratch disks are made.
pub fn scratch_directory() -> Result<std::path::PathBuf, Failure> {
    match std::env::var_os(SCRATCH_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => absolute(Path::new(&path)),
        None if Path::new(SCRATCH_DIRECTORY).is_dir() => Ok(SCRATCH_DIRECTORY.into()),
        None => Ok(std::env::temp_dir()),
    }
}

fn loopback_ports(loopback: &[Loopback]) -> Vec<u16> {
    loopback.iter().flat_map(|there| there.ports.iter().copied()).collect()
}

fn settings(
    args: &Run,
    command: Vec<String>,
    name: &str,
    shares: &[SharedDirectory],
) -> Result<ContainerSettings, Failure> {
    let volumes = args.volume.iter().zip(shares).enumerate().map(|(index, (volume, share))| Volume {
        host: share.host.clone(),
        source: format!("{SHARED_DIR}/{}", share.share(index).guest_path().display()),
        destination: volume.container.clone(),
        read_only: volume.read_only,
    });
    let seccomp = args.security_opt.iter().rev().find_map(|option| match option {
        Security::Seccomp(choice) => Some(choice.clone()),
        Security::NoNewPrivileges => None,
    });
    if let Some(SeccompChoice::File(path)) = &seccomp {
        std::fs::metadata(path)
            .map_err(|error| Failure::new("arguments", format!("seccomp={}: {error}", path.display())))?;
    }
    Ok(ContainerSettings {
        entrypoint: args
            .entrypoint
            .as_ref()
            .map(|program| if program.is_empty() { Vec::new() } else { vec![program.clone()] }),
        command,
        env: environment::collect(&args.env_file, &args.env)?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        hostname: args.hostname.clone().unwrap_or_else(|| name.to_owned()),
        terminal: args.tty.then(|| terminal::size().unwrap_or_default()),
        read_only: args.read_only,
        volumes: volumes.collect(),
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        no_new_privileges: args.security_opt.contains(&Security::NoNewPrivileges),
        seccomp: seccomp.unwrap_or_default(),
        limits: args.limits.limits(),
        no_network: args.net == Network::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_the_processors_that_were_asked_for_and_exist() {
        let cases = [
            (None, 8, 1),
            (Some(0.5), 8, 1),
            (Some(1.0), 8, 1),
            (Some(1.5), 8, 2),
            (Some(9.0), 4, 4),
            (Some(1e3), 900, 64),
        ];
        for (asked, host, expected) in cases {
            assert_eq!(vcpus(asked, host), expected, "{asked:?} of {host}");
        }
    }
}
