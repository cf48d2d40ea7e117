//! `cargo xtask test`: the whole suite, from the packages that it needs to the end-to-end tests.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cache::{Cache, Key};
use crate::demo::build_nacre;
use crate::image::{root, target};
use crate::{image, kernel, packages};

/// What tests need besides what kernel and image need.
const PACKAGES: &[&str] = &[
    "acl",
    "apache2-utils",
    "attr",
    "buildah",
    "busybox-static",
    "containerd",
    "crun",
    "debootstrap",
    "docker-registry",
    "e2fsprogs",
    "iproute2",
    "libarchive-tools",
    "libcap2-bin",
    "mount",
    "openssl",
    "passt",
    "podman",
    "python3",
    "qemu-system-common",
    "qemu-system-x86",
    "runc",
    "skopeo",
    "socat",
    "strace",
    "umoci",
    "util-linux",
    "zstd",
];

/// The crate of the end-to-end tests.
const END_TO_END: &str = "nacre-tests";

#[derive(clap::Args)]
pub struct Options {
    /// Also what takes long: slow tests, and whether kernel and image are reproducible.
    #[arg(long)]
    all: bool,
    /// Only tests whose name contains this; formatting and lints are left out then.
    filter: Option<String>,
}

/// Runs everything, whatever fails on the way, and sums up.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut sum = Sum::default();
    step("Debian packages");
    packages::ensure(PACKAGES)?;

    if options.filter.is_none() {
        step("Formatting");
        sum.check("formatting", cargo(["fmt", "--all", "--check"]))?;
    }
    step("Guest kernel and guest image");
    let cache = Cache::open()?;
    let vmlinux = kernel::make(&cache)?;
    // For a few tests, and minutes to build: whoever looks for one test by name has it or is told how to get it.
    let with_buses = match options.filter {
        None => Some(kernel::make_flavour(kernel::Flavour::Buses, &cache)?),
        Some(_) => None,
    };
    let guest = image::make(&cache, &[])?;
    step("The host program");
    let nacre = build_nacre()?;

    if options.filter.is_none() {
        step("Lints");
        let lints =
            ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        sum.check("lints", cargo(lints))?;
    }
    let suites = options.all.then(|| posix_suites(&cache)).transpose()?;
    step("Tests of every crate");
    let words = ["test", "--locked", "--no-fail-fast", "--workspace", "--exclude", END_TO_END];
    let artefacts = [("NACRE_BIN", &nacre), ("NACRE_KERNEL", &vmlinux), ("NACRE_IMAGE", &guest)];
    let tests = |words: &[&str]| {
        let mut command = cargo(words.iter().copied());
        command.envs(artefacts);
        command.envs(with_buses.iter().map(|kernel| ("NACRE_KERNEL_WITH_BUSES", kernel)));
        if let Some((pjdfstest, fio)) = &suites {
            command.env("NACRE_TEST_ALL", "1").env("NACRE_PJDFSTEST", pjdfstest).env("NACRE_FIO", fio);
        }
        command.arg("--").args(&options.filter).arg("--show-output");
        command
    };
    sum.tests(tests(&words))?;
    step("End-to-end tests");
    sum.tests(tests(&["test", "--locked", "--no-fail-fast", "--package", END_TO_END]))?;

    if options.all && options.filter.is_none() {
        step("Reproducibility");
        sum.check("a reproducible kernel", xtask(["kernel", "--check-reproducible"]))?;
        sum.check("a reproducible image", xtask(["image", "--check-reproducible"]))?;
    }
    sum.print(begun.elapsed());
    ensure!(sum.failed == 0, "{} failed", sum.failed);
    Ok(())
}

/// Suites that others keep for file systems: pjdfstest, static as it runs in guests, and fio.
fn posix_suites(cache: &Cache) -> anyhow::Result<(PathBuf, PathBuf)> {
    const VERSION: &str = "0.2.2";
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    step("Suites for file systems");
    packages::ensure(&["fio"])?;
    let key = Key::new().part("pjdfstest", VERSION).finish();
    let folder = cache.get_or_make("pjdfstest", &key, |out| {
        let mut install = cargo(["install", "--locked", "--version", VERSION, "pjdfstest"]);
        install.args(["--target", TARGET, "--root"]).arg(out);
        install.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
        install.env("CARGO_TARGET_DIR", out.join("target"));
        let status = install.status().context("cannot run cargo install")?;
        ensure!(status.success(), "cargo install pjdfstest: {status}");
        fs::remove_dir_all(out.join("target")).context("cannot tidy up")
    })?;
    let fio = fs::canonicalize("/usr/bin/fio").context("fio is not there")?;
    Ok((folder.join("bin/pjdfstest"), fio))
}

/// What became of everything so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: usize,
    failed: usize,
    ignored: usize,
    failures: Vec<String>,
    skipped: Vec<String>,
}

impl Sum {
    /// Runs a command that counts as one test.
    fn check(&mut self, name: &str, mut command: Command) -> anyhow::Result<()> {
        let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
        match status.success() {
            true => self.passed += 1,
            false => {
                self.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// Runs `cargo test`, passes its output on and counts.
    fn tests(&mut self, mut command: Command) -> anyhow::Result<()> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let progress = child.stderr.take().context("no stderr")?;
        let progress = thread::spawn(move || pass_on(progress));
        let mut reader = Reader::default();
        for line in BufReader::new(child.stdout.take().context("no stdout")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line.context("cannot read cargo's output")?).into_owned();
            if reader.read(&line, self) {
                println!("{line}");
            }
        }
        let status = child.wait().context("cannot wait for cargo")?;
        let _ = progress.join();
        if !status.success() && reader.failed == 0 {
            // It did not compile, or a test program died.
            self.failed += 1;
            self.failures.push(format!("{command:?}: {status}"));
        }
        Ok(())
    }

    fn print(&self, duration: Duration) {
        for name in &self.skipped {
            println!("skipped: {name}");
        }
        for name in &self.failures {
            println!("failed: {name}");
        }
        if self.ignored > 0 {
            println!("{} ignored", self.ignored);
        }
        println!("{:.1} min", duration.as_secs_f64() / 60.0);
        // The last line, alone and plain, for programs that count.
        println!(
            "{} passed, {} failed, {} skipped",
            // Who was skipped did nothing, so did not pass.
            self.passed.saturating_sub(self.skipped.len()),
            self.failed,
            self.skipped.len()
        );
    }
}

/// Reads what test programs print, line by line.
#[derive(Debug, Default)]
struct Reader {
    /// Between `successes:` and what comes after it: the output of tests that passed.
    in_successes: bool,
    failed: usize,
}

impl Reader {
    /// Counts a line; true if a person should see it.
    fn read(&mut self, line: &str, sum: &mut Sum) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            let number = |what: &str| {
                let parts = result.split([';', '.']).filter_map(|part| part.trim().strip_suffix(what));
                parts.filter_map(|number| number.trim().parse::<usize>().ok()).sum::<usize>()
            };
            sum.passed += number("passed");
            sum.failed += number("failed");
            sum.ignored += number("ignored");
            self.failed += number("failed");
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
            sum.failures.push(name.to_owned());
        }
        if let Some(reason) = line.strip_prefix("skipped: ") {
            sum.skipped.push(reason.to_owned());
            return true;
        }
        !self.in_successes
    }
}

/// Cargo's own words are progress.
fn pass_on(mut stream: impl Read) {
    let _ = std::io::copy(&mut stream, &mut std::io::stderr());
}

fn cargo<'a>(words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(words).current_dir(root()).env("CARGO_TARGET_DIR", target());
    command
}

/// The client of the end-to-end tests, for people.
pub fn agentctl(words: &[OsString]) -> anyhow::Result<()> {
    let mut command =
        cargo(["run", "--quiet", "--locked", "--package", END_TO_END, "--bin", "nacre-agentctl", "--"]);
    ensure!(command.args(words).status().context("cannot run cargo")?.success(), "agentctl failed");
    Ok(())
}

fn xtask<'a>(words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| Path::new("xtask").to_owned()));
    command.args(words).current_dir(root()).stdout(Stdio::null());
    command
}

fn step(name: &str) {
    eprintln!("\n== {name}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_test_programs_are_summed_up() {
        let output = "\
running 3 tests
test a ... ok
test b ... FAILED
test c ... ok

successes:

---- a stdout ----
noise of a test that passed
skipped: needs root

failures:

---- b stdout ----
thread panicked

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 1 test
test d ... ok

successes:
test result: ok. 1 passed; 0 failed; 4 ignored; 0 measured; 9 filtered out; finished in 0.01s
";
        let (mut sum, mut reader) = (Sum::default(), Reader::default());
        let shown: Vec<&str> = output.lines().filter(|line| reader.read(line, &mut sum)).collect();
        let expected = Sum {
            passed: 3,
            failed: 1,
            ignored: 4,
            failures: vec!["b".to_owned()],
            skipped: vec!["needs root".to_owned()],
        };
        assert_eq!(sum, expected);
        assert!(!shown.contains(&"noise of a test that passed"));
        assert!(shown.contains(&"skipped: needs root") && shown.contains(&"thread panicked"));
    }
}
