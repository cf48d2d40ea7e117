//! The host side of nacre: the command line, the sandboxes behind it, the VM, its devices and its network.

pub mod cli;
pub mod client;
pub mod devices;
pub mod doctor;
pub mod images;
pub mod kvm;
pub mod net;
pub mod sandbox;
pub mod vmm;
