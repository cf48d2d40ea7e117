//! Booting, and every way in which a VM ends.

use std::time::{Duration, Instant};

use nacre::vmm::{Scratch, Vm, VmEnd};

use crate::support::{BOOT_LIMIT, Guest, config, parts};

#[test]
fn a_guest_boots_finds_its_disks_and_ends() {
    let Some(parts) = parts() else { return };
    let start = Instant::now();
    let guest = Guest::boot(parts, |config| {
        config.scratch = Scratch::Disk { size_bytes: 64 << 20, dir: "/tmp".into() };
    });
    println!("shell after {:?}", start.elapsed());
    let sectors = (std::fs::metadata(&parts.image).unwrap().len() / 512).to_string();
    let disks = guest.run("cat /sys/block/vda/size /sys/block/vda/ro /sys/block/vdb/size /sys/block/vdb/ro");
    assert_eq!(disks.split_whitespace().collect::<Vec<_>>(), [&sectors, "1", "131072", "0"]);
    let scratch = "dd if=/dev/zero of=/dev/vdb bs=1M count=8 conv=fsync 2>/dev/null; \
                   blkdiscard /dev/vdb && echo discarded; dd if=/dev/zero of=/dev/vda count=1 2>&1 | tail -1";
    let out = guest.run(scratch);
    assert!(out.contains("discarded"), "{out}");
    guest.run("reboot -f");
    assert_eq!(guest.vm.wait(), VmEnd::Finished, "{:?}", guest.vm.console().last_lines(5));
    assert!(!guest.vm.vsock_path().as_os_str().is_empty());
    let vsock = guest.vm.vsock_path().to_owned();
    drop(guest.vm);
    assert!(!vsock.exists(), "the socket is removed");
}

#[test]
fn a_panic_is_told_from_an_end() {
    let Some(parts) = parts() else { return };
    let guest = Guest::boot(parts, |_| {});
    // The script that is PID 1 ends when its only child does.
    guest.run("killall -9 socat");
    let end = guest.vm.wait_for(Duration::from_secs(20)).unwrap_or_else(|| {
        guest.vm.kill();
        guest.vm.wait()
    });
    assert!(matches!(&end, VmEnd::Panicked { line } if line.contains("Kernel panic")), "{end:?}");
}

#[test]
fn a_guest_that_does_not_come_up_is_explained() {
    let Some(parts) = parts() else { return };
    let (_dir, mut config) = config(parts);
    config.image = None;
    let vm = Vm::start(config).unwrap();
    let failure = vm.connect("waiting for the agent", 1024, BOOT_LIMIT).unwrap_err();
    let text = failure.to_string();
    assert!(text.contains("waiting for the agent: the guest kernel panicked: "), "{text}");
    assert!(text.contains("Unable to mount root fs"), "{text}");
    assert!(text.contains("next: "), "{text}");
}

#[test]
fn a_file_that_is_no_kernel_is_explained() {
    let Some(parts) = parts() else { return };
    let (dir, mut config) = config(parts);
    config.kernel = dir.path().join("kernel");
    std::fs::write(&config.kernel, b"not a kernel").unwrap();
    let vm = Vm::start(config).unwrap();
    let end = vm.wait();
    assert!(matches!(&end, VmEnd::Failed { message, .. } if message.contains("kernel")), "{end:?}");
}

#[test]
fn a_killed_vm_leaves_nothing_behind() {
    let Some(parts) = parts() else { return };
    let (dir, config) = config(parts);
    let vm = Vm::start(config).unwrap();
    let pid = vm.vmm_pid();
    assert_eq!(vm.wait_for(Duration::from_millis(50)), None);
    vm.kill();
    assert_eq!(vm.wait(), VmEnd::Killed { signal: 9 });
    drop(vm);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["console.log"]);
}
