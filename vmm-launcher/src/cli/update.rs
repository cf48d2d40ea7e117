//! `nacre update`: other limits for a container that runs, and another size for its virtual machine.

use std::path::Path;
use std::time::{Duration, Instant};

use nacre_protocols::host_vmm::{Reply, Request, Status};

use super::args::Update;
use super::error::Failure;
use super::plan::with_overhead;
use super::values::mib;
use super::vmm_control::socket_of;
use super::{exit, find};
use crate::kvm::control::ask;
use crate::sandbox::spec::{Limits, resources};

/// How long the guest may take until it has taken the memory that it gets.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn update(args: Update) -> Result<u8, Failure> {
    let limits = args.limits.limits();
    let changes_limits = limits != Limits::default();
    if !changes_limits && args.vm_memory.is_none() && args.vm_cpus.is_none() {
        return Err(failed("nothing is to be changed").next("see nacre update --help"));
    }
    let target = find::live(&args.name)?;
    let client = target.client()?;
    let lost = |error: crate::client::ClientError| failed(error);
    // QEMU's machines have no such socket.
    match socket_of(&target).filter(|socket| socket.exists()) {
        Some(socket) => {
            let status = status(&socket)?;
            let wanted = Size::new(&args, &status);
            if let Some(memory_mib) = wanted.memory_mib {
                resize(&socket, Request::Resize { memory_mib: Some(memory_mib), processors: None })?;
                taken(&socket, memory_mib).await?;
            }
            if let Some(processors) = wanted.processors {
                resize(&socket, Request::Resize { memory_mib: None, processors: Some(processors) })?;
                client.online_processors(processors).await.map_err(lost)?;
            }
        }
        None if args.vm_memory.is_some() || args.vm_cpus.is_some() => {
            let cause = "QEMU runs this sandbox, whose machine does not grow";
            return Err(failed(cause).next("start it with --vmm kvm, --vm-memory-max and --vm-cpus-max"));
        }
        None => {}
    }
    if changes_limits {
        client.update_container(&target.container.name, resources(&limits)).await.map_err(lost)?;
    }
    Ok(0)
}

/// What the machine should become.
#[derive(Debug, PartialEq)]
struct Size {
    memory_mib: Option<u32>,
    processors: Option<u8>,
}

impl Size {
    /// What was asked for; and as much as the container's new limits need, where the machine may have it.
    fn new(args: &Update, status: &Status) -> Self {
        let needed = |memory| with_overhead(memory).min(status.memory_max_mib);
        let grown = args.limits.memory.map(needed).filter(|needed| *needed > status.memory_wanted_mib);
        let cpus = args.limits.cpus.map(|cpus| (cpus.ceil() as u8).min(status.processors_max));
        let more = cpus.filter(|cpus| *cpus > status.processors);
        Self { memory_mib: args.vm_memory.map(mib).or(grown), processors: args.vm_cpus.or(more) }
    }
}

fn failed(cause: impl std::fmt::Display) -> Failure {
    Failure::new("update", cause).with_code(exit::FAILED)
}

fn status(socket: &Path) -> Result<Status, Failure> {
    match ask(socket, Request::Status).map_err(failed)? {
        Reply::Status(status) => Ok(status),
        other => Err(failed(format!("the VMM says {other:?}"))),
    }
}

fn resize(socket: &Path, request: Request) -> Result<(), Failure> {
    match ask(socket, request).map_err(failed)? {
        Reply::Done => Ok(()),
        Reply::Error(problem) => Err(failed(format!("the virtual machine: {problem}"))
            .next("it grows up to the --vm-memory-max and --vm-cpus-max that it was started with")),
        other => Err(failed(format!("the VMM says {other:?}"))),
    }
}

/// Waits until the guest has so much. What it has too much it gives back when it can: that is not waited for.
async fn taken(socket: &Path, memory_mib: u32) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let has = status(socket)?.memory_mib;
        if has >= memory_mib {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(failed(format!("the guest has taken {has} MiB of {memory_mib} in all so far")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser;
    use nacre_protocols::host_vmm::State;

    #[test]
    fn a_machine_grows_for_what_is_asked_and_needed_and_no_further() {
        let status = Status {
            state: State::Running,
            pid: 1,
            processors: 1,
            processors_max: 4,
            memory_mib: 512,
            memory_wanted_mib: 512,
            memory_max_mib: 2048,
            uptime_ms: 1,
            devices: Vec::new(),
            notes: Vec::new(),
        };
        for (words, memory_mib, processors) in [
            ("--memory 128m --cpus 0.5", None, None),
            ("--memory 1g --cpus 2.5", Some(1024 + 192), Some(3)),
            ("--memory 1g --vm-memory 600m --vm-cpus 1", Some(600), Some(1)),
            // The limit may be beyond what the machine can have; the container gets what is there.
            ("--memory 4g --cpus 8", Some(2048), Some(4)),
            // Said in so many words, the VMM answers.
            ("--vm-memory 4g --vm-cpus 8", Some(4096), Some(8)),
            ("--pids-limit 5", None, None),
        ] {
            let line = format!("nacre update {words} box");
            let Ok(Cli { command: Command::Update(args) }) = Cli::try_parse_from(line.split(' ')) else {
                panic!("{line}")
            };
            assert_eq!(Size::new(&args, &status), Size { memory_mib, processors }, "{line}");
        }
    }
}
