//! One pull, from a reference to an image in the store: manifest, config, layers, each byte checked on its way.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nacre_protocols::agent_puller::{
    self as edge, LayerStage, LayerToPull, Pull, PullFailureKind, PulledImage, PulledLayer, Verdict,
};
use nacre_protocols::fetcher_indexer::{Compression as PipeCompression, IndexFailureKind, LAYERS_AT_ONCE};
use nacre_protocols::names::Sha256;

use crate::config::{ConfigDocument, ConfigError};
use crate::digest::Digest;
use crate::index_client::{IndexClient, IndexError, Indexed};
use crate::manifest::{Compression, Document, ImageManifest, Layer, ManifestError, Platform};
use crate::policy::{Policy, PolicyError};
use crate::reference::{Location, Reference, ReferenceError};
use crate::registry::auth::Credentials;
use crate::registry::blob::Blob;
use crate::registry::dns::ResolveError;
use crate::registry::proxy::{Proxies, ProxySettingError};
use crate::registry::retry::RetryPolicy;
use crate::registry::sources::Sources;
use crate::registry::tls::{Identity, Trust, TrustError};
use crate::registry::transport::{Cancel, Connector, Timeouts, TransportError};
use crate::registry::{Access, FetchedManifest, Registry, RegistryError};
use crate::store::{Claim, ImageRecord, Store, StoreError, StoredLayer};

/// Longest tar of a layer in bytes.
pub const TAR_BYTES_MAX: u64 = 64 << 30;
/// Bytes that go from the network to the indexer at once.
const BUFFER_BYTES: usize = 128 << 10;
/// Shortest time between two reports of one layer's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What all pulls share.
pub struct Context {
    pub store: Store,
    pub indexer: IndexClient,
    pub timeouts: Timeouts,
    pub retry: RetryPolicy,
    pub resolv_conf: PathBuf,
    /// Digests of manifests, or of indexes that name them, that may be pulled: what the sandbox's host has fixed at boot and
    /// init has told us. `None`: any. Of what is pulled for such a sandbox the launcher is told which layers make an image.
    pub images: Option<Vec<Sha256>>,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event {
    Layers(Vec<LayerToPull>),
    Stage { index: u16, stage: LayerStage },
    Progress { index: u16, fetched: u64 },
    LayerDone { index: u16 },
}

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("image name: {0}")]
    Reference(#[from] ReferenceError),
    #[error("request: {0}")]
    Trust(#[from] TrustError),
    #[error("request: {0}")]
    Proxy(#[from] ProxySettingError),
    #[error("request: location {location:?}: {source}")]
    Location { location: String, source: ReferenceError },
    #[error("{0}")]
    Policy(#[from] PolicyError),
    #[error("{reference} is {digest}, which is not among the images that the sandbox was booted for")]
    NotOfTheSandbox { reference: String, digest: Digest },
    #[error("{0}")]
    Registry(#[from] RegistryError),
    #[error("{what} {source}")]
    Manifest { what: String, source: ManifestError },
    #[error("{what} is an index inside an index")]
    NestedIndex { what: String },
    #[error("image {reference} is not made for {wanted}; there is {found}")]
    Platform { reference: String, wanted: String, found: String },
    #[error("{what} {source}")]
    Config { what: String, source: ConfigError },
    #[error("{what}: {source}")]
    Index { what: String, source: IndexError },
    #[error(
        "{what}: digest mismatch of the unpacked layer: expected {expected} (config rootfs.diff_ids), got {got}"
    )]
    DiffId { what: String, expected: Digest, got: Digest },
    #[error("{what}: scratch disk is full: {used} of {total} bytes used")]
    DiskFull { what: String, used: u64, total: u64 },
    #[error("{what}: {source}")]
    Store { what: String, source: StoreError },
    #[error("{what}: cannot start a thread: {source}")]
    Thread { what: String, source: io::Error },
    #[error("cancelled")]
    Cancelled,
}

/// Pulls one image. `report` is called from several threads.
pub fn pull(
    context: &Context,
    request: &Pull,
    cancel: &Cancel,
    report: &(dyn Fn(Event) + Sync),
) -> Result<PulledImage, PullError> {
    let reference = Reference::parse(&request.reference)?;
    // Before anybody is asked anything.
    let policy = match request.policy.as_str() {
        "" => None,
        text => Some(Policy::parse(text)?),
    };
    let requirement = policy.as_ref().map(|policy| policy.requirement(&reference)).transpose()?;
    let sources = sources(context, &reference, request, cancel)?;
    let image = find_image(&sources, &reference, &request.platform)?;
    if !is_allowed(context.images.as_deref(), &[image.root_digest, image.manifest_digest]) {
        let reference = reference.to_string();
        return Err(PullError::NotOfTheSandbox { reference, digest: image.manifest_digest });
    }
    let _pin = context.store.pin(image.layers().map(|(_, diff_id)| diff_id).collect());
    let verdict = match requirement {
        None => Verdict::Unjudged,
        Some(requirement) => {
            let scope = requirement.scope.to_owned();
            match requirement.judge(&reference, image.root_digest, image.manifest_digest)? {
                None => Verdict::Accepted { scope },
                Some(digest) => Verdict::Listed { scope, digest: wire(digest) },
            }
        }
    };
    let present: Vec<bool> = image
        .layers()
        .map(|(layer, diff_id)| context.store.find(&layer.blob.digest, &diff_id).is_some())
        .collect();
    let listed = image.layers().zip(&present).map(|((layer, _), &present)| LayerToPull {
        digest: wire(layer.blob.digest),
        size: layer.blob.size,
        present,
    });
    report(Event::Layers(listed.collect()));
    let layers = LayerPulls { context, sources: &sources, image: &image, cancel, report }.run()?;
    if context.images.is_some() {
        let diff_ids: Vec<Digest> = image.layers().map(|(_, diff_id)| diff_id).collect();
        let written = context.store.write_root(&image.manifest_digest, &diff_ids);
        written.map_err(|source| PullError::Store { what: reference.to_string(), source })?;
    }
    let pulled = PulledImage {
        reference: reference.to_string(),
        manifest: wire(image.manifest_digest),
        root: wire(image.root_digest),
        config: wire(image.manifest.config.digest),
        layers,
        annotations: image.manifest.annotations.into_iter().collect(),
        verdict,
        process: edge::ImageConfig {
            entrypoint: image.config.config.entrypoint,
            command: image.config.config.cmd,
            env: image.config.config.env,
            working_directory: image.config.config.working_dir,
            user: image.config.config.user,
            stop_signal: image.config.config.stop_signal,
            volumes: image.config.config.volumes,
            exposed_ports: image.config.config.exposed_ports,
        },
    };
    let record = ImageRecord { image: pulled, keep: request.keep };
    context
        .store
        .write_image(&record)
        .map_err(|source| PullError::Store { what: reference.to_string(), source })?;
    Ok(record.image)
}

fn sources(
    context: &Context,
    reference: &Reference,
    request: &Pull,
    cancel: &Cancel,
) -> Result<Sources, PullError> {
    let identities: Vec<_> = request
        .client_certificates
        .iter()
        .map(|given| Identity {
            registry: crate::registry::tls::Registry::new(&given.registry),
            chain: &given.chain,
            key: &given.key,
        })
        .collect();
    let trust = Trust::new(&request.certificate_authorities, &identities)?;
    let edge::Proxy { http, https, exceptions } = &request.proxy;
    let proxies = Proxies::new(http, https, exceptions)?;
    let registry = |location: &Location, given: &edge::Credentials| {
        let (host, _) = location.host_and_port();
        let alias = request.aliases.iter().find(|alias| alias.host.eq_ignore_ascii_case(host));
        let access = Access {
            credentials: credentials(given),
            insecure: request.insecure.clone(),
            address: alias.map(|alias| alias.address),
            retry: context.retry,
        };
        let resolv_conf = context.resolv_conf.clone();
        let mut connector = Connector::new(trust.clone(), context.timeouts, cancel.clone(), resolv_conf);
        connector.proxies = proxies.clone();
        connector.proxy_aliases =
            request.aliases.iter().map(|alias| (alias.host.to_ascii_lowercase(), alias.address)).collect();
        Registry::new(location, access, connector)
    };
    let locate = |text: &str| {
        let failed = |source| PullError::Location { location: crate::manifest::shorten(text), source };
        Location::parse(text).map_err(failed)
    };
    let mirrors = request.mirrors.iter();
    let mirrors = mirrors.map(|mirror| Ok(registry(&locate(&mirror.location)?, &mirror.credentials)));
    let mirrors = mirrors.collect::<Result<Vec<_>, PullError>>()?;
    let own = if request.location.is_empty() { reference.location() } else { locate(&request.location)? };
    Ok(Sources::new(mirrors, registry(&own, &request.credentials)))
}

fn credentials(given: &edge::Credentials) -> Credentials {
    match given {
        edge::Credentials::Anonymous => Credentials::Anonymous,
        edge::Credentials::Basic { user, password } => {
            Credentials::Basic { user: user.clone(), password: password.clone() }
        }
        edge::Credentials::IdentityToken(token) => Credentials::IdentityToken(token.clone()),
    }
}

/// What a reference turned out to name.
struct Image {
    root_digest: Digest,
    manifest_digest: Digest,
    manifest: ImageManifest,
    config: ConfigDocument,
}

impl Image {
    /// Each layer with its diff_id, lowest first; their numbers are equal, which reading the config has checked.
    fn layers(&self) -> impl Iterator<Item = (Layer, Digest)> {
        self.manifest.layers.iter().cloned().zip(self.config.diff_ids.iter().copied())
    }
}

fn find_image(
    sources: &Sources,
    reference: &Reference,
    platform: &edge::Platform,
) -> Result<Image, PullError> {
    let wanted = Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
    };
    let other_platform = |found: String| PullError::Platform {
        reference: reference.to_string(),
        wanted: wanted.to_string(),
        found: crate::manifest::shorten_to(&found, 1024),
    };
    let what = format!("manifest {reference}");
    let root = sources.manifest(&what, &reference.manifest_name(), reference.digest, None)?;
    let (manifest_digest, manifest) = match parse_manifest(&what, &root)? {
        Document::Image(manifest) => (root.digest, manifest),
        Document::Index(index) => {
            let entry = index.choose(&wanted).ok_or_else(|| other_platform(index.platforms()))?.manifest;
            let what = format!("manifest {} of {reference}", entry.digest);
            let name = entry.digest.to_string();
            let child = sources.manifest(&what, &name, Some(entry.digest), Some(entry.size))?;
            match parse_manifest(&what, &child)? {
                Document::Image(manifest) => (child.digest, manifest),
                Document::Index(_) => return Err(PullError::NestedIndex { what }),
            }
        }
    };
    let what = format!("config {} of {reference}", manifest.config.digest);
    let bytes = sources.small_blob(&what, manifest.config)?;
    let config = ConfigDocument::parse(&bytes, manifest.layers.len())
        .map_err(|source| PullError::Config { what, source })?;
    if !config.platform.serves(&wanted) {
        return Err(other_platform(config.platform.to_string()));
    }
    Ok(Image { root_digest: root.digest, manifest_digest, manifest, config })
}

fn parse_manifest(what: &str, fetched: &FetchedManifest) -> Result<Document, PullError> {
    Document::parse(&fetched.bytes, fetched.content_type.as_deref())
        .map_err(|source| PullError::Manifest { what: what.to_owned(), source })
}

/// All layers of an image, a few at a time.
struct LayerPulls<'a> {
    context: &'a Context,
    sources: &'a Sources,
    image: &'a Image,
    cancel: &'a Cancel,
    report: &'a (dyn Fn(Event) + Sync),
}

impl LayerPulls<'_> {
    fn run(&self) -> Result<Vec<PulledLayer>, PullError> {
        let todo: Vec<(Layer, Digest)> = self.image.layers().collect();
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<PulledLayer>>> = Mutex::new(vec![None; todo.len()]);
        let failure: Mutex<Option<PullError>> = Mutex::default();
        let fail = |error| {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            // The first failure ends the others; what they say of being cancelled comes too late to count.
            self.cancel.set();
        };
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((layer, diff_id)) = todo.get(at) else { return };
                if self.cancel.is_set() {
                    return fail(PullError::Cancelled);
                }
                match self.one(at, layer, *diff_id) {
                    Ok(pulled) => {
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(slot) = done.get_mut(at) {
                            *slot = Some(pulled);
                        }
                    }
                    Err(error) => return fail(error),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..todo.len().min(LAYERS_AT_ONCE) {
                if let Err(source) = std::thread::Builder::new().spawn_scoped(scope, work) {
                    fail(PullError::Thread { what: "layers".into(), source });
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => {
                let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
                done.into_iter().collect::<Option<Vec<_>>>().ok_or(PullError::Cancelled)
            }
        }
    }

    /// Layer number `at`: found in the store, or fetched into it.
    fn one(&self, at: usize, layer: &Layer, diff_id: Digest) -> Result<PulledLayer, PullError> {
        let what =
            format!("layer {} of {} ({})", at + 1, self.image.manifest.layers.len(), layer.blob.digest);
        let store = &self.context.store;
        let index = u16::try_from(at).unwrap_or(u16::MAX);
        let stage = |stage| (self.report)(Event::Stage { index, stage });
        stage(LayerStage::Waiting);
        let claim = store.claim(diff_id, self.cancel).map_err(|source| self.store_error(&what, source))?;
        let stored = match store.find(&layer.blob.digest, &diff_id) {
            Some(stored) => stored,
            None => match self.check_again(&what, index, layer, &claim, diff_id)? {
                Some(stored) => stored,
                None => {
                    stage(LayerStage::Fetching);
                    self.fetch(&what, index, layer, &claim, diff_id)?
                }
            },
        };
        (self.report)(Event::LayerDone { index });
        Ok(PulledLayer { diff_id: wire(diff_id), compressed: layer.blob.size, tar: stored.tar })
    }

    /// A layer that an earlier boot has left on a kept disk: hashed and indexed again from its tar, as if it had just come.
    /// `None` if there is none, or none that is right; that one is gone then.
    fn check_again(
        &self,
        what: &str,
        index: u16,
        layer: &Layer,
        claim: &Claim<'_>,
        diff_id: Digest,
    ) -> Result<Option<StoredLayer>, PullError> {
        let store = &self.context.store;
        let store_error = |source| self.store_error(what, source);
        let Some((tar, stored)) = store.find_unchecked(&layer.blob.digest, &diff_id) else { return Ok(None) };
        (self.report)(Event::Stage { index, stage: LayerStage::Checking });
        let pending = claim.begin().map_err(store_error)?;
        let index_file = pending.create_index().map_err(store_error)?;
        let outcome = self.index_again(tar.take(stored.tar), &index_file);
        match outcome {
            Ok(indexed) if indexed.diff_id == diff_id => {
                pending.take_unchecked().map_err(store_error)?;
                let checked = pending.commit(&layer.blob.digest, indexed.tar, indexed.index);
                checked.map(Some).map_err(store_error)
            }
            // Damaged, or never the layer that it was said to be.
            Ok(_)
            | Err(IndexError::Failed {
                kind: IndexFailureKind::Malformed | IndexFailureKind::Limit | IndexFailureKind::TarMax,
                ..
            }) => {
                eprintln!(
                    "nacre-puller: {what}: what the kept store has of it is damaged; it is fetched again"
                );
                store.drop_unchecked(&diff_id).map_err(store_error)?;
                Ok(None)
            }
            Err(source) => Err(self.index_error(what, source)),
        }
    }

    fn index_again(&self, mut tar: impl io::Read, index: &File) -> Result<Indexed, IndexError> {
        let mut job = self.context.indexer.start(PipeCompression::Plain, None, index, self.cancel)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        // A file that cannot be read is one that ends early: its digest tells.
        while let Ok(count @ 1..) = tar.read(&mut buffer) {
            if !job.feed(buffer.get(..count).unwrap_or_default())? {
                break;
            }
        }
        job.finish()
    }

    fn fetch(
        &self,
        what: &str,
        index: u16,
        layer: &Layer,
        claim: &Claim<'_>,
        diff_id: Digest,
    ) -> Result<StoredLayer, PullError> {
        let store_error = |source| self.store_error(what, source);
        // A plain tar takes what it has, a compressed one more.
        let quota_left = self.context.store.check_quota(layer.blob.size).map_err(store_error)?;
        let tar_max = TAR_BYTES_MAX.min(quota_left);
        let pending = claim.begin().map_err(store_error)?;
        let tar = pending.create_tar().map_err(store_error)?;
        let index_file = pending.create_index().map_err(store_error)?;
        let compression = match layer.compression {
            Compression::None => PipeCompression::Plain,
            Compression::Gzip => PipeCompression::Gzip,
            Compression::Zstd => PipeCompression::Zstd,
        };
        let indexer = &self.context.indexer;
        let mut job = indexer
            .start(compression, Some((&tar, tar_max)), &index_file, self.cancel)
            .map_err(|source| self.index_error(what, source))?;
        let mut blob = Blob::new(self.sources, what, layer.blob, &layer.urls);
        let mut buffer = vec![0; BUFFER_BYTES];
        let (mut fetched, mut feeding) = (0, true);
        let mut reported = Instant::now();
        while feeding {
            let read = blob.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            feeding = job.feed(bytes).map_err(|source| self.index_error(what, source))?;
            fetched += read as u64;
            if reported.elapsed() >= PROGRESS_INTERVAL {
                reported = Instant::now();
                (self.report)(Event::Progress { index, fetched });
            }
        }
        let indexed = match job.finish() {
            Ok(indexed) => indexed,
            Err(IndexError::Failed { kind: IndexFailureKind::TarMax, .. }) if quota_left < TAR_BYTES_MAX => {
                let over = self.context.store.over_quota(quota_left.saturating_add(1));
                return Err(store_error(over));
            }
            Err(source) => {
                // What was damaged on its way is no fault of the image: the digest of the whole tells.
                let damage =
                    if source.blames_the_layer() { rest(&mut blob, &mut buffer).err() } else { None };
                return match damage {
                    Some(damage) if matches!(damage.last(), RegistryError::Digest { .. }) => {
                        Err(damage.into())
                    }
                    _ => Err(self.index_error(what, source)),
                };
            }
        };
        if !feeding {
            // It stopped taking bytes and yet says that all is well: what lies behind an archive's end still counts
            // for the blob's digest.
            rest(&mut blob, &mut buffer)?;
        }
        (self.report)(Event::Progress { index, fetched: layer.blob.size });
        if indexed.diff_id != diff_id {
            let what = what.to_owned();
            return Err(PullError::DiffId { what, expected: diff_id, got: indexed.diff_id });
        }
        pending.commit(&layer.blob.digest, indexed.tar, indexed.index).map_err(store_error)
    }

    fn index_error(&self, what: &str, source: IndexError) -> PullError {
        match source {
            IndexError::Cancelled => PullError::Cancelled,
            IndexError::Failed { kind: IndexFailureKind::DiskFull, .. } => self.disk_full(what),
            source => PullError::Index { what: what.to_owned(), source },
        }
    }

    fn store_error(&self, what: &str, source: StoreError) -> PullError {
        match source {
            StoreError::Cancelled => PullError::Cancelled,
            source if source.is_disk_full() => self.disk_full(what),
            source => PullError::Store { what: what.to_owned(), source },
        }
    }

    fn disk_full(&self, what: &str) -> PullError {
        let (free, total) = self.context.store.space().unwrap_or_default();
        PullError::DiskFull { what: what.to_owned(), used: total.saturating_sub(free), total }
    }
}

/// Reads a blob to its end, for its digest.
fn rest(blob: &mut Blob, buffer: &mut [u8]) -> Result<(), RegistryError> {
    while blob.read(buffer)? > 0 {}
    Ok(())
}

fn is_allowed(images: Option<&[Sha256]>, digests: &[Digest]) -> bool {
    images.is_none_or(|images| digests.iter().any(|digest| images.contains(&wire(*digest))))
}

fn wire(digest: Digest) -> Sha256 {
    Sha256(*digest.as_bytes())
}

impl PullError {
    pub fn kind(&self) -> PullFailureKind {
        match self {
            Self::Reference(_) => PullFailureKind::Reference,
            Self::Trust(_) => PullFailureKind::Tls,
            Self::Proxy(_) => PullFailureKind::Connect,
            Self::Location { .. } => PullFailureKind::Reference,
            Self::Policy(_) | Self::NotOfTheSandbox { .. } => PullFailureKind::Policy,
            Self::Registry(error) => registry_kind(error),
            Self::Manifest { source: ManifestError::TooMany { .. } | ManifestError::Size { .. }, .. } => {
                PullFailureKind::Limit
            }
            Self::Config { source: ConfigError::TooMany { .. } | ConfigError::TooLong { .. }, .. } => {
                PullFailureKind::Limit
            }
            Self::Manifest { .. } | Self::NestedIndex { .. } | Self::Config { .. } => {
                PullFailureKind::Malformed
            }
            Self::Platform { .. } => PullFailureKind::Platform,
            Self::Index { source: IndexError::Failed { kind, .. }, .. } => match kind {
                IndexFailureKind::Malformed => PullFailureKind::Malformed,
                IndexFailureKind::Limit | IndexFailureKind::TarMax => PullFailureKind::Limit,
                IndexFailureKind::DiskFull => PullFailureKind::DiskFull,
                IndexFailureKind::System => PullFailureKind::Internal,
            },
            Self::DiffId { .. } => PullFailureKind::Digest,
            Self::DiskFull { .. } => PullFailureKind::DiskFull,
            Self::Store { source: StoreError::Quota { .. }, .. } => PullFailureKind::Quota,
            Self::Index { .. } | Self::Store { .. } | Self::Thread { .. } => PullFailureKind::Internal,
            Self::Cancelled => PullFailureKind::Cancelled,
        }
    }
}

fn registry_kind(error: &RegistryError) -> PullFailureKind {
    match error.last() {
        RegistryError::Transport { source, .. } => match source {
            TransportError::Resolve { source: ResolveError::Name, .. } => PullFailureKind::Reference,
            TransportError::Resolve { .. } => PullFailureKind::NameResolution,
            TransportError::Connect { .. }
            | TransportError::Broken { .. }
            | TransportError::Closed { .. }
            | TransportError::Proxy { .. } => PullFailureKind::Connect,
            TransportError::Port { .. } => PullFailureKind::Port,
            TransportError::Tls { .. } => PullFailureKind::Tls,
            TransportError::Stalled { .. } | TransportError::Slow { .. } => PullFailureKind::Stalled,
            TransportError::Malformed { .. } => PullFailureKind::Malformed,
            TransportError::Cancelled => PullFailureKind::Cancelled,
        },
        RegistryError::Unauthorized { .. } => PullFailureKind::Unauthorized,
        RegistryError::NotFound { .. } => PullFailureKind::NotFound,
        RegistryError::RateLimited { .. } | RegistryError::TooLarge { .. } => PullFailureKind::Limit,
        RegistryError::Digest { .. } => PullFailureKind::Digest,
        RegistryError::Auth { .. }
        | RegistryError::Status { .. }
        | RegistryError::Redirect { .. }
        | RegistryError::Size { .. }
        | RegistryError::Range { .. }
        | RegistryError::AfterMirrors { .. } => PullFailureKind::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_that_was_booted_for_some_images_pulls_no_other() {
        let [index, manifest, other] = [b"index", b"manif", b"other"].map(|bytes| Digest::of(bytes));
        for (images, allowed) in [
            (None, true),
            (Some(vec![manifest]), true),
            (Some(vec![other, index]), true),
            (Some(vec![other]), false),
            (Some(vec![]), false),
        ] {
            let images = images.map(|images| images.into_iter().map(wire).collect::<Vec<_>>());
            assert_eq!(is_allowed(images.as_deref(), &[index, manifest]), allowed, "{images:?}");
        }
    }
}
