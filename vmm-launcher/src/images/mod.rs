//! Where the image of a container comes from: a registry that the sandbox asks by itself, or files of this host that
//! `nacre` serves to it as a read-only registry. Either way the sandbox pulls and verifies; the host vouches for nothing.

mod archive;
mod credentials;
mod docker;
pub mod helper;
mod layout;
mod loopback;
mod names;
pub mod registries;
mod server;
mod source;

pub use archive::{ArchiveError, TarIndex};
pub use credentials::{Credentials, CredentialsError};
pub use docker::open_docker_archive;
pub use layout::{open_oci_archive, open_oci_layout};
pub use loopback::{RegistryHost, loopback_registry, registry_host};
pub use names::{IMAGE_HOST, sandbox_name, shown_name};
pub use server::ImageServer;
pub use source::{ImageFiles, ImageSource, SourceError};

/// Largest manifest, index or configuration, in bytes (the distribution specification asks registries for 4 MiB).
pub const DOCUMENT_MAX: u64 = 4 * 1024 * 1024;
