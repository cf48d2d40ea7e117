//! Every system call wrapper; the only crate that says unsafe.

pub mod attributes;
pub mod bpf;
#[cfg(any(feature = "lean", test))]
mod characters;
pub mod exec;
pub mod ext4;
pub mod fork;
#[cfg(feature = "kvm")]
pub mod guest_memory;
#[cfg(feature = "kvm")]
pub mod kvm_probe;
#[cfg(feature = "lean")]
pub mod lean;
pub mod lease;
pub mod link;
pub mod loop_device;
pub mod malloc;
pub mod memfd;
pub mod mounting;
pub mod own_binary;
#[cfg(feature = "host")]
pub mod page_cache;
pub mod probe;
pub mod process;
pub mod random;
pub mod seccomp;
pub mod seqpacket;
pub mod signals;
#[cfg(feature = "host")]
pub mod spawn;
pub mod swap;
#[cfg(feature = "host")]
pub mod tap;
#[cfg(feature = "host")]
pub mod tsc;
pub mod usage;
pub mod vsock;
