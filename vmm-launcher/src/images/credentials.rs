//! Credentials for a registry: given on the command line, or found where `docker login` and `podman login` put them, in their
//! files or with the helpers that these name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::helper::{self, HelperError};
use super::source::read_limited;

/// Longest credential file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// docker.io is kept under the address of its first API.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What a registry is told. Printed without secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Basic { user: String, password: String },
    IdentityToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::Basic { .. } => "Basic",
            Credentials::IdentityToken(_) => "IdentityToken",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("--creds needs USER:PASSWORD")]
    Argument,
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is not a docker configuration: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path:?}: the entry of {registry:?} is not base64 of USER:PASSWORD")]
    Entry { path: PathBuf, registry: String },
    #[error("{path:?} leaves {registry:?} to the credential helper {helper:?}: {source}")]
    Helper { path: PathBuf, registry: String, helper: String, source: HelperError },
}

impl Credentials {
    /// `USER:PASSWORD`, as `--creds` has it.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        basic(text).ok_or(CredentialsError::Argument)
    }

    /// Those for a repository (`host[:port]/path`) in the first of the usual files that has them.
    pub fn find(repository: &str) -> Result<Option<Self>, CredentialsError> {
        for path in usual_files(|name| std::env::var_os(name).map(PathBuf::from)) {
            if let Some(found) = Self::find_in(&path, repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Those for a repository in one file; a file that does not exist has none. An entry may be for a registry, or for a
    /// namespace of it; the longest that fits is taken.
    pub fn find_in(path: &Path, repository: &str) -> Result<Option<Self>, CredentialsError> {
        let bytes = match read_limited(path, FILE_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?,
        };
        let config: DockerConfig = serde_json::from_slice(&bytes)
            .map_err(|source| CredentialsError::Json { path: path.to_owned(), source })?;
        let registry = repository.split('/').next().unwrap_or_default();
        let keys = keys(repository);
        let entry = keys.iter().find_map(|key| config.auths.get(key.as_str()));
        let helped = keys.iter().find_map(|key| Some((key, config.cred_helpers.get(key.as_str())?)));
        let stored = keys.iter().find(|key| config.auths.contains_key(key.as_str()));
        let helper = helped.or(stored.zip(config.creds_store.as_ref()));
        match entry {
            Some(Auth { identitytoken: Some(token), .. }) if !token.is_empty() => {
                Ok(Some(Self::IdentityToken(token.clone())))
            }
            Some(Auth { auth: Some(auth), .. }) if !auth.is_empty() => {
                let text = base64(auth).and_then(|bytes| String::from_utf8(bytes).ok());
                text.and_then(|text| basic(text.trim_end_matches('\0'))).map(Some).ok_or_else(|| {
                    CredentialsError::Entry { path: path.to_owned(), registry: registry.to_owned() }
                })
            }
            _ => match helper {
                Some((server, helper)) => {
                    helper::ask(helper, server).map_err(|source| CredentialsError::Helper {
                        path: path.to_owned(),
                        registry: registry.to_owned(),
                        helper: helper.clone(),
                        source,
                    })
                }
                None => Ok(None),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    identitytoken: Option<String>,
}

fn basic(text: &str) -> Option<Credentials> {
    let (user, password) = text.split_once(':')?;
    (!user.is_empty()).then(|| Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
}

/// podman's file before docker's, as podman has it.
fn usual_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    files.extend(variable("REGISTRY_AUTH_FILE"));
    files.extend(variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")));
    match variable("DOCKER_CONFIG") {
        Some(directory) => files.push(directory.join("config.json")),
        None => files.extend(variable("HOME").map(|home| home.join(".docker/config.json"))),
    }
    files
}

/// The repository, the namespaces above it, the registry, and the other names that this goes by.
fn keys(repository: &str) -> Vec<String> {
    let mut keys = vec![repository.to_owned()];
    let mut rest = repository;
    while let Some((above, _)) = rest.rsplit_once('/') {
        keys.push(above.to_owned());
        rest = above;
    }
    keys.extend([format!("https://{rest}"), format!("http://{rest}")]);
    if rest == "docker.io" {
        keys.extend([DOCKER_HUB.to_owned(), "index.docker.io".to_owned(), "registry-1.docker.io".to_owned()]);
    }
    keys
}

/// RFC 4648 section 4, padding optional.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for digit in text.trim().trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Credentials {
        Credentials::Basic { user: user.into(), password: password.into() }
    }

    #[test]
    fn credentials_are_found_as_docker_and_podman_write_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let config = r#"{"auths":{
            "localhost:5000":{"auth":"dXNlcjpwYXNz"},
            "https://index.docker.io/v1/":{"auth":"aHViOmE6Yg=="},
            "token.example":{"auth":"","identitytoken":"secret"},
            "broken.example":{"auth":"!"},
            "spaced.example":{"auth":"dXNlcjpwYXNz"},
            "spaced.example/team":{"auth":"aHViOmE6Yg=="},
            "stored.example":{}},
            "credHelpers":{"helped.example":"../pass"},"credsStore":"nowhere.to.be.found"}"#;
        std::fs::write(&path, config).unwrap();
        for (registry, expected) in [
            ("localhost:5000", Some(basic("user", "pass"))),
            ("docker.io", Some(basic("hub", "a:b"))),
            ("token.example", Some(Credentials::IdentityToken("secret".into()))),
            ("elsewhere.example", None),
            ("spaced.example/teams/app", Some(basic("user", "pass"))),
            ("spaced.example/team/app", Some(basic("hub", "a:b"))),
        ] {
            assert_eq!(Credentials::find_in(&path, registry).unwrap(), expected, "{registry}");
        }
        for (registry, text) in [
            ("broken.example", "base64"),
            ("helped.example/x", "letters"),
            ("stored.example", "cannot start"),
        ] {
            let error = Credentials::find_in(&path, registry).unwrap_err().to_string();
            assert!(error.contains(text), "{registry}: {error}");
        }
        assert_eq!(Credentials::find_in(&directory.path().join("none"), "x").unwrap(), None);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", basic("user", "hidden")).contains("hidden"));
    }
}
