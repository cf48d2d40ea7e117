//! The monitor: a process of its own that owns the VM of one sandbox, its devices, its network and the image server.
//!
//! `nacre` starts it as `nacre monitor DIRECTORY`, with the first control connection as standard input and the sandbox's
//! lock as standard output. It ends when nobody needs the sandbox any more, and leaves nothing behind. One task, the
//! keeper, has all the state; everything else sends it events.

mod detached;
mod keeper;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use keeper::{Event, Keeper};

use super::control::{Booted, FromMonitor, Problem, ToMonitor, split};
use super::machine::{GuestNetwork, MachineConfig};
use super::record::Record;
use super::root::Place;
use crate::client::Client;
use crate::images::ImageServer;
use crate::vmm::Vm;

/// Most events that wait for the keeper.
const EVENTS_MAX: usize = 256;

/// The whole life of the monitor.
pub fn run(directory: PathBuf) -> ExitCode {
    let result = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let result = runtime.block_on(live(Place::new(directory)));
        // Threads that wait for the VM have nothing to say any more.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre monitor: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn live(place: Place) -> io::Result<()> {
    let (first, lock) = inherited()?;
    // Whoever types this command by hand must not lose a directory.
    if !place.is_held_by(&lock)? {
        return Err(io::Error::other("standard output is not the lock of that directory"));
    }
    // It was started by way of /proc/self/exe, and would be called "exe" in every list of processes.
    let _ = rustix::thread::set_name(c"nacre-monitor");
    // Not in the terminal's session: its signals are for the command.
    let _ = rustix::process::setsid();
    let (mut reader, mut writer) = split(UnixStream::from_std(first)?);
    let Some(ToMonitor::Boot(config)) = reader.next().await? else {
        return place.remove().map_err(io::Error::other);
    };
    match boot(&place, *config).await {
        Err(problem) => {
            let removed = place.remove();
            drop(lock);
            writer.send(&FromMonitor::Failed(problem)).await?;
            removed.map_err(io::Error::other)
        }
        Ok((keeper, events)) => {
            keeper.serve(events, (reader, writer)).await;
            drop(lock);
            Ok(())
        }
    }
}

/// Takes the first connection and the lock off the standard streams, which become `/dev/null`.
fn inherited() -> io::Result<(std::os::unix::net::UnixStream, OwnedFd)> {
    let take = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let stream = std::os::unix::net::UnixStream::from(take(rustix::stdio::stdin())?);
    let lock = take(rustix::stdio::stdout())?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    stream.set_nonblocking(true)?;
    Ok((stream, lock))
}

async fn boot(place: &Place, config: MachineConfig) -> Result<(Keeper, mpsc::Receiver<Event>), Problem> {
    let images = ImageServer::start().map_err(|error| problem("starting the image server", &error))?;
    let vm_config = config.vm_config(place, images.port());
    let vm = tokio::task::spawn_blocking(move || Vm::start(vm_config))
        .await
        .map_err(|error| problem("starting the VM", &error))?
        .map_err(|error| problem("starting the VM", &error))?;
    let vm = Arc::new(vm);
    let listener = UnixListener::bind(place.control_socket())
        .map_err(|error| problem("listening on the control socket", &error))?;
    let mut record = Record::new(&config.name);
    let network = vm.guest_net().map(GuestNetwork::from);
    record.vmm = Some(vm.vmm_pid());
    record.vsock = Some(vm.vsock_path().to_owned());
    record.host_address = network.as_ref().map(|network| network.host_address.clone());
    record.host_ports = config.loopback_ports.iter().copied().chain([images.port()]).collect();
    record.store = config.scratch.store().map(str::to_owned);
    record.write(place.path()).map_err(|error| problem("writing sandbox.json", &error))?;
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    watch_vm(&vm, &sender);
    watch_signals(&sender).map_err(|error| problem("watching signals", &error))?;
    tokio::spawn(accept(listener, sender.clone()));
    let client = Client::new(vm.vsock_path());
    let booted =
        Booted { vsock: vm.vsock_path().to_owned(), network, notices: vm.notices(), kvm: vm.uses_kvm() };
    let keeper = Keeper::new(place.clone(), record, images, client, vm, booted, sender);
    Ok((keeper, events))
}

/// A thread of its own: QEMU's end must be seen whatever else goes on.
fn watch_vm(vm: &Arc<Vm>, events: &mpsc::Sender<Event>) {
    let (vm, events) = (Arc::clone(vm), events.clone());
    tokio::task::spawn_blocking(move || {
        let end = vm.wait();
        // The last owner of the VM must be the keeper.
        drop(vm);
        let _ = events.blocking_send(Event::VmEnded(end));
    });
}

fn watch_signals(events: &mpsc::Sender<Event>) -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let (mut signals, events) = (signal(kind)?, events.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = events.send(Event::Stop).await;
            }
        });
    }
    Ok(())
}

async fn accept(listener: UnixListener, events: mpsc::Sender<Event>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if events.send(Event::Connected(stream)).await.is_err() {
                    return;
                }
            }
            // Out of descriptors: never spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn problem(stage: &str, error: &dyn std::error::Error) -> Problem {
    let mut cause = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        cause = format!("{cause}: {error}");
        source = error.source();
    }
    Problem { stage: stage.to_owned(), cause, console: Vec::new(), next_step: "run `nacre doctor`".into() }
}
