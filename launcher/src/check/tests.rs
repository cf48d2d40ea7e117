use super::*;
use nacre_protocols::init_launcher::storage as kinds;
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{FETCHER_UID, Sha256};

const CEILING: u64 = 0xff;

fn process() -> Process {
    Process {
        args: vec!["sh".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::Ids { uid: 0, gid: 0, additional: vec![] },
        terminal: None,
        capabilities: Capabilities::default(),
        rlimits: vec![],
        no_new_privileges: true,
        oom_score_adj: None,
        seccomp: None,
        umask: None,
        attributes: Default::default(),
    }
}

fn container() -> ContainerPlan {
    ContainerPlan {
        id: "box".to_owned(),
        namespaces: Namespaces {
            pid: Namespace::Fresh,
            mount: Namespace::Fresh,
            cgroup: Namespace::Fresh,
            ipc: Namespace::Fresh,
            uts: Namespace::Fresh,
            ..Default::default()
        },
        hostname: None,
        domainname: None,
        rootfs: Rootfs::Layers(vec![Sha256([1; 32])]),
        rootfs_readonly: false,
        rootfs_propagation: Propagation::RecursivePrivate,
        mounts: vec![],
        devices: vec![],
        device_rules: vec![],
        disks: vec![],
        masked_paths: vec![],
        readonly_paths: vec![],
        cgroup: Default::default(),
        sysctls: vec![],
        net_devices: vec![],
        hooks: Default::default(),
        process: process(),
        inherited: 0,
    }
}

/// The refusal of a plan that `change` made of a good one, or nothing.
fn refusal(mode: Mode, change: impl FnOnce(&mut ContainerPlan)) -> Option<String> {
    let mut plan = container();
    change(&mut plan);
    check(Plan::Create(Box::new(plan)), mode, CEILING, kinds::ALL).err().map(|error| error.to_string())
}

/// Each change must be refused with these words, and by whom: init may do more than the agent.
fn refused(agent: &str, init: Option<&str>, change: impl Fn(&mut ContainerPlan)) {
    for (mode, words) in [(Mode::Create, Some(agent)), (Mode::Helper, init)] {
        match (refusal(mode, &change), words) {
            (Some(error), Some(words)) => {
                assert!(error.contains(words), "{mode:?}: {error:?}, not {words:?}")
            }
            (error, words) => assert_eq!(error.as_deref(), words, "{mode:?}"),
        }
    }
}

fn refused_always(words: &str, change: impl Fn(&mut ContainerPlan)) {
    refused(words, Some(words), change);
}

fn allowed(change: impl Fn(&mut ContainerPlan)) {
    assert_eq!(refusal(Mode::Create, &change), None);
}

#[test]
fn a_plan_fits_its_mode_alone() {
    let exec = Plan::Exec(Box::new(ExecPlan { process: process() }));
    let plans = [
        (Plan::Create(Box::new(container())), &[Mode::Create, Mode::Helper][..]),
        (exec, &[Mode::Exec]),
        (Plan::Storage(vec![]), &[Mode::Storage]),
        (Plan::Network(vec![]), &[Mode::Network]),
        (Plan::Update(CgroupLimits::default()), &[Mode::Update]),
    ];
    for (plan, modes) in plans {
        for mode in Mode::ALL {
            assert_eq!(
                check(plan.clone(), mode, CEILING, kinds::ALL).is_ok(),
                modes.contains(&mode),
                "{mode:?} {plan:?}"
            );
        }
    }
}

#[test]
fn ids_and_names_are_bounded() {
    refused_always("id \"../x\"", |plan| plan.id = "../x".to_owned());
    refused_always("hostname \"\"", |plan| plan.hostname = Some(String::new()));
    refused_always("hostname has 65 bytes; the limit is 64", |plan| plan.hostname = Some("x".repeat(65)));
    allowed(|plan| plan.hostname = Some("x".repeat(64)));
}

#[test]
fn the_agent_reaches_only_the_kata_directory() {
    let bind = |source: &str, destination: &str| Mount {
        destination: destination.to_owned(),
        kind: MountKind::Bind { source: source.to_owned(), recursive: true },
        attributes: MountAttributes::default(),
        changes: Default::default(),
        id_mapping: None,
        propagation: None,
    };
    for source in [
        "/",
        "/dev/vda",
        "/run/nacre/scratch",
        "/run/kata-containers",
        "/run/kata-containers/",
        "/run/kata-containersX/y",
    ] {
        refused("is not beneath /run/kata-containers", None, |plan| plan.mounts = vec![bind(source, "/x")]);
        refused("is not beneath /run/kata-containers", None, |plan| {
            plan.rootfs = Rootfs::Guest(source.to_owned());
        });
    }
    for path in ["relative", "", "/run/kata-containers/../nacre", "/run/kata-containers/./x", "/x\0y"] {
        refused_always("is not an absolute path", |plan| plan.mounts = vec![bind(path, "/x")]);
        refused_always("is not an absolute path", |plan| plan.rootfs = Rootfs::Guest(path.to_owned()));
        refused_always("is not an absolute path", |plan| {
            plan.mounts = vec![bind("/run/kata-containers/x", path)];
        });
        refused_always("is not an absolute path", |plan| plan.masked_paths = vec![path.to_owned()]);
        refused_always("is not an absolute path", |plan| plan.readonly_paths = vec![path.to_owned()]);
        refused_always("is not an absolute path", |plan| plan.process.cwd = path.to_owned());
    }
    refused_always("mount destination \"//\" is not allowed", |plan| {
        plan.mounts = vec![bind("/run/kata-containers/x", "//")];
    });
    refused_always("has 4096 bytes; the limit is 4095", |plan| {
        plan.process.cwd = format!("/{}", "x".repeat(4095));
    });
    allowed(|plan| plan.mounts = vec![bind("/run/kata-containers/shared/containers/vol0", "/data/")]);
    refused("rootfs \"puller\" is not allowed", None, |plan| plan.rootfs = Rootfs::Puller);
    refused_always("a layer of the rootfs is missing", |plan| plan.rootfs = Rootfs::Layers(vec![]));
    refused_always("layers has 129 entries; the limit is 128", |plan| {
        plan.rootfs = Rootfs::Layers(vec![Sha256([0; 32]); 129]);
    });
}

#[test]
fn lists_are_bounded() {
    let mount = Mount {
        destination: "/x".to_owned(),
        kind: MountKind::Mqueue,
        attributes: MountAttributes::default(),
        changes: Default::default(),
        id_mapping: None,
        propagation: None,
    };
    let write = CgroupWrite { file: "memory.max".to_owned(), value: "1".to_owned(), missing: Missing::Fails };
    let rule = rule(true, Some(DeviceKind::Character), Some(1), Some(3));
    let sysctl = ("net.core.somaxconn".to_owned(), "1".to_owned());
    refused_always("mounts has 1025", |plan| plan.mounts = vec![mount.clone(); 1025]);
    refused_always("devices has 257", |plan| plan.devices = vec![device(DeviceKind::Fifo, 0, 0); 257]);
    refused_always("device_rules has 257", |plan| plan.device_rules = vec![rule; 257]);
    refused_always("masked_paths has 1025", |plan| plan.masked_paths = vec!["/x".to_owned(); 1025]);
    refused_always("readonly_paths has 1025", |plan| plan.readonly_paths = vec!["/x".to_owned(); 1025]);
    refused_always("cgroup has 1025", |plan| plan.cgroup.writes = vec![write.clone(); 1025]);
    refused_always("sysctls has 1025", |plan| plan.sysctls = vec![sysctl.clone(); 1025]);
    refused_always("args has 16385", |plan| plan.process.args = vec!["x".to_owned(); 16385]);
    refused_always("env has 16385", |plan| plan.process.env = vec!["x=".to_owned(); 16385]);
    refused_always("additional groups has 1025", |plan| {
        plan.process.user = User::Named { name: String::new(), additional: vec![1; 1025] };
    });
    refused("inherited descriptors has 1 entries; the limit is 0", None, |plan| plan.inherited = 1);
    refused_always("inherited descriptors", |plan| plan.inherited = 5);
}

#[test]
fn file_systems_take_only_options_that_are_known() {
    let mount = |kind: MountKind| {
        move |plan: &mut ContainerPlan| {
            plan.mounts = vec![Mount {
                destination: "/x".to_owned(),
                kind: kind.clone(),
                attributes: MountAttributes::default(),
                changes: Default::default(),
                id_mapping: None,
                propagation: None,
            }];
        }
    };
    let data = |option: &str| vec![option.to_owned()];
    refused_always("option of proc \"source=x\"", mount(MountKind::Proc { data: data("source=x") }));
    refused_always("option of devpts", mount(MountKind::Devpts { data: data("nothing") }));
    refused_always("option of tmpfs", mount(MountKind::Tmpfs { data: data("huge=always"), copy_up: false }));
    refused_always("option of tmpfs", mount(MountKind::Tmpfs { data: data("size=1\0"), copy_up: false }));
    allowed(mount(MountKind::Tmpfs { data: data("size=50%"), copy_up: true }));
    allowed(mount(MountKind::Proc { data: data("hidepid=2") }));
}

fn device(kind: DeviceKind, major: u32, minor: u32) -> DeviceNode {
    DeviceNode { path: "/dev/x".to_owned(), kind, major, minor, mode: 0o600, uid: 0, gid: 0 }
}

fn rule(allow: bool, kind: Option<DeviceKind>, major: Option<u32>, minor: Option<u32>) -> DeviceRule {
    DeviceRule { allow, kind, major, minor, read: true, write: false, mknod: true }
}

#[test]
fn only_devices_that_hold_nothing_of_the_guest_are_given() {
    use DeviceKind::{Block, Character, Fifo};
    for (kind, major, minor) in [(Character, 1, 1), (Character, 5, 1), (Character, 4, 64), (Block, 254, 0)] {
        refused_always("is not allowed", |plan| plan.devices = vec![device(kind, major, minor)]);
        refused_always("is not allowed", |plan| {
            plan.device_rules = vec![rule(true, Some(kind), Some(major), Some(minor))];
        });
    }
    for (kind, major, minor) in
        [(None, None, None), (Some(Character), Some(1), None), (None, Some(1), Some(3))]
    {
        refused_always("device rule", |plan| plan.device_rules = vec![rule(true, kind, major, minor)]);
        allowed(|plan| plan.device_rules = vec![rule(false, kind, major, minor)]);
        allowed(|plan| {
            plan.device_rules = vec![DeviceRule { read: false, ..rule(true, kind, major, minor) }]
        });
    }
    refused_always("fifo", |plan| plan.device_rules = vec![rule(false, Some(Fifo), None, None)]);
    refused_always("mode of device", |plan| {
        plan.devices = vec![DeviceNode { mode: 0o4600, ..device(Character, 1, 3) }];
    });
    refused("owner of a device", None, |plan| {
        plan.devices = vec![DeviceNode { uid: FETCHER_UID, ..device(Character, 1, 3) }];
    });
    allowed(|plan| plan.devices = vec![device(Character, 1, 3), device(Fifo, 0, 0)]);
    allowed(|plan| plan.device_rules = vec![rule(true, Some(Character), Some(136), None)]);
}

#[test]
fn cgroup_files_and_sysctls_stay_in_the_containers_own() {
    for file in [
        "",
        "memory",
        "cgroup.procs",
        "cgroup.subtree_control",
        "cgroup.kill",
        "cgroup.max.",
        "../memory.max",
        "memory.max/..",
        "memory.../x",
        "devices.allow",
        "a.b",
    ] {
        refused_always("cgroup file", |plan| {
            plan.cgroup.writes =
                vec![CgroupWrite { file: file.to_owned(), value: "1".to_owned(), missing: Missing::Fails }];
        });
    }
    for file in
        ["memory.max", "cpu.weight", "cgroup.max.descendants", "hugetlb.2MB.max", "pids.max", "io.max"]
    {
        allowed(|plan| {
            plan.cgroup.writes =
                vec![CgroupWrite { file: file.to_owned(), value: "1".to_owned(), missing: Missing::Fails }]
        });
    }
    for name in [
        "",
        "net.",
        "kernel.core_pattern",
        "vm.overcommit_memory",
        "net..core",
        "net./etc",
        "netx.y",
        "kernel.shmmaxx",
    ] {
        refused_always("sysctl", |plan| plan.sysctls = vec![(name.to_owned(), "1".to_owned())]);
    }
    for name in ["net.ipv4.ip_forward", "kernel.shmmax", "fs.mqueue.msg_max"] {
        allowed(|plan| plan.sysctls = vec![(name.to_owned(), "1".to_owned())]);
    }
}

#[test]
fn users_of_the_guest_itself_are_for_helpers() {
    for uid in [0x7ffe_0000, FETCHER_UID, 0x7ffe_ffff] {
        refused("user 2147", None, |plan| plan.process.user = User::Ids { uid, gid: 0, additional: vec![] });
        refused("group 2147", None, |plan| {
            plan.process.user = User::Ids { uid: 0, gid: uid, additional: vec![] }
        });
        refused("additional group 2147", None, |plan| {
            plan.process.user = User::Named { name: String::new(), additional: vec![uid] };
        });
    }
    refused_always("user \"4294967295\"", |plan| {
        plan.process.user = User::Ids { uid: u32::MAX, gid: 0, additional: vec![] };
    });
    allowed(|plan| plan.process.user = User::Ids { uid: 0x7ffd_ffff, gid: 0x7fff_0000, additional: vec![5] });
}

#[test]
fn capabilities_stay_beneath_the_ceiling_and_each_other() {
    let none = Capabilities::default();
    for (words, sets) in [
        ("bounding capabilities 0x100 are beyond the ceiling", Capabilities { bounding: 0x101, ..none }),
        ("permitted capabilities 0x100 are beyond the ceiling", Capabilities { permitted: 0x100, ..none }),
        ("inheritable capabilities 0x1 are beyond the bounding set", Capabilities { inheritable: 1, ..none }),
        (
            "effective capabilities 0x2 are beyond the permitted set",
            Capabilities { permitted: 1, effective: 3, ..none },
        ),
        ("ambient capabilities 0x1 are beyond the permitted set", Capabilities { ambient: 1, ..none }),
        (
            "ambient capabilities 0x1 are beyond the inheritable set",
            Capabilities { ambient: 1, permitted: 1, ..none },
        ),
    ] {
        refused_always(words, |plan| plan.process.capabilities = sets);
    }
    let all =
        Capabilities { bounding: 0xff, effective: 0xff, inheritable: 0xff, permitted: 0xff, ambient: 0xff };
    allowed(|plan| plan.process.capabilities = all);
}

#[test]
fn a_process_has_a_command_and_sane_numbers() {
    refused_always("the command is missing", |plan| plan.process.args.clear());
    refused_always("the command is missing", |plan| plan.process.args = vec![String::new(), "x".to_owned()]);
    refused_always("argument", |plan| plan.process.args.push("a\0b".to_owned()));
    refused_always("argument has 131072", |plan| plan.process.args.push("x".repeat(128 * 1024)));
    for entry in ["NAME", "=value", "A=\0"] {
        refused_always("environment entry", |plan| plan.process.env.push(entry.to_owned()));
    }
    refused_always("resource limit \"16\"", |plan| {
        plan.process.rlimits = vec![Rlimit { resource: 16, soft: 0, hard: 0 }];
    });
    refused_always("soft above hard", |plan| {
        plan.process.rlimits = vec![Rlimit { resource: 1, soft: 2, hard: 1 }];
    });
    refused_always("oom_score_adj", |plan| plan.process.oom_score_adj = Some(1001));
    refused_always("umask", |plan| plan.process.umask = Some(0o1000));
    let filter = |length, flags| Some(Seccomp { program: vec![(6, 0, 0, 0); length], flags, listener: None });
    refused_always("the seccomp program is missing", |plan| plan.process.seccomp = filter(0, 0));
    refused_always("seccomp program has 4097", |plan| plan.process.seccomp = filter(4097, 0));
    // NEW_LISTENER would give the command's system calls to a stranger.
    refused_always("seccomp flags", |plan| plan.process.seccomp = filter(1, 1 << 3));
    allowed(|plan| plan.process.seccomp = filter(4096, 6));
}

#[test]
fn storage_steps_stay_in_their_places() {
    let kata = |name: &str| format!("/run/kata-containers/{name}");
    let attributes = MountAttributes::default();
    let bad = [
        StorageStep::ScratchDisk { device: "/dev/vda".to_owned(), kept: false },
        StorageStep::ScratchDisk { device: "/dev/vdb/../vda".to_owned(), kept: false },
        StorageStep::ScratchDisk { device: "/dev/loop0".to_owned(), kept: false },
        StorageStep::ScratchTmpfs { bytes: 0 },
        StorageStep::VirtioFs { tag: String::new(), mount_point: kata("x"), read_only: true },
        StorageStep::VirtioFs { tag: "x".repeat(37), mount_point: kata("x"), read_only: true },
        StorageStep::VirtioFs { tag: "tag".to_owned(), mount_point: "/etc".to_owned(), read_only: true },
        StorageStep::Tmpfs { mount_point: "/run/kata-containers".to_owned(), data: vec![], attributes },
        StorageStep::Tmpfs { mount_point: kata("x"), data: vec!["huge=always".to_owned()], attributes },
        StorageStep::Directory { path: kata("x"), mode: 0o4755, group: None },
        StorageStep::Directory { path: kata("../nacre"), mode: 0o755, group: None },
        StorageStep::File { path: "/etc/passwd".to_owned(), content: vec![] },
        StorageStep::Unmount { mount_point: "/run/nacre/scratch".to_owned() },
        StorageStep::RemoveWritable { container: "..".to_owned() },
        StorageStep::RemoveWritable { container: "a/b".to_owned() },
    ];
    for step in bad {
        assert!(check(Plan::Storage(vec![step.clone()]), Mode::Storage, 0, kinds::ALL).is_err(), "{step:?}");
    }
    let good = [
        StorageStep::ScratchDisk { device: "/dev/vdb".to_owned(), kept: false },
        StorageStep::Layer { diff_id: Sha256([0; 32]) },
        StorageStep::VirtioFs {
            tag: "kataShared".to_owned(),
            mount_point: kata("shared/containers"),
            read_only: false,
        },
        StorageStep::Directory { path: kata("x/y"), mode: 0o1777, group: None },
        StorageStep::File { path: kata("sandbox/hosts"), content: vec![0; 100] },
        StorageStep::RemoveWritable { container: "box".to_owned() },
    ];
    assert!(check(Plan::Storage(good.to_vec()), Mode::Storage, 0, kinds::ALL).is_ok());
}

#[test]
fn network_steps_have_names_and_addresses_that_the_kernel_takes() {
    let interface = Interface {
        hardware_address: [2, 0, 0, 0, 0, 1],
        name: "eth0".to_owned(),
        mtu: 1500,
        addresses: vec![("10.0.2.15".parse().unwrap(), 24)],
        no_arp: false,
    };
    let route = Route {
        destination: None,
        gateway: Some("10.0.2.2".parse().unwrap()),
        device: "eth0".to_owned(),
        source: None,
        scope: 0,
        ipv6: false,
        flags: 0,
        mtu: 0,
    };
    let verdict = |step: NetworkStep| check(Plan::Network(vec![step]), Mode::Network, 0, 0);
    assert!(verdict(NetworkStep::Interface(interface.clone())).is_ok());
    assert!(verdict(NetworkStep::Route(route.clone())).is_ok());
    for name in ["", ".", "..", "a/b", "a b", "a:b", "eth%d", "sixteen-letters-"] {
        let changed = Interface { name: name.to_owned(), ..interface.clone() };
        assert!(verdict(NetworkStep::Interface(changed)).is_err(), "{name:?}");
        let changed = Route { device: name.to_owned(), ..route.clone() };
        assert!(verdict(NetworkStep::Route(changed)).is_err(), "{name:?}");
    }
    for mtu in [1, 67, 65_536] {
        assert!(verdict(NetworkStep::Interface(Interface { mtu, ..interface.clone() })).is_err(), "{mtu}");
    }
    for (address, bits) in [("10.0.0.1", 33), ("fd00::1", 129)] {
        let addresses = vec![(address.parse().unwrap(), bits)];
        assert!(verdict(NetworkStep::Interface(Interface { addresses, ..interface.clone() })).is_err());
    }
    assert!(verdict(NetworkStep::Route(Route { ipv6: true, ..route.clone() })).is_err());
    let source = Some("fd00::1".parse().unwrap());
    assert!(verdict(NetworkStep::Route(Route { source, ..route })).is_err());
}

#[test]
fn a_manifest_leaves_kinds_of_storage_out() {
    let kata = |name: &str| format!("/run/kata-containers/{name}");
    let steps = [
        (kinds::SCRATCH, StorageStep::ScratchTmpfs { bytes: 1 }),
        (kinds::SCRATCH, StorageStep::RemoveWritable { container: "c".to_owned() }),
        (kinds::LAYERS, StorageStep::Layer { diff_id: Sha256([0; 32]) }),
        (kinds::SHARES, StorageStep::UnmountStale),
        (kinds::MEMORY, StorageStep::ChangeTmpfs { mount_point: kata("x"), data: vec![] }),
        (
            kinds::DISKS,
            StorageStep::Disk {
                address: DiskAddress::Name("/dev/vdb".to_owned()),
                file_system: "ext4".to_owned(),
                data: vec!["noload".to_owned()],
                attributes: MountAttributes::default(),
                mount_point: kata("x"),
            },
        ),
        (
            kinds::OVERLAYS,
            StorageStep::Overlay(Overlay {
                lower: vec![kata("a")],
                writable: Some((kata("b"), kata("c"))),
                attributes: MountAttributes::default(),
                mount_point: kata("x"),
            }),
        ),
        (kinds::DISKS, StorageStep::Grow { path: kata("x"), bytes: 1 }),
        (kinds::SWAP, StorageStep::Swap { address: DiskAddress::Scsi { target: 0, lun: 1 } }),
        (kinds::FILES, StorageStep::Usage { path: kata("x") }),
    ];
    for (kind, step) in steps {
        let verdict = |kinds| check(Plan::Storage(vec![step.clone()]), Mode::Storage, 0, kinds);
        assert!(verdict(kind).is_ok(), "{step:?}");
        let refusal = verdict(kinds::ALL & !kind).unwrap_err().to_string();
        assert!(refusal.contains("manifest"), "{refusal}");
    }
    let name = |path: &str| DiskAddress::Name(path.to_owned());
    let pci = |way: &[(u8, u8)]| {
        DiskAddress::Pci(way.iter().map(|&(device, function)| PciFunction { device, function }).collect())
    };
    let disk = Disk {
        address: name("/dev/vdb"),
        path: "/dev/xvda".to_owned(),
        write: true,
        mode: 0o660,
        uid: 0,
        gid: 0,
    };
    let verdict = |disk: &Disk, kinds| {
        let plan = ContainerPlan { disks: vec![disk.clone()], ..container() };
        check(Plan::Create(Box::new(plan)), Mode::Create, CEILING, kinds)
    };
    let scsi = DiskAddress::Scsi { target: 255, lun: 16_383 };
    for address in [name("/dev/vdb"), pci(&[(2, 0)]), pci(&[(31, 7); 8]), scsi] {
        assert!(verdict(&Disk { address, ..disk.clone() }, kinds::DISKS).is_ok());
    }
    assert!(verdict(&disk, kinds::ALL & !kinds::DISKS).is_err());
    for bad in [
        Disk { address: name("/dev/vda"), ..disk.clone() },
        Disk { address: name("/dev/loop0"), ..disk.clone() },
        Disk { address: pci(&[]), ..disk.clone() },
        Disk { address: pci(&[(0, 0); 9]), ..disk.clone() },
        Disk { address: pci(&[(2, 0), (32, 0)]), ..disk.clone() },
        Disk { address: pci(&[(2, 8)]), ..disk.clone() },
        Disk { address: DiskAddress::Scsi { target: 0, lun: 16_384 }, ..disk.clone() },
        Disk { path: "/".to_owned(), ..disk.clone() },
        Disk { mode: 0o4660, ..disk.clone() },
        Disk { uid: FETCHER_UID, ..disk.clone() },
    ] {
        assert!(verdict(&bad, kinds::ALL).is_err(), "{bad:?}");
    }
}

#[test]
fn where_images_are_named_a_root_is_one() {
    let kinds = kinds::ALL & !kinds::OTHER_ROOTS;
    for (mode, rootfs, refusal) in [
        (Mode::Create, Rootfs::Layers(vec![Sha256([1; 32])]), None),
        (Mode::Create, Rootfs::Guest("/run/kata-containers/x".to_owned()), Some("a root that is no image")),
        (Mode::Helper, Rootfs::Puller, None),
    ] {
        let plan = ContainerPlan { rootfs: rootfs.clone(), ..container() };
        let found = check(Plan::Create(Box::new(plan)), mode, CEILING, kinds).err().map(|it| it.to_string());
        assert_eq!(found.is_some(), refusal.is_some(), "{rootfs:?}: {found:?}");
        assert!(found.unwrap_or_default().contains(refusal.unwrap_or_default()), "{rootfs:?}");
    }
}
