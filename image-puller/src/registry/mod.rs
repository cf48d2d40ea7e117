//! A registry's client: the pull half of the OCI Distribution specification 1.1.
//!
//! Three things are asked for: a manifest, a small blob (the config), and a layer's blob as a stream. Each answer is
//! held to its digest here, and to the size that was announced; what a header says about digests is not believed.
//! What fails in passing (429, 5xx, broken or stalled connections) is tried again, a blob from the byte where it broke.

pub mod auth;
pub mod blob;
mod channel;
mod dial;
pub mod dns;
pub mod hpack;
pub mod http;
pub mod http2;
mod huffman;
mod input;
pub mod proxy;
pub mod retry;
pub mod sources;
pub mod tls;
pub mod transport;
pub mod url;

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::digest::Digest;
use crate::manifest::{self, Descriptor, MANIFEST_BYTES_MAX, shorten};
use crate::reference::{DEFAULT_DOMAIN, Location};
use auth::{AuthError, Credentials, TOKEN_REPLY_BYTES_MAX, TokenSource, Way};
use http::{Head, Request, Response};
use retry::{Fault, RetryPolicy};
use transport::{Connector, TransportError};
use url::{Origin, Scheme, Url};

/// Most redirects of one request.
pub const REDIRECTS_MAX: usize = 5;
/// Times that one request may answer a 401: a token that another request used to its end is renewed once more.
const AUTHORIZATIONS_MAX: usize = 2;
/// Most bytes of an error's body that are read.
const ERROR_BYTES_MAX: u64 = 16 << 10;
/// Where docker.io's images really are.
const DOCKER_HUB: &str = "registry-1.docker.io";

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{what}: {source}")]
    Transport { what: String, source: TransportError },
    #[error("{what}: access refused: {detail}")]
    Unauthorized { what: String, detail: String },
    #[error("{what}: authentication with {host}: {source}")]
    Auth { what: String, host: String, source: AuthError },
    #[error("{what}: not found: {detail}")]
    NotFound { what: String, detail: String },
    #[error("{what}: {host} limits the rate of requests (429), also after waiting: {detail}")]
    RateLimited { what: String, host: String, detail: String },
    #[error("{what}: {host} answered with status {status}: {detail}")]
    Status { what: String, host: String, status: u16, detail: String },
    #[error("{what}: redirect refused: {reason}")]
    Redirect { what: String, reason: String },
    #[error("{what}: larger than its limit of {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("{what}: is {got} bytes long, not {expected} as announced")]
    Size { what: String, expected: u64, got: u64 },
    #[error("{what}: digest mismatch: expected {expected}, got {got}")]
    Digest { what: String, expected: Digest, got: Digest },
    #[error("{what}: answer to a range request begins at another byte than {0}", .offset)]
    Range { what: String, offset: u64 },
    #[error("{last} (mirrors asked before: {earlier})")]
    AfterMirrors { last: Box<RegistryError>, earlier: String },
}

impl RegistryError {
    /// What is wrong at the last source that was asked.
    pub fn last(&self) -> &Self {
        match self {
            Self::AfterMirrors { last, .. } => last.last(),
            error => error,
        }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Transport { source: TransportError::Cancelled, .. })
    }

    fn after(self, earlier: Vec<RegistryError>) -> Self {
        if earlier.is_empty() || self.is_cancelled() {
            return self;
        }
        let earlier: Vec<_> = earlier.iter().map(|error| shorten(&error.to_string())).collect();
        Self::AfterMirrors { last: Box::new(self), earlier: earlier.join("; ") }
    }
}

/// What a pull knows of how to reach and enter the registry.
pub struct Access {
    pub credentials: Credentials,
    /// `host` or `host:port` each: plain http or an unknown certificate will do.
    pub insecure: Vec<String>,
    /// The registry's own address, if it is not to be resolved.
    pub address: Option<IpAddr>,
    pub retry: RetryPolicy,
}

/// One repository of one registry, for the length of a pull.
pub struct Registry {
    connector: Connector,
    host: String,
    port: Option<u16>,
    repository: String,
    access: Access,
    /// Scheme and host, once it is known which scheme is spoken.
    origin: Mutex<Option<Origin>>,
    /// The `Authorization` that is sent to the registry's own origin, and nowhere else.
    authorization: Mutex<Option<String>>,
}

/// A manifest or index whose bytes match `digest`.
pub struct FetchedManifest {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub content_type: Option<String>,
}

impl Registry {
    pub fn new(location: &Location, access: Access, mut connector: Connector) -> Self {
        let (host, port) = location.host_and_port();
        let host = if location.domain == DEFAULT_DOMAIN { DOCKER_HUB } else { host }.to_ascii_lowercase();
        // Under no other name: a redirect must not reach what the address stands for (the host's loopback).
        connector.aliases = access.address.map(|address| (host.clone(), address)).into_iter().collect();
        Self {
            connector,
            host,
            port,
            repository: location.path.clone(),
            access,
            origin: Mutex::default(),
            authorization: Mutex::default(),
        }
    }

    /// A manifest by tag or digest. `expected` is what its bytes must hash to, and their number if that is known.
    pub fn manifest(
        &self,
        what: &str,
        name: &str,
        expected: Option<Digest>,
        size: Option<u64>,
    ) -> Result<FetchedManifest, RegistryError> {
        let path = format!("manifests/{name}");
        let limit = size.unwrap_or(MANIFEST_BYTES_MAX);
        let fields = [("Accept", manifest::ACCEPT.to_owned())];
        let (bytes, head) = self.small(what, &path, &fields, limit)?;
        if let Some(expected) = size.filter(|&size| size != bytes.len() as u64) {
            return Err(RegistryError::Size { what: what.to_owned(), expected, got: bytes.len() as u64 });
        }
        let digest = check_digest(what, expected, Digest::of(&bytes))?;
        Ok(FetchedManifest { bytes, digest, content_type: head.get("content-type").map(str::to_owned) })
    }

    /// A blob small enough to be held.
    pub fn small_blob(&self, what: &str, blob: Descriptor) -> Result<Vec<u8>, RegistryError> {
        let (bytes, _) = self.small(what, &format!("blobs/{}", blob.digest), &[], blob.size)?;
        if bytes.len() as u64 != blob.size {
            let what = what.to_owned();
            return Err(RegistryError::Size { what, expected: blob.size, got: bytes.len() as u64 });
        }
        check_digest(what, Some(blob.digest), Digest::of(&bytes)).map(|_| bytes)
    }

    fn small(
        &self,
        what: &str,
        path: &str,
        fields: &[(&'static str, String)],
        limit: u64,
    ) -> Result<(Vec<u8>, Head), RegistryError> {
        self.access.retry.run(&self.connector.cancel, what, || {
            let mut response = self.get(what, path, fields)?;
            let bytes = response.body.read_up_to(limit).map_err(|source| Fault::transport(what, source))?;
            if bytes.len() as u64 > limit {
                return Err(Fault::Final(RegistryError::TooLarge { what: what.to_owned(), limit }));
            }
            Ok((bytes, response.head))
        })
    }

    /// One request for something of the repository.
    fn get(&self, what: &str, path: &str, fields: &[(&'static str, String)]) -> Result<Response<'_>, Fault> {
        let origin = self.settle_origin(what)?;
        let url = Url::new(origin.clone(), format!("/v2/{}/{path}", self.repository));
        self.lead(what, url, Some(&origin), fields)
    }

    /// One request for what a manifest says may be had elsewhere. Nobody is told who asks.
    fn get_foreign(
        &self,
        what: &str,
        url: &str,
        fields: &[(&'static str, String)],
    ) -> Result<Response<'_>, Fault> {
        let refused =
            |reason: String| Fault::Final(RegistryError::Redirect { what: what.to_owned(), reason });
        let url = Url::parse(url).map_err(|error| refused(error.to_string()))?;
        if url.origin.scheme == Scheme::Http && !self.is_insecure(&url.origin) {
            return Err(refused(format!("to plain http at {}", url.origin.host)));
        }
        self.lead(what, url, None, fields)
    }

    /// Leads a request through authentication and redirects to a 200 or 206. `origin` is who gets the credentials.
    fn lead(
        &self,
        what: &str,
        first: Url,
        origin: Option<&Origin>,
        fields: &[(&'static str, String)],
    ) -> Result<Response<'_>, Fault> {
        let mut url = first.clone();
        let mut redirects = 0;
        let mut authorizations = 0;
        loop {
            let own = Some(&url.origin) == origin;
            let authorization = if own { self.authorization() } else { None };
            let mut fields = fields.to_vec();
            fields.extend(authorization.clone().map(|value| ("Authorization", value)));
            let unverified = self.is_insecure(&url.origin);
            let response =
                http::send(&self.connector, &Request { url: &url, fields: &fields, form: None, unverified })
                    .map_err(|source| Fault::transport(what, source))?;
            match response.status {
                200 | 206 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    url = self.redirected(what, &url, &response.head, redirects)?;
                    response.body.discard();
                }
                401 if own && authorizations < AUTHORIZATIONS_MAX => {
                    let fields: Vec<_> = response.head.all("www-authenticate").map(str::to_owned).collect();
                    if !self.authorize(what, &fields, authorization)? {
                        return Err(refusal(what, &url, response));
                    }
                    response.body.discard();
                    authorizations += 1;
                    url = first.clone();
                }
                _ => return Err(refusal(what, &url, response)),
            }
        }
    }

    fn redirected(&self, what: &str, from: &Url, head: &Head, count: usize) -> Result<Url, Fault> {
        let refused =
            |reason: String| Fault::Final(RegistryError::Redirect { what: what.to_owned(), reason });
        if count > REDIRECTS_MAX {
            return Err(refused(format!("more than {REDIRECTS_MAX} in a row")));
        }
        let location = head.get("location").ok_or_else(|| refused("no Location field".into()))?;
        let to = from.resolve(location).map_err(|error| refused(error.to_string()))?;
        let downgrade = from.origin.scheme == Scheme::Https && to.origin.scheme == Scheme::Http;
        match downgrade && !self.is_insecure(&to.origin) {
            true => Err(refused(format!("from https to plain http at {}", to.origin.host))),
            false => Ok(to),
        }
    }

    /// https, except where plain http is allowed and https is not spoken.
    fn settle_origin(&self, what: &str) -> Result<Origin, Fault> {
        let mut settled = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(origin) = settled.as_ref() {
            return Ok(origin.clone());
        }
        let https = Origin::new(Scheme::Https, &self.host, self.port);
        let origin = match self.is_insecure(&https) {
            false => https,
            true => match self.connector.connect(&https, true) {
                Ok(channel) => {
                    self.connector.keep(https.clone(), channel);
                    https
                }
                Err(source @ (TransportError::Resolve { .. } | TransportError::Cancelled)) => {
                    return Err(Fault::transport(what, source));
                }
                Err(_) => Origin::new(Scheme::Http, &self.host, self.port),
            },
        };
        Ok(settled.insert(origin).clone())
    }

    /// As docker has it: loopback is insecure by nature, anything else by declaration.
    fn is_insecure(&self, origin: &Origin) -> bool {
        let loopback =
            origin.host == "localhost" || origin.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let with_port = format!("{}:{}", origin.host, origin.port);
        let declared = |entry: &String| {
            let entry = entry.to_ascii_lowercase();
            entry == origin.host || entry == with_port || entry == origin.authority()
        };
        // Being loopback means nothing for a host that somebody else's answer named.
        (loopback && origin.host == self.host) || self.access.insecure.iter().any(declared)
    }

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers a 401; false if there is nothing new to try. Several layers meet it at once when a token ends: the first
    /// one renews it for all.
    fn authorize(&self, what: &str, fields: &[String], used: Option<String>) -> Result<bool, Fault> {
        let mut current = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != used {
            return Ok(true);
        }
        let auth = |source| {
            Fault::Final(RegistryError::Auth { what: what.to_owned(), host: self.host.clone(), source })
        };
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let value = match Way::choose(&fields).map_err(auth)? {
            Way::Bearer(source) => format!("Bearer {}", self.token(what, &source)?),
            Way::Basic => match &self.access.credentials {
                Credentials::Basic { user, password } => auth::basic(user, password),
                Credentials::Anonymous => {
                    return Err(unauthorized(what, format!("{} asks for a user and a password", self.host)));
                }
                Credentials::IdentityToken(_) => {
                    let detail = format!("{} takes a user and a password, no identity token", self.host);
                    return Err(unauthorized(what, detail));
                }
            },
        };
        *current = Some(value);
        Ok(*current != used)
    }

    /// Asks the token endpoint that the registry named. The endpoint gets the user's credentials, as every client's
    /// does, so it must be https like the registry; it is never followed elsewhere.
    fn token(&self, what: &str, source: &TokenSource) -> Result<String, Fault> {
        let endpoint = &source.realm.origin;
        let unverified = self.is_insecure(endpoint);
        if endpoint.scheme == Scheme::Http && !unverified {
            let detail = format!("its token endpoint {} is plain http", source.realm);
            return Err(unauthorized(what, detail));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("Accept", "application/json".to_owned())];
        let (url, form) = match &self.access.credentials {
            Credentials::Anonymous => (source.url(&scope), None),
            Credentials::Basic { user, password } => {
                fields.push(("Authorization", auth::basic(user, password)));
                (source.url(&scope), None)
            }
            Credentials::IdentityToken(token) => (source.realm.clone(), Some(source.form(&scope, token))),
        };
        let request = Request { url: &url, fields: &fields, form: form.as_deref(), unverified };
        let mut response =
            http::send(&self.connector, &request).map_err(|source| Fault::transport(what, source))?;
        match response.status {
            200 => {}
            401 | 403 => {
                let detail =
                    format!("{} does not accept the credentials: {}", endpoint.host, detail(response));
                return Err(unauthorized(what, detail));
            }
            _ => return Err(refusal(what, &url, response)),
        }
        let bytes = response.body.read_up_to(TOKEN_REPLY_BYTES_MAX);
        let bytes = bytes.map_err(|source| Fault::transport(what, source))?;
        auth::parse_token(&bytes).map_err(|source| {
            Fault::Final(RegistryError::Auth { what: what.to_owned(), host: endpoint.host.clone(), source })
        })
    }
}

fn check_digest(what: &str, expected: Option<Digest>, got: Digest) -> Result<Digest, RegistryError> {
    match expected {
        Some(expected) if expected != got => {
            Err(RegistryError::Digest { what: what.to_owned(), expected, got })
        }
        _ => Ok(got),
    }
}

fn unauthorized(what: &str, detail: String) -> Fault {
    Fault::Final(RegistryError::Unauthorized { what: what.to_owned(), detail })
}

/// What an answer that is no success means.
fn refusal(what: &str, url: &Url, response: Response<'_>) -> Fault {
    let (what, host, status) = (what.to_owned(), url.origin.host.clone(), response.status);
    let retry_after = retry::retry_after(&response.head);
    let detail = detail(response);
    match status {
        401 => {
            let detail = format!("{host} wants (other) credentials, or there is no such image: {detail}");
            Fault::Final(RegistryError::Unauthorized { what, detail })
        }
        403 => {
            Fault::Final(RegistryError::Unauthorized { what, detail: format!("{host} forbids it: {detail}") })
        }
        404 => Fault::Final(RegistryError::NotFound { what, detail: format!("{host} says: {detail}") }),
        429 => Fault::Passing(RegistryError::RateLimited { what, host, detail }, retry_after),
        408 | 500 | 502 | 503 | 504 => {
            Fault::Passing(RegistryError::Status { what, host, status, detail }, retry_after)
        }
        _ => Fault::Final(RegistryError::Status { what, host, status, detail }),
    }
}

/// The words of an error's body: the specification's JSON, else its first words.
fn detail(mut response: Response<'_>) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status;
    let bytes = response.body.read_up_to(ERROR_BYTES_MAX).unwrap_or_default();
    let text = match serde_json::from_slice::<Errors>(&bytes).map(|body| body.errors.into_iter().next()) {
        Ok(Some(Entry { code, message })) => format!("{code}: {message}"),
        _ => String::from_utf8_lossy(&bytes).trim().to_owned(),
    };
    if text.is_empty() { format!("status {status}") } else { shorten(&text) }
}
