//! Machines that are not ours: QEMU's q35 as shims for Kata make it. Disks are found over PCI and by SCSI, also those that are
//! plugged in while they are already waited for; they become memory, and volumes grow with them.

mod machine;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use machine::Machine;
use nacre_tests::{artefacts, need, require, tool};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// What a shim asks for first.
const SANDBOX: &str = r#"{"call": "CreateSandbox", "with": {"sandbox_id": "box", "storages": [{"driver": "virtio-fs", "source": "kataShared", "fstype": "virtiofs", "mount_point": "/run/kata-containers/shared/containers/"}]}, "gives": {}}"#;

/// The place of a volume in the guest.
fn place(name: &str) -> String {
    format!("/run/kata-containers/sandbox/storage/{name}")
}

/// A container of the sandbox that runs `script`, which sees the volumes at `/NAME`.
fn container(id: &str, script: &str, storages: &[Value], more: Value) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
        json!({"destination": "/memory", "type": "tmpfs", "source": "tmpfs"}),
    ];
    for storage in storages {
        let source = storage["mount_point"].as_str().expect("no mount point");
        let name = source.rsplit('/').next().expect("no name");
        mounts.push(json!({"destination": format!("/{name}"), "type": "bind", "source": source, "options": ["rbind"]}));
    }
    let mut with = json!({
        "container_id": id,
        "exec_id": id,
        "storages": storages,
        "oci": {
            "root": {"path": format!("/run/kata-containers/shared/containers/{id}/rootfs")},
            "mounts": mounts,
            "process": {"args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"},
        },
    });
    if let Some(devices) = more.get("devices") {
        with["devices"] = devices.clone();
    }
    if let Some(linux) = more.get("linux") {
        with["oci"]["linux"] = linux.clone();
    }
    with
}

/// The lines of a trace in which it lives from its creation to its end.
fn life(with: &Value, output: &str, status: u32) -> String {
    let id = &with["container_id"];
    let named = json!({"container_id": id, "exec_id": id});
    [
        json!({"call": "CreateContainer", "with": with, "gives": {}}),
        json!({"call": "StartContainer", "with": {"container_id": id}, "gives": {}}),
        json!({"read": "ReadStdout", "with": {"container_id": id, "exec_id": id, "len": 32768}, "gives": output}),
        json!({"call": "WaitProcess", "with": named, "gives": {"status": status}}),
    ]
    .map(|line| line.to_string())
    .join("\n")
}

fn removal(id: &str) -> String {
    json!({"call": "RemoveContainer", "with": {"container_id": id}, "gives": {}}).to_string()
}

fn storage(driver: &str, source: &str, name: &str) -> Value {
    json!({"driver": driver, "source": source, "fstype": "ext4", "mount_point": place(name)})
}

fn make_disks(folder: &Path) {
    for (name, mib, program) in [
        ("volume", 16, "mkfs.ext4"),
        ("unit", 16, "mkfs.ext4"),
        ("late", 16, "mkfs.ext4"),
        ("swap", 64, "mkswap"),
        ("plain", 8, "mkfs.ext4"),
    ] {
        let file = folder.join(name);
        File::create(&file).and_then(|disk| disk.set_len(mib * MIB)).expect("no disk");
        tool::check(Command::new(program).arg("-q").arg(&file));
    }
}

/// Processors that are plugged in are not tried: Linux takes them only from a hypervisor that it knows, which QEMU's translator is
/// not (`acpi_is_processor_usable`).
#[test]
fn a_machine_of_qemus_gets_more_memory() {
    require!(vm, tool "busybox", tool "mkfs.ext4", tool "mkswap");
    let kernel = match artefacts::kernel_with_buses() {
        Ok(kernel) => kernel,
        Err(reason) => return need::skip(&reason),
    };
    let machine = Machine::boot(&kernel, &["a", "b"], make_disks);
    machine.play(SANDBOX);
    let details = json!({"call": "GetGuestDetails", "with": {"mem_block_size": true}, "gives": {"mem_block_size_bytes": 128 * MIB}});
    machine.play(&details.to_string());
    let look = "test $(grep MemTotal /proc/meminfo | tr -dc 0-9) -gt 300000; echo $?";
    machine.play(&life(&container("a", look, &[], json!({})), "1\n", 0));
    machine.plug_memory(128 * MIB);
    machine.play(&json!({"call": "OnlineCPUMem", "with": {"wait": true}, "gives": {}}).to_string());
    // It comes up by itself, as soon as firmware has told of it.
    let wait = format!("until {}; do sleep 1; done; echo more", look.split(';').next().unwrap_or_default());
    machine.play(&life(&container("b", &wait, &[], json!({})), "more\n", 0));
}

#[test]
fn a_root_port_tells_of_a_disk_where_firmware_does_not() {
    require!(vm, tool "busybox", tool "mkfs.ext4", tool "mkswap");
    let kernel = match artefacts::kernel_with_buses() {
        Ok(kernel) => kernel,
        Err(reason) => return need::skip(&reason),
    };
    let native = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"];
    let machine = Machine::boot_with(&native, &kernel, &["a"], make_disks);
    machine.play(SANDBOX);
    machine.plug("late", json!({"driver": "virtio-blk-pci", "bus": "express"}));
    let with = container(
        "a",
        "echo here > /late/file; cat /late/file",
        &[storage("blk", "04/00", "late")],
        json!({}),
    );
    machine.play(&life(&with, "here\n", 0));
}

#[test]
fn disks_of_a_machine_of_qemus_are_found_on_their_buses() {
    require!(vm, tool "busybox", tool "mkfs.ext4", tool "mkswap");
    let kernel = match artefacts::kernel_with_buses() {
        Ok(kernel) => kernel,
        Err(reason) => return need::skip(&reason),
    };
    let machine = Machine::boot(&kernel, &["a", "b"], make_disks);
    machine.play(SANDBOX);

    // One that was there when the machine started, one of SCSI that has just been plugged in, and one that is plugged in while
    // the container waits for it.
    machine.plug("unit", json!({"driver": "scsi-hd", "bus": "scsi.0", "channel": 0, "scsi-id": 0, "lun": 1}));
    let volumes =
        [storage("blk", "06", "volume"), storage("scsi", "0:1", "unit"), storage("blk", "04/00", "late")];
    let script = "for it in volume unit late; do echo $it > /$it/file && cat /$it/file; done; df -k /volume | tail -1 | tr -s ' ' | cut -d ' ' -f 2 | grep -q '^1[0-9]\\{4\\}$' && echo small";
    let with = container("a", script, &volumes, json!({}));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            machine.plug("late", json!({"driver": "virtio-blk-pci", "bus": "express"}));
        });
        machine.play(&life(&with, "volume\nunit\nlate\nsmall\n", 0));
    });

    // The volume grows with its disk, and no further.
    machine.ask("block_resize", json!({"node-name": "volume", "size": 64 * MIB}));
    let grow = |bytes: u64| json!({"volume_guest_path": place("volume"), "size": bytes});
    let lines = [
        json!({"call": "ResizeVolume", "with": grow(64 * MIB), "gives": {}}),
        json!({"call": "GetVolumeStats", "with": {"volume_guest_path": place("volume")}, "gives": {"usage": [{"total": {"at_least": 56 * MIB, "at_most": 64 * MIB}}, "*"]}}),
        json!({"call": "ResizeVolume", "with": grow(64 * MIB + 1), "fails": {"code": 13, "text": "are asked for"}}),
    ];
    machine.play(&lines.map(|line| line.to_string()).join("\n"));

    // Disks as devices, by the same addresses. The guest's own is nobody else's, and nor is one that is mounted.
    let device =
        |kind: &str, id: &str| json!({"devices": [{"type": kind, "id": id, "container_path": "/dev/xvda"}]});
    machine
        .plug("plain", json!({"driver": "scsi-hd", "bus": "scsi.0", "channel": 0, "scsi-id": 1, "lun": 2}));
    let look = "head -c 1082 /dev/xvda | tail -c 2 | od -An -tx1";
    for (kind, id, code, text) in [
        ("blk", "02", 13, "busy"),
        ("blk", "06", 13, "busy"),
        ("scsi", "0:1", 13, "busy"),
        ("blk", "05", 13, "it has not appeared"),
        ("blk", "03", 13, "it has not appeared"),
    ] {
        let with = container("b", look, &[], device(kind, id));
        let line = json!({"call": "CreateContainer", "with": with, "fails": {"code": code, "text": text}});
        machine.play(&line.to_string());
    }
    machine.play(&life(&container("b", look, &[], device("scsi", "1:2")), " 53 ef\n", 0));
    machine.play(&removal("b"));

    // Memory on a disk: what does not fit a container's own memory is there, if it may have any.
    let fill = "head -c 33554432 /dev/zero > /memory/file; echo $?; wc -c < /memory/file";
    let limits = |swap: u64| json!({"linux": {"resources": {"memory": {"limit": 16 * MIB, "swap": swap}}}});
    machine.play(
        &json!({"call": "AddSwap", "with": {"pci_path": [6]}, "fails": {"code": 13, "text": "busy"}})
            .to_string(),
    );
    machine.plug("swap", json!({"driver": "virtio-blk-pci", "bus": "bridge", "addr": "1.0"}));
    machine.play(&json!({"call": "AddSwap", "with": {"pci_path": [7, 1]}, "gives": {}}).to_string());
    machine.play(&life(&container("b", fill, &[], limits(64 * MIB)), "0\n33554432\n", 0));
    machine.play(&removal("b"));
    // Without any, it is killed.
    let only_fill = "head -c 33554432 /dev/zero > /memory/file";
    machine.play(&life(&container("b", only_fill, &[], limits(16 * MIB)), "", 137));
    machine.play(&removal("b"));
    machine.play(&removal("a"));
    // Nobody has it mounted any more, but it was not made for swap.
    let plain =
        json!({"call": "AddSwap", "with": {"pci_path": [6]}, "fails": {"code": 13, "text": "SWAPSPACE2"}});
    machine.play(&plain.to_string());
}
