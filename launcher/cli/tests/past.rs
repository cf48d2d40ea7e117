//! What went wrong in this field before, played again. Every test shows first that the attack works on who does not expect
//! it, such as the bare container or a path in a shell, and then that it fails here.
//!
//! | what | whose | test |
//! |---|---|---|
//! | CVE-2019-5736 | runc, lxc, youki before 0.0.2 | `the_launchers_own_file_cannot_be_overwritten` |
//! | CVE-2024-21626 | runc; crun alike | `no_descriptor_of_the_host_is_inherited_or_entered` |
//! | CVE-2021-30465, CVE-2020-2026 | runc; Kata's shared directory | `a_mount_target_that_is_swapped_for_a_link_stays_inside` |
//! | CVE-2024-45310, CVE-2019-18837 | runc, crun | `nothing_is_made_outside_through_a_link_on_the_way` |
//! | CVE-2023-27561, CVE-2019-19921, CVE-2023-28642, CVE-2025-54867 | runc, youki | `proc_and_sys_are_not_mounted_through_links` |
//! | CVE-2025-31133, youki's CVE-2025-62161 | runc, crun, youki | `a_masked_path_is_not_what_the_image_calls_dev_null` |
//! | CVE-2025-52565 | runc | `the_console_is_the_terminal_that_was_made_for_it` |
//! | CVE-2025-52881, CVE-2019-16884 | runc, crun, youki's CVE-2025-62596 | `writes_to_proc_reach_proc` |
//! | CVE-2022-29162, CVE-2022-27650, youki's CVE-2025-27612 | runc, crun, youki | `no_capability_is_left_inheritable` |
//! | CVE-2022-2995 and its kind | engines | `no_group_of_the_starter_is_left` |
//! | CVE-2020-2023, CVE-2026-24834 | Kata | `no_disk_can_be_opened_by_a_node_of_ones_own` |
//! | CVE-2016-9962 | runc | `an_exec_shows_nothing_of_the_host_while_it_enters` |
//! | CVE-2020-2024 | Kata | `deleting_follows_no_link_that_the_container_left` |
//! | CVE-2026-41326 | Kata | `a_host_leaves_no_link_and_writes_no_file_by_copying`, of `launcher/tests/storage.rs` |

mod support;

use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use support::*;

/// The victim is executed inside its own container, by way of `/proc/self/exe`, and waits for the end of its input. Somebody in
/// the container holds it open, and writes to it when it has ended.
#[test]
fn the_launchers_own_file_cannot_be_overwritten() {
    let Some(machine) = Machine::new() else { return };
    // What either program is linked with, so that it can be executed inside.
    let libraries = Command::new("ldd").args([BARE, NACRE]).output().unwrap().stdout;
    for library in
        String::from_utf8(libraries).unwrap().split_whitespace().filter(|word| word.starts_with("/lib"))
    {
        let inside = machine.path("rootfs").join(&library[1..]);
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(library.trim_end_matches(':'), inside).unwrap();
    }
    let copy = |of: &str, name: &str| {
        let path = machine.path(name);
        fs::copy(of, &path).unwrap();
        path
    };
    let attack = |victim: &Path, mut command: Command| {
        let before = fs::read(victim).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut inside = 0;
        eventually(
            || {
                inside = first_process_below(child.id()).unwrap_or(0);
                let words = fs::read(format!("/proc/{inside}/cmdline")).unwrap_or_default();
                words.starts_with(b"/proc/self/exe")
            },
            || "the victim inside its container".to_owned(),
        );
        // As somebody inside would by `/proc/1/exe`, and with more rights than anybody there has.
        let held = fs::File::open(format!("/proc/{inside}/exe")).unwrap();
        drop(child.stdin.take());
        wait(&mut child, || "the victim".to_owned());
        let again = format!("/proc/self/fd/{}", held.as_raw_fd());
        let written =
            fs::OpenOptions::new().write(true).open(again).and_then(|mut file| file.write_all(b"attacked"));
        (fs::read(victim).unwrap() != before, format!("{written:?}"))
    };

    let naive = copy(BARE, "bare");
    let mut command = machine.bare(&machine.path("rootfs"), "/proc/self/exe");
    let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    command = Command::new(&naive);
    command.args(words);
    let (overwritten, error) = attack(&naive, command);
    assert!(overwritten, "the attack does not work on the bare container: {error}");

    let ours = copy(NACRE, "nacre-launcher");
    let bundle = machine.bundle(&machine.config(&["/proc/self/exe", "update", "--resources", "-", "x"]));
    let mut command = Command::new(&ours);
    command.arg("--root").arg(machine.path("state")).args(["run", "--bundle"]).arg(bundle).arg(machine.id());
    let (overwritten, error) = attack(&ours, command);
    assert!(!overwritten);
    assert!(error.contains("ReadOnlyFilesystem"), "{error}");
}

/// The child of `parent` that is the first of its pid namespace.
fn first_process_below(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
        line.ends_with("\t1").then(|| child.parse().ok())?
    })
}

#[test]
fn no_descriptor_of_the_host_is_inherited_or_entered() {
    let Some(machine) = Machine::new() else { return };
    // Who starts the runtime has left the host's root open, without close-on-exec, as 9.
    let with_leak = |command: Command| {
        let mut leaky = Command::new("sh");
        leaky
            .args(["-c", "exec 9</; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        finish(leaky, machine.work.path())
    };
    let spy = machine.path("rootfs/spy");
    fs::write(&spy, "#!/bin/sh\nreadlink /proc/self/fd/9\n").unwrap();
    fs::set_permissions(&spy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let leaked = with_leak(machine.bare(&machine.path("rootfs"), "/spy"));
    assert_eq!(leaked.out, "/\n", "the attack does not work on the bare container: {leaked:?}");

    let list = "for fd in /proc/self/fd/*; do readlink $fd >/dev/null && echo ${fd##*/}; done";
    let bundle = machine.bundle(&machine.shell(list));
    let output = with_leak(machine.command(&["run", "--bundle", bundle.to_str().unwrap(), &machine.id()]));
    assert_eq!(output.out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"], "{output:?}");

    let container = machine.start(&machine.config(&["sleep", "1000"]));
    for number in (3..12).chain(64..76) {
        let cwd = format!("/proc/self/fd/{number}");
        let mut config = machine.config(&["pwd"]);
        config["process"]["cwd"] = json!(cwd);
        let bundle = machine.bundle(&config);
        let output =
            with_leak(machine.command(&["run", "--bundle", bundle.to_str().unwrap(), &machine.id()]));
        assert_ne!(output.code, 0, "{cwd}: {output:?}");
        let output = with_leak(machine.command(&["exec", "--cwd", &cwd, &container.id, "pwd"]));
        assert_ne!(output.code, 0, "exec in {cwd}: {output:?}");
    }
}

/// A volume in which somebody swaps a directory and a link to the outside, as fast as possible, while containers mount there.
#[test]
fn a_mount_target_that_is_swapped_for_a_link_stays_inside() {
    let Some(machine) = Machine::new() else { return };
    let (outside, volume) = (machine.path("outside"), machine.path("volume"));
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(volume.join("aside")).unwrap();
    symlink(&outside, volume.join("target")).unwrap();
    let naive = host(&format!(
        "mount -t tmpfs attacked {}; grep attacked /proc/self/mounts",
        volume.join("target").display()
    ));
    assert!(naive.out.contains(outside.to_str().unwrap()), "the attack does not work on mount(8): {naive:?}");

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (target, aside) = (volume.join("target"), volume.join("aside"));
            while !stop.load(Ordering::Relaxed) {
                // RENAME_EXCHANGE: at every moment it is one or the other.
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let _ =
                    rustix::fs::renameat_with(rustix::fs::CWD, &target, rustix::fs::CWD, &aside, exchange);
            }
        });
        let (mut mounted, mut made) = (0, 0);
        let begun = std::time::Instant::now();
        // Where a start takes seconds, some will do.
        while made < 60 && (made < 8 || begun.elapsed().as_secs() < 20) {
            made += 1;
            let mut config = machine.shell("grep ' attacked ' /proc/self/mountinfo");
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts
                .push(json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"]}));
            mounts.push(json!({"destination": "/vol/target/sub", "type": "tmpfs", "source": "attacked", "options": ["size=4k", "nr_inodes=7"]}));
            let output = machine.run(&config);
            // Either the link led nowhere inside, or the mount is where it was wanted.
            if output.code == 0 && output.out.contains("nr_inodes=7") {
                mounted += 1;
            }
            let leftovers: Vec<_> = fs::read_dir(&outside).unwrap().collect();
            assert!(leftovers.is_empty(), "{leftovers:?}: {output:?}");
        }
        stop.store(true, Ordering::Relaxed);
        println!("{mounted} of {made} containers found the directory");
    });
}

#[test]
fn nothing_is_made_outside_through_a_link_on_the_way() {
    let Some(machine) = Machine::new() else { return };
    let (outside, volume) = (machine.path("outside"), machine.path("volume"));
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(&volume).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    fs::create_dir_all(volume.join("link/naive")).unwrap();
    assert!(outside.join("naive").is_dir(), "the attack does not work on a path");
    fs::remove_dir(outside.join("naive")).unwrap();

    for (kind, source) in [("tmpfs", Path::new("tmpfs")), ("bind", Path::new("/etc/passwd"))] {
        for destination in ["/vol/link/a/b", "/vol/link"] {
            let mut config = machine.config(&["true"]);
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts
                .push(json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"]}));
            let options: &[&str] = if kind == "bind" { &["bind"] } else { &[] };
            mounts.push(
                json!({"destination": destination, "type": kind, "source": source, "options": options}),
            );
            let output = machine.run(&config);
            let made: Vec<_> = fs::read_dir(&outside).unwrap().collect();
            assert!(made.is_empty(), "{kind} at {destination}: {made:?} {output:?}");
        }
    }
}

#[test]
fn proc_and_sys_are_not_mounted_through_links() {
    let Some(machine) = Machine::new() else { return };
    for name in ["proc", "sys"] {
        let rootfs = machine.make_rootfs(&format!("rootfs-{name}"));
        fs::remove_dir(rootfs.join(name)).unwrap();
        symlink("tmp", rootfs.join(name)).unwrap();
        if name == "proc" {
            let spy = rootfs.join("spy");
            fs::write(&spy, "#!/bin/sh\n[ -d /tmp/1 ] && echo elsewhere\n").unwrap();
            fs::set_permissions(&spy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let naive = finish(machine.bare(&rootfs, "/spy"), machine.work.path());
            assert_eq!(naive.out, "elsewhere\n", "the attack does not work on the bare container: {naive:?}");
        }
        let mut config = machine.config(&["true"]);
        config["root"]["path"] = json!(rootfs);
        let output = machine.run(&config);
        assert_ne!(output.code, 0, "{name}");
        assert!(output.err.contains(&format!("/{name}")), "{output:?}");
    }
}

/// The image brings a `/dev/null` that is a link to what the attacker wants to write to.
#[test]
fn a_masked_path_is_not_what_the_image_calls_dev_null() {
    let Some(machine) = Machine::new() else { return };
    let rootfs = machine.path("rootfs");
    fs::write(rootfs.join("precious"), "precious\n").unwrap();
    fs::write(rootfs.join("masked"), "secret\n").unwrap();
    symlink("/precious", rootfs.join("dev/null")).unwrap();
    // What runc did: bind what lies at /dev/null of the image, as its path leads.
    let naive = host(&format!(
        "mount --rbind {0} {0}; mount --bind /dev/null {0}/sys; chroot {0} /bin/sh -c 'mount --bind /dev/null /masked; cat /masked'",
        rootfs.display()
    ));
    let naive = if naive.code == 0 {
        naive
    } else {
        host(&format!(
            "mount --rbind {0} {0}; chroot {0} /bin/sh -c 'mount -o bind /dev/null /masked; cat /masked'",
            rootfs.display()
        ))
    };
    assert!(naive.out.contains("precious"), "the attack does not work on mount(8): {naive:?}");

    let mut config = machine.shell("cat /masked; echo attacked >/masked; stat -c '%F %t:%T' /masked");
    // Without a /dev of its own, so that the image's stays; its links are then in the way of the default nodes.
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    config["linux"]["maskedPaths"] = json!(["/masked"]);
    let output = machine.run(&config);
    // Refused because of the node that is a link, or masked with the real device.
    if output.code == 0 {
        assert_eq!(output.out, "character special file 1:3\n", "{output:?}");
    } else {
        assert!(output.err.contains("/dev/null"), "{output:?}");
    }
    fs::remove_file(rootfs.join("dev/null")).unwrap();
    let masked = machine.run(&config);
    assert_eq!(masked.out, "character special file 1:3\n", "{masked:?}");
    assert_eq!(fs::read_to_string(rootfs.join("precious")).unwrap(), "precious\n");
    assert_eq!(fs::read_to_string(rootfs.join("masked")).unwrap(), "secret\n");
}

/// The image brings a `/dev/console` that is a link to the host's, and a `/dev/pts` full of what is none.
#[test]
fn the_console_is_the_terminal_that_was_made_for_it() {
    let Some(machine) = Machine::new() else { return };
    let outside = machine.path("outside");
    fs::write(&outside, "").unwrap();
    let rootfs = machine.path("rootfs");
    symlink(&outside, rootfs.join("dev/console")).unwrap();
    fs::write(rootfs.join("dev/console"), "naive").unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "naive", "the attack does not work on a path");

    let mut config = machine.shell("stat -c '%F' /dev/console; echo printed; sleep 1000");
    config["process"]["terminal"] = json!(true);
    let (bundle, id) = (machine.bundle(&config), machine.id());
    let socket = machine.path("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let created = machine.call(&[
        "create",
        "--bundle",
        bundle.to_str().unwrap(),
        "--console-socket",
        socket.to_str().unwrap(),
        &id,
    ]);
    created.ok();
    let container = Container { machine: &machine, id };
    let (stream, _) = listener.accept().unwrap();
    let master = receive(&stream);
    container.call("start", &[]).ok();
    let mut text = String::new();
    let mut buffer = [0; 256];
    eventually(
        || {
            let length = rustix::io::read(&master, &mut buffer).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            text.contains("printed")
        },
        || "what is printed".to_owned(),
    );
    assert!(text.contains("character special file"), "{text}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "naive");
    // The console inside is the slave of this very master.
    let console = fs::metadata(format!("/proc/{}/root/dev/console", container.pid()));
    let stdin = fs::metadata(format!("/proc/{}/fd/0", container.pid())).unwrap();
    assert!(console.is_ok_and(
        |it| std::os::unix::fs::MetadataExt::rdev(&it) == std::os::unix::fs::MetadataExt::rdev(&stdin)
    ));
    assert!(stdin.file_type().is_char_device());
}

fn receive(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut bytes = [0; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [std::io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .unwrap();
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("no descriptor")
}

/// A volume that lies over a part of `/proc`, with files of the attacker's where the runtime writes.
#[test]
fn writes_to_proc_reach_proc() {
    let Some(machine) = Machine::new() else { return };
    let fake = machine.path("fake");
    fs::create_dir_all(fake.join("ipv4")).unwrap();
    fs::write(fake.join("ipv4/ip_forward"), "untouched\n").unwrap();
    let mut config = machine.config(&["sleep", "1000"]);
    // Writable, so that a write by path would be seen.
    config["linux"]["readonlyPaths"] = json!([]);
    config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    config["process"]["oomScoreAdj"] = json!(500);
    config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/proc/sys/net", "type": "bind", "source": fake, "options": ["rbind"]}));
    let container = machine.start(&config);
    let pid = container.pid();
    let naive = host(&format!(
        "nsenter --mount=/proc/{pid}/ns/mnt /bin/sh -c 'echo attacked >/proc/sys/net/ipv4/ip_forward'"
    ));
    assert_eq!(naive.code, 0, "{naive:?}");
    assert_eq!(
        fs::read_to_string(fake.join("ipv4/ip_forward")).unwrap(),
        "attacked\n",
        "the attack does not work on a path"
    );
    let real = host(&format!("nsenter --net=/proc/{pid}/ns/net cat /proc/sys/net/ipv4/ip_forward"));
    assert_eq!(real.out, "1\n", "the setting of the container's network is not set: {real:?}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "500\n");
}

#[test]
fn no_capability_is_left_inheritable() {
    let Some(machine) = Machine::new() else { return };
    let inheritable = |output: &str| {
        let line =
            output.lines().find(|line| line.starts_with("CapInh:")).unwrap_or_else(|| panic!("{output}"));
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    let look = "grep Cap /proc/self/status";
    // Runs that must have none, and one that shows that there could be some.
    let mut asked = machine.shell(look);
    asked["process"]["capabilities"]["inheritable"] = json!(["CAP_NET_RAW"]);
    assert_eq!(inheritable(&machine.run(&asked).ok()), 1 << 13, "the set is not to be seen");
    assert_eq!(inheritable(&machine.run(&machine.shell(look)).ok()), 0);
    let container = machine.start(&machine.config(&["sleep", "1000"]));
    assert_eq!(inheritable(&container.exec(look).ok()), 0);
    let more = container.call("exec", &["--cap", "CAP_SYS_PTRACE", "--", "sh", "-c", look]).ok();
    assert_eq!(inheritable(&more), 0, "{more}");
    let of_user = container.call("exec", &["--user", "1000:1000", "--", "sh", "-c", look]).ok();
    assert_eq!(inheritable(&of_user), 0, "{of_user}");
    assert!(of_user.contains("CapAmb:\t0000000000000000"), "{of_user}");
}

#[test]
fn no_group_of_the_starter_is_left() {
    let Some(machine) = Machine::new() else { return };
    let with_group = |command: Command| {
        let mut member = Command::new("setpriv");
        member.args(["--groups", "4242"]).arg(command.get_program()).args(command.get_args());
        finish(member, machine.work.path())
    };
    let spy = machine.path("rootfs/spy");
    fs::write(&spy, "#!/bin/sh\ngrep Groups /proc/self/status\n").unwrap();
    fs::set_permissions(&spy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let naive = with_group(machine.bare(&machine.path("rootfs"), "/spy"));
    assert!(naive.out.contains("4242"), "the attack does not work on the bare container: {naive:?}");

    for (uid, additional, expected) in
        [(0, json!([]), ""), (1000, json!([]), ""), (1000, json!([7, 8]), "7 8")]
    {
        let mut config = machine.config(&["/spy"]);
        config["process"]["user"] = json!({"uid": uid, "gid": uid, "additionalGids": additional});
        let bundle = machine.bundle(&config);
        let output =
            with_group(machine.command(&["run", "--bundle", bundle.to_str().unwrap(), &machine.id()]));
        let groups = output.out.trim().strip_prefix("Groups:").unwrap_or_else(|| panic!("{output:?}"));
        assert_eq!(groups.trim(), expected);
    }
    let container = machine.start(&machine.config(&["sleep", "1000"]));
    let output = with_group(machine.command(&["exec", &container.id, "/spy"]));
    assert_eq!(output.out.trim(), "Groups:", "{output:?}");
}

/// CAP_MKNOD makes nodes; what they lead to is another question.
#[test]
fn no_disk_can_be_opened_by_a_node_of_ones_own() {
    let Some(machine) = Machine::new() else { return };
    let Some((major, minor)) = a_disk() else {
        println!("skipped: needs a block device in /proc/partitions that can be read");
        return;
    };
    let attack = format!(
        "mknod /dev/disk b {major} {minor} && dd if=/dev/disk of=/dev/null bs=512 count=1 && echo read"
    );
    let spy = machine.path("rootfs/spy");
    fs::write(&spy, format!("#!/bin/sh\n{attack}\n")).unwrap();
    fs::set_permissions(&spy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let naive = finish(machine.bare(&machine.path("rootfs"), "/spy"), machine.work.path());
    assert!(naive.out.contains("read"), "the attack does not work on the bare container: {naive:?}");
    let output = machine.run(&machine.shell(&attack));
    assert!(!output.out.contains("read"), "{output:?}");
    assert!(output.err.contains("Operation not permitted"), "{output:?}");
}

fn a_disk() -> Option<(u32, u32)> {
    let partitions = fs::read_to_string("/proc/partitions").ok()?;
    partitions.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let name = words.nth(1)?;
        fs::File::open(format!("/dev/{name}")).ok()?.read_exact(&mut [0; 512]).ok()?;
        Some((major, minor))
    })
}

/// Whoever may trace in the container looks at every process that comes in: until its command is executed it is the host's
/// program, with the host's memory.
#[test]
fn an_exec_shows_nothing_of_the_host_while_it_enters() {
    let Some(machine) = Machine::new() else { return };
    // Created and waiting at its gate, the launcher's process is in its container for as long as one likes.
    let container = machine.create(&machine.config(&["sleep", "1000"]));
    let pid = container.pid();
    let look = |pid: i64| {
        let script = format!(
            "ls -l /proc/{pid}/fd/ && cat /proc/{pid}/environ >/dev/null && readlink /proc/{pid}/exe"
        );
        let mut command = Command::new("setpriv");
        // Root without a capability but what docker gives, of which none is CAP_SYS_PTRACE.
        command.args(["--bounding-set", "-sys_ptrace,-sys_admin,-dac_read_search,-dac_override"]);
        command.args(["sh", "-c", &script]);
        finish(command, machine.work.path())
    };
    let less = "-sys_ptrace,-sys_admin,-dac_read_search,-dac_override";
    let mut dumpable =
        Command::new("setpriv").args(["--bounding-set", less, "sleep", "1000"]).spawn().unwrap();
    eventually(
        || look(dumpable.id().into()).out.contains("sleep"),
        || "a process that hides nothing is seen".to_owned(),
    );
    dumpable.kill().unwrap();
    dumpable.wait().unwrap();
    let hidden = look(pid);
    assert_ne!(hidden.code, 0, "{hidden:?}");
    assert!(hidden.err.contains("Permission denied"), "{hidden:?}");
}

#[test]
fn deleting_follows_no_link_that_the_container_left() {
    let Some(machine) = Machine::new() else { return };
    let outside = machine.path("outside");
    fs::create_dir_all(outside.join("kept")).unwrap();
    let container = machine.start(&machine.config(&["sleep", "1000"]));
    // Its root file system becomes a link, after the fact.
    fs::rename(machine.path("rootfs"), machine.path("rootfs-aside")).unwrap();
    symlink(&outside, machine.path("rootfs")).unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    container.call("delete", &["--force", "--"]).ok();
    assert_eq!(mounts(), before);
    assert!(outside.join("kept").is_dir());
}
