//! Credentials for a registry: given on the command line, or found where `docker login` and `podman login` put them.
//! Credential helpers are programs; they are not run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

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
    #[error(
        "{path:?} leaves {registry:?} to the credential helper {helper:?}, which nacre does not run; use --creds"
    )]
    Helper { path: PathBuf, registry: String, helper: String },
}

impl Credentials {
    /// `USER:PASSWORD`, as `--creds` has it.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        basic(text).ok_or(CredentialsError::Argument)
    }

    /// Those of `registry` (`host[:port]`, or `docker.io`) in the first of the usual files that has them.
    pub fn find(registry: &str) -> Result<Option<Self>, CredentialsError> {
        for path in usual_files(|name| std::env::var_os(name).map(PathBuf::from)) {
            if let Some(found) = Self::find_in(&path, registry)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Those of `registry` in one file; a file that does not exist has none.
    pub fn find_in(path: &Path, registry: &str) -> Result<Option<Self>, CredentialsError> {
        let bytes = match read_limited(path, FILE_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?,
        };
        let config: DockerConfig = serde_json::from_slice(&bytes)
            .map_err(|source| CredentialsError::Json { path: path.to_owned(), source })?;
        let keys = keys(registry);
        let entry = keys.iter().find_map(|key| config.auths.get(key.as_str()));
        let helper = keys
            .iter()
            .find_map(|key| config.cred_helpers.get(key.as_str()))
            .or(config.creds_store.as_ref().filter(|_| entry.is_some()));
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
                Some(helper) => Err(CredentialsError::Helper {
                    path: path.to_owned(),
                    registry: registry.to_owned(),
                    helper: helper.clone(),
                }),
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

fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")];
    if registry == "docker.io" {
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
            "stored.example":{}},
            "credHelpers":{"helped.example":"pass"},"credsStore":"desktop"}"#;
        std::fs::write(&path, config).unwrap();
        for (registry, expected) in [
            ("localhost:5000", Some(basic("user", "pass"))),
            ("docker.io", Some(basic("hub", "a:b"))),
            ("token.example", Some(Credentials::IdentityToken("secret".into()))),
            ("elsewhere.example", None),
        ] {
            assert_eq!(Credentials::find_in(&path, registry).unwrap(), expected, "{registry}");
        }
        for (registry, text) in
            [("broken.example", "base64"), ("helped.example", "\"pass\""), ("stored.example", "\"desktop\"")]
        {
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
