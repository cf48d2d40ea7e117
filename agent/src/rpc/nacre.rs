//! The additive service: pulls with progress, and figures of the guest's own processes.

use super::{Context, Outcome, Reply, method, reply, request};
use crate::error::RpcError;
use crate::pulls::{Layer, Progress, native_platform};
use nacre_protocols::agent_init::{ReplyBody, RequestBody};
use nacre_protocols::agent_puller::{
    CLIENT_CERTIFICATES_MAX, ClientCertificate, Credentials, FRAME_MAX, HostAlias, LayerStage, MIRRORS_MAX,
    Mirror, POLICY_MAX, PORTS_MAX, Platform, Proxy, Pull as Order, PullFailure, PullFailureKind, PulledImage,
    REFERENCE_MAX, StoreCollected, Verdict,
};
use nacre_protocols::frame;
use nacre_protocols::host_agent::nacre::{
    self as wire, BootStage, CancelPullRequest, CollectImagesRequest, Collected, Failure, Image, ImageLayer,
    ImageList, LayerState, ListImagesRequest, ProcessMemory, PullState, Report, ReportRequest,
    StartPullRequest, StoredImage, UpgradeAgentReply, WatchPullRequest, failure, layer_state,
    pull_state::Stage, sandbox,
};
use nacre_protocols::names::{Sha256, is_valid_id};
use std::pin::Pin;

/// How a program begins (elf(5)).
const ELF: &[u8] = b"\x7fELF";
/// Longest list of registries, certificates or aliases, in entries.
const LIST_MAX: usize = 64;
/// Most references that one request lets go.
const FORGET_MAX: usize = 16;
/// Longest name or word, and longest secret, in bytes.
const WORD_MAX: usize = 256;
const SECRET_MAX: usize = 16 * 1024;
/// Bytes of a frame to the puller that are kept free for what goes around an order.
const FRAME_RESERVE: usize = 64;

method!(start_pull, sandbox::StartPull, start);
method!(watch_pull, sandbox::WatchPull, watch);
method!(cancel_pull, sandbox::CancelPull, cancel);
method!(list_images, sandbox::ListImages, list);
method!(collect_images, sandbox::CollectImages, collect);
method!(report, sandbox::GetReport, get_report);

async fn start(context: Context, request: StartPullRequest) -> Result<PullState, RpcError> {
    let id = request.id.clone();
    if !is_valid_id(&id) {
        return Err(RpcError::invalid(format!("id {id:?} is not a valid name")));
    }
    let pull = context.agent.start_pull(id, order(request)?)?;
    let progress = pull.progress.borrow();
    Ok(state(&progress))
}

async fn watch(context: Context, request: WatchPullRequest) -> Result<PullState, RpcError> {
    let pull = context.agent.pulls.get(&request.id)?;
    let mut progress = pull.progress.subscribe();
    let changed = |progress: &Progress| progress.version > request.after || progress.end.is_some();
    match progress.wait_for(changed).await {
        Ok(progress) => Ok(state(&progress)),
        Err(_) => Err(RpcError::internal("the pull was forgotten")),
    }
}

async fn cancel(context: Context, request: CancelPullRequest) -> Result<PullState, RpcError> {
    let pull = context.agent.pulls.get(&request.id)?;
    if !pull.has_ended() {
        context.agent.cancel_pull(&pull).await;
        let _ = pull.end().await;
    }
    let progress = pull.progress.borrow();
    Ok(state(&progress))
}

async fn list(context: Context, _: ListImagesRequest) -> Result<ImageList, RpcError> {
    let store = context.agent.list_store().await?;
    let image =
        |(image, keep): &(PulledImage, bool)| StoredImage { image: Some(described(image)), keep: *keep };
    let contents = store.contents;
    Ok(ImageList {
        images: store.images.iter().map(image).collect(),
        layers: contents.layers,
        used: contents.used,
        quota: contents.quota.unwrap_or_default(),
        free: contents.free,
        total: contents.total,
    })
}

async fn collect(context: Context, request: CollectImagesRequest) -> Result<Collected, RpcError> {
    if request.forget.len() > FORGET_MAX || request.forget.iter().any(|name| name.len() > REFERENCE_MAX) {
        let message =
            format!("forget: more than {FORGET_MAX} references, or one of more than {REFERENCE_MAX} bytes");
        return Err(RpcError::invalid(message));
    }
    let StoreCollected { images, layers, bytes } =
        context.agent.collect(request.forget, request.only).await?;
    Ok(Collected { images, layers, bytes })
}

async fn get_report(context: Context, _: ReportRequest) -> Result<Report, RpcError> {
    let reply = context.agent.init.ask(RequestBody::Report).await?;
    let ReplyBody::Report(processes) = reply.body else {
        return Err(RpcError::unfitting("Report"));
    };
    let welcome = &context.agent.welcome;
    let memory = |process: nacre_protocols::agent_init::ProcessReport| ProcessMemory {
        name: process.name,
        pid: process.pid,
        resident_kib: process.resident_kib,
        anonymous_kib: process.anonymous_kib,
    };
    let stage = |(name, end_us): &(String, u64)| BootStage { name: name.clone(), end_us: *end_us };
    Ok(Report {
        boot: welcome.boot.iter().map(stage).collect(),
        processes: processes.into_iter().map(memory).collect(),
        agent_generation: welcome.generation,
        agent_upgraded: welcome.upgraded,
    })
}

/// Has init start another program in this one's place, and ends: when the host has the answer, or nobody waits for it any more.
pub fn upgrade_agent(context: Context, payload: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome>>> {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            std::process::exit(0)
        }
    }
    Box::pin(async move {
        let request = request::<sandbox::UpgradeAgent>(&payload)?;
        drop(payload);
        if !request.program.starts_with(ELF) {
            return Err(RpcError::invalid("program: not an ELF file"));
        }
        context.agent.init.upgrade(&request.program).await?;
        let end = End;
        let answer = reply::<sandbox::UpgradeAgent>(&UpgradeAgentReply {})?;
        Ok(Reply { sent: Some(Box::new(move || drop(end))), ..answer })
    })
}

/// An order for the puller within its limits. What is in it is the puller's to judge.
fn order(request: StartPullRequest) -> Result<Order, RpcError> {
    let proxy = request.proxy.unwrap_or_default();
    for (field, length, limit) in [
        ("insecure", request.insecure.len(), LIST_MAX),
        ("certificate_authorities", request.certificate_authorities.len(), LIST_MAX),
        ("aliases", request.aliases.len(), LIST_MAX),
        ("mirrors", request.mirrors.len(), MIRRORS_MAX),
        ("client_certificates", request.client_certificates.len(), CLIENT_CERTIFICATES_MAX),
        ("ports", request.ports.len(), PORTS_MAX),
        ("proxy.exceptions", proxy.exceptions.len(), LIST_MAX),
    ] {
        if length > limit {
            return Err(RpcError::invalid(format!("{field}: more than {limit} entries")));
        }
    }
    if request.insecure.iter().any(|registry| registry.len() > WORD_MAX) {
        return Err(RpcError::invalid(format!("insecure: a name longer than {WORD_MAX} bytes")));
    }
    if request.policy.len() > POLICY_MAX {
        return Err(RpcError::invalid(format!("policy: longer than {POLICY_MAX} bytes")));
    }
    let order = Order {
        reference: request.reference,
        platform: request.platform.map_or_else(native_platform, platform),
        location: request.location,
        credentials: credentials(request.credentials)?,
        mirrors: request.mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?,
        insecure: request.insecure,
        certificate_authorities: request.certificate_authorities,
        client_certificates: request.client_certificates.into_iter().map(client_certificate).collect(),
        proxy: Proxy { http: proxy.http, https: proxy.https, exceptions: proxy.exceptions },
        policy: request.policy,
        keep: request.keep,
        ports: request.ports.into_iter().map(port).collect::<Result<_, _>>()?,
        aliases: request.aliases.into_iter().map(alias).collect::<Result<_, _>>()?,
    };
    if frame::encode(&order, FRAME_MAX - FRAME_RESERVE).is_err() {
        let message = format!(
            "a pull's rules, certificates and credentials are longer than {} bytes together",
            FRAME_MAX - FRAME_RESERVE
        );
        return Err(RpcError::invalid(message));
    }
    Ok(order)
}

fn port(number: u32) -> Result<u16, RpcError> {
    let port = u16::try_from(number).ok().filter(|&port| port != 0);
    port.ok_or_else(|| RpcError::invalid(format!("ports: {number} is not a number from 1 to 65535")))
}

fn mirror(given: wire::Mirror) -> Result<Mirror, RpcError> {
    Ok(Mirror { location: given.location, credentials: credentials(given.credentials)? })
}

fn client_certificate(given: wire::ClientCertificate) -> ClientCertificate {
    ClientCertificate { registry: given.registry, chain: given.chain, key: given.key }
}

fn platform(platform: wire::Platform) -> Platform {
    let native = native_platform();
    let or = |given: String, default: String| if given.is_empty() { default } else { given };
    Platform {
        os: or(platform.os, native.os),
        architecture: or(platform.architecture, native.architecture),
        variant: platform.variant,
    }
}

fn credentials(given: Option<wire::Credentials>) -> Result<Credentials, RpcError> {
    let Some(wire::Credentials { user, password, identity_token }) = given else {
        return Ok(Credentials::Anonymous);
    };
    if [&user, &password, &identity_token].iter().any(|secret| secret.len() > SECRET_MAX) {
        return Err(RpcError::invalid(format!("credentials: longer than {SECRET_MAX} bytes")));
    }
    Ok(if !identity_token.is_empty() {
        Credentials::IdentityToken(identity_token)
    } else if user.is_empty() && password.is_empty() {
        Credentials::Anonymous
    } else {
        Credentials::Basic { user, password }
    })
}

fn alias(alias: wire::HostAlias) -> Result<HostAlias, RpcError> {
    if alias.host.is_empty() || alias.host.len() > WORD_MAX {
        return Err(RpcError::invalid(format!("aliases: a host has 1 to {WORD_MAX} bytes")));
    }
    match alias.address.parse() {
        Ok(address) => Ok(HostAlias { host: alias.host, address }),
        Err(_) => Err(RpcError::invalid(format!("aliases: {:?} is no address", alias.address))),
    }
}

fn state(progress: &Progress) -> PullState {
    let (stage, image, failure) = match &progress.end {
        None if progress.layers.is_empty() => (Stage::Resolving, None, None),
        None => (Stage::Fetching, None, None),
        Some(Ok(image)) => (Stage::Done, Some(described(image.described())), None),
        Some(Err(failure)) => (Stage::Failed, None, Some(failed(failure))),
    };
    PullState {
        version: progress.version,
        stage: stage.into(),
        layers: progress.layers.iter().map(layer).collect(),
        image,
        failure,
        bytes_per_second: progress.speed.bytes_per_second,
    }
}

fn layer(layer: &Layer) -> LayerState {
    use layer_state::Stage;
    let stage = match layer.stage {
        _ if layer.done => Stage::Stored,
        LayerStage::Waiting => Stage::Waiting,
        LayerStage::Fetching => Stage::Fetching,
        LayerStage::Checking => Stage::Checking,
    };
    LayerState {
        digest: digest(layer.digest),
        size: layer.size,
        fetched: layer.fetched,
        done: layer.done,
        present: layer.present,
        stage: stage.into(),
    }
}

fn described(image: &PulledImage) -> Image {
    let layer = |layer: &nacre_protocols::agent_puller::PulledLayer| ImageLayer {
        diff_id: digest(layer.diff_id),
        compressed: layer.compressed,
        tar: layer.tar,
    };
    let process = image.process.clone();
    Image {
        reference: image.reference.clone(),
        manifest: digest(image.manifest),
        root: digest(image.root),
        config: digest(image.config),
        layers: image.layers.iter().map(layer).collect(),
        entrypoint: process.entrypoint,
        command: process.command,
        env: process.env,
        working_directory: process.working_directory,
        user: process.user,
        stop_signal: process.stop_signal,
        volumes: process.volumes,
        exposed_ports: process.exposed_ports,
        annotations: image.annotations.iter().cloned().collect(),
        policy_scope: match &image.verdict {
            Verdict::Unjudged => String::new(),
            Verdict::Accepted { scope } | Verdict::Listed { scope, .. } => scope.clone(),
        },
    }
}

fn digest(digest: Sha256) -> String {
    format!("sha256:{digest}")
}

fn failed(why: &PullFailure) -> Failure {
    use failure::Kind;
    let kind = match why.kind {
        PullFailureKind::Reference => Kind::Reference,
        PullFailureKind::NameResolution => Kind::NameResolution,
        PullFailureKind::Connect => Kind::Connect,
        PullFailureKind::Port => Kind::Port,
        PullFailureKind::Tls => Kind::Tls,
        PullFailureKind::Unauthorized => Kind::Unauthorized,
        PullFailureKind::NotFound => Kind::NotFound,
        PullFailureKind::Digest => Kind::Digest,
        PullFailureKind::Platform => Kind::Platform,
        PullFailureKind::Policy => Kind::Policy,
        PullFailureKind::Limit => Kind::Limit,
        PullFailureKind::Stalled => Kind::Stalled,
        PullFailureKind::DiskFull => Kind::DiskFull,
        PullFailureKind::Quota => Kind::Quota,
        PullFailureKind::Malformed => Kind::Malformed,
        PullFailureKind::Cancelled => Kind::Cancelled,
        PullFailureKind::Internal => Kind::Internal,
    };
    Failure { kind: kind.into(), message: why.message.clone() }
}
