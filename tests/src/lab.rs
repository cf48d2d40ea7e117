//! The lab (`cargo xtask lab`): a machine with a KVM of its own, whatever this host has.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{artefacts, tool};

const BUSYBOX: &str = "/bin/busybox";

/// Runs a script in the outer machine, with the programs under test in `$NACRE_BIN`, `$NACRE_KERNEL` and `$NACRE_IMAGE`, and with
/// these variables, whose names begin with `NACRE_`. What it said.
///
/// # Panics
/// When it fails.
pub fn run(script: &str, variables: &[(&str, &str)]) -> String {
    run_on(1, script, variables)
}

/// The same with so many processors (`cargo xtask lab --help` says what more than one may do).
///
/// # Panics
/// When it fails.
pub fn run_on(processors: u8, script: &str, variables: &[(&str, &str)]) -> String {
    let found = artefacts::find().unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(artefacts::workspace())
        .args([
            "xtask",
            "lab",
            "--cpus",
            &processors.to_string(),
            "--timeout",
            "600",
            "--",
            "sh",
            "-c",
            script,
        ])
        .env("NACRE_BIN", found.nacre)
        .env("NACRE_KERNEL", found.kernel)
        .env("NACRE_IMAGE", found.image)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("cannot start cargo");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
    format!("{out}{err}")
}

/// A guest without a kernel, out of a C file of `tests/guests`: an ELF program in `folder` that is booted as a kernel would be.
///
/// # Panics
/// When it does not compile.
pub fn bare_guest(folder: &Path, name: &str) -> PathBuf {
    let program = folder.join(name);
    let source = artefacts::workspace().join("tests/guests").join(name).with_extension("c");
    // No library, no vector registers, no red zone, and at an address where a kernel may be.
    let flags = "-O2 -Wall -Werror -ffreestanding -nostdlib -static -no-pie -fno-pic -fno-stack-protector -mno-red-zone \
                 -mgeneral-regs-only -Wl,-Ttext-segment=0x400000 -Wl,--build-id=none -Wl,-z,norelro";
    tool::check(Command::new("cc").args(flags.split_whitespace()).arg("-o").arg(&program).arg(source));
    program
}

/// A guest of busybox alone, whose init is `script`: an EROFS image in `folder`.
///
/// # Panics
/// When it cannot be made.
pub fn busybox_guest(folder: &Path, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let tree = folder.join("tree");
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(tree.join(name)).expect("cannot make a directory");
    }
    std::fs::copy(BUSYBOX, tree.join("bin/busybox")).expect("cannot copy busybox");
    let init = tree.join("init");
    let beginning = "#!/bin/busybox sh\nbusybox mount -t proc proc /proc\nbusybox mount -t sysfs sys /sys\n\
                     busybox mount -t devtmpfs dev /dev\nbusybox mount -t tmpfs -o size=200m tmp /tmp\n";
    std::fs::write(&init, format!("{beginning}{script}")).expect("cannot write the script");
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))
        .expect("cannot make it executable");
    let image = folder.join("guest.erofs");
    tool::check(Command::new("mkfs.erofs").arg(&image).arg(&tree));
    image
}
