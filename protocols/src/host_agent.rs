//! Host to agent: ttrpc over vsock. The Kata services come from `proto/`, written from the published field numbers;
//! `nacre.v1.Sandbox` is ours.
//!
//! Each service is a module with one unit type a method, which is an [`Rpc`]: `kata::agent_service::CreateContainer`,
//! `kata::health::Check`, `nacre::sandbox::StartPull`.

#[cfg(feature = "json")]
pub mod json;
pub mod ttrpc;

/// The Kata agent API: services `grpc.AgentService` and `grpc.Health`.
#[allow(clippy::doc_lazy_continuation, clippy::large_enum_variant)]
pub mod kata {
    include!(concat!(env!("OUT_DIR"), "/grpc.rs"));
}

/// The additive service (`proto/nacre.proto`).
pub mod nacre {
    include!(concat!(env!("OUT_DIR"), "/nacre.v1.rs"));

    /// Never prints a secret.
    impl std::fmt::Debug for Credentials {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Credentials")
        }
    }

    /// Never prints the key.
    impl std::fmt::Debug for ClientCertificate {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "ClientCertificate for {}", self.registry)
        }
    }

    /// Never prints the URLs, which may hold passwords.
    impl std::fmt::Debug for Proxy {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Proxy")
        }
    }
}

/// Annotation of a container's specification: namespaces that it has for itself, out of `ipc`, `uts` and `network`,
/// separated by commas. Without it a container shares the sandbox's, as the containers of a pod do.
pub const OWN_NAMESPACES_ANNOTATION: &str = "io.nacre.own-namespaces";

/// Why a command was not executed, as the texts of StartContainer and ExecProcess tell it: they come with code 13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandFailure {
    /// Exit code 127 by convention.
    NotFound,
    /// Exit code 126 by convention.
    NotExecutable,
}

impl CommandFailure {
    const PREFIX: &'static str = "the file ";

    fn middle(self) -> &'static str {
        match self {
            Self::NotFound => " was not found",
            Self::NotExecutable => " cannot be executed",
        }
    }

    /// `the file X was not found: cause`.
    pub fn text(self, command: &str, cause: &str) -> String {
        format!("{}{command}{}: {cause}", Self::PREFIX, self.middle())
    }

    /// Reads [`CommandFailure::text`]; `None` for any other error.
    pub fn read(message: &str) -> Option<Self> {
        let rest = message.strip_prefix(Self::PREFIX)?;
        let found = |kind: Self| rest.find(kind.middle());
        match (found(Self::NotFound), found(Self::NotExecutable)) {
            (Some(not_found), Some(not_executable)) if not_executable < not_found => {
                Some(Self::NotExecutable)
            }
            (Some(_), _) => Some(Self::NotFound),
            (None, Some(_)) => Some(Self::NotExecutable),
            (None, None) => None,
        }
    }
}

/// One method of a service, with its names on the wire.
pub trait Rpc {
    const SERVICE: &'static str;
    const METHOD: &'static str;
    type Request: prost::Message + Default;
    type Response: prost::Message + Default;
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn a_missing_command_is_told_from_other_errors() {
        for kind in [CommandFailure::NotFound, CommandFailure::NotExecutable] {
            assert_eq!(CommandFailure::read(&kind.text("/bin/x", "no such file")), Some(kind));
        }
        assert_eq!(CommandFailure::read("the file system is full"), None);
        assert_eq!(CommandFailure::read("container \"the file x was not found\" exists"), None);
    }

    #[test]
    fn the_services_have_the_names_that_shims_call() {
        assert_eq!(kata::agent_service::SERVICE, "grpc.AgentService");
        assert_eq!(kata::agent_service::METHODS.len(), 42);
        assert_eq!(kata::health::SERVICE, "grpc.Health");
        assert_eq!(kata::health::METHODS, ["Check", "Version"]);
        assert_eq!(nacre::sandbox::SERVICE, "nacre.v1.Sandbox");
        assert_eq!(<kata::agent_service::GetOOMEvent as Rpc>::METHOD, "GetOOMEvent");
    }

    /// Bytes written by hand from the published field numbers, so that a slip in a .proto file is seen.
    #[test]
    fn field_numbers_are_those_of_the_published_api() {
        let request = kata::CreateContainerRequest {
            container_id: "c".into(),
            exec_id: "e".into(),
            oci: Some(kata::Spec {
                version: "1".into(),
                hostname: "h".into(),
                linux: Some(kata::Linux { cgroups_path: "p".into(), ..Default::default() }),
                ..Default::default()
            }),
            sandbox_pidns: true,
            stderr_port: 3,
            ..Default::default()
        };
        let expected = [
            &[0x0a, 1, b'c', 0x12, 1, b'e'][..],
            &[0x32, 11, 0x0a, 1, b'1', 0x22, 1, b'h', 0x42, 3, 0x2a, 1, b'p'],
            &[0x38, 1, 0x58, 3],
        ]
        .concat();
        assert_eq!(request.encode_to_vec(), expected);
        let group = kata::FsGroup { group_id: 5, group_change_policy: 1 };
        assert_eq!(group.encode_to_vec(), [0x10, 5, 0x18, 1]);
        let reseed = kata::ReseedRandomDevRequest { data: vec![9] };
        assert_eq!(reseed.encode_to_vec(), [0x12, 1, 9]);
    }
}

#[cfg(test)]
mod secrets {
    use super::nacre;

    #[test]
    fn a_request_is_printed_without_its_secrets() {
        let secret = || "hidden".to_owned();
        let request = nacre::StartPullRequest {
            credentials: Some(nacre::Credentials {
                user: secret(),
                password: secret(),
                identity_token: secret(),
            }),
            client_certificates: vec![nacre::ClientCertificate { key: secret(), ..Default::default() }],
            proxy: Some(nacre::Proxy { http: secret(), https: secret(), ..Default::default() }),
            ..Default::default()
        };
        assert!(!format!("{request:?}").contains("hidden"));
    }
}
