//! Which registries an image is asked for: a file in the form of containers-registries.conf(5), version 2.
//!
//! What the file says of a reference is decided here, once; the sandbox is told where to ask, in which order, and nothing of
//! the rest. A field that is not known is refused: it could have been one that blocks.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::loopback::registry_host;
use super::source::read_limited;

/// Longest file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// Most registries of a file, and most mirrors of one.
pub const REGISTRIES_MAX: usize = 4096;
pub const MIRRORS_MAX: usize = 16;
const DEFAULT_REGISTRY: &str = "docker.io";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries(Vec<Registry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registry {
    /// What a reference begins with, or `*.` and the end of a host's name.
    prefix: String,
    /// What stands there instead; empty if nothing does.
    location: String,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    serves: Serves,
}

/// Which references a mirror is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    All,
    Digests,
    Tags,
}

/// Where a reference is asked for: mirrors in their order, then the registry itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    pub mirrors: Vec<Place>,
    pub own: Place,
}

/// A repository at a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// `host[:port]/path`
    pub location: String,
    pub insecure: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("not TOML of version 2: {0}")]
    Toml(String),
    #[error("{count} registries, the limit is {REGISTRIES_MAX}")]
    TooMany { count: usize },
    #[error("registry {prefix:?}: {count} mirrors, the limit is {MIRRORS_MAX}")]
    TooManyMirrors { prefix: String, count: usize },
    #[error("registry {prefix:?}: {reason}")]
    Registry { prefix: String, reason: &'static str },
    #[error("the registry of {0} is blocked (prefix {1:?})")]
    Blocked(String, String),
}

impl Registries {
    pub fn read(path: &Path) -> Result<Self, RegistriesError> {
        let bytes = read_limited(path, FILE_MAX)
            .map_err(|source| RegistriesError::Read { path: path.to_owned(), source })?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    pub fn parse(text: &str) -> Result<Self, RegistriesError> {
        let raw: RawFile =
            toml::from_str(text).map_err(|error| RegistriesError::Toml(error.message().to_owned()))?;
        let entries = raw.registry.unwrap_or_default();
        if entries.len() > REGISTRIES_MAX {
            return Err(RegistriesError::TooMany { count: entries.len() });
        }
        let registries: Vec<Registry> =
            entries.into_iter().map(RawRegistry::check).collect::<Result<_, _>>()?;
        for (at, registry) in registries.iter().enumerate() {
            if registries.iter().take(at).any(|other| other.prefix == registry.prefix) {
                let reason = "stands twice";
                return Err(RegistriesError::Registry { prefix: registry.prefix.clone(), reason });
            }
        }
        Ok(Self(registries))
    }

    /// Where to ask for a reference as a person writes it. The registry with the longest prefix decides.
    pub fn route(&self, reference: &str) -> Result<Route, RegistriesError> {
        let name = full_name(reference);
        let repository = repository(&name).to_owned();
        let best = self.0.iter().filter_map(|registry| Some((registry.fits(&name)?, registry)));
        let Some((fit, registry)) = best.max_by_key(|(fit, _)| *fit) else {
            return Ok(Route { mirrors: Vec::new(), own: Place { location: repository, insecure: false } });
        };
        if registry.blocked {
            return Err(RegistriesError::Blocked(reference.to_owned(), registry.prefix.clone()));
        }
        // What a wildcard stands for is never replaced in part.
        let rest = if registry.is_wildcard() { "" } else { repository.get(fit..).unwrap_or_default() };
        let place = |location: &str, insecure| Place { location: format!("{location}{rest}"), insecure };
        let by_digest = name.contains('@');
        let serves = |mirror: &&Mirror| match mirror.serves {
            Serves::All => true,
            Serves::Digests => by_digest,
            Serves::Tags => !by_digest,
        };
        let own = match registry.location.is_empty() || registry.is_wildcard() {
            true => Place { location: repository.clone(), insecure: registry.insecure },
            false => place(&registry.location, registry.insecure),
        };
        let mirrors = registry.mirrors.iter().filter(serves);
        Ok(Route { mirrors: mirrors.map(|mirror| place(&mirror.location, mirror.insecure)).collect(), own })
    }
}

impl Registry {
    fn is_wildcard(&self) -> bool {
        self.prefix.starts_with("*.")
    }

    /// How much of a full name the prefix takes, if it fits: whole parts only.
    fn fits(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let host = name.split('/').next().unwrap_or_default();
            return host.ends_with(domain).then_some(self.prefix.len());
        }
        let rest = name.strip_prefix(&self.prefix)?;
        (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(self.prefix.len())
    }
}

/// A reference with nothing left to guess, as docker completes it.
pub fn full_name(reference: &str) -> String {
    let (host, path) = match registry_host(reference) {
        // Case makes no other host of it.
        Some(host) => {
            (host.authority().to_ascii_lowercase(), reference.split_once('/').map_or("", |(_, path)| path))
        }
        None => (DEFAULT_REGISTRY.to_owned(), reference),
    };
    let host = if host == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { host };
    let library = if host == DEFAULT_REGISTRY && !path.contains('/') { "library/" } else { "" };
    format!("{host}/{library}{path}")
}

/// A full name without tag and digest.
pub fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((front, tag)) if !tag.contains('/') && front.contains('/') => front,
        _ => name,
    }
}

/// What is known and of no use here is named, so that all else can be refused.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(dead_code, reason = "names complete as docker's do, and credentials are found otherwise")]
struct RawFile {
    registry: Option<Vec<RawRegistry>>,
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    credential_helpers: Option<Vec<String>>,
    aliases: Option<std::collections::BTreeMap<String, String>>,
    additional_layer_store_auth_helper: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawRegistry {
    prefix: Option<String>,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<RawMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

impl RawRegistry {
    fn check(self) -> Result<Registry, RegistriesError> {
        let prefix = self.prefix.filter(|prefix| !prefix.is_empty()).unwrap_or_else(|| self.location.clone());
        let prefix = prefix.trim_end_matches('/').to_owned();
        let wrong = |reason| Err(RegistriesError::Registry { prefix: prefix.clone(), reason });
        let is_wildcard = prefix.starts_with("*.");
        if prefix.is_empty() {
            return wrong("neither prefix nor location");
        }
        if prefix.contains("://") || self.location.contains("://") {
            return wrong("prefix and location are names, not URLs");
        }
        if prefix.trim_start_matches("*.").contains('*') || (is_wildcard && prefix.contains('/')) {
            return wrong("a wildcard stands for the first parts of a host's name");
        }
        if self.location.is_empty() && !is_wildcard {
            return wrong("no location");
        }
        if is_wildcard && !self.location.is_empty() {
            return wrong("a location beside a wildcard");
        }
        if self.mirror.len() > MIRRORS_MAX {
            return Err(RegistriesError::TooManyMirrors { prefix, count: self.mirror.len() });
        }
        let mut mirrors = Vec::new();
        for mirror in self.mirror {
            let serves = match (mirror.pull_from_mirror.as_str(), self.mirror_by_digest_only) {
                ("", true) => Serves::Digests,
                ("" | "all", false) => Serves::All,
                ("digest-only", false) => Serves::Digests,
                ("tag-only", false) => Serves::Tags,
                (_, true) => return wrong("pull-from-mirror beside mirror-by-digest-only"),
                (_, false) => return wrong("pull-from-mirror is none of all, digest-only, tag-only"),
            };
            if mirror.location.is_empty() || mirror.location.contains("://") {
                return wrong("a mirror's location is the name of a registry or a repository");
            }
            let location = mirror.location.trim_end_matches('/').to_owned();
            mirrors.push(Mirror { location, insecure: mirror.insecure, serves });
        }
        let location = self.location.trim_end_matches('/').to_owned();
        Ok(Registry { prefix, location, insecure: self.insecure, blocked: self.blocked, mirrors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "digests.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.example"
        pull-from-mirror = "tag-only"
        [[registry]]
        prefix = "docker.io/library/secret"
        location = "docker.io/library/secret"
        blocked = true
        [[registry]]
        prefix = "old.example/team"
        location = "new.example/a/b"
        insecure = true
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.example"
        [[registry]]
        prefix = "*.blocked.example"
        blocked = true
    "#;

    fn route(reference: &str) -> Result<Vec<String>, String> {
        let route = Registries::parse(FILE).unwrap().route(reference).map_err(|error| error.to_string())?;
        let shown =
            |place: &Place| format!("{}{}", place.location, if place.insecure { " insecure" } else { "" });
        Ok(route.mirrors.iter().chain([&route.own]).map(shown).collect())
    }

    #[test]
    fn the_longest_prefix_says_where_to_ask() {
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (reference, places) in [
            (
                "busybox",
                &[
                    "mirror.example:5000/hub/library/busybox insecure",
                    "tags.example/library/busybox",
                    "docker.io/library/busybox",
                ][..],
            ),
            (
                &format!("user/app{digest}"),
                &[
                    "mirror.example:5000/hub/user/app insecure",
                    "digests.example/user/app",
                    "docker.io/user/app",
                ],
            ),
            (
                "docker.io/library/secrets:1",
                &[
                    "mirror.example:5000/hub/library/secrets insecure",
                    "tags.example/library/secrets",
                    "docker.io/library/secrets",
                ],
            ),
            ("old.example/team/app:1", &["new.example/a/b/app insecure"]),
            (&format!("old.example/team{digest}"), &["m.example", "new.example/a/b insecure"]),
            ("old.example/teams/app", &["old.example/teams/app"]),
            ("localhost:5000/x/y:t", &["localhost:5000/x/y"]),
            ("blocked.example/x", &["blocked.example/x"]),
        ] {
            assert_eq!(route(reference).unwrap(), places, "{reference}");
        }
        for reference in [
            "docker.io/library/secret",
            "secret:1",
            &format!("secret{digest}"),
            "docker.io/library/secret/x",
            "a.blocked.example/x",
            "A.Blocked.example/x",
        ] {
            assert!(route(reference).unwrap_err().contains("is blocked"), "{reference}");
        }
        assert_eq!(Registries::default().route("a").unwrap().own.location, "docker.io/library/a");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mirrors = "[[registry.mirror]]\nlocation = \"m\"\n".repeat(MIRRORS_MAX + 1);
        for (text, words) in [
            ("[registries.search]\nregistries = [\"docker.io\"]", "version 2"),
            ("[[registery]]\nblocked = true", "registery"),
            ("[[registry]]\nlocation = \"a\"\nblock = true", "block"),
            ("[[registry]]\nlocation = \"a\"\nblocked = \"yes\"", "boolean"),
            ("[[registry]]\nblocked = true", "neither prefix nor location"),
            ("[[registry]]\nprefix = \"a\"", "no location"),
            ("[[registry]]\nlocation = \"https://a\"", "not URLs"),
            ("[[registry]]\nprefix = \"a.*\"\nlocation = \"a\"", "wildcard"),
            ("[[registry]]\nprefix = \"*.a\"\nlocation = \"a\"", "wildcard"),
            ("[[registry]]\nlocation = \"a\"\n[[registry]]\nlocation = \"a/\"", "twice"),
            (&format!("[[registry]]\nlocation = \"a\"\n{mirrors}"), "17 mirrors"),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"never\"",
                "pull-from-mirror",
            ),
            ("= x", "TOML"),
        ] {
            let error = Registries::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!(Registries::parse("").unwrap(), Registries::default());
    }

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        for (reference, full, without) in [
            ("a", "docker.io/library/a", "docker.io/library/a"),
            ("a:1", "docker.io/library/a:1", "docker.io/library/a"),
            ("index.docker.io/a/b", "docker.io/a/b", "docker.io/a/b"),
            ("Docker.IO/a", "docker.io/library/a", "docker.io/library/a"),
            ("r:5000/a", "r:5000/a", "r:5000/a"),
            ("[::1]:5/a:t@sha256:0", "[::1]:5/a:t@sha256:0", "[::1]:5/a"),
        ] {
            assert_eq!(full_name(reference), full);
            assert_eq!(repository(full), without);
        }
    }
}
