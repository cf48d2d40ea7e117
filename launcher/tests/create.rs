//! Containers, created by the real launcher on this machine. See `harness` for what that needs.

mod harness;

use harness::*;
use nacre_protocols::frame;
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{FETCHER_UID, LAYERS_DIR, Sha256, UPPER_DIR};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

#[test]
fn a_container_runs_its_command_in_its_own_world() {
    let Some(guest) = Guest::new() else { return };
    let (output, code) = guest.run(container("echo $$; hostname; pwd; ls /; cat /proc/self/cgroup; exit 7"));
    assert_eq!(code, 7, "{output}");
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..3], ["1", "inside", "/"]);
    assert!(lines.contains(&"0::/"), "{output}");
    assert!(lines.contains(&"home"), "{output}");
    assert!(!lines.contains(&"work"), "the guest's tree is visible: {output}");
}

#[test]
fn namespaces_are_fresh_or_shared_as_the_plan_says() {
    let Some(guest) = Guest::new() else { return };
    let script = "for ns in mnt pid cgroup ipc uts net; do readlink /proc/self/ns/$ns; done";
    let own = |ns: &str| fs::read_link(format!("/proc/thread-self/ns/{ns}")).unwrap().display().to_string();
    let mut shared = container(script);
    (shared.namespaces.ipc, shared.hostname) = (Namespace::Shared, None);
    shared.namespaces.uts = Namespace::Shared;
    let mut fresh = container(script);
    fresh.namespaces.network = Namespace::Fresh;
    let (shared, _) = guest.run(shared);
    let (fresh, _) = guest.run(fresh);
    for (line, (ns, is_shared)) in
        [("mnt", false), ("pid", false), ("cgroup", false), ("ipc", true), ("uts", true), ("net", true)]
            .into_iter()
            .enumerate()
    {
        let (shared, fresh) = (shared.lines().nth(line).unwrap(), fresh.lines().nth(line).unwrap());
        assert_eq!(shared == own(ns), is_shared, "{ns}: {shared}");
        assert_ne!(fresh, own(ns), "{ns}");
    }
}

#[test]
fn the_command_waits_at_the_gate_and_a_closed_gate_ends_it() {
    let Some(guest) = Guest::new() else { return };
    let plan = |script| Plan::Create(Box::new(container(script)));
    let mut launched = guest.launch(Mode::Create, &plan("echo started"));
    launched.ready().unwrap();
    let exe = || fs::read_link(format!("/proc/{}/exe", launched.child.pid)).unwrap();
    assert!(exe().ends_with("nacre-guest-launcher"), "{:?}", exe());
    launched.open_gate();
    launched.executed().unwrap();
    assert_eq!(launched.finish(), ("started\n".to_owned(), 0));

    let mut given_up = guest.launch(Mode::Create, &plan("echo started"));
    given_up.ready().unwrap();
    given_up.close_gate();
    assert_eq!(given_up.finish(), (String::new(), 0));
}

#[test]
fn capabilities_are_exactly_those_of_the_plan() {
    let Some(guest) = Guest::new() else { return };
    let script = "grep -E 'Cap|NoNewPrivs|Uid|Gid|Groups|Seccomp:' /proc/self/status";
    let status = |process: Process| {
        let mut plan = container("");
        plan.process = process;
        let (output, code) = guest.run(plan);
        assert_eq!(code, 0, "{output}");
        move |field: &str| {
            let line = output.lines().find(|line| line.starts_with(&format!("{field}:")));
            let value = line.unwrap_or_else(|| panic!("{field} in {output}")).split_once(':').unwrap().1;
            value.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    };
    let root = status(shell(script));
    assert_eq!(root("CapBnd"), "00000000a80425fb");
    assert_eq!(root("CapEff"), "00000000a80425fb");
    assert_eq!(root("CapInh"), "0000000000000000");
    assert_eq!(root("NoNewPrivs"), "1");
    assert_eq!(root("Uid"), "0 0 0 0");

    let mut user = shell(script);
    user.user = User::Ids { uid: 1234, gid: 5678, additional: vec![91, 92] };
    let net_bind = 1 << 10;
    user.capabilities = Capabilities {
        bounding: net_bind | 1,
        effective: net_bind,
        inheritable: net_bind,
        permitted: net_bind,
        ambient: net_bind,
    };
    user.no_new_privileges = false;
    let user = status(user);
    assert_eq!(user("Uid"), "1234 1234 1234 1234");
    assert_eq!(user("Gid"), "5678 5678 5678 5678");
    assert_eq!(user("Groups"), "91 92");
    assert_eq!(user("CapBnd"), "0000000000000401");
    for set in ["CapEff", "CapPrm", "CapAmb", "CapInh"] {
        assert_eq!(user(set), "0000000000000400", "{set}");
    }
    assert_eq!(user("NoNewPrivs"), "0");
}

/// `if nr == uname(63) return ERRNO(EPERM) else allow`, x86-64 and AArch64 numbers differ: this is x86-64's.
fn no_uname() -> Seccomp {
    Seccomp {
        program: vec![
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 63),
            (0x06, 0, 0, 0x0005_0001),
            (0x06, 0, 0, 0x7fff_0000),
        ],
        flags: 0,
        listener: None,
    }
}

#[test]
fn a_seccomp_filter_counts_for_the_command_with_and_without_no_new_privs() {
    let Some(guest) = Guest::new() else { return };
    for no_new_privileges in [true, false] {
        for uid in [0, 1000] {
            let mut plan =
                container("grep Seccomp: /proc/self/status; hostname; grep CapEff /proc/self/status");
            plan.process.seccomp = Some(no_uname());
            plan.process.no_new_privileges = no_new_privileges;
            plan.process.user = User::Ids { uid, gid: 0, additional: vec![] };
            let (output, _) = guest.run(plan);
            assert!(output.contains("Seccomp:\t2"), "{output}");
            assert!(!output.contains("inside"), "uname was not refused: {output}");
            let effective = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
            assert!(output.contains(effective), "{output}");
        }
    }
}

#[test]
fn a_filter_that_the_kernel_refuses_is_a_failure_of_rights() {
    let Some(guest) = Guest::new() else { return };
    let mut plan = container("true");
    plan.process.seccomp = Some(Seccomp { program: vec![(0x15, 9, 9, 0)], flags: 0, listener: None });
    let mut launched = guest.launch(Mode::Create, &Plan::Create(Box::new(plan)));
    launched.ready().unwrap();
    launched.open_gate();
    let failure = launched.executed().unwrap_err();
    assert_eq!((failure.stage, failure.errno), (LaunchStage::Rights, 22), "{failure:?}");
}

#[test]
fn limits_umask_and_oom_score_are_the_commands() {
    let Some(guest) = Guest::new() else { return };
    let mut plan = container("ulimit -n; ulimit -Hn; umask; cat /proc/self/oom_score_adj");
    plan.process.rlimits = vec![Rlimit { resource: 7, soft: 99, hard: 101 }];
    plan.process.umask = Some(0o027);
    plan.process.oom_score_adj = Some(321);
    assert_eq!(guest.run(plan), ("99\n101\n0027\n321\n".to_owned(), 0));
    let (output, _) = guest.run(container("umask"));
    assert_eq!(output, "0022\n");
}

#[test]
fn users_are_looked_up_in_the_image() {
    let Some(guest) = Guest::new() else { return };
    let run = |user: User| {
        let mut plan = container("id -u; id -g; id -G; echo $HOME");
        plan.process.user = user;
        guest.run(plan).0.replace('\n', " ")
    };
    let named = |name: &str, additional| User::Named { name: name.to_owned(), additional };
    assert_eq!(run(named("app", vec![77])), "1000 1000 1000 44 63 77 /home/app ");
    assert_eq!(run(named("app:video", vec![])), "1000 44 44 /home/app ");
    assert_eq!(run(named("", vec![])), "0 0 0 /root ");
    assert_eq!(run(named("4242", vec![])), "4242 0 0 / ");
    assert_eq!(run(User::Ids { uid: 1000, gid: 7, additional: vec![] }), "1000 7 7 /home/app ");

    let refuse = |user: User| {
        let mut plan = container("id");
        plan.process.user = user;
        guest.refuse(plan)
    };
    let failure = refuse(named("nobody", vec![]));
    assert_eq!(failure.stage, LaunchStage::User);
    assert!(failure.message.contains("\"nobody\""), "{failure:?}");
    // The image says that `fetcher` has a uid of the guest's own processes.
    let failure = refuse(named("fetcher", vec![]));
    assert!(failure.message.contains("reserved"), "{failure:?}");
    assert_eq!(refuse(User::Ids { uid: FETCHER_UID, gid: 0, additional: vec![] }).stage, LaunchStage::Plan);
    assert_eq!(refuse(named(&FETCHER_UID.to_string(), vec![])).stage, LaunchStage::User);
}

#[test]
fn a_passwd_that_is_no_plain_file_of_sane_size_is_refused() {
    let Some(guest) = Guest::new() else { return };
    let passwd = Path::new(ROOTFS).join("etc/passwd");
    let refuse = || {
        let mut plan = container("id");
        plan.process.user = User::Named { name: "app".to_owned(), additional: vec![] };
        assert_eq!(guest.refuse(plan).stage, LaunchStage::User);
        let _ = fs::remove_file(&passwd);
    };
    fs::write(&passwd, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
    refuse();
    // A fifo must not make the launcher wait.
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, fifo, rustix::fs::Mode::from_raw_mode(0o644), 0).unwrap();
    refuse();
    symlink("/proc/self/status", &passwd).unwrap();
    refuse();
    // A link stays inside: the guest's own file is not what it leads to.
    symlink("../../../../../../../../etc/passwd-", &passwd).unwrap();
    refuse();
    fs::create_dir(&passwd).unwrap();
    let mut plan = container("id");
    plan.process.user = User::Named { name: "app".to_owned(), additional: vec![] };
    assert_eq!(guest.refuse(plan).stage, LaunchStage::User);
}

#[test]
fn masked_and_read_only_paths_give_nothing_away() {
    let Some(guest) = Guest::new() else { return };
    let mut plan = container(
        "cat /proc/kcore; ls -A /secret; cat /etc/hidden; echo x > /secret/new; echo x > /proc/sys/kernel/panic; \
         echo x > /sealed/new; echo x > /sealed/below/new; chmod 0 /etc/hidden; stat -c %a /etc/hidden; echo end",
    );
    let root = Path::new(ROOTFS);
    fs::write(root.join("etc/hidden"), "hidden").unwrap();
    fs::create_dir_all(root.join("sealed/below")).unwrap();
    plan.masked_paths.push("/etc/hidden".to_owned());
    plan.readonly_paths.push("/sealed".to_owned());
    let (output, _) = guest.run(plan);
    assert!(!output.contains("hidden\n") && !output.contains("file\n"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 5, "{output}");
    assert!(output.ends_with("666\nend\n"), "{output}");
    assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o777, 0o666);
}

#[test]
fn a_read_only_root_is_read_only_and_its_mounts_are_not() {
    let Some(guest) = Guest::new() else { return };
    let mut plan = container("touch /new; touch /dev/shm/new && touch /dev/new && ls /dev/shm; ls /made");
    plan.rootfs_readonly = true;
    plan.process.cwd = "/made/here".to_owned();
    let (output, code) = guest.run(plan);
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("/new: Read-only file system\nnew\nhere\n"), "{output}");
}

#[test]
fn mounts_have_the_attributes_of_the_plan() {
    let Some(guest) = Guest::new() else { return };
    let volume = "/run/kata-containers/shared/containers/volume";
    fs::create_dir_all(Path::new(volume).join("sub")).unwrap();
    fs::write(Path::new(volume).join("sub/file"), "from the volume\n").unwrap();
    let mut plan = container(
        "cat /proc/self/mountinfo; cat /data/sub/file /etc/one; echo x > /etc/one; touch /ro/x /locked/x",
    );
    let mut read_only = bind(volume, "/ro");
    read_only.attributes.read_only = true;
    read_only.attributes.access_time = AccessTime::Never;
    let mut locked =
        mount("/locked", MountKind::Tmpfs { data: strings(&["size=4096", "mode=700"]), copy_up: false });
    locked.attributes.read_only = true;
    let inner = mount("/locked/inner", MountKind::Tmpfs { data: strings(&["size=4096"]), copy_up: false });
    let one = bind(&format!("{volume}/sub/file"), "/etc/one");
    plan.mounts.extend([bind(volume, "/data/"), one, read_only, locked, inner]);
    let (output, _) = guest.run(plan);
    let options = |path: &str| {
        let line = output.lines().find(|line| line.split(' ').nth(4) == Some(path));
        line.unwrap_or_else(|| panic!("{path} in {output}")).split(' ').nth(5).unwrap().to_owned()
    };
    for (path, expected) in [
        ("/proc", "rw,nosuid,nodev,noexec,relatime"),
        ("/dev", "rw,nosuid"),
        ("/sys", "ro,nosuid,nodev,noexec,relatime"),
        ("/sys/fs/cgroup", "ro,nosuid,nodev,noexec,relatime"),
        ("/dev/pts", "rw,nosuid,noexec,relatime"),
        ("/data", "rw,nodev,relatime"),
        ("/ro", "ro,nodev,noatime"),
        ("/locked", "ro,nosuid,nodev,noexec,relatime"),
        ("/locked/inner", "rw,nosuid,nodev,noexec,relatime"),
    ] {
        assert_eq!(options(path), expected, "{path}");
    }
    assert_eq!(output.matches("from the volume").count(), 2, "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    assert_eq!(fs::read_to_string(Path::new(volume).join("sub/file")).unwrap(), "x\n");
}

#[test]
fn a_tmpfs_brings_up_what_the_image_has() {
    let Some(guest) = Guest::new() else { return };
    let etc = Path::new(ROOTFS).join("etc");
    symlink("passwd", etc.join("link")).unwrap();
    fs::create_dir(etc.join("private")).unwrap();
    fs::set_permissions(etc.join("private"), fs::Permissions::from_mode(0o710)).unwrap();
    let mut plan = container("head -n1 /etc/link; stat -c '%a %F' /etc/private /etc; rm /etc/passwd");
    plan.mounts.push(mount("/etc", MountKind::Tmpfs { data: strings(&["size=1m"]), copy_up: true }));
    let (output, code) = guest.run(plan);
    assert_eq!((output.as_str(), code), ("root:x:0:0:root:/root:/bin/sh\n710 directory\n755 directory\n", 0));
    assert!(etc.join("passwd").exists());
}

#[test]
fn devices_and_links_are_there_and_only_allowed_devices_open() {
    let Some(guest) = Guest::new() else { return };
    let (output, _) = guest.run(container(
        "head -c1 /dev/zero | wc -c; echo x > /dev/null && echo null; readlink /dev/fd; readlink /dev/ptmx; \
         stat -c '%t:%T %a' /dev/null /dev/tty; \
         mknod /dev/mem c 1 1 && (cat /dev/mem > /dev/null; echo mem $?); \
         mknod /dev/disk b 254 0 && (cat /dev/disk > /dev/null; echo disk $?)",
    ));
    assert!(output.starts_with("1\nnull\n/proc/self/fd\npts/ptmx\n1:3 666\n5:0 666\n"), "{output}");
    assert!(output.contains("mem 1") && output.contains("disk 1"), "{output}");
    assert_eq!(output.matches("Operation not permitted").count(), 2, "{output}");
}

#[test]
fn a_container_has_a_terminal_of_its_own() {
    let Some(guest) = Guest::new() else { return };
    let mut plan = container(
        "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo terminal; stat -c %u /dev/pts/0; \
         echo to the console > /dev/console; ps -o pid,tty | head -n 2; echo to tty > /dev/tty",
    );
    plan.process.terminal = Some(TerminalSize { rows: 24, columns: 97 });
    plan.process.user = User::Ids { uid: 1000, gid: 0, additional: vec![] };
    let mut launched = guest.launch(Mode::Create, &Plan::Create(Box::new(plan)));
    let mut master = File::from(launched.ready().unwrap().expect("a terminal's master"));
    launched.open_gate();
    launched.executed().unwrap();
    let output = read_terminal(&mut master);
    launched.wait();
    assert!(output.starts_with("/dev/pts/0\r\n24 97\r\nterminal\r\n1000\r\nto the console\r\n"), "{output}");
    assert!(output.contains("136,0"), "{output}");
    assert!(output.ends_with("to tty\r\n"), "{output}");
}

/// Until the other side is gone (EIO).
fn read_terminal(master: &mut File) -> String {
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        output.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[test]
fn a_command_that_cannot_be_executed_is_told_apart_from_one_that_is_not_there() {
    let Some(guest) = Guest::new() else { return };
    let root = Path::new(ROOTFS);
    fs::write(root.join("bin/plain"), "no program").unwrap();
    fs::write(root.join("bin/garbage"), [0x7f, b'E', b'L', b'F', 9, 9]).unwrap();
    fs::set_permissions(root.join("bin/garbage"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("bin/orphan"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(root.join("bin/orphan"), fs::Permissions::from_mode(0o755)).unwrap();
    for (command, errno, before_the_gate) in [
        ("nothing", 2, true),
        ("/no/thing", 2, true),
        ("plain", 13, true),
        ("/bin", 13, true),
        ("/bin/plain", 13, true),
        ("/etc/passwd/x", 20, true),
        ("garbage", 8, false),
        ("orphan", 2, false),
    ] {
        let mut plan = container("");
        plan.process.args = vec![command.to_owned()];
        let mut launched = guest.launch(Mode::Create, &Plan::Create(Box::new(plan)));
        let failure = if before_the_gate {
            launched.ready().unwrap_err()
        } else {
            launched.ready().unwrap();
            launched.open_gate();
            launched.executed().unwrap_err()
        };
        assert_eq!((failure.stage, failure.errno), (LaunchStage::Exec, errno), "{failure:?}");
        assert!(failure.message.contains(command), "{failure:?}");
        assert_eq!(launched.wait(), if errno == 2 { 127 } else { 126 });
    }
}

#[test]
fn a_working_directory_is_made_and_never_leaves_the_root() {
    let Some(guest) = Guest::new() else { return };
    let root = Path::new(ROOTFS);
    // Where a descriptor of the launcher's would lead out (CVE-2024-21626).
    for descriptor in 0..80 {
        let link = root.join(format!("out{descriptor}"));
        symlink(format!("/proc/self/fd/{descriptor}"), &link).unwrap();
    }
    symlink("../../../../../../..", root.join("up")).unwrap();
    let run = |cwd: &str| {
        let mut plan = container("pwd; ls -d /run; ls ./run");
        plan.process.cwd = cwd.to_owned();
        let mut launched = guest.launch(Mode::Create, &Plan::Create(Box::new(plan)));
        launched.ready().map(|_| launched.run_on())
    };
    let (output, _) = run("/new/work/dir").unwrap();
    assert!(output.starts_with("/new/work/dir\n"), "{output}");
    assert_eq!(fs::metadata(root.join("new/work")).unwrap().mode() & 0o7777, 0o755);
    let (output, _) = run("/up").unwrap();
    assert!(output.starts_with("/\n"), "{output}");
    for descriptor in 0..80 {
        let failure = run(&format!("/out{descriptor}")).unwrap_err();
        assert_eq!(failure.stage, LaunchStage::WorkingDirectory, "{failure:?}");
    }
}

#[test]
fn links_of_the_image_never_lead_a_mount_out() {
    let Some(guest) = Guest::new() else { return };
    let root = Path::new(ROOTFS);
    let outside = Path::new("/run/outside");
    fs::create_dir_all(outside).unwrap();
    fs::create_dir_all("/run/kata-containers/volume").unwrap();
    fs::write("/run/kata-containers/volume/mark", "").unwrap();
    symlink("/run/outside", root.join("absolute")).unwrap();
    symlink("../../../../../../run/outside", root.join("upwards")).unwrap();
    fs::create_dir_all(root.join("run/outside")).unwrap();
    for target in ["/absolute", "/upwards", "/absolute/deeper", "/upwards/file"] {
        let mut plan = container("ls -R /run/outside");
        plan.mounts.push(bind("/run/kata-containers/volume", target));
        let (output, _) = guest.run(plan);
        assert!(output.contains("mark"), "{target} was not mounted inside: {output}");
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0, "{target}");
    }
    // A dangling link is neither followed nor replaced.
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    let mut plan = container("true");
    plan.mounts.push(bind("/run/kata-containers/volume", "/dangling"));
    assert_eq!(guest.refuse(plan).stage, LaunchStage::Mounts);
    // What programs take for the kernel's own must be where it is said to be (CVE-2019-19921).
    fs::remove_dir(root.join("proc")).unwrap();
    symlink("/tmp", root.join("proc")).unwrap();
    assert_eq!(guest.refuse(container("true")).stage, LaunchStage::Mounts);
}

#[test]
fn a_link_in_a_volume_never_makes_the_guests_files_a_source() {
    let Some(guest) = Guest::new() else { return };
    let volume = Path::new("/run/kata-containers/shared/volume");
    fs::create_dir_all(volume).unwrap();
    fs::create_dir_all("/run/nacre/private").unwrap();
    symlink("/run/nacre", volume.join("absolute")).unwrap();
    symlink("../../../nacre", volume.join("upwards")).unwrap();
    for source in ["absolute", "upwards", "absolute/private", "upwards/private"] {
        let mut plan = container("true");
        plan.mounts.push(bind(&format!("/run/kata-containers/shared/volume/{source}"), "/data"));
        let failure = guest.refuse(plan);
        assert_eq!((failure.stage, failure.errno), (LaunchStage::Mounts, 40), "{source}: {failure:?}");
    }
}

#[test]
fn nothing_of_the_launchers_descriptors_reaches_the_command() {
    let Some(guest) = Guest::new() else { return };
    let secret = File::open("/etc/hostname").unwrap();
    let plan = Plan::Create(Box::new(container("ls /proc/$$/fd; true")));
    let launched =
        guest.launch_with(Mode::Create, &plan, ALL_CAPABILITIES, None, &[secret.as_fd(), secret.as_fd()]);
    let (output, _) = launched.run();
    assert_eq!(output, "0\n1\n2\n");
    // An ignored SIGPIPE would be inherited (bit 12).
    let (output, _) = guest.run(container("grep SigIgn /proc/self/status"));
    let ignored = u64::from_str_radix(output.trim().trim_start_matches("SigIgn:").trim(), 16).unwrap();
    assert_eq!(ignored & 1 << 12, 0, "{output}");
}

#[test]
fn a_helper_inherits_descriptors_and_may_be_a_user_of_the_guests_own() {
    let Some(guest) = Guest::new() else { return };
    let (mut reader, writer) = std::io::pipe().unwrap();
    let secret = File::open("/etc/hostname").unwrap();
    let mut plan = container("echo hello >&4; id -u; ls /proc/$$/fd; true");
    plan.process.user = User::Ids { uid: FETCHER_UID, gid: FETCHER_UID, additional: vec![] };
    plan.inherited = 2;
    plan.process.capabilities = Capabilities::default();
    plan.mounts.push(bind("/run/nacre", "/store"));
    let plan = Plan::Create(Box::new(plan));
    let inherited = [secret.as_fd(), writer.as_fd(), secret.as_fd()];
    let launched = guest.launch_with(Mode::Helper, &plan, 0, None, &inherited);
    let (output, code) = launched.run();
    assert_eq!(output, format!("{FETCHER_UID}\n0\n1\n2\n3\n4\n"), "{code}");
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");

    let missing = guest.launch_with(Mode::Helper, &plan, 0, None, &[secret.as_fd()]).ready().unwrap_err();
    assert!(missing.message.contains("inherited"), "{missing:?}");
}

#[test]
fn layers_are_stacked_under_a_fresh_writable_one() {
    let Some(guest) = Guest::new() else { return };
    let (lower, upper) = (Sha256([0xaa; 32]), Sha256([0xbb; 32]));
    let layer = |digest: Sha256| Path::new(LAYERS_DIR).join(digest.to_string());
    make_rootfs(&layer(lower));
    fs::create_dir_all(layer(upper).join("etc")).unwrap();
    fs::write(layer(upper).join("etc/hostname"), "from the upper layer\n").unwrap();
    // A whiteout, as the puller's EROFS has it.
    let device = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    rustix::fs::mknodat(rustix::fs::CWD, layer(upper).join("secret"), device, mode, 0).unwrap();
    fs::set_permissions(layer(upper), fs::Permissions::from_mode(0o751)).unwrap();
    let plan = |id: &str| {
        let mut plan =
            container("cat /etc/hostname; ls -d /secret /home; rm /etc/group; touch /new; stat -c %a /");
        plan.id = id.to_owned();
        plan.rootfs = Rootfs::Layers(vec![lower, upper]);
        plan
    };
    for id in ["one", "two"] {
        let (output, _) = guest.run(plan(id));
        assert!(output.contains("from the upper layer\n"), "{output}");
        assert!(output.contains("/secret: No such file") && output.contains("/home\n"), "{output}");
        assert!(output.ends_with("751\n"), "{output}");
        assert!(Path::new(UPPER_DIR).join(id).join("upper/new").exists());
    }
    assert!(layer(lower).join("etc/group").exists());
    // The same id again would show an old container's files to a new one.
    let failure = guest.refuse(plan("one"));
    assert_eq!((failure.stage, failure.errno), (LaunchStage::Rootfs, 17), "{failure:?}");
    guest.storage(vec![StorageStep::RemoveWritable { container: "one".to_owned() }]).unwrap();
    guest.run(plan("one"));
}

#[test]
fn cgroup_files_are_written_beneath_the_containers_cgroup() {
    let Some(guest) = Guest::new() else { return };
    let mut plan = container("cat /sys/fs/cgroup/cgroup.max.depth");
    plan.cgroup.writes = vec![CgroupWrite {
        file: "cgroup.max.depth".to_owned(),
        value: "3".to_owned(),
        missing: Missing::Fails,
    }];
    assert_eq!(guest.run(plan).0, "3\n");
    let mut plan = container("true");
    plan.cgroup.writes = vec![CgroupWrite {
        file: "memory.no-such".replace('-', "_"),
        value: "3".to_owned(),
        missing: Missing::Fails,
    }];
    let failure = guest.refuse(plan);
    assert_eq!((failure.stage, failure.errno), (LaunchStage::Cgroup, 2), "{failure:?}");
}

#[test]
fn sysctls_are_those_of_the_containers_namespaces() {
    let Some(guest) = Guest::new() else { return };
    let read = || fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let before = read();
    let mut plan = container("cat /proc/sys/kernel/shmmni");
    plan.sysctls = vec![("kernel.shmmni".to_owned(), "1234".to_owned())];
    assert_eq!(guest.run(plan).0, "1234\n");
    assert_eq!(read(), before);
    let mut plan = container("true");
    plan.sysctls = vec![("kernel.core_pattern".to_owned(), "|/bin/sh".to_owned())];
    assert_eq!(guest.refuse(plan).stage, LaunchStage::Plan);
}

#[test]
fn a_plan_that_is_not_sealed_or_not_whole_is_refused() {
    let Some(guest) = Guest::new() else { return };
    let bytes = frame::encode(&Plan::Create(Box::new(container("true"))), PLAN_MAX).unwrap();
    let unsealed = rustix::fs::memfd_create("plan", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    File::from(unsealed.try_clone().unwrap()).write_all(&bytes).unwrap();
    let cut = nacre_sys::memfd::sealed("plan", &bytes[..bytes.len() / 2]).unwrap();
    let long = nacre_sys::memfd::sealed("plan", &vec![0; PLAN_MAX + 1]).unwrap();
    let regular = File::open("/etc/passwd").unwrap().into();
    for plan in [unsealed, cut, long, regular] {
        let failure = guest.launch_plan(Mode::Create, plan, ALL_CAPABILITIES, None, &[]).ready().unwrap_err();
        assert_eq!(failure.stage, LaunchStage::Plan, "{failure:?}");
    }
    // Right in itself, but beyond the ceiling or of another mode.
    let plan = Plan::Create(Box::new(container("true")));
    for (mode, ceiling) in
        [(Mode::Create, 0), (Mode::Storage, ALL_CAPABILITIES), (Mode::Network, ALL_CAPABILITIES)]
    {
        let refused = guest.launch_with(mode, &plan, ceiling, None, &[]).ready().unwrap_err();
        assert_eq!(refused.stage, LaunchStage::Plan, "{refused:?}");
    }
}

#[test]
fn an_exec_joins_a_running_container() {
    let Some(guest) = Guest::new() else { return };
    let mut first = guest.launch(Mode::Create, &Plan::Create(Box::new(container("exec sleep 100"))));
    first.start();
    let mut second = guest.exec(&first, shell("hostname; ps; cat /proc/self/cgroup; ls /proc/$$/fd; exit 3"));
    second.ready().unwrap();
    second.executed().unwrap();
    let (output, code) = second.finish();
    assert_eq!(code, 3, "{output}");
    assert!(output.starts_with("inside\n"), "{output}");
    assert!(output.contains("sleep 100") && output.contains("\n0::/\n"), "{output}");
    assert!(output.ends_with("\n0\n1\n2\n"), "{output}");

    let mut process = shell("tty; id -un; stty size");
    process.terminal = Some(TerminalSize { rows: 5, columns: 6 });
    process.user = User::Named { name: "app".to_owned(), additional: vec![] };
    let mut third = guest.exec(&first, process);
    let mut master = File::from(third.ready().unwrap().expect("a terminal's master"));
    third.executed().unwrap();
    assert_eq!(read_terminal(&mut master), "/dev/pts/0\r\napp\r\n5 6\r\n");
    third.wait();

    let mut missing = shell("");
    missing.args = strings(&["no-such-command"]);
    let mut fourth = guest.exec(&first, missing);
    let failure = fourth.ready().unwrap_err();
    assert_eq!((failure.stage, failure.errno), (LaunchStage::Exec, 2), "{failure:?}");
    assert_eq!(fourth.wait(), 127);
}
