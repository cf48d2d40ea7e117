//! `cargo xtask lab -- COMMAND`: runs a command in a machine that has a KVM of its own, on any host.
//!
//! The outer machine is QEMU's translator with a processor that has SVM, so that Debian's stock kernel offers a real
//! `/dev/kvm` with nested paging in it. It sees this machine's files read-only, the built tree with them; what the command
//! writes stays in the outer machine's memory. Output and exit code come back.

mod initramfs;
mod outer;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;

use crate::cache::Cache;
use crate::packages;
use outer::Outer;

/// Besides these the kernel's package, which is looked into and not installed.
pub const PACKAGES: &[&str] = &["busybox-static", "dpkg", "qemu-system-common", "qemu-system-x86"];

#[derive(clap::Args)]
pub struct Options {
    /// Let time be counted in instructions, one a nanosecond: what is measured in there repeats on any machine. One processor
    #[arg(long)]
    icount: bool,
    /// Memory of the outer machine, MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..=65536))]
    memory: u32,
    /// Processors of the outer machine. With more than one, QEMU's SVM loses timers now and then: a guest stands still, or crashes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    cpus: u8,
    /// Seconds after which the outer machine is ended
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// The command and its arguments, run in this directory with this environment
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command; its exit code is ours.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    packages::ensure(PACKAGES)?;
    let kernel = initramfs::kernel(&Cache::open()?)?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "the outer machine sees files as root does: run this as root"
    );
    let outer = Outer {
        kernel: &kernel,
        icount: options.icount,
        memory_mib: options.memory,
        cpus: if options.icount { 1 } else { options.cpus },
        limit: Duration::from_secs(options.timeout),
    };
    let code = outer.run(&options.command)?;
    Ok(ExitCode::from(code))
}
