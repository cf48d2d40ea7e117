//! Boots real VMs under QEMU's translator and drives the devices from both sides.
//!
//! The guest is the project's kernel with an image of busybox and socat, made here. Needs `qemu-system-x86`,
//! `busybox-static`, `socat`, `erofs-utils`, and a kernel: `$NACRE_TEST_KERNEL`, or what `cargo xtask kernel` left in the cache.
//! What is missing is said and the test passes by skipping, except with `CI=true`, where it fails.

mod boot;
mod builtin;
mod fs;
mod net;
mod posix;
mod support;
mod vsock;
