//! Fields of the runtime specification that few containers use, carried out by the real launcher. See `harness` for what
//! that needs.

mod harness;

use harness::*;
use nacre_protocols::init_launcher::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const VOLUME: &str = "/run/kata-containers/shared/containers/volume";
const OUTSIDE: u32 = 200_000;

fn mapped() -> IdMappings {
    let all = vec![IdMapping { inside: 0, outside: OUTSIDE, count: 65_536 }];
    IdMappings { users: all.clone(), groups: all }
}

/// A container with users of its own, to whom its root file system belongs.
fn with_users(script: &str) -> ContainerPlan {
    let mut plan = container(script);
    plan.namespaces.user = Namespace::Fresh;
    plan.namespaces.user_mappings = mapped();
    plan.namespaces.network = Namespace::Fresh;
    for directory in ["", "tmp", "home/app", "secret", "secret/file"] {
        let owner = (Some(rustix::fs::Uid::from_raw(OUTSIDE)), Some(rustix::fs::Gid::from_raw(OUTSIDE)));
        rustix::fs::chown(Path::new(ROOTFS).join(directory), owner.0, owner.1).unwrap();
    }
    plan
}

#[test]
fn a_user_namespace_makes_root_inside_nobody_outside() {
    let Some(guest) = Guest::new() else { return };
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map; hostname; touch /tmp/mine; \
                  stat -c '%u %a' /dev/null /dev/pts/ptmx /tmp; echo x > /dev/null && echo null; \
                  mount -t tmpfs none /tmp && echo mounted; ls /sys/class/net; mount | grep -c mqueue";
    let mut plan = with_users(script);
    plan.process.capabilities.bounding = ALL_CAPABILITIES;
    plan.process.capabilities.permitted = ALL_CAPABILITIES;
    plan.process.capabilities.effective = ALL_CAPABILITIES;
    plan.process.oom_score_adj = Some(5);
    plan.process.rlimits = vec![Rlimit { resource: 7, soft: 64, hard: 128 }];
    let (output, code) = guest.run(plan);
    let lines: Vec<_> =
        output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let map = format!("0 {OUTSIDE} 65536");
    assert_eq!(lines[..3], ["0".to_owned(), map.clone(), map], "{output}");
    assert_eq!(lines[3], "inside", "{output}");
    // The guest's own node, which is nobody's here.
    assert_eq!(lines[4..7], ["65534 666", "0 666", "0 755"], "{output}");
    assert_eq!(lines[7..], ["null", "mounted", "lo", "1"], "{output}");
    assert_eq!(code, 0);
    let mine = fs::metadata(Path::new(ROOTFS).join("tmp/mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (OUTSIDE, OUTSIDE));
}

#[test]
fn an_exec_has_the_containers_users_too() {
    let Some(guest) = Guest::new() else { return };
    let mut first = guest.launch(Mode::Create, &Plan::Create(Box::new(with_users("sleep 60"))));
    first.start();
    let (output, code) =
        guest.exec(&first, shell("id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user")).run_exec();
    let own = fs::read_link("/proc/self/ns/user").unwrap().display().to_string();
    assert_eq!(code, 0, "{output}");
    assert!(output.starts_with("0\n") && output.contains(&OUTSIDE.to_string()), "{output}");
    assert!(!output.contains(&own), "{output}");
    first.kill();
}

#[test]
fn mounts_show_ids_as_they_are_mapped() {
    let Some(guest) = Guest::new() else { return };
    fs::create_dir_all(Path::new(VOLUME).join("sub")).unwrap();
    fs::write(Path::new(VOLUME).join("file"), "x").unwrap();
    rustix::fs::chown(
        Path::new(VOLUME).join("file").as_path(),
        Some(rustix::fs::Uid::from_raw(5)),
        Some(rustix::fs::Gid::from_raw(6)),
    )
    .unwrap();
    let moved = vec![IdMapping { inside: 0, outside: 1000, count: 100 }];
    let own =
        MountMapping { mappings: Some(IdMappings { users: moved.clone(), groups: moved }), recursive: false };
    let mut plan = container("stat -c '%u %g' /data/file; touch /data/new 2>&1; stat -c %u /data/sub");
    plan.mounts.push(Mount { id_mapping: Some(own), ..bind(VOLUME, "/data") });
    let (output, _) = guest.run(plan);
    assert!(output.starts_with("1005 1006\n") && output.ends_with("1000\n"), "{output}");

    // With the container's own users: 5 outside is 5 inside.
    let mut plan = with_users("stat -c '%u %g' /data/file /plain/file");
    let users = Some(MountMapping { mappings: None, recursive: true });
    plan.mounts.push(Mount { id_mapping: users.clone(), ..bind(VOLUME, "/data") });
    plan.mounts.push(bind(VOLUME, "/plain"));
    let (output, _) = guest.run(plan);
    assert_eq!(output, "5 6\n65534 65534\n");

    let mut plan = container("true");
    plan.mounts.push(Mount { id_mapping: users, ..bind(VOLUME, "/data") });
    let failure = guest.launch(Mode::Create, &Plan::Create(Box::new(plan))).ready().unwrap_err();
    assert!(failure.message.contains("no user namespace"), "{}", failure.message);
}

/// A bind of runc's loses its source's flags as soon as one is asked for; here none goes but by its own word.
#[test]
fn a_bind_keeps_what_its_source_does_not_allow() {
    let Some(guest) = Guest::new() else { return };
    fs::create_dir_all(Path::new(VOLUME)).unwrap();
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", VOLUME, "tmpfs", flags, None).unwrap();
    let inner = Path::new(VOLUME).join("inner");
    fs::create_dir(&inner).unwrap();
    rustix::mount::mount("tmpfs", &inner, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let cleared = MountAttributes { no_exec: true, ..Default::default() };
    let read_only = MountAttributes { read_only: true, ..Default::default() };
    let with = |at, change: fn(&mut Mount, MountAttributes, MountAttributes)| {
        let mut mount = bind(VOLUME, at);
        change(&mut mount, cleared, read_only);
        mount
    };
    let mut plan = container("cat /proc/self/mountinfo");
    plan.mounts.extend([
        with("/kept", |_, _, _| {}),
        with("/ro", |it, _, ro| it.attributes = ro),
        with("/rro", |it, _, ro| it.changes.recursive = ro),
        with("/exec", |it, cleared, _| it.changes.cleared = cleared),
        with("/rexec", |it, cleared, _| it.changes.recursive_cleared = cleared),
    ]);
    let (output, _) = guest.run(plan);
    let options = |path: &str| {
        let line = output.lines().find(|line| line.split(' ').nth(4) == Some(path));
        line.unwrap_or_else(|| panic!("{path} in {output}")).split(' ').nth(5).unwrap().to_owned()
    };
    for (path, expected) in [
        ("/kept", "rw,nosuid,nodev,noexec,relatime"),
        ("/kept/inner", "rw,nodev,relatime"),
        ("/ro", "ro,nosuid,nodev,noexec,relatime"),
        ("/ro/inner", "rw,nodev,relatime"),
        ("/rro", "ro,nosuid,nodev,noexec,relatime"),
        ("/rro/inner", "ro,nodev,relatime"),
        ("/exec", "rw,nosuid,nodev,relatime"),
        ("/rexec", "rw,nosuid,nodev,relatime"),
    ] {
        assert_eq!(options(path), expected, "{path}");
    }
}

#[test]
fn clocks_and_names_are_the_containers_own() {
    let Some(guest) = Guest::new() else { return };
    let mut plan =
        container("cut -d. -f1 /proc/uptime; cat /proc/sys/kernel/domainname; readlink /proc/self/ns/time");
    plan.namespaces.time = Namespace::Fresh;
    plan.namespaces.time_offsets = vec![
        TimeOffset { clock: Clock::Boottime, seconds: 1_000_000_000, nanoseconds: 5 },
        TimeOffset { clock: Clock::Monotonic, seconds: 7, nanoseconds: 0 },
    ];
    plan.domainname = Some("example.test".to_owned());
    let (output, _) = guest.run(plan);
    let lines: Vec<_> = output.lines().collect();
    assert!(lines[0].parse::<u64>().unwrap() >= 1_000_000_000, "{output}");
    assert_eq!(lines[1], "example.test");
    assert_ne!(lines[2], fs::read_link("/proc/self/ns/time").unwrap().display().to_string());
}

#[test]
fn scheduling_and_personality_are_the_commands() {
    let Some(guest) = Guest::new() else { return };
    let script =
        "cut -d' ' -f19,41 /proc/self/stat; cat /proc/self/personality; grep Cpus_allowed: /proc/self/status";
    let mut plan = container(script);
    plan.process.attributes = ProcessAttributes {
        scheduler: Some(Scheduler { policy: 3, nice: 7, ..Default::default() }),
        io_priority: Some(3 << 13),
        personality: Some(8),
        cpus_final: vec![1],
        ..Default::default()
    };
    let (output, _) = guest.run(plan);
    assert!(output.starts_with("7 3\n"), "{output}");
    assert!(output.contains("00000008\n"), "{output}");
    assert!(output.trim_end().ends_with('1'), "{output}");
}

#[test]
fn what_the_kernel_lacks_is_named() {
    let Some(guest) = Guest::new() else { return };
    type Change = fn(&mut ContainerPlan);
    let cases: [(Change, &str); 5] = [
        (|plan| plan.process.attributes.apparmor_profile = Some("none-such".into()), "AppArmor"),
        (|plan| plan.process.attributes.selinux_label = Some("u:r:t:s0".into()), "SELinux"),
        (
            |plan| {
                plan.process.attributes.scheduler = Some(Scheduler { policy: 6, ..Default::default() });
            },
            "process.scheduler",
        ),
        (
            |plan| {
                let nodes = vec![0, 0, 1];
                plan.process.attributes.memory_policy = Some(MemoryPolicy { mode: 2, nodes });
            },
            "linux.memoryPolicy",
        ),
        (
            |plan| {
                let (file, value) = ("rdma.max".to_owned(), "x hca_handle=1".to_owned());
                plan.cgroup.writes = vec![CgroupWrite { file, value, missing: Missing::Fails }];
            },
            "the controller rdma is not on",
        ),
    ];
    for (change, expected) in cases {
        let mut plan = container("true");
        change(&mut plan);
        let failure = guest.launch(Mode::Create, &Plan::Create(Box::new(plan))).ready().unwrap_err();
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
}

#[test]
fn memory_in_use_forbids_a_smaller_limit() {
    let Some(guest) = Guest::new() else { return };
    if !guest.has_file("memory.current") {
        return eprintln!("skipped: the cgroup v2 hierarchy has no memory controller");
    }
    let mut plan = container("true");
    plan.cgroup.memory_at_most = Some(1);
    let failure = guest.launch(Mode::Create, &Plan::Create(Box::new(plan))).ready().unwrap_err();
    assert!(failure.message.contains("more than the new limit of 1"), "{}", failure.message);
}

#[test]
fn a_file_that_is_not_there_is_passed_or_replaced_where_the_plan_says_so() {
    let Some(guest) = Guest::new() else { return };
    let write = |file: &str, missing| CgroupWrite { file: file.to_owned(), value: "3".to_owned(), missing };
    let mut plan = container("true");
    let instead = Missing::Instead { file: "cgroup.max.depth".to_owned(), value: "5".to_owned() };
    plan.cgroup.writes = vec![write("cpu.none", Missing::Passes), write("io.none", instead)];
    let mut launched = guest.launch(Mode::Create, &Plan::Create(Box::new(plan)));
    launched.ready().unwrap();
    assert_eq!(guest.read_file("cgroup.max.depth").trim(), "5");
}

#[test]
fn a_start_hook_has_the_commands_rights_and_is_told_the_state() {
    let Some(guest) = Guest::new() else { return };
    let hook = |script: &str, timeout| Hook {
        path: "/bin/sh".to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".to_owned(), "WHO=hook".to_owned()],
        timeout,
    };
    let with = |hooks: Vec<Hook>| {
        let mut plan = container("cat /tmp/told");
        plan.process.user = User::Ids { uid: 0, gid: 0, additional: vec![] };
        plan.hooks.start_container = hooks;
        plan.hooks.created = StateText(vec!["{\"pid\":".to_owned(), "}".to_owned()]);
        guest.launch(Mode::Create, &Plan::Create(Box::new(plan)))
    };
    let told = "cat > /tmp/told; echo \" $WHO\" >> /tmp/told; grep CapEff /proc/self/status >> /tmp/told";
    let mut launched = with(vec![hook(told, Some(10))]);
    let pid = launched.child.pid;
    launched.ready().unwrap();
    assert!(!Path::new(ROOTFS).join("tmp/told").exists(), "before the gate opened");
    let (output, _) = launched.run_on();
    assert_eq!(output, format!("{{\"pid\":{pid}}} hook\nCapEff:\t00000000a80425fb\n"));
    for (script, timeout, expected) in [
        ("echo no such luck; exit 3", None, "ended with 3: no such luck"),
        ("sleep 30", Some(1), "more than 1 s"),
    ] {
        let mut launched = with(vec![hook(script, timeout)]);
        launched.ready().unwrap();
        launched.open_gate();
        let failure = launched.executed().unwrap_err();
        assert_eq!(failure.stage, LaunchStage::Hooks);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
}

#[test]
fn an_agent_reaches_nothing_outside_by_the_new_fields() {
    let Some(guest) = Guest::new() else { return };
    type Change = fn(&mut ContainerPlan);
    let cases: [(Change, &str); 7] = [
        (|plan| plan.namespaces.network = Namespace::At("/proc/1/ns/net".into()), "namespace by path"),
        (|plan| plan.namespaces.mount = Namespace::Shared, "mount namespace"),
        (|plan| plan.namespaces.cgroup = Namespace::Shared, "cgroup namespace"),
        (|plan| plan.hooks.pause = true, "hook"),
        (
            |plan| {
                plan.net_devices = vec![NetDevice { outside: "eth0".into(), inside: "eth0".into() }];
            },
            "network devices",
        ),
        (
            |plan| {
                let (name, source) = ("ext4".to_owned(), "/dev/vda".to_owned());
                plan.mounts.push(mount("/x", MountKind::Filesystem { name, source, data: vec![] }));
            },
            "file system",
        ),
        (
            |plan| {
                plan.namespaces.user = Namespace::Fresh;
                let reserved = vec![IdMapping { inside: 0, outside: 0x7ffe_0001, count: 1 }];
                plan.namespaces.user_mappings = IdMappings { users: reserved.clone(), groups: reserved };
            },
            "mappings of users",
        ),
    ];
    for (change, expected) in cases {
        let mut plan = container("true");
        change(&mut plan);
        let failure = guest.launch(Mode::Create, &Plan::Create(Box::new(plan))).ready().unwrap_err();
        assert_eq!(failure.stage, LaunchStage::Plan);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
}

#[test]
fn a_volume_of_the_image_stays_writable_in_a_read_only_root() {
    let Some(guest) = Guest::new() else { return };
    fs::create_dir_all(Path::new(ROOTFS).join("data/sub")).unwrap();
    fs::write(Path::new(ROOTFS).join("data/file"), "of the image\n").unwrap();
    let script = "cat /data/file; touch /data/sub/new /new/file && echo written; touch /tmp/x 2>&1; \
                  grep -c ' /data ' /proc/self/mountinfo";
    let mut plan = container(script);
    plan.rootfs_readonly = true;
    plan.mounts.extend(["/data", "/new"].map(|at| mount(at, MountKind::Own)));
    let (output, code) = guest.run(plan);
    assert_eq!(code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["of the image", "written"], "{output}");
    assert!(lines[2].contains("Read-only file system"), "{output}");
    assert_eq!(lines[3], "1", "{output}");
}
