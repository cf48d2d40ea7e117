//! The guest kernel: what is switched on and why (`fragments/`), how it is built, and the proof that what was
//! asked for is what came out.
//!
//! A kernel is `tinyconfig` plus the fragments, built from Debian's `linux-source-6.12`. The configuration that
//! Kconfig resolves is compared with every line of the fragments, because an option whose dependency is missing
//! falls off without a word.

mod build;
pub mod elf;
mod fragment;

pub use build::{Build, Error, Kernel, SOURCE_PACKAGE, SOURCE_TARBALL, build, toolchain};
pub use fragment::{Fragment, Mismatch, ParseError, Setting, Value, check, parse, settings};

/// Largest stripped kernel, in bytes. The first thing a host reads for every sandbox.
pub const SIZE_BUDGET_BYTES: u64 = 14 << 20;

/// Changes whenever the build itself does, so that a kernel made by an older builder is not taken from the cache.
pub const BUILDER_VERSION: u32 = 1;

/// What building needs besides the source, as names of Debian packages.
pub const PACKAGES: &[&str] = &[
    SOURCE_PACKAGE,
    "bc",
    "binutils",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "xz-utils",
];

/// The fragments, in the order in which they are applied. No two may speak about the same option.
pub const FRAGMENTS: &[Fragment] = &[
    Fragment { name: "boot.config", text: include_str!("../fragments/boot.config") },
    Fragment { name: "virtio.config", text: include_str!("../fragments/virtio.config") },
    Fragment { name: "filesystems.config", text: include_str!("../fragments/filesystems.config") },
    Fragment { name: "net.config", text: include_str!("../fragments/net.config") },
    Fragment { name: "containers.config", text: include_str!("../fragments/containers.config") },
    Fragment { name: "security.config", text: include_str!("../fragments/security.config") },
];
