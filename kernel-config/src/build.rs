//! Unpack, configure, check, compile, strip. Same inputs, same bytes: the tree is built in place so that no path
//! of this machine gets into the result, and the kernel's own stamps are fixed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::elf;
use crate::fragment::{self, Fragment, Mismatch, ParseError, Setting, Value};

/// Debian's package of the kernel source; its version is part of what a kernel is identified by.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// What the package installs.
pub const SOURCE_TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// What [`build`] works with.
#[derive(Debug)]
pub struct Build<'a> {
    /// The kernel source; its single top folder is stripped.
    pub source_tarball: &'a Path,
    pub fragments: &'a [Fragment],
    /// An empty directory with room for 2 GiB; the caller removes it.
    pub work: &'a Path,
    /// Where `vmlinux`, `config`, `System.map` and `build.log` are put.
    pub out: &'a Path,
}

/// What came out.
#[derive(Debug)]
pub struct Kernel {
    /// The stripped ELF file, bootable by PVH.
    pub vmlinux: PathBuf,
    pub size_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Fragment(#[from] ParseError),
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start `{program}`; is its package installed?")]
    Start { program: String, source: io::Error },
    #[error("`{command}` failed ({status}); its last lines:\n{tail}")]
    Failed { command: String, status: ExitStatus, tail: String },
    #[error("{} option(s) of the fragments did not come out as they are written there:\n{}", .0.len(), lines(.0))]
    Mismatch(Vec<Mismatch>),
    #[error("the built vmlinux is not an ELF file we understand")]
    Elf(#[from] elf::Error),
}

/// Builds a kernel; several minutes of every processor. Progress goes to stderr when that is a terminal.
pub fn build(job: &Build) -> Result<Kernel, Error> {
    let settings = fragment::settings(job.fragments)?;
    let tree = Tree::unpack(job)?;
    tree.configure(job.fragments)?;
    check(&settings, &tree.resolved()?)?;
    tree.make(&["vmlinux"])?;
    tree.collect(job.out)
}

/// The compiler and linker in use: they decide the bytes as much as the source does.
pub fn toolchain() -> Result<String, Error> {
    let mut versions = String::new();
    for program in ["gcc", "ld"] {
        let mut command = Command::new(program);
        command.arg("--version").env("LC_ALL", "C");
        let output =
            command.output().map_err(|source| Error::Start { program: program.to_owned(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        versions.push_str(text.lines().next().unwrap_or_default());
        versions.push('\n');
    }
    Ok(versions)
}

fn check(settings: &[Setting], resolved: &BTreeMap<String, Value>) -> Result<(), Error> {
    let mismatches = fragment::check(settings, resolved);
    if mismatches.is_empty() { Ok(()) } else { Err(Error::Mismatch(mismatches)) }
}

/// An unpacked kernel tree, and the log of everything run in it.
struct Tree {
    path: PathBuf,
    log: PathBuf,
}

impl Tree {
    fn unpack(job: &Build) -> Result<Self, Error> {
        let tree = Self { path: job.work.join("linux"), log: job.out.join("build.log") };
        create_dir(job.out)?;
        create_dir(&tree.path)?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--xz", "--strip-components=1", "--file"]).arg(job.source_tarball);
        tree.run(tar.arg("--directory").arg(&tree.path))?;
        Ok(tree)
    }

    fn configure(&self, fragments: &[Fragment]) -> Result<(), Error> {
        self.make(&["tinyconfig"])?;
        let path = self.config();
        let mut config = read(&path)?;
        for fragment in fragments {
            config.push_str(fragment.text);
        }
        write(&path, config.as_bytes())?;
        self.make(&["olddefconfig"])
    }

    fn resolved(&self) -> Result<BTreeMap<String, Value>, Error> {
        Ok(fragment::parse(".config", &read(&self.config())?)?)
    }

    fn make(&self, targets: &[&str]) -> Result<(), Error> {
        let jobs = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut make = Command::new("make");
        make.arg("ARCH=x86_64").arg(format!("-j{jobs}")).args(targets).current_dir(&self.path);
        self.run(&mut make)
    }

    fn collect(&self, out: &Path) -> Result<Kernel, Error> {
        let vmlinux = out.join("vmlinux");
        let linked = self.path.join("vmlinux");
        let stripped = self.path.join("vmlinux.stripped");
        self.run(Command::new("strip").args(["--strip-all", "-o"]).arg(&stripped).arg(&linked))?;
        let bytes = fs::read(&stripped).map_err(|source| Error::Io {
            what: "cannot read",
            path: stripped,
            source,
        })?;
        let packed = elf::pack(&bytes)?;
        write(&vmlinux, &packed)?;
        copy(&self.config(), &out.join("config"))?;
        copy(&self.path.join("System.map"), &out.join("System.map"))?;
        Ok(Kernel { vmlinux, size_bytes: packed.len() as u64 })
    }

    fn config(&self) -> PathBuf {
        self.path.join(".config")
    }

    /// Runs a command with an environment that says nothing about this machine; its output goes to the log.
    fn run(&self, command: &mut Command) -> Result<(), Error> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let mut log =
            log.map_err(|source| Error::Io { what: "cannot write", path: self.log.clone(), source })?;
        let errors = log.try_clone().map_err(|source| Error::Io {
            what: "cannot write",
            path: self.log.clone(),
            source,
        })?;
        command.env_clear().envs(environment()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|source| Error::Start { program, source })?;
        if let Some(output) = child.stdout.take() {
            follow(output, &mut log).map_err(|source| Error::Io {
                what: "cannot write",
                path: self.log.clone(),
                source,
            })?;
        }
        let status = child.wait().map_err(|source| Error::Io {
            what: "lost a child in",
            path: self.path.clone(),
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        let tail = tail(&read(&self.log).unwrap_or_default());
        Err(Error::Failed { command: format!("{command:?}"), status, tail })
    }
}

/// What the build may see. `PATH` finds the tools; the rest is what the kernel would otherwise ask the machine for.
fn environment() -> impl Iterator<Item = (String, String)> {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    [
        ("PATH", path.as_str()),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
        ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
        ("KBUILD_BUILD_USER", "nacre"),
        ("KBUILD_BUILD_HOST", "nacre"),
        ("KBUILD_BUILD_VERSION", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
}

/// Copies a command's output to the log and, on a terminal, keeps count of what was compiled.
fn follow(output: impl io::Read, log: &mut fs::File) -> io::Result<()> {
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    let mut compiled = 0_u32;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        log.write_all(&line)?;
        log.write_all(b"\n")?;
        if line.starts_with(b"  CC ") {
            compiled += 1;
            if terminal && compiled.is_multiple_of(10) {
                eprint!("\rkernel: {compiled} files compiled");
            }
        }
    }
    if terminal && compiled > 0 {
        eprintln!("\rkernel: {compiled} files compiled");
    }
    Ok(())
}

fn tail(log: &str) -> String {
    const LINES: usize = 30;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn lines(mismatches: &[Mismatch]) -> String {
    mismatches.iter().map(|mismatch| format!("  {mismatch}")).collect::<Vec<_>>().join("\n")
}

fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Io {
        what: "cannot make",
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Io {
        what: "cannot read",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|source| Error::Io { what: "cannot write", path: path.to_owned(), source })
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(drop).map_err(|source| Error::Io {
        what: "cannot copy",
        path: from.to_owned(),
        source,
    })
}
