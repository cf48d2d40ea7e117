//! The devices of the VM: what they do, apart from what carries them.
//!
//! Each device is a plain type that takes virtqueues and guest memory. Today vhost-user carries them (QEMU is the
//! VMM, [`vhost_user`]); a VMM in this process would call the same types.

pub mod fs;
pub mod notes;
pub mod vhost_user;
pub mod vsock;
