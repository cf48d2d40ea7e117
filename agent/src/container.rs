//! Containers: made, started, given processes, removed. Each of these goes on when who asked gives up, can be asked again
//! while it goes on, and leaves nothing behind when it fails.

use crate::agent::Agent;
use crate::error::RpcError;
use crate::process::{Birth, Process};
use crate::state::KeptContainer;
use crate::storage::GUEST_PULL;
use crate::verified::VerifiedImage;
use crate::{devices, plan};
use nacre_plan::{ImageDefaults, oci};
use nacre_protocols::agent_init::{
    ExitStatus, Failure, FailureKind, HeldProcess, HeldState, PidNamespace, ProcessRef, ReplyBody,
    RequestBody, Streams,
};
use nacre_protocols::agent_puller::ImageConfig;
use nacre_protocols::host_agent::kata::{self, CreateContainerRequest, ExecProcessRequest, Storage};
use nacre_protocols::host_agent::{CommandFailure, ttrpc::Code};
use nacre_protocols::init_launcher::{ContainerPlan, Plan, Rootfs};
use nacre_protocols::names::{KATA_RUN_DIR, is_valid_id};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::sync::watch;

/// Annotations that tell a pod's own container from the others.
const CONTAINER_TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// Where a container of Kubernetes says why it ended, and the annotation that says another place.
const TERMINATION_LOG: &str = "/dev/termination-log";
const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";

/// Most processes at once, those that ended but were not waited for among them: three descriptors each, of the
/// [`crate::confine::FILES_MIN`] that the agent has at least.
pub const PROCESSES_MAX: usize = 1024;

/// The containers of this sandbox by id.
#[derive(Default)]
pub struct Containers(RefCell<BTreeMap<String, Container>>);

struct Container {
    phase: Phase,
    /// By exec id; the first process has the empty one. A process that was waited for is gone from here.
    processes: BTreeMap<String, Rc<Process>>,
}

#[derive(Clone)]
enum Phase {
    /// Whoever asks again waits for the same result.
    Creating(watch::Receiver<Option<Result<(), RpcError>>>),
    Created,
    Running,
    Removing,
    /// It was not made, and what there was of it is not all gone: it can only be removed.
    Broken,
}

impl Containers {
    pub fn contains(&self, id: &str) -> bool {
        self.0.borrow().contains_key(id)
    }

    /// The answer about a container that is not there.
    pub fn expect(&self, id: &str) -> Result<(), RpcError> {
        if self.contains(id) { Ok(()) } else { Err(no_container(id)) }
    }

    /// A process by the names that shims use: the first one's exec id is empty or the container's id.
    pub fn process(&self, container: &str, exec: &str) -> Result<Rc<Process>, RpcError> {
        let exec = exec_id(container, exec);
        let containers = self.0.borrow();
        let found = containers.get(container).ok_or_else(|| no_container(container))?;
        found
            .processes
            .get(exec)
            .filter(|process| process.is_born())
            .cloned()
            .ok_or_else(|| no_process(container, exec))
    }

    pub fn exited(&self, name: &ProcessRef, status: ExitStatus) {
        let containers = self.0.borrow();
        let process = containers.get(&name.container).and_then(|found| found.processes.get(&name.exec));
        if let Some(process) = process {
            process.exited(status);
        }
    }

    /// A process that was waited for cannot be waited for again.
    pub fn forget_process(&self, container: &str, exec: &str) {
        if let Some(found) = self.0.borrow_mut().get_mut(container) {
            found.processes.remove(exec);
        }
    }

    /// A process that init held while there was no agent.
    pub fn take_back(&self, held: &HeldProcess, fds: Vec<OwnedFd>) -> io::Result<()> {
        let process = Process::new(held.process.clone());
        let HeldProcess { terminal, stdin_open, taken, relayed, .. } = *held;
        process.born(Birth { terminal, stdin_open, taken, relayed }, fds)?;
        if let HeldState::Exited(status) = held.state {
            process.exited(status);
        }
        let mut containers = self.0.borrow_mut();
        let container = containers
            .entry(held.process.container.clone())
            .or_insert_with(|| Container { phase: Phase::Running, processes: BTreeMap::new() });
        if held.process.exec.is_empty() && held.state == HeldState::Created {
            container.phase = Phase::Created;
        }
        container.processes.insert(held.process.exec.clone(), process);
        Ok(())
    }

    pub fn begin_removal(&self, id: &str) {
        let mut containers = self.0.borrow_mut();
        containers
            .entry(id.to_owned())
            .or_insert_with(|| Container { phase: Phase::Removing, processes: BTreeMap::new() })
            .phase = Phase::Removing;
    }

    fn phase(&self, id: &str) -> Option<Phase> {
        self.0.borrow().get(id).map(|container| container.phase.clone())
    }

    fn set_phase(&self, id: &str, phase: Phase) {
        if let Some(container) = self.0.borrow_mut().get_mut(id) {
            container.phase = phase;
        }
    }

    /// Adds a process that init is asked to make, so that its end is noticed however early it comes.
    fn expect_process(&self, name: ProcessRef) -> Result<Rc<Process>, RpcError> {
        let mut containers = self.0.borrow_mut();
        let count: usize = containers.values().map(|container| container.processes.len()).sum();
        let container = containers.get_mut(&name.container).ok_or_else(|| no_container(&name.container))?;
        if count >= PROCESSES_MAX {
            let message = format!("the sandbox has {PROCESSES_MAX} processes, its limit");
            return Err(RpcError::new(Code::ResourceExhausted, message));
        }
        if container.processes.contains_key(&name.exec) {
            let message = format!("exec id {:?} exists in container {:?}", name.exec, name.container);
            return Err(RpcError::internal(message));
        }
        let process = Process::new(name.clone());
        container.processes.insert(name.exec, Rc::clone(&process));
        Ok(process)
    }

    fn remove(&self, id: &str) {
        self.0.borrow_mut().remove(id);
    }
}

fn exec_id<'a>(container: &str, exec: &'a str) -> &'a str {
    if exec == container { "" } else { exec }
}

fn no_container(id: &str) -> RpcError {
    RpcError::invalid(format!("Invalid container id {id:?}"))
}

fn no_process(container: &str, exec: &str) -> RpcError {
    RpcError::new(Code::NotFound, format!("InvalidExecId: no process {exec:?} in container {container:?}"))
}

impl Agent {
    /// Makes a container up to its start gate. `request_hash` tells a request that is sent again from another.
    pub async fn create_container(
        self: &Rc<Self>,
        request: CreateContainerRequest,
        request_hash: u64,
    ) -> Result<(), RpcError> {
        let id = request.container_id.clone();
        check_create(&request)?;
        let is_same = self.kept(|kept| kept.containers.get(&id).is_some_and(|c| c.request == request_hash));
        match self.containers.phase(&id) {
            None => {}
            Some(Phase::Creating(result)) if is_same => return joined(result).await,
            Some(Phase::Created) if is_same => return Ok(()),
            Some(Phase::Broken) => self.remove_container(&id).await?,
            Some(_) => {
                return Err(RpcError::new(Code::AlreadyExists, format!("container {id:?} exists")));
            }
        }
        let (done, result) = watch::channel(None);
        let container = Container { phase: Phase::Creating(result), processes: BTreeMap::new() };
        self.containers.0.borrow_mut().insert(id.clone(), container);
        let made = self.make_container(&request, request_hash).await;
        match &made {
            Ok(()) => self.containers.set_phase(&id, Phase::Created),
            Err(error) => {
                crate::say(&format!("container {id} is not created: {}", error.message));
                self.roll_back(&id).await;
            }
        }
        done.send_replace(Some(made.clone()));
        made
    }

    async fn make_container(
        self: &Rc<Self>,
        request: &CreateContainerRequest,
        hash: u64,
    ) -> Result<(), RpcError> {
        let id = &request.container_id;
        let none = kata::Spec::default();
        let spec = request.oci.as_ref().unwrap_or(&none);
        self.change(|kept| {
            let container = KeptContainer { request: hash, ..Default::default() };
            kept.containers.insert(id.clone(), container);
        })?;
        let (pulled, mounted): (Vec<&Storage>, Vec<&Storage>) =
            request.storages.iter().partition(|storage| storage.driver == GUEST_PULL);
        // Judged before anything is fetched or mounted; what depends on the image is judged again.
        let mut document = plan::document(spec)?;
        let disks = devices::disks(&request.devices, &mut document)?;
        let stand_in = ["/".to_owned()];
        let image =
            (!pulled.is_empty()).then_some(ImageDefaults { command: &stand_in, ..Default::default() });
        nacre_plan::container(input(request, &document, Rootfs::Layers(Vec::new()), image)?)?;
        let image = match pulled.as_slice() {
            [] => None,
            [storage] => Some(self.pulled_image(spec, &storage.source).await?),
            _ => return Err(RpcError::invalid("storages: more than one image to pull")),
        };
        self.mount_storages(&mounted, Some(id)).await?;
        let rootfs = match &image {
            Some(image) => self.mount_layers(id, image).await?,
            None => guest_rootfs(spec)?,
        };
        let defaults = image.as_ref().map(|image| image_defaults(image.config()));
        let plan = nacre_plan::container(input(request, &document, rootfs, defaults)?)?;
        let plan = ContainerPlan { disks, ..plan };
        let terminal = plan.process.terminal.is_some();
        self.change(|kept| {
            let program = plan.process.seccomp.as_ref().map(|program| kept.keep_program(program));
            if let Some(container) = kept.containers.get_mut(id) {
                container.program = program;
                container.command = shown(plan.process.args.first());
                container.termination_log = termination_log(spec);
            }
        })?;
        let process =
            self.containers.expect_process(ProcessRef { container: id.clone(), exec: String::new() })?;
        let pid_namespace = self.pid_namespace(request);
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let (streams, given) = self.passed.streams(ports, terminal).await?;
        let body = RequestBody::CreateContainer { id: id.clone(), pid_namespace, terminal, streams };
        // The launcher looks for the command while it creates, when the root is there and nothing runs yet.
        let command = shown(plan.process.args.first());
        let reply = self
            .init
            .ask_for_process(body, &Plan::Create(Box::new(plan)), given)
            .await
            .map_err(|failure| command_error(&command, failure))?;
        born(&process, terminal, streams, reply.body, reply.fds)
    }

    async fn pulled_image(
        self: &Rc<Self>,
        spec: &kata::Spec,
        reference: &str,
    ) -> Result<VerifiedImage, RpcError> {
        let is_pause = CONTAINER_TYPES
            .iter()
            .filter_map(|name| spec.annotations.get(*name))
            .any(|kind| matches!(kind.as_str(), "sandbox" | "podsandbox"));
        if is_pause || reference == "pause" {
            return Err(RpcError::unsupported("a pause container: this guest has no image for it, which"));
        }
        self.image(reference).await
    }

    async fn mount_layers(&self, id: &str, image: &VerifiedImage) -> Result<Rootfs, RpcError> {
        let _turn = self.mounting.lock().await;
        // First, so that nobody collects them, whatever becomes of this agent.
        self.change(|kept| {
            if let Some(container) = kept.containers.get_mut(id) {
                (container.image, container.layers) = (Some(image.described().manifest), image.layers());
            }
        })?;
        self.apply(image.steps()).await?;
        Ok(image.rootfs())
    }

    fn pid_namespace(&self, request: &CreateContainerRequest) -> PidNamespace {
        let shares = request.sandbox_pidns
            || self.kept(|kept| kept.sandbox.as_ref().is_some_and(|sandbox| sandbox.shares_pids));
        let containers = self.containers.0.borrow();
        let first = containers
            .iter()
            .find(|(id, other)| **id != request.container_id && matches!(other.phase, Phase::Running));
        match first {
            Some((id, _)) if shares => PidNamespace::Container(id.clone()),
            _ => PidNamespace::Own,
        }
    }

    pub async fn start_container(&self, id: &str) -> Result<(), RpcError> {
        match self.containers.phase(id) {
            Some(Phase::Created | Phase::Running) => {}
            Some(Phase::Creating(_) | Phase::Removing) => {
                let message = format!("container {id:?} is being made or removed");
                return Err(RpcError::new(Code::FailedPrecondition, message));
            }
            Some(Phase::Broken) => {
                let message = format!("container {id:?} was not made, and can only be removed");
                return Err(RpcError::new(Code::FailedPrecondition, message));
            }
            None => return Err(no_container(id)),
        }
        let command =
            self.kept(|kept| kept.containers.get(id).map(|c| c.command.clone()).unwrap_or_default());
        match self.init.order(RequestBody::StartContainer { id: id.to_owned() }).await {
            Ok(()) => {
                self.containers.set_phase(id, Phase::Running);
                Ok(())
            }
            Err(failure) => Err(command_error(&command, failure)),
        }
    }

    pub async fn exec_process(&self, request: ExecProcessRequest) -> Result<(), RpcError> {
        let id = &request.container_id;
        let exec = request.exec_id.clone();
        if !self.containers.contains(id) {
            return Err(no_container(id));
        }
        if !is_valid_id(&exec) || exec == *id {
            return Err(RpcError::invalid(format!("exec id {exec:?} is not a valid name")));
        }
        let described = request.process.as_ref().ok_or_else(|| RpcError::invalid("process is missing"))?;
        let program = self.kept(|kept| kept.program_of(id));
        let user = plan::named_user(request.string_user.as_ref())?;
        let described = plan::process(described);
        let plan = nacre_plan::exec(nacre_plan::Exec {
            process: &described,
            user,
            seccomp: program,
            container: None,
            place: nacre_plan::Place::Sandbox,
        })?;
        let command = shown(plan.process.args.first());
        let terminal = plan.process.terminal.is_some();
        let name = ProcessRef { container: id.clone(), exec: exec.clone() };
        let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
        let (streams, given) = self.passed.streams(ports, terminal).await?;
        let process = self.containers.expect_process(name.clone())?;
        let body = RequestBody::Exec { process: name, terminal, streams };
        let made = match self.init.ask_for_process(body, &Plan::Exec(Box::new(plan)), given).await {
            Ok(reply) => born(&process, terminal, streams, reply.body, reply.fds),
            Err(failure) => Err(command_error(&command, failure)),
        };
        if made.is_err() {
            self.containers.forget_process(id, &exec);
        }
        made
    }

    /// Kills what is left of it, and takes away everything that was made for it.
    pub async fn remove_container(&self, id: &str) -> Result<(), RpcError> {
        if let Some(Phase::Creating(result)) = self.containers.phase(id)
            && joined(result).await.is_err()
            && !self.containers.contains(id)
        {
            // Rolled back: there is nothing left to remove.
            return Ok(());
        }
        match self.containers.phase(id) {
            None => Err(RpcError::internal(format!("Invalid container id {id:?}"))),
            Some(Phase::Removing) => {
                let message = format!("container {id:?} is being removed");
                Err(RpcError::new(Code::FailedPrecondition, message))
            }
            Some(before) => {
                self.containers.set_phase(id, Phase::Removing);
                if let Err(error) = self.take_away(id).await {
                    self.containers.set_phase(id, before);
                    return Err(error);
                }
                Ok(())
            }
        }
    }

    /// Takes away what a container that was not made has left, or leaves that to who removes it.
    pub async fn roll_back(&self, id: &str) {
        self.containers.set_phase(id, Phase::Removing);
        if let Err(error) = self.take_away(id).await {
            crate::say(&format!("container {id} is not rolled back: {}", error.message));
            self.containers.set_phase(id, Phase::Broken);
        }
    }

    async fn take_away(&self, id: &str) -> Result<(), RpcError> {
        match self.init.order(RequestBody::RemoveContainer { id: id.to_owned() }).await {
            Ok(()) => {}
            Err(failure) if failure.kind == FailureKind::NotFound => {}
            Err(failure) => return Err(RpcError::internal(failure.message)),
        }
        self.release_storages(id).await?;
        self.change(|kept| kept.forget_container(id))?;
        self.containers.remove(id);
        Ok(())
    }

    /// Sends a signal. Nobody to send it to is no error: who wanted the process gone has what he wants.
    pub async fn signal(&self, container: &str, exec: &str, signal: u32) -> Result<(), RpcError> {
        let signal = u8::try_from(signal).ok().filter(|signal| *signal <= 64);
        let signal = signal.ok_or_else(|| RpcError::invalid("signal is above 64"))?;
        if !self.containers.contains(container) {
            return Err(no_container(container));
        }
        let whole_container = signal == 9 && exec.is_empty();
        let name = ProcessRef { container: container.to_owned(), exec: exec_id(container, exec).to_owned() };
        if !whole_container {
            let process = self.containers.process(container, exec)?;
            if process.exit_status().is_some() {
                return Ok(());
            }
        }
        match self.init.order(RequestBody::Signal { process: name, signal, whole_container }).await {
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
            result => Ok(result?),
        }
    }

    /// The exit status was given to the host: the process cannot be waited for again.
    pub async fn reaped(&self, name: &ProcessRef) {
        self.containers.forget_process(&name.container, &name.exec);
        if name.exec.is_empty() {
            let _ = self.change(|kept| {
                if let Some(container) = kept.containers.get_mut(&name.container) {
                    container.waited = true;
                }
            });
        }
        // It is gone with its container, too.
        let _ = self.init.order(RequestBody::Forget { process: name.clone() }).await;
    }
}

fn check_create(request: &CreateContainerRequest) -> Result<(), RpcError> {
    let id = &request.container_id;
    if !is_valid_id(id) {
        return Err(RpcError::invalid(format!("container id {id:?} is not a valid name")));
    }
    if !request.shared_mounts.is_empty() {
        return Err(RpcError::unsupported("shared_mounts"));
    }
    if request.oci.is_none() {
        return Err(RpcError::invalid("OCI is missing"));
    }
    Ok(())
}

async fn joined(mut result: watch::Receiver<Option<Result<(), RpcError>>>) -> Result<(), RpcError> {
    let result = result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
    result.unwrap_or_else(|| Err(RpcError::internal("the container was given up")))
}

fn input<'a>(
    request: &'a CreateContainerRequest,
    spec: &'a oci::Spec,
    rootfs: Rootfs,
    image: Option<ImageDefaults<'a>>,
) -> Result<nacre_plan::Container<'a>, RpcError> {
    let user = plan::named_user(request.string_user.as_ref())?;
    Ok(nacre_plan::Container {
        id: &request.container_id,
        spec,
        rootfs,
        user,
        image,
        bundle: "",
        place: nacre_plan::Place::Sandbox,
    })
}

fn image_defaults(image: &ImageConfig) -> ImageDefaults<'_> {
    ImageDefaults {
        entrypoint: &image.entrypoint,
        command: &image.command,
        env: &image.env,
        working_directory: &image.working_directory,
        user: &image.user,
        volumes: &image.volumes,
    }
}

/// What is shown to the container where Kubernetes wants the reason of its end.
fn termination_log(spec: &kata::Spec) -> Option<String> {
    let path = spec.annotations.get(TERMINATION_MESSAGE_PATH).map_or(TERMINATION_LOG, String::as_str);
    spec.mounts.iter().rfind(|mount| mount.destination == path).map(|mount| mount.source.clone())
}

/// A root that the host shares, or that another storage gives.
fn guest_rootfs(spec: &kata::Spec) -> Result<Rootfs, RpcError> {
    let path = spec.root.as_ref().map_or("", |root| root.path.as_str());
    let inside = path.strip_prefix(KATA_RUN_DIR).is_some_and(|rest| rest.starts_with('/'));
    if inside && !path.contains('\0') && path.split('/').all(|part| part != "..") {
        Ok(Rootfs::Guest(path.to_owned()))
    } else {
        Err(RpcError::invalid(format!("root.path {path:?} is not beneath {KATA_RUN_DIR}")))
    }
}

fn born(
    process: &Process,
    terminal: bool,
    streams: Streams,
    body: ReplyBody,
    fds: Vec<OwnedFd>,
) -> Result<(), RpcError> {
    let relayed = match streams {
        Streams::Passed([input, output, _]) if terminal => [input, output],
        Streams::Passed(_) | Streams::Kept => [false; 2],
    };
    match body {
        ReplyBody::Created { .. } => process
            .born(Birth { terminal, stdin_open: true, taken: [0; 2], relayed }, fds)
            .map_err(|error| RpcError::internal(format!("taking the streams: {error}"))),
        _ => Err(RpcError::unfitting("the creation of a process")),
    }
}

/// The texts by which shims and `nacre` know a command that is not there from other failures.
fn command_error(command: &str, failure: Failure) -> RpcError {
    let kind = match failure.kind {
        FailureKind::CommandNotFound => CommandFailure::NotFound,
        FailureKind::CommandNotExecutable => CommandFailure::NotExecutable,
        _ => return failure.into(),
    };
    RpcError::internal(kind.text(command, &failure.message))
}

/// A command as an error shows it: at most 256 characters.
fn shown(command: Option<&String>) -> String {
    command.map(|command| command.chars().take(256).collect()).unwrap_or_default()
}
