//! The programs under test, and our own helper programs for inside the guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The target whose static binaries run in any guest.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct Artefacts {
    pub nacre: PathBuf,
    pub kernel: PathBuf,
    pub image: PathBuf,
}

/// From NACRE_BIN, NACRE_KERNEL and NACRE_IMAGE, else what was built last. The error says what to type.
pub fn find() -> Result<Artefacts, String> {
    let given = |name: &str, otherwise: PathBuf| {
        let path = std::env::var_os(name).map_or(otherwise, PathBuf::from);
        match path.is_file() {
            true => Ok(path),
            false => Err(format!("{name}: {} is not there; `cargo xtask test` builds it", path.display())),
        }
    };
    let current = cache().join("current");
    Ok(Artefacts {
        nacre: given("NACRE_BIN", target().join("release/nacre"))
            .or_else(|error| given("NACRE_BIN", target().join("debug/nacre")).map_err(|_| error))?,
        kernel: given("NACRE_KERNEL", current.join("vmlinux"))?,
        image: given("NACRE_IMAGE", current.join("guest.erofs"))?,
    })
}

/// The kernel for machines of other VMMs, from NACRE_KERNEL_WITH_BUSES, else what was built last. The error says what to type.
pub fn kernel_with_buses() -> Result<PathBuf, String> {
    let given = std::env::var_os("NACRE_KERNEL_WITH_BUSES").map(PathBuf::from);
    let path = given.unwrap_or_else(|| cache().join("current/vmlinux-buses"));
    match path.is_file() {
        true => Ok(path),
        false => {
            Err(format!("{} is not there; `cargo xtask kernel --flavour buses` builds it", path.display()))
        }
    }
}

/// Where what takes long to make is kept, as `xtask` has it.
pub fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("NACRE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("nacre")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/nacre")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/nacre"))
}

/// The workspace.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// A helper program of this crate, linked statically. Built when it is not fresh.
///
/// # Panics
/// When it does not compile.
pub fn helper(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build_helpers).join(name)
}

/// A program as the guest image has it.
pub fn guest_program(name: &str) -> PathBuf {
    target().join(STATIC_TARGET).join("guest").join(name)
}

/// A guest image in which a prober stands behind init (`src/bin/test_init`); built when it is not in the cache.
///
/// # Panics
/// When it does not build.
pub fn probed_image() -> PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| image_with(&[])).clone()
}

/// The same, with more files: place in the image and file here.
pub fn image_with(extra: &[(&str, &Path)]) -> PathBuf {
    let init = guest_program("nacre-init");
    let stand_in = helper("nacre-test-init");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(["xtask", "image"]);
    let own = [("sbin/init", stand_in.as_path()), ("sbin/nacre-init", &init)];
    for (place, file) in own.iter().chain(extra) {
        command.arg("--extra").arg(format!("{place}={}", file.display()));
    }
    let output = command.output().expect("cannot start cargo");
    assert!(output.status.success(), "no image:\n{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn build_helpers() -> PathBuf {
    let target = target();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--locked", "--release", "--package", "nacre-tests"])
        .args(["--bin", "nacre-tree", "--bin", "nacre-test-init"])
        .args(["--target", STATIC_TARGET, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .output()
        .expect("cannot start cargo");
    assert!(output.status.success(), "helpers do not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    target.join(STATIC_TARGET).join("release")
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
