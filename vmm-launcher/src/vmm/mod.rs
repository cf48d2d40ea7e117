//! The virtual machine: what it is made of, QEMU as its VMM, and how it ends.

mod accel;
mod clock;
mod config;
mod console;
mod machine;
mod process;
mod qemu;

pub use accel::{Accel, AccelChoice, KvmVerdict, choose_accel, probe_kvm};
pub use config::{ConfigError, MAX_VCPUS, Scratch, VmConfig};
pub use console::Console;
pub use machine::{BootCause, BootFailure, Vm, VmEnd, VmError};
pub use process::{Process, ProcessEnd};
pub use qemu::{MICROVM, QEMU, find_program};
