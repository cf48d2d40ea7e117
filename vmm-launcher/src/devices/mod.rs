//! The devices of the VM: what they do, apart from what carries them.
//!
//! Each device is a plain type that takes virtqueues and guest memory. Where QEMU is the VMM, vhost-user carries them
//! ([`vhost_user`]); in our own VMM a virtio-mmio transport does ([`crate::kvm`]).

pub mod balloon;
pub mod block;
pub mod config_space;
pub mod console;
pub mod entropy;
pub mod ethernet;
pub mod fs;
pub mod growth;
pub mod meter;
pub mod notes;
pub mod queues;
pub mod tap;
pub mod vhost_user;
pub mod vsock;
