//! The ways in which our own VMM enters a kernel, but for the one that every sandbox goes (tests/kvm.rs). In the lab.

use std::process::{Command, Stdio};

use nacre_tests::{artefacts, lab, require, tool};

const GUEST: &str =
    "busybox cat /proc/cmdline; busybox grep -c ^processor /proc/cpuinfo; busybox reboot -f\n";

/// A kernel that does not say that it is Linux, so that only its PVH note tells how to enter it.
fn without_its_name(kernel: &[u8]) -> Vec<u8> {
    const LINUX: &[u8] = b"Linux\0";
    let mut kernel = kernel.to_vec();
    let notes: Vec<usize> = (12..kernel.len())
        .filter(|at| kernel[*at..].starts_with(LINUX) && kernel[at - 12..at - 8] == [6, 0, 0, 0])
        .collect();
    assert!(!notes.is_empty(), "the kernel has no notes by Linux");
    notes.iter().for_each(|at| kernel[*at] = b'X');
    kernel
}

#[test]
fn a_pvh_kernel_and_a_bzimage_with_an_initrd_boot() {
    require!(vm, tool "mkfs.erofs", tool "cpio");
    let folder = tempfile::tempdir().expect("no temporary directory");
    let image = lab::busybox_guest(folder.path(), GUEST);
    let found = artefacts::find().unwrap_or_else(|error| panic!("{error}"));
    let kernel = std::fs::read(found.kernel).expect("cannot read the kernel");
    let pvh = folder.path().join("pvh");
    std::fs::write(&pvh, without_its_name(&kernel)).expect("cannot write a kernel");
    let initrd = folder.path().join("initrd");
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""]).arg(&initrd).stdin(Stdio::null());
    tool::check(cpio.current_dir(folder.path().join("tree")));
    let said = lab::run(
        r#"
        cd /tmp
        boot() {
            echo "{\"version\": 1, \"memory_mib\": 512, \"memory_pages\": \"latency\", $2}" > $1.json
            $NACRE_BIN vmm --config $1.json; echo "$1: code $?"
        }
        line="console=ttyS0 quiet reboot=k panic=-1"
        boot pvh "\"kernel\": \"$NACRE_PVH\", \"processors\": 2,
            \"command_line\": \"$line root=/dev/vda rootfstype=erofs ro init=/init which=pvh\",
            \"disks\": [{\"file\": {\"path\": \"$NACRE_GUEST\"}, \"read_only\": true}]"
        boot bzimage "\"kernel\": \"$NACRE_LAB_KERNEL\", \"processors\": 1, \"initrd\": \"$NACRE_INITRD\",
            \"command_line\": \"$line which=bzimage\""
        "#,
        &[
            ("NACRE_GUEST", &image.to_string_lossy()),
            ("NACRE_PVH", &pvh.to_string_lossy()),
            ("NACRE_INITRD", &initrd.to_string_lossy()),
        ],
    );
    for line in ["which=pvh", "pvh: code 0\n", "which=bzimage", "bzimage: code 0\n"] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    let processors: Vec<&str> =
        said.lines().map(str::trim).filter(|line| matches!(*line, "1" | "2")).collect();
    assert_eq!(processors, ["2", "1"], "{said}");
}
