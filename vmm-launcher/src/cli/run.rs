//! `nacre run`: a sandbox, an image, a container, its end.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::args::Run;
use super::attach::attach;
use super::error::Failure;
use super::plan::{Place as Where, Plan};
use super::progress::{Progress, Timings};
use super::{exit, find};
use crate::client::{Client, ProcessId, printable_lines};
use crate::images::{IMAGE_HOST, ImageSource};
use crate::sandbox::session::{self, Pulled, SessionError, Wanted};
use crate::sandbox::spec::{ProcessDefaults, container_spec};
use crate::sandbox::{
    ContainerRecord, ContainerState, Control, FromMonitor, Gone, GuestNetwork, Launched, Place, Record,
    StateRoot, ToMonitor, launch,
};

/// Lines of the console that an error shows.
const CONSOLE_LINES: usize = 20;
/// Longest line of it, in characters.
const CONSOLE_WIDTH: usize = 200;
/// Read of the end of the console's log, in bytes.
const CONSOLE_TAIL: u64 = 64 * 1024;
/// How long a sandbox may take to be gone.
const END_GRACE: Duration = Duration::from_secs(20);

pub async fn run(args: Run) -> Result<u8, Failure> {
    let quiet = args.quiet;
    let timings_file = args.timings.clone();
    let plan = Plan::new(args)?;
    let mut progress = Progress::new(quiet);
    for notice in &plan.notices {
        progress.note(notice);
    }
    let mut timings = Timings::default();
    let mut sandbox = Sandbox::open(&plan, &mut progress).await?;
    let started = tokio::select! {
        started = start(&plan, &sandbox, &mut progress, &mut timings) => started,
        gone = sandbox.control.gone() => Err(sandbox.died(gone)),
        number = interrupted() => Err(Failure::new("start", "interrupted").with_code(128 + number)),
    };
    let container = match started {
        Ok(container) => container,
        Err(failure) => {
            progress.clear();
            let failure = sandbox.explain(failure).await;
            sandbox.abandon().await;
            return Err(failure);
        }
    };
    if let Some(path) = timings_file {
        write_timings(&path, &timings, &sandbox).await;
    }
    progress.done(&timings, sandbox.monitor.is_some());
    if plan.detach {
        return hand_over(&plan, &sandbox).await;
    }
    let ended = tokio::select! {
        ended = attach(&sandbox.client, &container, plan.streams) => {
            ended.map_err(|source| Failure::from_session("run", SessionError::Agent { action: "run the command", source }))
        }
        gone = sandbox.control.gone() => Err(sandbox.died(gone)),
    };
    match ended {
        Ok(code) => {
            sandbox.finish(&plan.name, code).await;
            Ok(code)
        }
        Err(failure) => {
            let failure = sandbox.explain(failure).await;
            sandbox.abandon().await;
            Err(failure)
        }
    }
}

/// Until the container's command runs.
async fn start(
    plan: &Plan,
    sandbox: &Sandbox,
    progress: &mut Progress,
    timings: &mut Timings,
) -> Result<ProcessId, Failure> {
    let record = plan.record(&Pulled::default(), &ProcessDefaults::default());
    sandbox.control.order(&ToMonitor::Hold(Box::new(record))).await?;
    bring_up(plan, sandbox, progress, timings).await?;
    let (wanted, pulled) = pull_image(plan, sandbox, progress, timings).await?;

    progress.stage("start");
    sandbox.stage.set("start");
    let begun = Instant::now();
    let (spec, defaults) = container_spec(&plan.name, &pulled.process, &plan.settings)
        .map_err(|error| Failure::new("start", error))?;
    session::create(&sandbox.client, &plan.name, &wanted.reference, spec)
        .await
        .map_err(|error| Failure::from_session("start", error))?;
    // Before the first output of the container can come.
    progress.clear();
    session::start(&sandbox.client, &plan.name)
        .await
        .map_err(|error| Failure::from_session("start", error))?;
    timings.start = begun.elapsed();
    sandbox.stage.set("run");
    let record = plan.record(&pulled, &defaults);
    sandbox.control.order(&ToMonitor::Started(Box::new(record))).await?;
    Ok(ProcessId::first(&plan.name))
}

/// A new sandbox, ready to pull.
pub(super) async fn bring_up(
    plan: &Plan,
    sandbox: &Sandbox,
    progress: &mut Progress,
    timings: &mut Timings,
) -> Result<(), Failure> {
    if sandbox.monitor.is_none() {
        return Ok(());
    }
    progress.stage("boot: waiting for the agent");
    let up = sandbox.client.wait_until_up(plan.boot_timeout).await;
    up.map_err(|error| sandbox.boot_failed(&error, plan.boot_timeout))?;
    timings.boot = sandbox.opened.elapsed();
    progress.stage("agent: clock and network");
    sandbox.stage.set("agent");
    let begun = Instant::now();
    let shares = !plan.settings.volumes.is_empty();
    session::prepare(&sandbox.client, &plan.name, &plan.settings.hostname, sandbox.network.as_ref(), shares)
        .await
        .map_err(|error| Failure::from_session("agent", error))?;
    timings.agent = begun.elapsed();
    Ok(())
}

pub(super) async fn pull_image(
    plan: &Plan,
    sandbox: &Sandbox,
    progress: &mut Progress,
    timings: &mut Timings,
) -> Result<(Wanted, Pulled), Failure> {
    progress.stage("pull: manifest");
    sandbox.stage.set("pull");
    let begun = Instant::now();
    let wanted = sandbox.wanted(plan).await?;
    let pulled =
        session::pull(&sandbox.client, &sandbox.pull, &wanted, |state| progress.pull(state))
            .await
            .map_err(|error| Failure::from_session("pull", error).named(&wanted.reference, &plan.image))?;
    timings.pull = begun.elapsed();
    (timings.layers, timings.present, timings.bytes) = (pulled.layers, pulled.present, pulled.bytes);
    Ok((wanted, pulled))
}

/// Detached: the container is the monitor's from now on.
async fn hand_over(plan: &Plan, sandbox: &Sandbox) -> Result<u8, Failure> {
    if !plan.streams.interactive && !plan.streams.terminal {
        // Without it, a command that reads would wait for ever.
        let _ = sandbox.client.close_stdin(&ProcessId::first(&plan.name)).await;
    }
    sandbox.control.order(&ToMonitor::Adopt { container: plan.name.clone() }).await?;
    println!("{}", plan.name);
    Ok(0)
}

async fn write_timings(path: &std::path::Path, timings: &Timings, sandbox: &Sandbox) {
    let mut document = timings.json();
    document["kvm"] = sandbox.kvm.into();
    if let Ok(report) = sandbox.client.report().await {
        document["guest_boot_us"] =
            report.boot.iter().map(|stage| serde_json::json!([stage.name, stage.end_us])).collect();
        document["guest_processes"] = report
            .processes
            .iter()
            .map(|process| {
                serde_json::json!({
                    "name": process.name,
                    "resident_kib": process.resident_kib,
                    "anonymous_kib": process.anonymous_kib,
                })
            })
            .collect();
    }
    if let Err(error) = std::fs::write(path, format!("{document:#}\n")) {
        eprintln!("nacre: write {}: {error}", path.display());
    }
}

/// A signal that ends a start that is under way; returns its number.
///
/// Signals count from this call on, not from when the future is first waited for.
pub(super) fn interrupted() -> impl Future<Output = u8> {
    let streams =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    async move {
        let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = streams else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
        }
    }
}

/// The sandbox that the container goes into, new or not.
pub(super) struct Sandbox {
    pub(super) control: Control,
    pub(super) client: Client,
    place: Place,
    network: Option<GuestNetwork>,
    /// The host's loopback as the sandbox reaches it, and on which ports.
    host_address: Option<String>,
    host_ports: Vec<u16>,
    kvm: bool,
    /// The id of the pull.
    pull: String,
    /// Of a new sandbox.
    monitor: Option<Child>,
    opened: Instant,
    /// What is under way, for whoever has to say that it failed.
    stage: Cell<&'static str>,
}

impl Sandbox {
    pub(super) async fn open(plan: &Plan, progress: &mut Progress) -> Result<Self, Failure> {
        match &plan.place {
            Where::New(machine) => {
                progress.stage("boot: starting the virtual machine");
                let opened = Instant::now();
                let directory = StateRoot::open()?.create(&plan.name)?;
                let Launched { place, control, booted, monitor } = launch(directory, machine.clone()).await?;
                for notice in &booted.notices {
                    progress.note(notice);
                }
                Ok(Self {
                    control,
                    client: Client::new(&booted.vsock),
                    place,
                    host_address: booted.network.as_ref().map(|network| network.host_address.clone()),
                    // What was asked for is what is let through.
                    host_ports: machine.loopback_ports.clone(),
                    network: booted.network,
                    kvm: booted.kvm,
                    pull: session::unique_id("pull"),
                    monitor: Some(monitor),
                    opened,
                    stage: Cell::new("boot"),
                })
            }
            Where::In(name) => {
                let target = find::live(name).map_err(|failure| failure.with_code(exit::OWN_FAILURE))?;
                let record: Record = target.record.clone();
                Ok(Self {
                    control: target.control().await?,
                    client: target.client()?,
                    place: target.sandbox.place,
                    network: None,
                    host_address: record.host_address,
                    host_ports: record.host_ports,
                    kvm: false,
                    pull: session::unique_id("pull"),
                    monitor: None,
                    opened: Instant::now(),
                    stage: Cell::new("pull"),
                })
            }
        }
    }

    /// What the sandbox is told to pull: a registry's image as it is, files of this host through the image server.
    async fn wanted(&self, plan: &Plan) -> Result<Wanted, Failure> {
        let mut wanted = plan.wanted.clone();
        let host_address = || {
            self.host_address.clone().ok_or_else(|| {
                Failure::new("pull", "the sandbox's network does not reach this host")
                    .next("run `nacre doctor`")
            })
        };
        if !matches!(plan.source, ImageSource::Registry(_)) {
            let asked = self.control.ask(&ToMonitor::ServeImage { image: plan.image.clone() }).await;
            match asked.map_err(|error| Failure::new("pull", format!("{}: {error}", plan.image)))? {
                FromMonitor::Reference { reference, location, host } => {
                    (wanted.reference, wanted.location) = (reference, location);
                    wanted.insecure.push(host);
                    wanted.aliases.push((IMAGE_HOST.to_owned(), host_address()?));
                }
                _ => return Err(Failure::new("pull", "the monitor gave a wrong answer")),
            }
        }
        for there in &plan.loopback {
            if !there.ports.iter().all(|port| self.host_ports.contains(port)) {
                let cause = format!(
                    "the sandbox was started without a way to {} of this host",
                    there.host.authority()
                );
                return Err(Failure::new("pull", cause)
                    .next("run the container in a sandbox of its own, without --in"));
            }
            if there.is_registry {
                wanted.insecure.push(there.host.authority());
            }
            wanted.aliases.push((there.host.host.clone(), host_address()?));
        }
        Ok(wanted)
    }

    fn boot_failed(&self, error: &crate::client::ClientError, limit: Duration) -> Failure {
        let mut failure = Failure::new("boot", format!("no agent within {} s: {error}", limit.as_secs()))
            .next("try --accel tcg if KVM is in use, or a longer --boot-timeout on a slow host");
        failure.console = self.console();
        failure
    }

    fn console(&self) -> Vec<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut tail = Vec::new();
        if let Ok(mut file) = std::fs::File::open(self.place.console_log()) {
            let length = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL)));
            let _ = file.take(CONSOLE_TAIL).read_to_end(&mut tail);
        }
        printable_lines(&tail, CONSOLE_LINES, CONSOLE_WIDTH)
    }

    pub(super) fn died(&self, gone: Option<Gone>) -> Failure {
        match gone {
            Some(Gone::Died(problem)) => Failure::died(self.stage.get(), problem),
            Some(Gone::Orderly) => Failure::new(self.stage.get(), "the sandbox was ended from outside"),
            None => Failure::new(self.stage.get(), "the sandbox's monitor was killed")
                .next("if the host ran out of memory, dmesg says so"),
        }
    }

    /// A lost connection is often the first sign of a dead VM; the monitor knows more.
    pub(super) async fn explain(&self, failure: Failure) -> Failure {
        if !failure.lost {
            return failure;
        }
        match tokio::time::timeout(Duration::from_millis(500), self.control.gone()).await {
            Ok(gone) => self.died(gone),
            Err(_) => failure,
        }
    }

    /// The container has ended by itself.
    async fn finish(self, container: &str, code: u8) {
        if let Err(error) = session::remove(&self.client, container).await {
            eprintln!("nacre: {error}");
        }
        let ended = ToMonitor::Ended { container: container.to_owned(), code };
        if let Ok(FromMonitor::Done) = self.control.ask(&ended).await {
            let _ = tokio::time::timeout(END_GRACE, self.control.gone()).await;
            self.reap().await;
        }
    }

    /// The connection is the lifeline: the monitor ends what it holds.
    pub(super) async fn abandon(&mut self) {
        let Some(monitor) = self.monitor.take() else {
            // The sandbox lives on without us; a pull that goes on is nobody's. There may be none, and that is as good.
            let _ = self.client.cancel_pull(&self.pull).await;
            return;
        };
        let _ = self.control.tell(&ToMonitor::Stop).await;
        let _ = tokio::time::timeout(END_GRACE, self.control.gone()).await;
        reap(monitor).await;
        // Whatever a killed monitor has left.
        if let Ok(root) = StateRoot::open() {
            let _ = root.list();
        }
    }

    async fn reap(mut self) {
        if let Some(monitor) = self.monitor.take() {
            reap(monitor).await;
        }
    }
}

async fn reap(mut monitor: Child) {
    let waited = tokio::task::spawn_blocking(move || monitor.wait());
    let _ = tokio::time::timeout(END_GRACE, waited).await;
}

impl Plan {
    fn record(&self, pulled: &Pulled, defaults: &ProcessDefaults) -> ContainerRecord {
        let mut command = self.settings.command.clone();
        if command.is_empty() {
            command = pulled.process.entrypoint.iter().chain(&pulled.process.command).cloned().collect();
        }
        ContainerRecord {
            name: self.name.clone(),
            image: self.image.clone(),
            command,
            created: crate::sandbox::now(),
            state: ContainerState::Created,
            detached: self.detach,
            keep: self.keep,
            stop_signal: pulled.process.stop_signal.clone(),
            defaults: defaults.clone(),
        }
    }
}

/// A path of the command line for the monitor, which works in another directory.
pub fn absolute(path: &std::path::Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new("arguments", format!("{}: {error}", path.display())))
}
