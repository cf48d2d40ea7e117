//! Our own VMM: a virtual machine on KVM with virtio-mmio devices, made for sandboxes.
//!
//! It is a process of its own (`nacre vmm`): whoever wants a VM starts it with a configuration and reads the guest's console
//! from its standard output. How the guest ended is its exit code, see [`End`]. Before the first instruction of the guest every
//! thread gives up what it does not need, see [`jail`].

mod boot;
mod bus;
pub mod carrier;
pub mod config;
pub mod control;
mod cpu;
mod devices;
mod io_apic;
pub mod jail;
mod layout;
mod life;
mod machine;
mod memory;
mod mp_table;
mod ports;
pub mod transport;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use config::Config;
pub use machine::Machine;

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It reset itself, which is how it powers off; a panic ends so, too, and is told by the console.
    Reset,
    /// It crashed so that not even its kernel noticed: a triple fault.
    TripleFault,
    /// Somebody said so at the control socket.
    Stopped,
}

/// The exit code of a process whose guest crashed by a triple fault.
pub const EXIT_TRIPLE_FAULT: u8 = 3;
/// The exit code of a process that was told to stop at its control socket.
pub const EXIT_STOPPED: u8 = 4;

/// Bytes of a thread's stack. The standard library's 2 MiB can become one huge page, all of it resident.
const STACK_BYTES: usize = 256 << 10;

/// A machine that cannot be, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error("/dev/kvm: {0}")]
    Open(#[source] io::Error),
    #[error("{0} fails: {1}")]
    Kvm(&'static str, #[source] io::Error),
    #[error("cannot open the {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("descriptor {0} was not inherited")]
    Descriptor(i32),
    #[error("cannot map {0} MiB of memory: {1}")]
    Memory(u32, #[source] io::Error),
    #[error("the memory is too small for kernel and initrd")]
    MemoryTooSmall,
    #[error("cannot read the kernel: {0}")]
    Kernel(#[source] io::Error),
    #[error("the bzImage has no 64-bit entry (bit 0 of its xloadflags)")]
    NoEntry,
    #[error("the kernel is neither an ELF file nor a bzImage that can be loaded: {0}")]
    Load(#[source] linux_loader::loader::Error),
    #[error("cannot read the initrd: {0}")]
    Initrd(#[source] io::Error),
    #[error("a command line of {0} bytes; the limit is 2048 with the devices' words")]
    CommandLine(usize),
    #[error("device {0}: {1}")]
    Device(&'static str, #[source] io::Error),
    #[error("cannot make the control socket {path}: {source}")]
    Control { path: PathBuf, source: io::Error },
    #[error("{0} devices; the limit is 19")]
    TooManyDevices(usize),
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    #[error("confining a thread: {0}")]
    Jail(#[from] jail::JailError),
    #[error("processor {id}: {what}")]
    Processor { id: u8, what: String },
}

/// The life of a VMM process: reads its configuration, runs the guest, and tells how it ended.
pub fn run(config: &Path) -> ExitCode {
    let outcome = Config::read(config)
        .map_err(|error| error.to_string())
        .and_then(|config| Machine::new(config).and_then(Machine::run).map_err(|error| error.to_string()));
    match outcome {
        Ok(End::Reset) => ExitCode::SUCCESS,
        Ok(End::TripleFault) => ExitCode::from(EXIT_TRIPLE_FAULT),
        Ok(End::Stopped) => ExitCode::from(EXIT_STOPPED),
        Err(error) => {
            eprintln!("nacre vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(what: &'static str, path: &Path, write: bool) -> Result<File, KvmError> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map_err(|source| KvmError::File { what, path: path.to_owned(), source })
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Kvm(what, error.into())
}
