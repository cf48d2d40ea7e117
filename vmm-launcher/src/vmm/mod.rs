//! The virtual machine: what it is made of, QEMU or our own program as its VMM, and how it ends.

mod accel;
mod builtin;
mod clock;
mod config;
mod console;
mod machine;
mod process;
mod qemu;

pub use accel::{Accel, AccelChoice, KvmVerdict, Vmm, choose_accel, probe_kvm};
pub use config::{ConfigError, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, Scratch, VmConfig};
pub use console::Console;
pub use machine::{BootCause, BootFailure, CONTROL_NAME, Vm, VmEnd, VmError};
pub use process::{Process, ProcessEnd};
pub use qemu::{MICROVM, QEMU, find_program};
