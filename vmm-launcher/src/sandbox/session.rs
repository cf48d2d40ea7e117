//! What a command asks of the agent, in order: the guest made ready, the image pulled, the container created and started.

use std::time::{SystemTime, UNIX_EPOCH};

use nacre_protocols::host_agent::nacre::{self as own, failure, pull_state};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::host_agent::{CommandFailure, kata};
use nacre_protocols::names::{KATA_RUN_DIR, SHARED_DIR};

use super::machine::GuestNetwork;
use super::spec::ImageProcess;
use crate::client::{Client, ClientError, printable};
use crate::devices::fs::TAG;
use crate::images::Credentials;

/// How often a pull is begun again because the agent was restarted under it.
const PULL_RESTARTS_MAX: usize = 3;
/// Longest text of the guest that is shown, in characters.
const TEXT_MAX: usize = 2048;
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// An image to pull.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub reference: String,
    /// `os`, `architecture`, `variant`.
    pub platform: (String, String, String),
    /// Where the repository really is, if not where the reference says.
    pub location: String,
    /// Of that registry.
    pub credentials: Option<Credentials>,
    /// Asked before it: where, and as whom.
    pub mirrors: Vec<(String, Option<Credentials>)>,
    /// Registries that may be spoken to by plain http or with an unknown certificate.
    pub insecure: Vec<String>,
    /// PEM.
    pub certificate_authorities: Vec<String>,
    pub client_certificates: Vec<own::ClientCertificate>,
    pub proxy: own::Proxy,
    /// The text of a policy; empty: none.
    pub policy: String,
    /// Host name and address.
    pub aliases: Vec<(String, String)>,
    /// The image stays in the store when nothing uses it.
    pub keep: bool,
    /// TCP ports that the registry's answers may lead to, besides those that are known.
    pub ports: Vec<u16>,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("{action}: {source}")]
    Agent { action: &'static str, source: ClientError },
    #[error("{message}")]
    Pull { kind: PullProblem, message: String },
    /// The command is not in the image.
    #[error("{0}")]
    CommandNotFound(String),
    /// It is there and cannot be executed.
    #[error("{0}")]
    CommandNotExecutable(String),
}

/// Why a pull failed, as the sandbox says.
pub type PullProblem = failure::Kind;

/// What a pulled image is.
#[derive(Debug, Clone, Default)]
pub struct Pulled {
    pub process: ImageProcess,
    pub layers: usize,
    /// Compressed, in bytes.
    pub bytes: u64,
    /// Layers that were in the sandbox already.
    pub present: usize,
    pub manifest: String,
}

fn agent(action: &'static str) -> impl FnOnce(ClientError) -> SessionError {
    move |source| SessionError::Agent { action, source }
}

/// Clock, network and the sandbox itself.
pub async fn prepare(
    client: &Client,
    id: &str,
    hostname: &str,
    network: Option<&GuestNetwork>,
    shares: bool,
) -> Result<(), SessionError> {
    // Before anything that looks at certificates.
    client.set_clock().await.map_err(agent("set the sandbox's clock"))?;
    if let Some(network) = network {
        let interface = client.update_interface(network.interface());
        interface.await.map_err(agent("set up the sandbox's network interface"))?;
        client.update_routes(network.routes()).await.map_err(agent("set up the sandbox's routes"))?;
    }
    let request = kata::CreateSandboxRequest {
        hostname: hostname.to_owned(),
        dns: network
            .map(|network| network.dns.iter().map(|dns| format!("nameserver {dns}")).collect())
            .unwrap_or_default(),
        storages: if shares { vec![shared_directories()] } else { Vec::new() },
        sandbox_id: id.to_owned(),
        ..Default::default()
    };
    client.create_sandbox(&request).await.map_err(agent("set up the sandbox"))
}

/// Pulls, telling `progress` of every change.
pub async fn pull(
    client: &Client,
    id: &str,
    wanted: &Wanted,
    mut progress: impl FnMut(&own::PullState),
) -> Result<Pulled, SessionError> {
    let request = start_pull_request(id, wanted);
    let mut restarts = 0;
    let mut state = client.start_pull(&request).await.map_err(agent("start the pull"))?;
    loop {
        progress(&state);
        match state.stage() {
            pull_state::Stage::Done => return pulled(&state),
            pull_state::Stage::Failed => return Err(pull_failed(&state)),
            pull_state::Stage::Resolving | pull_state::Stage::Fetching => {}
        }
        state = match client.watch_pull(id, state.version).await {
            // A restarted agent does not know it; what is in the store already stays.
            Err(error) if error.is_status(Code::NotFound) && restarts < PULL_RESTARTS_MAX => {
                restarts += 1;
                client.start_pull(&request).await
            }
            result => result,
        }
        .map_err(agent("watch the pull"))?;
    }
}

/// Creates the container; its first process waits for [`start`].
pub async fn create(
    client: &Client,
    id: &str,
    reference: &str,
    spec: kata::Spec,
) -> Result<(), SessionError> {
    let storage = kata::Storage {
        driver: "image_guest_pull".into(),
        driver_options: vec![format!(
            "image_guest_pull={}",
            serde_json::json!({ "metadata": { CONTAINER_TYPE: "container" } })
        )],
        source: reference.to_owned(),
        fstype: "overlay".into(),
        mount_point: format!("{KATA_RUN_DIR}/{id}/rootfs"),
        ..Default::default()
    };
    let request = kata::CreateContainerRequest {
        container_id: id.to_owned(),
        storages: vec![storage],
        oci: Some(spec),
        ..Default::default()
    };
    client.create_container(&request).await.map_err(|error| command_error("create the container", error))
}

/// Lets the first process execute the command.
pub async fn start(client: &Client, id: &str) -> Result<(), SessionError> {
    client.start_container(id).await.map_err(|error| command_error("start the container", error))
}

/// An exec's errors are of the same kinds.
pub async fn exec(
    client: &Client,
    id: &crate::client::ProcessId,
    process: kata::Process,
) -> Result<(), SessionError> {
    client.exec(id, process).await.map_err(|error| command_error("start the command", error))
}

/// Kills what is left of the container and removes it.
pub async fn remove(client: &Client, id: &str) -> Result<(), SessionError> {
    // The removal kills, too; this only says it earlier.
    let _ = client.kill_all(id).await;
    client.remove_container(id).await.map_err(agent("remove the container"))
}

fn shared_directories() -> kata::Storage {
    kata::Storage {
        driver: "virtio-fs".into(),
        source: TAG.into(),
        fstype: "virtiofs".into(),
        mount_point: SHARED_DIR.into(),
        ..Default::default()
    }
}

fn start_pull_request(id: &str, wanted: &Wanted) -> own::StartPullRequest {
    let (os, architecture, variant) = wanted.platform.clone();
    let mirror = |(location, given): &(String, Option<Credentials>)| own::Mirror {
        location: location.clone(),
        credentials: given.as_ref().map(credentials),
    };
    own::StartPullRequest {
        id: id.to_owned(),
        reference: wanted.reference.clone(),
        platform: Some(own::Platform { os, architecture, variant }),
        location: wanted.location.clone(),
        credentials: wanted.credentials.as_ref().map(credentials),
        mirrors: wanted.mirrors.iter().map(mirror).collect(),
        client_certificates: wanted.client_certificates.clone(),
        proxy: Some(wanted.proxy.clone()),
        policy: wanted.policy.clone(),
        insecure: wanted.insecure.clone(),
        certificate_authorities: wanted.certificate_authorities.clone(),
        aliases: wanted
            .aliases
            .iter()
            .map(|(host, address)| own::HostAlias { host: host.clone(), address: address.clone() })
            .collect(),
        keep: wanted.keep,
        ports: wanted.ports.iter().copied().map(u32::from).collect(),
    }
}

fn credentials(given: &Credentials) -> own::Credentials {
    match given.clone() {
        Credentials::Basic { user, password } => own::Credentials { user, password, ..Default::default() },
        Credentials::IdentityToken(identity_token) => {
            own::Credentials { identity_token, ..Default::default() }
        }
    }
}

fn pulled(state: &own::PullState) -> Result<Pulled, SessionError> {
    let Some(image) = &state.image else {
        let source = ClientError::Protocol("a finished pull without an image".into());
        return Err(SessionError::Agent { action: "watch the pull", source });
    };
    Ok(Pulled {
        process: ImageProcess {
            entrypoint: image.entrypoint.clone(),
            command: image.command.clone(),
            env: image.env.clone(),
            working_directory: image.working_directory.clone(),
            user: image.user.clone(),
            stop_signal: image.stop_signal.clone(),
        },
        layers: image.layers.len(),
        bytes: image.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.compressed)),
        present: state.layers.iter().filter(|layer| layer.present).count(),
        manifest: printable(&image.manifest, TEXT_MAX),
    })
}

fn pull_failed(state: &own::PullState) -> SessionError {
    let failure = state.failure.clone().unwrap_or_default();
    SessionError::Pull { kind: failure.kind(), message: printable(&failure.message, TEXT_MAX) }
}

/// The agent says in words whether the command was there at all.
fn command_error(action: &'static str, error: ClientError) -> SessionError {
    match &error {
        ClientError::Status { message, .. } => match CommandFailure::read(message) {
            Some(CommandFailure::NotFound) => SessionError::CommandNotFound(message.clone()),
            Some(CommandFailure::NotExecutable) => SessionError::CommandNotExecutable(message.clone()),
            None => SessionError::Agent { action, source: error },
        },
        _ => SessionError::Agent { action, source: error },
    }
}

/// A name for an exec or a pull that no other has: time and process id.
pub fn unique_id(kind: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{kind}-{}-{}", now.as_nanos(), std::process::id())
}
