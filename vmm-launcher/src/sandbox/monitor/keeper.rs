//! The one task of the monitor that has all the state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::detached::{kill_and_remove, look_after};
use crate::client::{Client, ProcessId};
use crate::images::{IMAGE_HOST, ImageServer, ImageSource, sandbox_name};
use crate::sandbox::container_log::LogWriter;
use crate::sandbox::control::{Booted, FromMonitor, Gone, LineReader, LineWriter, Problem, ToMonitor, split};
use crate::sandbox::record::{ContainerRecord, ContainerState, Record, now};
use crate::sandbox::root::Place;
use crate::sandbox::spec;
use crate::vmm::{BootCause, Vm, VmEnd};

/// Most control connections at once.
const CONNECTIONS_MAX: usize = 256;
/// Most lines that wait for one connection.
const QUEUE_MAX: usize = 16;
/// How long the guest may take to sync and power off before it is killed.
const POWER_OFF_GRACE: Duration = Duration::from_secs(3);
/// How long connections get to read the last line.
const FAREWELL: Duration = Duration::from_millis(500);

pub enum Event {
    Connected(UnixStream),
    Said(u64, ToMonitor),
    Closed(u64),
    /// A container that the monitor looked after has ended and is removed.
    ContainerEnded {
        container: String,
        code: u8,
    },
    VmEnded(VmEnd),
    /// The guest had its time to power off.
    GraceOver,
    Stop,
}

/// The one owner of the sandbox.
pub struct Keeper {
    place: Place,
    record: Record,
    images: ImageServer,
    client: Client,
    vm: Option<Arc<Vm>>,
    booted: Booted,
    events: mpsc::Sender<Event>,
    connections: HashMap<u64, Connection>,
    /// Connections that wait for the end of a container.
    waiters: Vec<(u64, String)>,
    /// The command that started the sandbox is there and has not held a container yet.
    first_is_open: bool,
    /// A container was started, or the disk is kept, so the guest may have something to write back.
    has_run: bool,
    ending: bool,
}

struct Connection {
    lines: mpsc::Sender<FromMonitor>,
    container: Option<String>,
    execs: Vec<ProcessId>,
}

/// The connection of the command that started the sandbox.
const FIRST: u64 = 0;

impl Keeper {
    pub fn new(
        place: Place,
        record: Record,
        images: ImageServer,
        client: Client,
        vm: Arc<Vm>,
        booted: Booted,
        events: mpsc::Sender<Event>,
    ) -> Self {
        // What is on a kept disk is for a later sandbox.
        let has_run = record.store.is_some();
        Self {
            place,
            record,
            images,
            client,
            vm: Some(vm),
            booted,
            events,
            connections: HashMap::new(),
            waiters: Vec::new(),
            first_is_open: true,
            has_run,
            ending: false,
        }
    }

    /// Until the VM has ended; then nothing of the sandbox is left but what was to be kept.
    pub async fn serve(mut self, mut events: mpsc::Receiver<Event>, first: (LineReader, LineWriter)) {
        let mut next = FIRST;
        self.connect(next, first);
        self.say(FIRST, FromMonitor::Booted(Box::new(self.booted.clone())));
        while let Some(event) = events.recv().await {
            match event {
                Event::Connected(stream) if self.connections.len() < CONNECTIONS_MAX => {
                    next += 1;
                    self.connect(next, split(stream));
                }
                Event::Connected(_) => {}
                Event::Said(connection, message) => self.heard(connection, message).await,
                Event::Closed(connection) => self.closed(connection),
                Event::ContainerEnded { container, code } => self.container_ended(&container, code),
                Event::Stop => self.end(),
                Event::GraceOver => self.kill(),
                Event::VmEnded(end) => return self.vm_ended(end).await,
            }
            self.end_if_unused();
        }
    }

    fn connect(&mut self, id: u64, (mut reader, mut writer): (LineReader, LineWriter)) {
        let (lines, mut queue) = mpsc::channel(QUEUE_MAX);
        self.connections.insert(id, Connection { lines, container: None, execs: Vec::new() });
        tokio::spawn(async move {
            while let Some(line) = queue.recv().await {
                if writer.send(&line).await.is_err() {
                    return;
                }
            }
        });
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = reader.next().await {
                if events.send(Event::Said(id, message)).await.is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Closed(id)).await;
        });
    }

    /// A connection that does not read is cut off rather than waited for.
    fn say(&mut self, connection: u64, message: FromMonitor) {
        let Some(known) = self.connections.get(&connection) else { return };
        if known.lines.try_send(message).is_err() {
            self.closed(connection);
        }
    }

    async fn heard(&mut self, connection: u64, message: ToMonitor) {
        let reply = match message {
            ToMonitor::Boot(_) => Some(refused("it is booted")),
            ToMonitor::ServeImage { image } => Some(self.serve_image(&image)),
            ToMonitor::Hold(container) => Some(self.hold(connection, *container)),
            ToMonitor::Started(container) => {
                if let Some(known) = self.record.container_mut(&container.name) {
                    *known = ContainerRecord { state: ContainerState::Running, ..*container };
                    self.has_run = true;
                }
                self.write_record();
                Some(FromMonitor::Done)
            }
            ToMonitor::Ended { container, code } => {
                if self.release(connection, &container) {
                    self.container_ended(&container, code);
                }
                let used = self.record.containers.iter().any(ContainerRecord::is_live);
                Some(if used { FromMonitor::StillUsed } else { FromMonitor::Done })
            }
            ToMonitor::Adopt { container } => Some(self.adopt(connection, &container)),
            ToMonitor::HoldExec { container, exec } => {
                if let Some(known) = self.connections.get_mut(&connection) {
                    known.execs.push(ProcessId { container, exec });
                }
                Some(FromMonitor::Done)
            }
            ToMonitor::ExecEnded { exec } => {
                if let Some(known) = self.connections.get_mut(&connection) {
                    known.execs.retain(|held| held.exec != exec);
                }
                Some(FromMonitor::Done)
            }
            ToMonitor::Wait { container } => self.wait(connection, container),
            ToMonitor::Stop => {
                self.end();
                Some(FromMonitor::Done)
            }
        };
        if let Some(reply) = reply {
            self.say(connection, reply);
        }
    }

    fn serve_image(&self, image: &str) -> FromMonitor {
        let opened = ImageSource::parse(image).and_then(|source| Ok((source.open()?, source)));
        let (files, source) = match opened {
            Err(error) => return refused(&error.to_string()),
            Ok((None, _)) => return refused("that image is in a registry"),
            Ok((Some(files), source)) => (files, source),
        };
        let name = sandbox_name(&source, files.root());
        match (self.images.add(files), name) {
            (Ok(repository), Some(reference)) => {
                let host = format!("{}:{}", IMAGE_HOST, self.images.port());
                FromMonitor::Reference { reference, location: format!("{host}/{repository}"), host }
            }
            (Err(error), _) => refused(&error.to_string()),
            (_, None) => refused("that image is in a registry"),
        }
    }

    fn hold(&mut self, connection: u64, container: ContainerRecord) -> FromMonitor {
        if self.ending {
            return refused("the sandbox is ending");
        }
        if self.record.container(&container.name).is_some_and(|known| known.is_live()) {
            return refused(&format!("the name {:?} is taken in this sandbox", container.name));
        }
        let Some(known) = self.connections.get_mut(&connection) else { return refused("not connected") };
        if known.container.is_some() {
            return refused("this connection has a container");
        }
        known.container = Some(container.name.clone());
        if connection == FIRST {
            self.first_is_open = false;
        }
        self.record.containers.retain(|old| old.name != container.name);
        self.record.containers.push(container);
        self.write_record();
        FromMonitor::Done
    }

    /// True if the connection held the container.
    fn release(&mut self, connection: u64, container: &str) -> bool {
        let held = self.connections.get_mut(&connection).map(|known| &mut known.container);
        match held {
            Some(held) if held.as_deref() == Some(container) => {
                *held = None;
                true
            }
            _ => false,
        }
    }

    fn adopt(&mut self, connection: u64, container: &str) -> FromMonitor {
        let log = match LogWriter::create(&self.place.container_log(container)) {
            Ok(log) => log,
            Err(error) => return refused(&format!("make the log: {error}")),
        };
        if !self.release(connection, container) {
            return refused("this connection does not hold the container");
        }
        if let Some(known) = self.record.container_mut(container) {
            known.detached = true;
        }
        self.set_state(container, ContainerState::Running);
        let (client, events, container) = (self.client.clone(), self.events.clone(), container.to_owned());
        tokio::spawn(async move {
            let code = look_after(&client, &container, log).await;
            let _ = events.send(Event::ContainerEnded { container, code }).await;
        });
        FromMonitor::Done
    }

    fn wait(&mut self, connection: u64, container: String) -> Option<FromMonitor> {
        match self.record.container(&container).map(|known| known.state) {
            None => Some(refused("there is no such container")),
            Some(ContainerState::Exited { code, .. }) => Some(FromMonitor::Exited { code }),
            Some(_) => {
                self.waiters.push((connection, container));
                None
            }
        }
    }

    /// What the connection held dies with it.
    fn closed(&mut self, connection: u64) {
        let Some(known) = self.connections.remove(&connection) else { return };
        self.waiters.retain(|(waiter, _)| *waiter != connection);
        if connection == FIRST {
            self.first_is_open = false;
        }
        if self.ending {
            return;
        }
        for exec in known.execs {
            let client = self.client.clone();
            tokio::spawn(async move { client.signal(&exec, spec::SIGKILL).await });
        }
        let Some(container) = known.container else { return };
        let others = self.record.containers.iter().any(|other| other.is_live() && other.name != container);
        if !others {
            // The whole sandbox was for this one.
            self.set_state(&container, exited(KILLED));
            return;
        }
        let (client, events) = (self.client.clone(), self.events.clone());
        tokio::spawn(async move {
            let code = kill_and_remove(&client, &container).await;
            let _ = events.send(Event::ContainerEnded { container, code }).await;
        });
    }

    fn container_ended(&mut self, container: &str, code: u8) {
        self.set_state(container, exited(code));
        let (told, waiters) =
            std::mem::take(&mut self.waiters).into_iter().partition(|(_, name)| name == container);
        self.waiters = waiters;
        let told: Vec<(u64, String)> = told;
        for (connection, _) in told {
            self.say(connection, FromMonitor::Exited { code });
        }
        if self.record.container(container).is_some_and(|known| !known.keep) {
            self.record.containers.retain(|known| known.name != container);
            self.write_record();
            let _ = std::fs::remove_file(self.place.container_log(container));
        }
    }

    fn set_state(&mut self, container: &str, state: ContainerState) {
        if let Some(known) = self.record.container_mut(container) {
            known.state = state;
        }
        self.write_record();
    }

    /// The record is for others; a full disk must not end the sandbox.
    fn write_record(&self) {
        if let Err(error) = self.record.write(self.place.path()) {
            eprintln!("nacre monitor: write sandbox.json: {error}");
        }
    }

    fn end_if_unused(&mut self) {
        if !self.first_is_open && !self.record.containers.iter().any(ContainerRecord::is_live) {
            self.end();
        }
    }

    /// Asks the guest to power off, and makes sure that it does.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ending, true) {
            return;
        }
        if !self.has_run {
            return self.kill();
        }
        let (client, events) = (self.client.clone(), self.events.clone());
        tokio::spawn(async move {
            let asked = client.destroy_sandbox(POWER_OFF_GRACE).await;
            if asked.is_ok() {
                tokio::time::sleep(POWER_OFF_GRACE).await;
            }
            let _ = events.send(Event::GraceOver).await;
        });
    }

    fn kill(&self) {
        if let Some(vm) = &self.vm {
            vm.kill();
        }
    }

    async fn vm_ended(mut self, end: VmEnd) {
        self.client.close();
        let gone = if self.ending { Gone::Orderly } else { self.died(end) };
        // Kills what is left of it: passt, device threads, sockets. Drop it where blocking is allowed.
        let vm = self.vm.take();
        let _ = tokio::task::spawn_blocking(move || drop(vm)).await;
        let _ = std::fs::remove_file(self.place.control_socket());
        for container in &mut self.record.containers {
            if container.is_live() {
                container.state = exited(KILLED);
            }
        }
        if self.record.is_kept() {
            self.record.containers.retain(|container| container.keep);
            (self.record.vmm, self.record.vsock) = (None, None);
            self.write_record();
        } else if let Err(error) = self.place.remove() {
            eprintln!("nacre monitor: {error}");
        }
        let lines: Vec<_> = self.connections.drain().map(|(_, connection)| connection.lines).collect();
        for line in &lines {
            let _ = line.try_send(FromMonitor::Gone(gone.clone()));
        }
        // The queues are read by tasks of this thread: give them the time to write.
        let _ = tokio::time::timeout(FAREWELL, async {
            while lines.iter().any(|line| line.capacity() < QUEUE_MAX) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::task::yield_now().await;
        })
        .await;
    }

    fn died(&self, end: VmEnd) -> Gone {
        let Some(vm) = &self.vm else { return Gone::Orderly };
        let failure = vm.failure("running", BootCause::Ended(end));
        let console = failure
            .notes
            .iter()
            .map(|note| format!("device: {note}"))
            .chain(failure.console.clone())
            .collect();
        Gone::Died(Problem {
            stage: "the sandbox".into(),
            cause: failure.cause.to_string(),
            console,
            next_step: failure.next_step().into(),
        })
    }
}

/// What a container's exit code is when nobody saw its end.
pub const KILLED: u8 = 137;

fn exited(code: u8) -> ContainerState {
    ContainerState::Exited { code, at: now() }
}

fn refused(reason: &str) -> FromMonitor {
    FromMonitor::Refused { reason: reason.to_owned() }
}
