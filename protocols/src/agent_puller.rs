//! Agent to puller: pull this reference with these rules; progress; the verified digests.
//!
//! Carrier: a `SOCK_SEQPACKET` pair made by init; the puller's fetcher has its end at descriptor [`FETCHER_FD`]. Several
//! pulls may go on at once, told apart by an id of the agent's choosing. When the agent's end closes, the puller
//! gives up what is under way and exits; what was committed to the store stays.
//!
//! The first frame is the agent's [`Opening`]. It says what the fetcher confines itself to, and no fetcher ever has more:
//! a pull that needs another port is another fetcher's.
//!
//! The puller is not trusted with more than it fetched: the agent takes from its answer digests, sizes and the image's
//! configuration; the launcher mounts only what the store holds under those digests.

use crate::names::Sha256;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Longest frame either way, in bytes.
pub const FRAME_MAX: usize = 128 * 1024;
/// Most pulls at once.
pub const PULLS_MAX: usize = 8;
/// Most layers of an image.
pub const LAYERS_MAX: usize = 128;
/// Longest reference, in bytes, before normalisation.
pub const REFERENCE_MAX: usize = 1024;
/// Most mirrors, and most client certificates, of one pull.
pub const MIRRORS_MAX: usize = 16;
pub const CLIENT_CERTIFICATES_MAX: usize = 8;
/// Longest [`Opening`], in bytes.
pub const OPENING_MAX: usize = 256;
/// Most ports of one.
pub const PORTS_MAX: usize = 64;
/// Longest policy, in bytes. With all else of a request it must also fit into a frame.
pub const POLICY_MAX: usize = 64 * 1024;
/// Most digests in each list of a [`Request::Collect`].
pub const COLLECT_MAX: usize = 1536;
/// Longest text of a failure, in bytes.
pub const MESSAGE_MAX: usize = 2048;
/// The fetcher's end of this edge.
pub const FETCHER_FD: i32 = 3;
/// The fetcher's end of the edge to the indexer ([`crate::fetcher_indexer`]).
pub const INDEXER_FD: i32 = 4;
pub use crate::names::STORE_MOUNT;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// What the fetcher may connect to by TCP, whatever the host.
    pub ports: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Pull {
        id: u32,
        pull: Box<Pull>,
    },
    /// Reply: [`Reply::Failed`] with [`PullFailureKind::Cancelled`], or the end that was on its way.
    Cancel {
        id: u32,
    },
    /// What the store holds. Reply: a [`Reply::Stored`] for each image, then [`Reply::Contents`].
    List {
        id: u32,
    },
    /// Remove what nobody needs: images that are not kept and whose manifest is not among `used`, then layers that no image
    /// that is left has and that are not among `layers`. What is in `forget` is not kept any more; with `only`, all other
    /// images stay. Reply: [`Reply::Collected`], or [`Reply::Failed`].
    Collect {
        id: u32,
        used: Vec<Sha256>,
        layers: Vec<Sha256>,
        forget: Vec<String>,
        only: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// As a person types it; the puller normalises it as docker does.
    pub reference: String,
    pub platform: Platform,
    /// Where the repository really is (`host[:port]/path`); empty: where the reference says.
    pub location: String,
    /// Of that registry.
    pub credentials: Credentials,
    /// Asked before it, in this order.
    pub mirrors: Vec<Mirror>,
    /// Registries (`host[:port]`) that may be spoken to by plain http or with an unknown certificate.
    pub insecure: Vec<String>,
    /// More roots of trust, PEM.
    pub certificate_authorities: Vec<String>,
    pub client_certificates: Vec<ClientCertificate>,
    pub proxy: Proxy,
    /// What may be pulled: the text of a file of containers-policy.json's kind; empty: everything.
    pub policy: String,
    /// Where a host name of the reference is found, before any DNS: the sandbox's way to the host's loopback.
    pub aliases: Vec<HostAlias>,
    /// The image stays in the store until it is told to be forgotten, used or not.
    pub keep: bool,
    /// What the registry's answers may lead to beside its own port and https's.
    pub ports: Vec<u16>,
}

impl Pull {
    /// The image of this reference for this platform, asked for anonymously and without any rule.
    pub fn anonymous(reference: impl Into<String>, platform: Platform) -> Self {
        Self {
            reference: reference.into(),
            platform,
            location: String::new(),
            credentials: Credentials::Anonymous,
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certificate_authorities: Vec::new(),
            client_certificates: Vec::new(),
            proxy: Proxy::default(),
            policy: String::new(),
            aliases: Vec::new(),
            keep: false,
            ports: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The repository there: `host[:port]/path`.
    pub location: String,
    pub credentials: Credentials,
}

/// What is shown to a registry that asks who the client is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificate {
    /// `host[:port]`; nobody else is shown it.
    pub registry: String,
    /// Both PEM: the certificate with what leads to its root, and its key.
    pub chain: String,
    pub key: String,
}

/// Never prints a secret.
impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientCertificate for {}", self.registry)
    }
}

/// Ways through proxies, as the environment variables of these names have them; empty: none.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    pub http: String,
    pub https: String,
    /// Domains, addresses and networks that are spoken to directly.
    pub exceptions: Vec<String>,
}

/// Their URLs may hold passwords.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let given = |url: &str| !url.is_empty();
        write!(f, "Proxy {{ http: {}, https: {} }}", given(&self.http), given(&self.https))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    pub host: String,
    pub address: IpAddr,
}

/// Names of the image specification (GOOS, GOARCH): `linux`, `amd64`, variant possibly empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credentials {
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// OAuth2 refresh token.
    IdentityToken(String),
}

/// Never prints a secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic",
            Credentials::IdentityToken(_) => "IdentityToken",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The manifest is verified: these are the layers, lowest first. Sent once.
    Layers {
        id: u32,
        layers: Vec<LayerToPull>,
    },
    /// Layer `index` has come to this.
    Stage {
        id: u32,
        index: u16,
        stage: LayerStage,
    },
    /// `fetched` compressed bytes of layer `index` so far, at most some ten times a second for each layer.
    Progress {
        id: u32,
        index: u16,
        fetched: u64,
    },
    /// Layer `index` is in the store, verified.
    LayerDone {
        id: u32,
        index: u16,
    },
    Done {
        id: u32,
        image: Box<PulledImage>,
    },
    Failed {
        id: u32,
        failure: PullFailure,
    },
    Stored {
        id: u32,
        image: Box<PulledImage>,
        keep: bool,
    },
    Contents {
        id: u32,
        contents: StoreContents,
    },
    Collected {
        id: u32,
        collected: StoreCollected,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerStage {
    /// For another pull that fetches it, or for its turn.
    Waiting,
    Fetching,
    /// It is there from an earlier boot, and hashed and indexed again.
    Checking,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreContents {
    /// Checked in this boot or not.
    pub layers: u64,
    pub used: u64,
    pub quota: Option<u64>,
    /// Of the file system.
    pub free: u64,
    pub total: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCollected {
    pub images: u64,
    pub layers: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerToPull {
    /// Of the blob as the registry has it.
    pub digest: Sha256,
    /// Compressed, in bytes.
    pub size: u64,
    /// Was in the store already.
    pub present: bool,
}

/// An image whose every byte was checked against the digests that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledImage {
    /// Normalised: `registry/repository:tag` or `…@sha256:…`.
    pub reference: String,
    /// Of the manifest for the platform.
    pub manifest: Sha256,
    /// Of what the reference named: the index, or the manifest again.
    pub root: Sha256,
    pub config: Sha256,
    /// Lowest first.
    pub layers: Vec<PulledLayer>,
    pub process: ImageConfig,
    /// Of the manifest, by name.
    pub annotations: Vec<(String, String)>,
    pub verdict: Verdict,
}

/// What the policy of the request says of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The request had none.
    Unjudged,
    /// The rules of this scope take it, whatever it is.
    Accepted { scope: String },
    /// The rules of this scope have a list, on which this digest stands.
    Listed { scope: String, digest: Sha256 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledLayer {
    pub diff_id: Sha256,
    /// In bytes: as the registry has it, and as a plain tar.
    pub compressed: u64,
    pub tar: u64,
}

/// What an image's configuration says of the process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub working_directory: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// Such as `SIGTERM` or `15`; empty for the default.
    pub stop_signal: String,
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullFailure {
    pub kind: PullFailureKind,
    /// The stage, the object and the cause, in at most [`MESSAGE_MAX`] bytes.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullFailureKind {
    /// The reference does not parse.
    Reference,
    NameResolution,
    Connect,
    /// Somebody's answer leads to a port that the pull may not connect to.
    Port,
    Tls,
    Unauthorized,
    NotFound,
    /// Something does not have the digest that names it.
    Digest,
    /// The image is not made for this platform.
    Platform,
    /// The policy does not take it.
    Policy,
    /// A named limit was reached.
    Limit,
    /// The registry stopped sending.
    Stalled,
    /// The scratch disk is full.
    DiskFull,
    /// The store's quota is reached.
    Quota,
    /// The registry, a manifest, a configuration or a layer is not what the specification says.
    Malformed,
    Cancelled,
    /// A fault of the puller's own.
    Internal,
}
