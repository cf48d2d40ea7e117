//! What the end-to-end tests stand on: the programs under test, fixtures made by other people's tools, and a watch for
//! whatever a test leaves behind.
//!
//! The tests are in `tests/tests/`, one file per group of behaviours. They want root, QEMU and the packages that
//! `cargo xtask test` installs; what cannot run says why, and fails where the environment variable `CI` is set.

pub mod agentctl;
pub mod artefacts;
pub mod dns;
pub mod fixtures;
pub mod guard;
pub mod lab;
pub mod nacre;
pub mod need;
pub mod network;
pub mod proxy;
pub mod registry;
pub mod rights;
pub mod root;
pub mod terminal;
pub mod tool;
pub mod tree;

pub use nacre::{Nacre, Output};
pub use registry::Registry;
