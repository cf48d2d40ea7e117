//! The sandbox as a whole, and the agent's health.

use super::{Context, Outcome, method, reply};
use crate::error::RpcError;
use crate::state::{Sandbox, digest};
use crate::{devices, storage};
use nacre_protocols::agent_init::{GuestFile, KernelFile, RequestBody};
use nacre_protocols::host_agent::kata::{
    AgentDetails, CreateSandboxRequest, DestroySandboxRequest, Empty, GetOomEventRequest,
    GuestDetailsRequest, GuestDetailsResponse, HealthCheckResponse, OomEvent, SetGuestDateTimeRequest,
    VersionCheckResponse, agent_service, health, health_check_response::ServingStatus,
};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::StorageStep;
use nacre_protocols::names::{RESOLVER_DIR, SANDBOX_DIR, SHARED_DIR};
use prost::Message;
use tokio::sync::oneshot;

/// Version of the agent API, which has not changed since its first.
const API_VERSION: &str = "0.0.1";
/// Longest list of lines for resolv.conf, and longest file, in bytes.
const DNS_LINES_MAX: usize = 64;
const FILE_MAX: usize = 8 * 1024;

pub fn check(_: &[u8]) -> Outcome {
    reply::<health::Check>(&HealthCheckResponse { status: ServingStatus::Serving.into() })
}

pub fn version(_: &[u8]) -> Outcome {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    reply::<health::Version>(&VersionCheckResponse {
        grpc_version: API_VERSION.to_owned(),
        agent_version: version,
    })
}

async fn details(context: Context, request: GuestDetailsRequest) -> Result<GuestDetailsResponse, RpcError> {
    // 0 where no memory can be added.
    let block = match request.mem_block_size {
        true => context.agent.init.read_if_there(KernelFile::Guest(GuestFile::MemoryBlock)).await?,
        false => String::new(),
    };
    let agent_details = AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: false,
        device_handlers: devices::HANDLERS.map(str::to_owned).to_vec(),
        storage_handlers: storage::DRIVERS.map(str::to_owned).to_vec(),
        supports_seccomp: true,
        extra_features: vec!["guest-pull".to_owned()],
    };
    Ok(GuestDetailsResponse {
        mem_block_size_bytes: u64::from_str_radix(block.trim(), 16).unwrap_or_default(),
        agent_details: Some(agent_details),
        support_mem_hotplug_probe: false,
    })
}

method!(guest_details, agent_service::GetGuestDetails, details);
method!(create, agent_service::CreateSandbox, create_sandbox);
method!(set_date_time, agent_service::SetGuestDateTime, set_clock);
method!(oom_event, agent_service::GetOOMEvent, next_oom);

async fn create_sandbox(context: Context, request: CreateSandboxRequest) -> Result<Empty, RpcError> {
    let agent = &context.agent;
    let hash = digest(&request.encode_to_vec());
    match agent.kept(|kept| kept.sandbox.as_ref().map(|sandbox| sandbox.request)) {
        Some(before) if before == hash => return Ok(Empty {}),
        Some(_) => return Err(RpcError::new(Code::AlreadyExists, "the sandbox exists")),
        None => {}
    }
    if !request.kernel_modules.is_empty() {
        return Err(RpcError::unsupported("kernel_modules: this kernel has none, and loading one"));
    }
    if !request.guest_hook_path.is_empty() {
        return Err(RpcError::unsupported("guest_hook_path: running hooks in the guest"));
    }
    let files = files(&request)?;
    if !request.hostname.is_empty() {
        agent.init.order(RequestBody::SetHostname { name: request.hostname.clone() }).await?;
    }
    agent.apply(files).await?;
    let storages: Vec<_> = request.storages.iter().collect();
    agent.mount_storages(&storages, None).await?;
    agent.change(|kept| {
        let id = request.sandbox_id.clone();
        kept.sandbox = Some(Sandbox { request: hash, id, shares_pids: request.sandbox_pidns });
    })?;
    Ok(Empty {})
}

/// Files that containers and the puller are shown.
fn files(request: &CreateSandboxRequest) -> Result<Vec<StorageStep>, RpcError> {
    if request.dns.len() > DNS_LINES_MAX {
        return Err(RpcError::invalid(format!("dns: more than {DNS_LINES_MAX} lines")));
    }
    let mut resolv_conf = String::new();
    for line in &request.dns {
        resolv_conf.push_str(line);
        resolv_conf.push('\n');
    }
    let name = if request.hostname.is_empty() { "localhost" } else { &request.hostname };
    let hosts = format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let file = |directory: &str, name: &str, content: String| {
        if content.len() > FILE_MAX {
            return Err(RpcError::invalid(format!("{name} would have more than {FILE_MAX} bytes")));
        }
        Ok(StorageStep::File { path: format!("{directory}/{name}"), content: content.into_bytes() })
    };
    Ok(vec![
        StorageStep::Directory { path: SANDBOX_DIR.to_owned(), mode: 0o755, group: None },
        // The host shares it, or sends files into it.
        StorageStep::Directory { path: SHARED_DIR.to_owned(), mode: 0o755, group: None },
        file(SANDBOX_DIR, "resolv.conf", resolv_conf.clone())?,
        file(SANDBOX_DIR, "hosts", hosts)?,
        file(SANDBOX_DIR, "hostname", format!("{name}\n"))?,
        file(RESOLVER_DIR, "resolv.conf", resolv_conf)?,
    ])
}

async fn set_clock(context: Context, request: SetGuestDateTimeRequest) -> Result<Empty, RpcError> {
    let microseconds = u32::try_from(request.usec)
        .map_err(|_| RpcError::invalid(format!("Usec {} is not a part of a second", request.usec)))?;
    context.agent.init.order(RequestBody::SetClock { seconds: request.sec, microseconds }).await?;
    Ok(Empty {})
}

async fn next_oom(context: Context, _: GetOomEventRequest) -> Result<OomEvent, RpcError> {
    Ok(OomEvent { container_id: context.agent.next_oom().await })
}

/// Ends the VM as soon as the answer is on its way, or cannot be.
pub fn destroy(context: Context, payload: Vec<u8>) -> std::pin::Pin<Box<dyn Future<Output = Outcome>>> {
    Box::pin(async move {
        let DestroySandboxRequest {} = super::request::<agent_service::DestroySandbox>(&payload)?;
        let (sent, was_sent) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let _ = was_sent.await;
            if let Err(failure) = context.agent.init.order(RequestBody::PowerOff).await {
                crate::say(&format!("the sandbox does not end: {}", failure.message));
            }
        });
        let outcome = reply::<agent_service::DestroySandbox>(&Empty {});
        // Dropped, it tells that the answer cannot be sent.
        let sent = move || {
            let _ = sent.send(());
        };
        outcome.map(|reply| super::Reply { sent: Some(Box::new(sent)), ..reply })
    })
}
