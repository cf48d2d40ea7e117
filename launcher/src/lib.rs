//! The launcher's parts, as a library so that tests and fuzz targets reach them. One noun a file; the order of events is
//! in `main.rs`, [`container`] and [`exec`].

pub mod accounts;
pub mod cgroup;
pub mod check;
pub mod confine;
pub mod container;
mod copy_up;
pub mod descriptors;
pub mod device_program;
mod devices;
mod disks;
pub mod error;
pub mod exec;
pub mod ext4;
mod filesystem;
pub mod hooks;
pub mod images;
mod masks;
mod mounts;
mod namespaces;
mod net_devices;
pub mod network;
mod outside;
mod process;
mod procfs;
mod rights;
mod rootfs;
pub mod status;
pub mod storage;
mod terminal;
mod tree;
mod user;
mod user_namespace;
