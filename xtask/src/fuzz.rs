//! `cargo xtask fuzz`: every parser that faces something hostile, against inputs that a fuzzer makes up.
//!
//! Without `cargo-fuzz` and its nightly compiler: the flags that count edges are stable, and libFuzzer comes with its crate.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::image::root;

/// What tells libFuzzer which edges an input reaches and what it was compared with.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What one target may have in memory, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Longest input in bytes.
const INPUT_BYTES_MAX: u32 = 64 << 10;

#[derive(clap::Args)]
pub struct Options {
    /// Only the targets with this in their name.
    filter: Option<String>,
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let folder = root().join("fuzz");
    let targets = targets(&folder, options.filter.as_deref())?;
    ensure!(!targets.is_empty(), "no fuzz target has {:?} in its name", options.filter);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--release", "--target", TRIPLE]).current_dir(&folder);
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    for target in &targets {
        cargo.args(["--bin", target]);
    }
    ensure!(cargo.status().context("cannot run cargo")?.success(), "the fuzz targets do not build");
    for target in &targets {
        fuzz(&folder, target, options.seconds)?;
    }
    eprintln!("{} targets ran for {} s each and found nothing", targets.len(), options.seconds);
    Ok(())
}

fn targets(folder: &std::path::Path, filter: Option<&str>) -> anyhow::Result<Vec<String>> {
    let mut targets = Vec::new();
    for file in std::fs::read_dir(folder.join("fuzz_targets")).context("cannot list the fuzz targets")? {
        let name = file?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if filter.is_none_or(|filter| name.contains(filter)) {
            targets.push(name);
        }
    }
    targets.sort();
    Ok(targets)
}

/// The corpus stays for the next run, what fails is kept beside it.
fn fuzz(folder: &std::path::Path, target: &str, seconds: u32) -> anyhow::Result<()> {
    let program: PathBuf = folder.join("target").join(TRIPLE).join("release").join(target);
    let (corpus, artifacts) = (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    for directory in [&corpus, &artifacts] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let output = Command::new(&program)
        .arg(&corpus)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=10", "-verbosity=1", "-print_final_stats=0"])
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| line.contains("cov:")).unwrap_or("no edge was counted");
    ensure!(output.status.success(), "fuzz target {target} failed:\n{said}");
    ensure!(last.contains("cov:"), "fuzz target {target}: {last}");
    eprintln!("{target}: {}", last.trim());
    Ok(())
}
