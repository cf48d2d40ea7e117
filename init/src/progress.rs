//! What launchers report and how children end: the replies that could not be given at once.

use crate::agent::failure;
use crate::console::say;
use crate::launch::Purpose;
use crate::requests::stdio_fds;
use crate::serve::{Init, decode_status};
use crate::table::{Container, State};
use nacre_protocols::agent_init::{
    Event, ExitStatus, Failure, FailureKind, InterfaceState, NetworkState, ProcessRef, ReplyBody, RouteState,
    Usage,
};
use nacre_protocols::init_launcher::{
    InterfaceFound, LaunchFailure, LaunchStage, Mode, Outcome, Plan, RouteFound, Status, StorageStep,
};
use nacre_sys::seqpacket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long a container's processes may take to go after SIGKILL.
const REMOVAL_MAX: Duration = Duration::from_secs(10);

impl Init {
    /// Reads what a launcher has reported, to the end of what is there.
    pub(crate) fn launch_progress(&mut self, number: u64) {
        while let Some(launch) = self.launches.get_mut(&number) {
            match seqpacket::try_receive(&launch.status, &mut self.frame) {
                Ok(Some((length, fds))) => {
                    launch.answered = true;
                    let purpose = launch.purpose.clone();
                    match decode_status(&self.frame, length) {
                        Some(status) => self.reported(&purpose, status, fds),
                        None => return self.launch_closed(number),
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.launch_closed(number),
            }
        }
    }

    fn reported(&mut self, purpose: &Purpose, status: Status, fds: Vec<OwnedFd>) {
        match (purpose, status) {
            (Purpose::Process { container, exec }, Status::Ready) => self.process_ready(container, exec, fds),
            (Purpose::Process { container, exec }, Status::Failed(error)) => {
                self.process_failed(container, exec, launch_failure(error));
            }
            (Purpose::Storage { tag }, Status::Done(outcome)) => {
                let body = match outcome {
                    Outcome::Usage { bytes, inodes } => {
                        ReplyBody::Usage { bytes: usage(bytes), inodes: usage(inodes) }
                    }
                    Outcome::Content { bytes } => ReplyBody::Content(bytes),
                    Outcome::Applied | Outcome::Network { .. } => ReplyBody::Done,
                };
                self.reply(*tag, Ok(body));
            }
            (Purpose::Network { tag }, Status::Done(Outcome::Network { interfaces, routes })) => {
                let routes = routes.into_iter().map(route_state).collect();
                let interfaces = interfaces.into_iter().map(interface_state).collect();
                self.reply(*tag, Ok(ReplyBody::Network(NetworkState { interfaces, routes })));
            }
            (Purpose::Update { tag }, Status::Done(_)) => self.reply(*tag, Ok(ReplyBody::Done)),
            (Purpose::Network { tag }, Status::Done(_)) => {
                self.reply(*tag, Ok(ReplyBody::Network(NetworkState::default())));
            }
            (
                Purpose::Storage { tag } | Purpose::Network { tag } | Purpose::Update { tag },
                Status::Failed(error),
            ) => self.reply(*tag, Err(launch_failure(error))),
            (Purpose::RemoveFiles { container }, Status::Done(_)) => self.removal_ended(container, None),
            (Purpose::RemoveFiles { container }, Status::Failed(error)) => {
                self.removal_ended(container, Some(launch_failure(error)));
            }
            (Purpose::Helper { name }, Status::Failed(error)) => {
                say(&format!("the {name} did not start: {}", error.message));
            }
            // A frame that does not belong to the mode says nothing; the end of the socket answers.
            (Purpose::Helper { .. }, _)
            | (Purpose::Process { .. }, Status::Done(_))
            | (_, Status::Ready | Status::Prepared) => {}
        }
    }

    /// A container is at its gate, or an exec is about to execute (the end of the socket says that it has).
    fn process_ready(&mut self, container: &str, exec: &str, fds: Vec<OwnedFd>) {
        let Some(process) = self.containers.get_mut(container).and_then(|c| c.processes.get_mut(exec)) else {
            return;
        };
        if process.terminal {
            process.stdio.input = fds.into_iter().next();
        }
        let State::Launching { tag } = process.state else { return };
        if exec.is_empty() {
            process.state = State::Created;
            let body = ReplyBody::Created { pid: process.pid };
            if let Some(agent) = self.agent.as_mut() {
                agent.reply(tag, Ok(body), &stdio_fds(&process.stdio));
            }
        }
    }

    /// The launcher gave up. An exec is gone; a container that was not created, too; one that was, but whose command
    /// cannot be executed, has exited.
    fn process_failed(&mut self, container: &str, exec: &str, why: Failure) {
        let Some(process) = self.containers.get_mut(container).and_then(|c| c.processes.get_mut(exec)) else {
            return;
        };
        match process.state {
            State::Launching { tag } => {
                self.reply(tag, Err(why));
                self.drop_unborn(container, exec);
            }
            State::Starting { tag } => {
                let code = if why.kind == FailureKind::CommandNotFound { 127 } else { 126 };
                process.state = State::Exited(ExitStatus { code, out_of_memory: false });
                self.reply(tag, Err(why));
            }
            State::Created | State::Running | State::Exited(_) => {}
        }
    }

    /// Its end: for a process, after the gate opened, the exec itself.
    fn launch_closed(&mut self, number: u64) {
        let Some(launch) = self.forget_launch(number) else { return };
        let died = || failure(FailureKind::System, "the launcher died");
        match launch.purpose {
            Purpose::Process { container, exec } => {
                let Some(process) =
                    self.containers.get_mut(&container).and_then(|c| c.processes.get_mut(&exec))
                else {
                    return;
                };
                match process.state {
                    State::Starting { tag } => {
                        process.state = State::Running;
                        self.reply(tag, Ok(ReplyBody::Done));
                    }
                    State::Launching { tag } if launch.answered => {
                        process.state = State::Running;
                        let body = ReplyBody::Created { pid: process.pid };
                        if let Some(agent) = self.agent.as_mut() {
                            agent.reply(tag, Ok(body), &stdio_fds(&process.stdio));
                        }
                    }
                    State::Launching { tag } => {
                        let out_of_memory = self.out_of_memory(&container);
                        let why = if out_of_memory {
                            failure(
                                FailureKind::System,
                                "the container's memory limit is too small to start it",
                            )
                        } else {
                            died()
                        };
                        self.reply(tag, Err(why));
                        self.drop_unborn(&container, &exec);
                    }
                    State::Created | State::Running | State::Exited(_) => {}
                }
            }
            Purpose::Storage { tag } | Purpose::Network { tag } | Purpose::Update { tag }
                if !launch.answered =>
            {
                self.reply(tag, Err(died()));
            }
            Purpose::RemoveFiles { container } if !launch.answered => {
                self.removal_ended(&container, Some(died()));
            }
            _ => {}
        }
    }

    /// A process that never came to be. Its launcher may still be there: a container's goes with its cgroup.
    fn drop_unborn(&mut self, container: &str, exec: &str) {
        if !exec.is_empty() {
            if let Some(container) = self.containers.get_mut(container) {
                container.processes.remove(exec);
            }
        } else if let Some(unborn) = self.containers.get_mut(container) {
            let _ = unborn.cgroup.kill();
            unborn.removal =
                Some(crate::table::Removal { tag: None, since: std::time::Instant::now(), files: false });
        }
    }

    /// A child that is not the agent was reaped.
    pub(crate) fn child_ended(&mut self, pid: u32, code: u8) {
        // First what it said before it ended, so that replies and events keep their order.
        let told: Vec<u64> = self
            .launches
            .iter()
            .filter(|(_, launch)| launch.child_pid == pid)
            .map(|(number, _)| *number)
            .collect();
        for number in told {
            self.launch_progress(number);
        }
        if self.puller_ended(pid, code) {
            return;
        }
        let found = self.containers.iter().find_map(|(id, container)| {
            let (exec, _) = container.processes.iter().find(|(_, process)| process.pid == pid)?;
            Some(ProcessRef { container: id.clone(), exec: exec.clone() })
        });
        let Some(name) = found else { return };
        let out_of_memory = code == 128 + 9 && self.out_of_memory(&name.container);
        let Ok(process) = self.process_mut(&name) else { return };
        // One whose command could not be executed has its code already.
        if process.is_alive() {
            let status = ExitStatus { code, out_of_memory };
            process.state = State::Exited(status);
        }
        if let State::Exited(status) = process.state {
            self.tell(Event::Exited { process: name, status });
        }
    }

    /// Containers on their way out: when the last process was reaped, the cgroup; then, by a launcher, the files.
    pub(crate) fn go_on_removing(&mut self) {
        let ready: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, container)| container.removal.as_ref().is_some_and(|removal| !removal.files))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ready {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            match try_remove_cgroup(container) {
                Gone::Yes => self.remove_files(&id),
                Gone::NotYet => {}
                Gone::Never(why) => self.removal_ended(&id, Some(failure(FailureKind::System, why))),
            }
        }
    }

    fn remove_files(&mut self, id: &str) {
        if let Some(removal) = self.containers.get_mut(id).and_then(|container| container.removal.as_mut()) {
            removal.files = true;
        }
        let started = || -> std::io::Result<_> {
            let step = StorageStep::RemoveWritable { container: id.to_owned() };
            let plan = self.seal_plan(&Plan::Storage(vec![step]))?;
            let status = self.expect_launcher()?;
            let grant = self.own_grant(Mode::Storage, plan.as_fd());
            Ok((crate::launch::launch(&grant, status.theirs.as_fd())?, status))
        };
        match started() {
            Ok((child, status)) => {
                self.follow(child.pid, status, Purpose::RemoveFiles { container: id.to_owned() });
            }
            Err(error) => {
                let why = failure(FailureKind::System, format!("removing the container's files: {error}"));
                self.removal_ended(id, Some(why));
            }
        }
    }

    fn removal_ended(&mut self, id: &str, why: Option<Failure>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let tag = container.removal.as_ref().and_then(|removal| removal.tag);
        match &why {
            // It can be asked for again.
            Some(failure) => {
                say(&format!("container {id} is not removed: {}", failure.message));
                container.removal = None;
            }
            None => drop(self.containers.remove(id)),
        }
        if let Some(tag) = tag {
            self.reply(tag, why.map_or(Ok(ReplyBody::Done), Err));
        }
    }

    fn out_of_memory(&self, container: &str) -> bool {
        self.containers.get(container).is_some_and(|container| container.cgroup.out_of_memory_kills() > 0)
    }

    pub(crate) fn reply(&mut self, tag: u32, result: Result<ReplyBody, Failure>) {
        if let Some(agent) = self.agent.as_mut() {
            agent.reply(tag, result, &[]);
        }
    }

    pub(crate) fn tell(&mut self, event: Event) {
        if let Some(agent) = self.agent.as_mut() {
            agent.tell(event);
        }
    }
}

enum Gone {
    Yes,
    NotYet,
    Never(String),
}

fn try_remove_cgroup(container: &mut Container) -> Gone {
    let late = container.removal.as_ref().is_some_and(|removal| removal.since.elapsed() > REMOVAL_MAX);
    match container.cgroup.remove() {
        Ok(()) => Gone::Yes,
        Err(error) if late => Gone::Never(format!("its cgroup is still in use: {error}")),
        Err(_) => {
            // What was born after the first kill.
            let _ = container.cgroup.kill();
            Gone::NotYet
        }
    }
}

fn launch_failure(error: LaunchFailure) -> Failure {
    // A number as it came: 0 when no system call failed, which is no `Errno`.
    let is = |errno: rustix::io::Errno| error.errno == errno.raw_os_error();
    let kind = match error.stage {
        LaunchStage::Exec if is(rustix::io::Errno::NOENT) => FailureKind::CommandNotFound,
        LaunchStage::Exec => FailureKind::CommandNotExecutable,
        LaunchStage::Plan => FailureKind::Refused,
        LaunchStage::Network if is(rustix::io::Errno::NODEV) => FailureKind::LinkNotFound,
        LaunchStage::Storage | LaunchStage::Devices if is(rustix::io::Errno::OPNOTSUPP) => {
            FailureKind::Unsupported
        }
        _ if is(rustix::io::Errno::NOSPC) => FailureKind::DiskFull,
        _ => FailureKind::System,
    };
    failure(kind, error.message)
}

fn usage(found: nacre_protocols::init_launcher::Usage) -> Usage {
    Usage { total: found.total, used: found.used, available: found.available }
}

fn interface_state(interface: InterfaceFound) -> InterfaceState {
    let InterfaceFound { name, hardware_address, mtu, flags, addresses } = interface;
    InterfaceState { name, hardware_address, mtu, flags, addresses }
}

fn route_state(route: RouteFound) -> RouteState {
    RouteState {
        destination: route
            .destination
            .map(|(address, prefix)| format!("{address}/{prefix}"))
            .unwrap_or_default(),
        gateway: route.gateway.map(|address| address.to_string()).unwrap_or_default(),
        device: route.device,
        source: route.source.map(|address| address.to_string()).unwrap_or_default(),
        scope: route.scope,
        ipv6: route.ipv6,
    }
}
