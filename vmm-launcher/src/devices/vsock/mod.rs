//! virtio-vsock with hybrid unix sockets on the host.
//!
//! A program on the host connects to the socket `<path>` and says `CONNECT <port>\n`; a program in the guest that
//! connects to port `P` of the host reaches the unix socket `<path>_P`. [`Vsock`] is the device; [`backend`] carries
//! it under QEMU.

pub mod backend;
pub mod buffers;
pub mod client;
pub mod connection;
mod device;
pub mod handshake;
pub mod packet;

pub use device::{MAX_CONNECTIONS, Vsock, VsockConfig, VsockError};
