//! Where an image is asked for: its mirrors in their order, then the registry itself. What one does not give, the next one
//! is asked for; a blob goes on there at the byte where it broke.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::http::Response;
use super::retry::{Fault, RetryPolicy};
use super::transport::Cancel;
use super::{FetchedManifest, Registry, RegistryError};
use crate::digest::Digest;
use crate::manifest::Descriptor;

/// Tries again at a source that is not the last one.
const MIRROR_RETRIES_MAX: u32 = 1;

pub struct Sources {
    /// Never empty.
    list: Vec<Registry>,
    /// The one that gave the manifest; those before it failed.
    chosen: AtomicUsize,
}

impl Sources {
    /// `last` is the registry itself.
    pub fn new(mut mirrors: Vec<Registry>, last: Registry) -> Self {
        for mirror in &mut mirrors {
            let retry = &mut mirror.access.retry;
            retry.retries = retry.retries.min(MIRROR_RETRIES_MAX);
        }
        mirrors.push(last);
        Self { list: mirrors, chosen: AtomicUsize::new(0) }
    }

    pub fn manifest(
        &self,
        what: &str,
        name: &str,
        expected: Option<Digest>,
        size: Option<u64>,
    ) -> Result<FetchedManifest, RegistryError> {
        self.first(|registry| registry.manifest(what, name, expected, size))
    }

    pub fn small_blob(&self, what: &str, blob: Descriptor) -> Result<Vec<u8>, RegistryError> {
        self.first(|registry| registry.small_blob(what, blob))
    }

    /// The first answer that is good, from the chosen one on.
    fn first<T>(&self, ask: impl Fn(&Registry) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let mut earlier = Vec::new();
        let begin = self.chosen();
        for (at, registry) in self.list.iter().enumerate().skip(begin) {
            match ask(registry) {
                Ok(answer) => {
                    self.chosen.fetch_max(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) if at + 1 == self.list.len() || error.is_cancelled() => {
                    return Err(error.after(earlier));
                }
                Err(error) => earlier.push(error),
            }
        }
        Err(RegistryError::NotFound { what: "image".into(), detail: "there is no registry to ask".into() })
    }

    pub fn chosen(&self) -> usize {
        self.chosen.load(Ordering::Relaxed)
    }

    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn host(&self, at: usize) -> &str {
        self.get(at).map(|registry| registry.host.as_str()).unwrap_or_default()
    }

    pub fn retry(&self, at: usize) -> RetryPolicy {
        self.get(at).map(|registry| registry.access.retry).unwrap_or_default()
    }

    pub fn cancel(&self) -> &Cancel {
        static NEVER: std::sync::LazyLock<Cancel> = std::sync::LazyLock::new(Cancel::default);
        self.list.first().map_or(&NEVER, |registry| &registry.connector.cancel)
    }

    /// Asks source `at` for a blob; behind the sources come the layer's own addresses.
    pub fn blob<'a>(
        &'a self,
        at: usize,
        what: &str,
        digest: Digest,
        urls: &[String],
        fields: &[(&'static str, String)],
    ) -> Result<Response<'a>, Fault> {
        let nowhere =
            || Fault::Final(RegistryError::NotFound { what: what.into(), detail: "nowhere".into() });
        match (self.list.get(at), self.list.last()) {
            (Some(registry), _) => registry.get(what, &format!("blobs/{digest}"), fields),
            (None, Some(registry)) => {
                let url = urls.get(at - self.list.len()).ok_or_else(nowhere)?;
                registry.get_foreign(what, url, fields)
            }
            (None, None) => Err(nowhere()),
        }
    }

    /// The registry itself stands for what lies behind it.
    fn get(&self, at: usize) -> Option<&Registry> {
        self.list.get(at).or(self.list.last())
    }
}
