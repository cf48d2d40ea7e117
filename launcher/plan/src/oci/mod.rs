//! The OCI runtime configuration (runtime specification 1.3, `config.md` and `config-linux.md`), in a form that both
//! carriers of it can make: JSON ([`from_json`], feature `json`) and Kata's protobuf (the agent).
//!
//! The types hold what the document says and judge nothing. They have every field that means something on Linux and no
//! other: in JSON a field that is not here is an error that names it, and so is one of another platform. A field that
//! is `null` is one that is absent, as in the documents that Go programs write.

mod linux;
#[cfg(feature = "json")]
mod place;
mod process;
mod resources;

pub use linux::*;
pub use process::*;
pub use resources::*;

use std::collections::BTreeMap;

/// Structures of the document: every field may be absent, none may be unknown.
macro_rules! objects {
    ($($(#[$about:meta])* pub struct $name:ident {
        $($(#[$field_about:meta])* pub $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "json", derive(serde::Deserialize, serde::Serialize))]
        #[cfg_attr(feature = "json", serde(rename_all = "camelCase", deny_unknown_fields, default))]
        pub struct $name {$(
            $(#[$field_about])*
            #[cfg_attr(feature = "json", serde(
                deserialize_with = "crate::oci::null_is_absent",
                skip_serializing_if = "crate::oci::is_absent"
            ))]
            pub $field: $type,
        )*}
    )*};
}
use objects;

objects! {
    /// `config.json`.
    pub struct Spec {
        pub oci_version: String,
        pub process: Option<Process>,
        pub root: Option<Root>,
        pub hostname: String,
        pub domainname: String,
        pub mounts: Vec<Mount>,
        pub hooks: Option<Hooks>,
        pub annotations: BTreeMap<String, String>,
        pub linux: Option<Linux>,
    }

    pub struct Root {
        pub path: String,
        pub readonly: bool,
    }

    pub struct Mount {
        pub destination: String,
        pub r#type: String,
        pub source: String,
        pub options: Vec<String>,
        pub uid_mappings: Vec<IdMapping>,
        pub gid_mappings: Vec<IdMapping>,
    }

    pub struct IdMapping {
        #[cfg_attr(feature = "json", serde(rename = "containerID"))]
        pub container_id: u32,
        #[cfg_attr(feature = "json", serde(rename = "hostID"))]
        pub host_id: u32,
        pub size: u32,
    }

    pub struct Hooks {
        pub prestart: Vec<Hook>,
        pub create_runtime: Vec<Hook>,
        pub create_container: Vec<Hook>,
        pub start_container: Vec<Hook>,
        pub poststart: Vec<Hook>,
        pub poststop: Vec<Hook>,
    }

    pub struct Hook {
        pub path: String,
        pub args: Vec<String>,
        pub env: Vec<String>,
        /// In seconds.
        pub timeout: Option<i64>,
    }
}

/// Why bytes are no document: where in it, and what is wrong.
#[cfg(feature = "json")]
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct DocumentError {
    /// Such as `linux.resources.rdma`; `.` for the whole.
    pub path: String,
    pub reason: serde_json::Error,
}

/// Reads a document, or a part of one such as [`Process`] or [`Resources`].
#[cfg(feature = "json")]
pub fn from_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(text)
        .map_err(|reason| DocumentError { path: place::path(text, reason.line(), reason.column()), reason })
}

#[cfg(feature = "json")]
fn null_is_absent<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(feature = "json")]
fn is_absent<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(all(test, feature = "json"))]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_named_with_its_place() {
        for (text, expected) in [
            (r#"{"linux":{"resources":{"rdmas":{}}}}"#, ["linux.resources", "rdmas"]),
            (r#"{"windows":{}}"#, ["", "windows"]),
            (r#"{"process":{"user":{"uid":-1}}}"#, ["process.user.uid", "-1"]),
            (r#"{"mounts":[{"destination":"/x"},{"kind":"y"}]}"#, ["mounts[1]", "kind"]),
            (r#"{} x"#, [".", "trailing"]),
        ] {
            let error = from_json::<Spec>(text.as_bytes()).unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }

    #[test]
    fn null_is_what_is_absent() {
        let spec: Spec = from_json(br#"{"process":{"args":null,"capabilities":null},"linux":null}"#).unwrap();
        assert_eq!(spec, Spec { process: Some(Process::default()), ..Default::default() });
    }

    #[test]
    fn what_was_read_is_written_again() {
        let text = r#"{"ociVersion":"1.3.0","process":{"args":["a"],"cwd":"/","oomScoreAdj":5,"execCPUAffinity":{"initial":"0"}},"linux":{"uidMappings":[{"containerID":1,"hostID":2,"size":3}],"resources":{"blockIO":{"weight":7}}}}"#;
        let spec: Spec = from_json(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    }
}
