//! `cargo xtask demo`: from a fresh clone to a container in its own virtual machine, one visible step after another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::cache::Cache;
use crate::image::{root, target};
use crate::oci::{self, Defaults, Layer};
use crate::{image, kernel, packages};

/// What the demo needs besides what kernel and image need.
pub const PACKAGES: &[&str] = &["busybox-static", "passt", "qemu-system-x86"];
/// Where Debian's package puts the program, and where the image has it.
const BUSYBOX: &str = "/bin/busybox";

/// Builds everything, makes an image and runs it; what a container prints goes to stdout.
pub fn run() -> anyhow::Result<()> {
    step("Debian packages");
    packages::ensure(PACKAGES)?;

    step("Guest kernel and guest image");
    let cache = Cache::open()?;
    let vmlinux = kernel::make(&cache)?;
    let guest = image::make(&cache, &[])?;
    eprintln!("{}\n{}", vmlinux.display(), guest.display());

    step("The host program");
    let nacre = build_nacre()?;
    eprintln!("{}", nacre.display());

    step("An OCI image out of Debian's busybox");
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    let layout = work.path().join("busybox");
    let digest = make_image(&layout)?;
    eprintln!("{} has {digest}", layout.display());

    step("A container in a virtual machine of its own; the image is pulled and verified inside");
    let nacre = Nacre { program: nacre, image: format!("oci:{}:latest", layout.display()) };
    nacre.expect(0, &["echo", "hello from inside the sandbox"])?;
    nacre.expect(0, &["sh", "-c", "uname -sr; id; cat /etc/motd; ls /"])?;

    step("Its exit code is the program's");
    nacre.expect(7, &["sh", "-c", "exit 7"])?;

    step("One flipped bit in the layer, and the sandbox refuses the image");
    flip_a_bit(&layout)?;
    nacre.expect_refusal(&["echo", "this must never be printed"])?;

    eprintln!("\nThat was everything. Your own: {} run IMAGE [COMMAND…]", nacre.program.display());
    Ok(())
}

/// Builds `nacre` for this machine and returns its path. Static: it runs wherever it is copied to, starts without a loader, and
/// has less of a C library in memory.
pub fn build_nacre() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root())
        .args(["rustc", "--release", "--locked", "--package", "nacre", "--bin", "nacre"])
        .args(["--", "-Ctarget-feature=+crt-static"])
        .env("CARGO_TARGET_DIR", target())
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "building nacre failed: {status}");
    Ok(target().join("release/nacre"))
}

/// Writes an image with busybox under all its names; returns the digest of its manifest.
pub fn make_image(layout: &Path) -> anyhow::Result<String> {
    let defaults = Defaults {
        command: &["/bin/sh"],
        environment: &["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
    };
    oci::write(layout, "latest", &[busybox_layer()?.finish()?], &defaults)
}

/// A root file system of busybox and little else.
pub fn busybox_layer() -> anyhow::Result<Layer> {
    let program = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?;
    let mut layer = Layer::new();
    for directory in ["bin/", "etc/", "root/", "dev/", "proc/", "sys/", "run/", "usr/"] {
        layer.directory(directory, 0o755)?;
    }
    layer.directory("tmp/", 0o1777)?;
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    layer.file("etc/motd", 0o644, b"This file came in a layer, and nobody unpacked it.\n")?;
    layer.file("bin/busybox", 0o755, &program)?;
    for name in applets()?.iter().filter(|name| *name != "busybox") {
        layer.hard_link(&format!("bin/{name}"), "bin/busybox")?;
    }
    Ok(layer)
}

/// The names busybox answers to.
fn applets() -> anyhow::Result<Vec<String>> {
    let output =
        Command::new(BUSYBOX).arg("--list").output().with_context(|| format!("cannot run {BUSYBOX}"))?;
    let names = String::from_utf8(output.stdout).context("busybox lists names that are not text")?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Flips one bit in the middle of the largest blob: the layer.
fn flip_a_bit(layout: &Path) -> anyhow::Result<()> {
    let blobs = layout.join("blobs/sha256");
    let mut largest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(&blobs).with_context(|| format!("cannot list {}", blobs.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", blobs.display()))?;
        let size = entry.metadata().with_context(|| format!("cannot look at {}", blobs.display()))?.len();
        if largest.as_ref().is_none_or(|(other, _)| size > *other) {
            largest = Some((size, entry.path()));
        }
    }
    let Some((_, path)) = largest else { bail!("{} has no blobs", blobs.display()) };
    let mut bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// `nacre run` of one image.
struct Nacre {
    program: PathBuf,
    image: String,
}

impl Nacre {
    fn expect(&self, code: i32, command: &[&str]) -> anyhow::Result<()> {
        let status = self.start(command)?.status().context("cannot run nacre")?;
        ensure!(status.code() == Some(code), "expected exit code {code}, got {status}");
        Ok(())
    }

    /// The container must not have run: no output, and the exit code of a failure before the start.
    fn expect_refusal(&self, command: &[&str]) -> anyhow::Result<()> {
        const NOT_STARTED: i32 = 125;
        let output = self.start(command)?.stderr(Stdio::inherit()).output().context("cannot run nacre")?;
        ensure!(output.stdout.is_empty(), "a container ran from a forged layer");
        ensure!(
            output.status.code() == Some(NOT_STARTED),
            "expected exit code {NOT_STARTED}, got {}",
            output.status
        );
        Ok(())
    }

    /// Shows the command as one would type it, and prepares it.
    fn start(&self, command: &[&str]) -> anyhow::Result<Command> {
        let shown: Vec<String> = command.iter().map(|word| quote(word)).collect();
        eprintln!("$ nacre run {} {}", self.image, shown.join(" "));
        let mut nacre = Command::new(&self.program);
        nacre.arg("run").arg(&self.image).args(command).stdin(Stdio::null());
        Ok(nacre)
    }
}

/// A word as a shell needs it.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn step(what: &str) {
    eprintln!("\n== {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_words_can_be_typed() {
        for (word, expected) in
            [("echo", "echo"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("/bin/sh", "/bin/sh")]
        {
            assert_eq!(quote(word), expected);
        }
    }

    #[test]
    fn exactly_one_blob_stops_matching_its_name_when_a_bit_is_flipped() {
        let folder = tempfile::tempdir().unwrap();
        let mut layer = Layer::new();
        let noise: Vec<u8> =
            (0..20_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        layer.file("file", 0o644, &noise).unwrap();
        let defaults = Defaults { command: &[], environment: &[] };
        oci::write(folder.path(), "latest", &[layer.finish().unwrap()], &defaults).unwrap();
        flip_a_bit(folder.path()).unwrap();
        let broken = fs::read_dir(folder.path().join("blobs/sha256"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                crate::cache::sha256_of(path).unwrap() != path.file_name().unwrap().to_str().unwrap()
            })
            .count();
        assert_eq!(broken, 1);
    }
}
