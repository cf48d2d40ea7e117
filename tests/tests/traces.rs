//! What the Go shim and runtime-rs ask in which order, played to a booted guest; every answer is looked at. The traces are
//! in `tests/traces`, written from the facts that are known about both shims.

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nacre::devices::fs::{Access, Share};
use nacre::vmm::{Accel, Scratch, Vm, VmConfig, VmEnd};
use nacre_protocols::names::AGENT_VSOCK_PORT;
use nacre_tests::agentctl::{Client, trace};
use nacre_tests::{artefacts, require, tool};

/// How long a guest may take to end.
const END: Duration = Duration::from_secs(30);
/// Containers of the traces: each has a root of its own.
const CONTAINERS: [&str; 2] = ["pause0", "app0"];

/// A booted guest without a sandbox, and what it shares with the host.
struct Guest {
    vm: Vm,
    folder: tempfile::TempDir,
}

impl Guest {
    fn boot() -> Self {
        Self::boot_with(|_, _| ())
    }

    fn boot_with(change: impl FnOnce(&Path, &mut VmConfig)) -> Self {
        let artefacts = artefacts::find().expect("no guest");
        let folder = tempfile::Builder::new().prefix("nacre-trace").tempdir().expect("no folder");
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("no rights");
        let mut config = VmConfig::new(artefacts.kernel, folder.path().to_owned());
        config.image = Some(artefacts.image);
        config.accel = Accel::Tcg;
        config.vcpus = 2;
        config.console_log = Some(folder.path().join("console.log"));
        for name in CONTAINERS {
            let host = folder.path().join("shared").join(name);
            make_root(&host.join("rootfs"));
            config.shares.push(Share { name: name.into(), host, access: Access::ReadWrite });
        }
        change(folder.path(), &mut config);
        Self { vm: Vm::start(config).expect("no VM"), folder }
    }

    #[track_caller]
    fn play(&self, name: &str) {
        let client = Client::connect_when_booted(self.vm.vsock_path(), AGENT_VSOCK_PORT).expect("no agent");
        let file = artefacts::workspace().join("tests/traces").join(name);
        let text = std::fs::read_to_string(&file).expect("no trace");
        if let Err(error) = trace::play(&client, &text) {
            let console = std::fs::read(self.folder.path().join("console.log")).unwrap_or_default();
            panic!("{name}, {error}\nthe console:\n{}", String::from_utf8_lossy(&console));
        }
    }
}

/// A root file system of busybox.
fn make_root(root: &Path) {
    let busybox = tool::find("busybox").expect("no busybox");
    for folder in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(folder)).expect("no folder");
    }
    std::fs::copy(busybox, root.join("bin/busybox")).expect("no copy");
    for name in [
        "cat", "cut", "date", "df", "grep", "head", "hostname", "od", "sh", "stat", "test", "sleep", "stty",
        "tail", "tr", "true", "wc",
    ] {
        symlink("busybox", root.join("bin").join(name)).expect("no link");
    }
}

#[test]
fn a_pod_of_the_go_shim_lives_and_ends() {
    require!(vm, tool "busybox");
    let guest = Guest::boot();
    guest.play("go-pod.jsonl");
    assert_eq!(guest.vm.wait_for(END), Some(VmEnd::Finished));
}

#[test]
fn a_pod_of_runtime_rs_lives() {
    require!(vm, tool "busybox");
    Guest::boot().play("runtime-rs-pod.jsonl");
}

#[test]
fn signals_reach_whom_they_are_for() {
    require!(vm, tool "busybox");
    Guest::boot().play("kill-all.jsonl");
}

#[test]
fn limits_hold_and_change() {
    require!(vm, tool "busybox");
    Guest::boot().play("resources.jsonl");
}

#[test]
fn files_are_sent_where_no_directory_is_shared() {
    require!(vm, tool "busybox");
    Guest::boot().play("files.jsonl");
}

#[test]
fn disks_are_volumes_and_devices_by_the_guests_own_numbers() {
    require!(vm, tool "busybox", tool "mkfs.ext4");
    let guest = Guest::boot_with(|folder, config| {
        let file = folder.join("disk");
        File::create(&file).and_then(|disk| disk.set_len(32 << 20)).expect("no disk");
        tool::check(Command::new("mkfs.ext4").arg("-q").arg(&file));
        // Named by nothing on the command line, it is nobody's: a disk beside those of the guest.
        config.scratch = Scratch::Kept { file };
    });
    guest.play("disks.jsonl");
}

#[test]
fn the_bounds_of_the_command_line_hold() {
    require!(vm, tool "busybox");
    let words = ["nacre.containers=1", "nacre.capabilities=0x1", "nacre.storage=shares,layers"];
    Guest::boot_with(|_, config| config.cmdline.extend(words.map(str::to_owned))).play("manifest.jsonl");
}

#[test]
fn a_guest_out_of_a_template_is_made_its_own() {
    require!(vm, tool "busybox");
    Guest::boot().play("template.jsonl");
}
