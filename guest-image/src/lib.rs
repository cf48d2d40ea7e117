//! The guest image: the four guest programs and a few empty directories, packed as a read-only EROFS.
//!
//! Same sources, same toolchain, same bytes: programs do not contain the path they were built in, and the image has
//! no times, owners or identifiers of the machine that made it.

mod layout;
mod pack;
mod programs;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

pub use layout::{Content, Entry, Layout};
pub use pack::pack;
pub use programs::{PROGRAMS, Program, Programs, compile, compile_like_guest, compile_with_examples};

/// Largest image, in bytes.
pub const SIZE_BUDGET_BYTES: u64 = 8 << 20;

/// What packing and the trust roots need, as names of Debian packages.
pub const PACKAGES: &[&str] = &["ca-certificates", "erofs-utils", "gcc", "libc6-dev"];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start `{program}`")]
    Start { program: String, source: io::Error },
    #[error("`{program}` failed ({status}){detail}")]
    Failed { program: String, status: ExitStatus, detail: String },
    #[error("{path} in the image: {why}")]
    Layout { path: String, why: &'static str },
    #[error("no certificate in {path}; is the package ca-certificates complete?")]
    NoCertificates { path: PathBuf },
}

impl Error {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
