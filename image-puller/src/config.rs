//! The image config: what to run, and which layers. OCI image specification 1.1, config.md.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::manifest::Platform;

/// Most arguments, environment variables, ports or volumes that a config may list, each.
pub const LIST_ENTRIES_MAX: usize = 4096;
/// Longest single string of a config in bytes (the kernel's MAX_ARG_STRLEN, which execve holds each argument to).
pub const STRING_BYTES_MAX: usize = 128 << 10;

/// What the container is started with unless its creator says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Empty if not stated.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` …, to be resolved in the image's own files; empty if not stated.
    pub user: String,
    /// A name or a number; empty if not stated.
    pub stop_signal: String,
    /// `80/tcp` each.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
}

/// A whole config, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDocument {
    pub platform: Platform,
    pub config: ImageConfig,
    /// Digests of the plain tars, lowest layer first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("is not the JSON it should be: {0}")]
    Json(String),
    #[error("field rootfs.type is {0:?}, not \"layers\"")]
    RootfsType(String),
    #[error("field rootfs.diff_ids[{at}]: digest {error}")]
    DiffId { at: usize, error: DigestError },
    #[error("field rootfs.diff_ids lists {diff_ids} layers, the manifest {layers}")]
    LayerCount { diff_ids: usize, layers: usize },
    #[error("field config.{field} has {count} entries, the limit is {LIST_ENTRIES_MAX}")]
    TooMany { field: &'static str, count: usize },
    #[error("field config.{field} has a string of {length} bytes, the limit is {STRING_BYTES_MAX}")]
    TooLong { field: &'static str, length: usize },
    #[error("field config.{field} has a NUL byte")]
    Nul { field: &'static str },
    #[error("field config.Env has {0:?}, which is not NAME=value")]
    Env(String),
}

impl ConfigDocument {
    /// Reads the config of an image whose manifest lists `layers` layers.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, ConfigError> {
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        let rootfs = raw.rootfs;
        if rootfs.kind != "layers" {
            return Err(ConfigError::RootfsType(crate::manifest::shorten(&rootfs.kind)));
        }
        if rootfs.diff_ids.len() != layers {
            return Err(ConfigError::LayerCount { diff_ids: rootfs.diff_ids.len(), layers });
        }
        let diff_ids = rootfs.diff_ids.iter().enumerate();
        let diff_ids = diff_ids
            .map(|(at, text)| Digest::parse(text).map_err(|error| ConfigError::DiffId { at, error }))
            .collect::<Result<_, _>>()?;
        let platform =
            Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant.unwrap_or_default() };
        Ok(Self { platform, config: raw.config.unwrap_or_default().check()?, diff_ids })
    }
}

/// As Docker's tools write it: any field may be absent or null.
#[derive(Deserialize)]
struct RawDocument {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

impl RawConfig {
    fn check(self) -> Result<ImageConfig, ConfigError> {
        let env = check_list("Env", self.env.unwrap_or_default())?;
        if let Some(wrong) = env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=')) {
            return Err(ConfigError::Env(crate::manifest::shorten(wrong)));
        }
        Ok(ImageConfig {
            entrypoint: check_list("Entrypoint", self.entrypoint.unwrap_or_default())?,
            cmd: check_list("Cmd", self.cmd.unwrap_or_default())?,
            env,
            working_dir: check("WorkingDir", self.working_dir.unwrap_or_default())?,
            user: check("User", self.user.unwrap_or_default())?,
            stop_signal: check("StopSignal", self.stop_signal.unwrap_or_default())?,
            exposed_ports: check_keys("ExposedPorts", self.exposed_ports)?,
            volumes: check_keys("Volumes", self.volumes)?,
        })
    }
}

fn check_keys<T>(field: &'static str, map: Option<BTreeMap<String, T>>) -> Result<Vec<String>, ConfigError> {
    check_list(field, map.unwrap_or_default().into_keys().collect())
}

fn check_list(field: &'static str, list: Vec<String>) -> Result<Vec<String>, ConfigError> {
    check_count(field, list.len())?;
    list.into_iter().map(|entry| check(field, entry)).collect()
}

fn check_count(field: &'static str, count: usize) -> Result<(), ConfigError> {
    if count > LIST_ENTRIES_MAX { Err(ConfigError::TooMany { field, count }) } else { Ok(()) }
}

fn check(field: &'static str, text: String) -> Result<String, ConfigError> {
    match text {
        text if text.len() > STRING_BYTES_MAX => Err(ConfigError::TooLong { field, length: text.len() }),
        // It would end the string early at execve.
        text if text.contains('\0') => Err(ConfigError::Nul { field }),
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn document(config: &str) -> String {
        format!(
            r#"{{"os":"linux","architecture":"amd64","config":{config},
            "rootfs":{{"type":"layers","diff_ids":["{D}"]}},"history":[{{"created_by":"x"}}]}}"#
        )
    }

    #[test]
    fn a_config_says_what_to_run() {
        let json = document(
            r#"{"Entrypoint":["/bin/sh","-c"],"Cmd":null,"Env":["PATH=/bin","EMPTY="],"WorkingDir":"/w","User":"1:2",
            "StopSignal":"SIGQUIT","ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"Labels":{"a":"b"},
            "ArgsEscaped":true,"OnBuild":null,"Healthcheck":{"Test":["NONE"]}}"#,
        );
        let parsed = ConfigDocument::parse(json.as_bytes(), 1).unwrap();
        assert_eq!(parsed.platform.to_string(), "linux/amd64");
        assert_eq!(parsed.diff_ids, [Digest::of(b"")]);
        let text = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let expected = ImageConfig {
            entrypoint: text(&["/bin/sh", "-c"]),
            cmd: vec![],
            env: text(&["PATH=/bin", "EMPTY="]),
            working_dir: "/w".into(),
            user: "1:2".into(),
            stop_signal: "SIGQUIT".into(),
            exposed_ports: text(&["80/tcp"]),
            volumes: text(&["/data"]),
        };
        assert_eq!(parsed.config, expected);
    }

    #[test]
    fn an_absent_or_null_config_is_empty() {
        for config in ["null", "{}"] {
            let parsed = ConfigDocument::parse(document(config).as_bytes(), 1).unwrap();
            assert_eq!(parsed.config, ImageConfig::default());
        }
        let without = document("{}").replace(r#""config":{},"#, "");
        assert_eq!(ConfigDocument::parse(without.as_bytes(), 1).unwrap().config, ImageConfig::default());
    }

    #[test]
    fn a_refusal_names_the_field() {
        let long = format!(r#"{{"User":"{}"}}"#, "x".repeat(STRING_BYTES_MAX + 1));
        let many = format!(r#"{{"Cmd":[{}]}}"#, vec![r#""x""#; LIST_ENTRIES_MAX + 1].join(","));
        for (config, reason) in [
            (r#"{"Cmd":"sh"}"#, "JSON"),
            (r#"{"Env":["PATH"]}"#, "config.Env"),
            (r#"{"Env":["=x"]}"#, "config.Env"),
            (r#"{"Cmd":["a\u0000b"]}"#, "config.Cmd has a NUL"),
            (&long, "config.User has a string of 131073 bytes"),
            (&many, "config.Cmd has 4097 entries"),
        ] {
            let error = ConfigDocument::parse(document(config).as_bytes(), 1).expect_err(config).to_string();
            assert!(error.contains(reason), "{error}");
        }
        for (from, to, reason) in [
            (r#""type":"layers""#, r#""type":"x""#, "rootfs.type"),
            ("sha256:e3", "sha256:E3", "rootfs.diff_ids[0]"),
        ] {
            let json = document("{}").replace(from, to);
            let error = ConfigDocument::parse(json.as_bytes(), 1).expect_err(to).to_string();
            assert!(error.contains(reason), "{error}");
        }
        let error = ConfigDocument::parse(document("{}").as_bytes(), 2).unwrap_err();
        assert_eq!(error, ConfigError::LayerCount { diff_ids: 1, layers: 2 });
    }
}
