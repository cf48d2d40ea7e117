//! Every developer command: `cargo xtask …`. CI runs the same ones.

mod bench;
mod bench_launcher;
mod bundle;
mod cache;
mod demo;
mod fuzz;
mod image;
mod kernel;
mod lab;
mod oci;
mod packages;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every developer command of nacre.
///
/// What a command makes is printed on stdout, one path per line; everything for people goes to stderr.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest kernel, or take it from the cache; prints the path of vmlinux.
    Kernel(kernel::Options),
    /// Build the guest programs and pack them into the guest image; prints its path.
    Image(image::Options),
    /// Kernel and image, made current for `nacre`; prints both paths.
    Guest,
    /// Install, build, make a small image and run it, showing every step. Start here.
    Demo,
    /// Build and test everything; what CI runs.
    Test(test::Options),
    /// Run a command in a machine that has a KVM of its own, on any host: `cargo xtask lab -- COMMAND`.
    Lab(lab::Options),
    /// Call a sandbox's agent by hand, or play a trace to it; without words says how.
    Agentctl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<std::ffi::OsString>,
    },
    /// Measure; prints figures with their budgets.
    Bench(bench::Options),
    /// Run the fuzz targets of the parsers, some seconds each.
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Kernel(options) => kernel::run(&options),
        Command::Image(options) => image::run(&options),
        Command::Guest => guest(),
        Command::Demo => demo::run(),
        Command::Test(options) => test::run(&options),
        Command::Lab(options) => {
            return lab::run(&options).unwrap_or_else(|error| {
                eprintln!("error: {error:#}");
                ExitCode::from(125)
            });
        }
        Command::Agentctl { words } => test::agentctl(&words),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn guest() -> anyhow::Result<()> {
    kernel::run(&kernel::Options::default())?;
    image::run(&image::Options::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_takes_its_own_defaults() {
        for words in [
            "kernel",
            "image",
            "guest",
            "demo",
            "test",
            "lab -- true",
            "agentctl",
            "bench start",
            "bench agent",
            "bench launcher",
            "bench pull",
            "bench vmm",
            "fuzz",
        ] {
            let words = ["xtask"].into_iter().chain(words.split(' '));
            Cli::try_parse_from(words).map(drop).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
