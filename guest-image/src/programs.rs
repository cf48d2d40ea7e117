//! Compiling the guest programs: static, small, and the same bytes wherever the checkout lies.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;

/// The only target whose static binaries Debian's own C library makes without another toolchain.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";
/// Static, and still position-independent: the programs' addresses are random. What that costs is kept small: the places to
/// relocate are written as bits instead of 24 bytes each. Functions of the same code are one.
const RUST_FLAGS: [&str; 5] = [
    "-Ctarget-feature=+crt-static",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-Wl,-z,pack-relative-relocs",
    "-Clink-arg=-Wl,--icf=all",
    "-Clink-arg=-Wl,--no-eh-frame-hdr",
];
/// For the image: what the small programs have instead of parts of glibc fits what they use of it, and nothing else.
const GUEST: &str = "--cfg=nacre_guest";
/// What the linker leaves out, beneath the workspace.
const LINKER_SCRIPT: &str = "guest-image/src/guest.ld";

/// A guest program: its package, which is also its name in the guest, the binary that cargo makes, and how large it may be.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub name: &'static str,
    binary: &'static str,
    pub size_budget_bytes: u64,
}

/// What is compiled for the guest. The budgets are for the bare file, before the image compresses it.
pub const PROGRAMS: [Program; 4] = [
    Program { name: "nacre-init", binary: "nacre-init", size_budget_bytes: 3 << 19 },
    Program { name: "nacre-agent", binary: "nacre-agent", size_budget_bytes: 3 << 19 },
    Program { name: "nacre-launcher", binary: "nacre-guest-launcher", size_budget_bytes: 3 << 19 },
    Program { name: "nacre-puller", binary: "nacre-puller", size_budget_bytes: 6 << 20 },
];

/// The folder in which cargo put the binaries.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    pub fn path(&self, name: &str) -> PathBuf {
        let program = PROGRAMS.iter().find(|program| program.name == name);
        self.folder.join(program.map_or(name, |program| program.binary))
    }
}

/// Compiles all guest programs of the workspace at `root`; cargo's messages go to stderr.
///
/// `target` is cargo's target directory. Nothing of the caller's `RUSTFLAGS` gets into the guest.
pub fn compile(root: &Path, target: &Path) -> Result<Programs, Error> {
    let maps = path_maps(root, target);
    // One by one: compiled together, each program would get the features of the libraries that any of them asks for.
    for program in PROGRAMS {
        cargo_build(program.name, &[], root, target, &maps, Some(GUEST))?;
    }
    Ok(Programs { folder: target.join(TARGET).join(PROFILE) })
}

/// Compiles one more package as the guest's programs are: static, small and without paths. Gives the folder of its binaries.
pub fn compile_like_guest(package: &str, root: &Path, target: &Path) -> Result<PathBuf, Error> {
    cargo_build(package, &[], root, target, &path_maps(root, target), None)?;
    Ok(target.join(TARGET).join(PROFILE))
}

/// Compiles one guest program, and examples of its package exactly as the program itself is, for measuring. Returns the
/// folder, in which the examples are below `examples`.
pub fn compile_with_examples(
    root: &Path,
    target: &Path,
    program: &str,
    examples: &[&str],
) -> Result<Programs, Error> {
    let examples = examples.iter().flat_map(|example| ["--example", example]);
    let what: Vec<&str> = ["--bin", program].into_iter().chain(examples).collect();
    cargo_build(program, &what, root, target, &path_maps(root, target), Some(GUEST))?;
    Ok(Programs { folder: target.join(TARGET).join(PROFILE) })
}

fn cargo_build(
    package: &str,
    what: &[&str],
    root: &Path,
    target: &Path,
    maps: &[(PathBuf, &str)],
    flag: Option<&str>,
) -> Result<(), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let stderr =
        io::stderr().as_fd().try_clone_to_owned().map_err(Error::io("cannot duplicate", "stderr"))?;
    let status = Command::new(&cargo)
        .current_dir(root)
        .args(["build", "--locked", "--profile", PROFILE, "--target", TARGET, "--package", package])
        .args(what)
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root, maps, flag))
        .env(format!("CFLAGS_{}", TARGET.replace('-', "_")), c_flags(maps))
        .stdin(Stdio::null())
        .stdout(stderr)
        .status()
        .map_err(|source| Error::Start { program: cargo.to_string_lossy().into_owned(), source })?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed {
            program: format!("cargo build --package {package}"),
            status,
            detail: String::new(),
        })
    }
}

/// Paths of this machine and what stands for them in the binaries. The last match wins.
fn path_maps(root: &Path, target: &Path) -> Vec<(PathBuf, &'static str)> {
    let home = |name: &str, default: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(default)))
    };
    let mut maps = Vec::new();
    if let Some(cargo) = home("CARGO_HOME", ".cargo") {
        maps.push((cargo, "/cargo"));
    }
    maps.push((root.to_owned(), "/nacre"));
    maps.push((target.to_owned(), "/target"));
    maps
}

fn rust_flags(root: &Path, maps: &[(PathBuf, &str)], flag: Option<&str>) -> String {
    let mut flags: Vec<String> = RUST_FLAGS.into_iter().chain(flag).map(str::to_owned).collect();
    flags.push(format!("-Clink-arg=-Wl,-T,{}", root.join(LINKER_SCRIPT).display()));
    flags.extend(maps.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())));
    flags.join("\x1f")
}

fn c_flags(maps: &[(PathBuf, &str)]) -> String {
    let flags: Vec<String> =
        maps.iter().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display())).collect();
    flags.join(" ")
}
