//! Fields of `config.json` and words of the command line that engines seldom use, carried out end to end.

mod support;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::Instant;
use support::*;

/// A message, and the descriptors that came with it.
fn receive(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut places = [std::io::IoSliceMut::new(&mut bytes)];
    let length = recvmsg(stream, &mut places, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    (bytes[..length].to_vec(), fds)
}

#[test]
fn a_seccomp_agent_gets_the_listener_and_is_told_whose_it_is() {
    let Some(machine) = Machine::new() else { return };
    let socket = machine.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut config = machine.shell("mkdir /tmp/asked; echo code $?");
    config["annotations"] = json!({"org.example.a": "b"});
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "about it",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let output = std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            let (stream, _) = listener.accept().unwrap();
            let (text, fds) = receive(&stream);
            let state: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(fds.len(), 1, "{state}");
            let link = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fds[0])));
            assert!(link.unwrap().display().to_string().contains("seccomp"), "{state}");
            // Closed without an answer: the kernel says that there is no such call.
            state
        });
        let output = machine.run(&config);
        let state = agent.join().unwrap();
        assert_eq!((&state["fds"][0], &state["metadata"]), (&json!("seccompFd"), &json!("about it")));
        assert_eq!(state["state"]["status"], "creating");
        assert_eq!(state["state"]["annotations"]["org.example.a"], "b");
        assert!(state["pid"].as_i64().unwrap() > 1, "{state}");
        output
    });
    assert!(output.err.contains("not implemented") && output.out == "code 1\n", "{output:?}");
}

#[test]
fn a_network_device_moves_in_with_its_address_and_another_name() {
    let Some(machine) = Machine::new() else { return };
    let mut config = machine.shell("ip addr show; ls /sys/class/net");
    config["linux"]["netDevices"] = json!({"v0": {"name": "inside"}});
    let bundle = machine.bundle(&config);
    let run = machine.command(&["run", "--bundle", bundle.to_str().unwrap(), &machine.id()]);
    let script = "ip link add v0 type veth peer name v1 || exit 77
                  ip addr add 192.0.2.7/24 dev v0; ip link set v0 up; exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script]).arg(run.get_program()).args(run.get_args());
    let output = finish(command, machine.work.path());
    if output.code == 77 {
        println!("skipped: the kernel makes no veth to move");
        return;
    }
    assert!(output.out.contains("inet 192.0.2.7/24") && output.out.contains("inside"), "{output:?}");
    assert!(!output.out.contains("v0:"), "{output:?}");

    config["linux"]["netDevices"] = json!({"none-such": {}});
    let refused = machine.run(&config);
    assert!(refused.code != 0 && refused.err.contains("none-such"), "{refused:?}");
}

#[test]
fn all_six_hooks_run_in_their_order_and_within_their_time() {
    let Some(machine) = Machine::new() else { return };
    let log = machine.path("rootfs/work/hooks");
    // Those of the runtime see the log where it is, those of the container in its root.
    let hook = |name: &str, inside: bool| {
        let file = if inside { "/work/hooks".to_owned() } else { log.display().to_string() };
        let status = "sed 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/'";
        let script = format!("echo {name} $({status}) >>{file}");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 30}])
    };
    let mut config = machine.shell("echo command >>/work/hooks");
    config["hooks"] = json!({
        "prestart": hook("prestart", false), "createRuntime": hook("createRuntime", false),
        "createContainer": hook("createContainer", false), "startContainer": hook("startContainer", true),
        "poststart": hook("poststart", false), "poststop": hook("poststop", false),
    });
    machine.run(&config).ok();
    let text = fs::read_to_string(&log).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    // The command runs beside what follows its start.
    lines.retain(|line| *line != "command");
    let expected = [
        "prestart creating",
        "createRuntime creating",
        "createContainer creating",
        "startContainer created",
        "poststart running",
        "poststop stopped",
    ];
    assert_eq!(lines, expected, "{text}");

    config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]});
    let begun = Instant::now();
    let output = machine.run(&config);
    assert!(output.code != 0 && output.err.contains("more than 1 s"), "{output:?}");
    assert!(begun.elapsed().as_secs() < 50, "{:?}", begun.elapsed());
}

#[test]
fn placement_in_memory_and_on_processors_is_what_is_asked_for() {
    let Some(machine) = Machine::new() else { return };
    let mut config = machine.shell("cat /proc/self/numa_maps");
    config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    let output = machine.run(&config);
    // A kernel without NUMA has no policies, and says so.
    assert!(output.out.contains("bind:0") || output.err.contains("linux.memoryPolicy"), "{output:?}");

    let container = machine.start(&machine.config(&["sleep", "1000"]));
    let file = machine.path("process.json");
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    let process = json!({
        "args": ["grep", "Cpus_allowed_list", "/proc/self/status"], "env": ["PATH=/bin"], "cwd": "/",
        "user": {"uid": 0, "gid": 0}, "execCPUAffinity": {"initial": "0", "final": last.to_string()},
    });
    fs::write(&file, process.to_string()).unwrap();
    let output = container.call("exec", &["--process", file.to_str().unwrap(), "--"]).ok();
    assert_eq!(output.split_whitespace().last(), Some(last.to_string().as_str()), "{output}");
}

#[test]
fn users_clocks_and_mounts_are_mapped_as_the_document_says() {
    let Some(machine) = Machine::new() else { return };
    let volume = machine.path("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    let ids = |outside: u32| json!([{"containerID": 0, "hostID": outside, "size": 1000}]);
    let script = "stat -c %u /vol/file; touch /vol/x || echo refused; cut -d. -f1 /proc/uptime; grep -E '^[^ ]+ [^ ]+ [^ ]+ [^ ]+ / ' /proc/self/mountinfo";
    let mut config = machine.shell(script);
    config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "rro", "rnosuid", "ridmap"],
        "uidMappings": ids(5000), "gidMappings": ids(5000),
    }));
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}});
    config["linux"]["rootfsPropagation"] = json!("shared");
    let output = machine.run(&config);
    let lines: Vec<_> = output.out.lines().collect();
    assert_eq!(&lines[..2], ["5000", "refused"], "{output:?}");
    assert!(lines[2].parse::<u64>().unwrap() >= 1_000_000_000, "{output:?}");
    assert!(lines[3].contains(" shared:"), "{output:?}");

    // Root inside is 100000 outside.
    let rootfs = machine.path("rootfs");
    Command::new("chown").args(["-R", "100000:100000"]).arg(&rootfs).status().unwrap();
    let mut config = machine.shell("id -u; cat /proc/self/uid_map; touch /work/mine");
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    config["linux"]["gidMappings"] = config["linux"]["uidMappings"].clone();
    let output = machine.run(&config).ok();
    let words: Vec<_> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"], "{output}");
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(rootfs.join("work/mine")).unwrap()),
        100_000
    );
}

/// On a hybrid machine most controllers are in version 1 of the hierarchy.
#[test]
fn a_limit_counts_or_its_controller_is_named_with_its_place() {
    let Some(machine) = Machine::new() else { return };
    let controllers = fs::read_to_string(cgroup2().join("cgroup.controllers")).unwrap();
    for (controller, resources, file, value) in [
        ("memory", json!({"memory": {"limit": 64 << 20}}), "memory.max", "67108864"),
        ("pids", json!({"pids": {"limit": 17}}), "pids.max", "17"),
        (
            "cpu",
            json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 1000}}),
            "cpu.max",
            "50000 100000",
        ),
        (
            "hugetlb",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}),
            "hugetlb.2MB.max",
            "4194304",
        ),
        ("rdma", json!({"unified": {"rdma.max": "mlx5_0 hca_handle=2"}}), "rdma.max", "mlx5_0"),
    ] {
        let mut config = machine.config(&["sleep", "1000"]);
        config["linux"]["resources"] = resources;
        if controllers.split_whitespace().any(|it| it == controller) && controller != "rdma" {
            let container = machine.start(&config);
            let text = fs::read_to_string(cgroup2().join(&container.id).join(file)).unwrap();
            assert_eq!(text.trim(), value, "{file}");
            continue;
        }
        let output = machine.run(&config);
        assert!(output.code != 0 && output.err.contains(controller), "{output:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let place = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup" && options.split(',').any(|it| it == controller)).then_some(place)
        });
        if let Some(place) = place {
            assert!(output.err.contains(place), "{output:?}");
        }
    }
}

#[test]
fn failures_are_written_to_the_log_as_json() {
    let Some(machine) = Machine::new() else { return };
    let log = machine.path("log.json");
    let mut config = machine.config(&["true"]);
    config["linux"]["maskedPaths"] = json!(["relative"]);
    let bundle = machine.bundle(&config);
    let words = ["--log", log.to_str().unwrap(), "--log-format", "json", "create", "--bundle"];
    let output = machine.call(&[&words[..], &[bundle.to_str().unwrap(), &machine.id()]].concat());
    assert_ne!(output.code, 0);
    let text = fs::read_to_string(&log).unwrap();
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("linux.maskedPaths"), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
}

#[test]
fn an_exec_has_a_terminal_of_its_own_and_the_descriptors_it_is_given() {
    let Some(machine) = Machine::new() else { return };
    let container = machine.start(&machine.config(&["sleep", "1000"]));
    let socket = machine.path("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let words = [
        "--tty",
        "--detach",
        "--console-socket",
        socket.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "tty; sleep 1000",
    ];
    container.call("exec", &words).ok();
    let (stream, _) = listener.accept().unwrap();
    let (_, mut masters) = receive(&stream);
    let master = masters.pop().expect("no terminal");
    let (mut text, mut buffer) = (String::new(), [0; 256]);
    eventually(
        || {
            let length = rustix::io::read(&master, &mut buffer).unwrap_or(0);
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            text.contains('\n')
        },
        || "what tty prints".to_owned(),
    );
    assert!(text.starts_with("/dev/pts/"), "{text}");

    let exec =
        machine.command(&["exec", "--preserve-fds", "2", &container.id, "sh", "-c", "cat <&3; cat <&4"]);
    let mut with = Command::new("sh");
    with.args(["-c", "exec 3<<X 4<<Y\nthree\nX\nfour\nY\nexec \"$0\" \"$@\""])
        .arg(exec.get_program())
        .args(exec.get_args());
    assert_eq!(finish(with, machine.work.path()).ok(), "three\nfour\n");
    // A command that is not there is told though its descriptors lie where the launcher's own would.
    let none = machine.command(&["exec", "--preserve-fds", "2", &container.id, "/work"]);
    let mut with = Command::new("sh");
    with.args(["-c", "exec 3</dev/null 4</dev/null; exec \"$0\" \"$@\""])
        .arg(none.get_program())
        .args(none.get_args());
    assert_ne!(finish(with, machine.work.path()).code, 0);
}

#[test]
fn update_changes_the_limits_of_a_container_that_runs() {
    let Some(machine) = Machine::new() else { return };
    let controllers = fs::read_to_string(cgroup2().join("cgroup.controllers")).unwrap();
    let has = |controller: &str| controllers.split_whitespace().any(|it| it == controller);
    let container = machine.start(&machine.config(&["sleep", "1000"]));
    let limit = |file: &str| fs::read_to_string(cgroup2().join(&container.id).join(file)).unwrap();
    let document = machine.path("resources.json");
    let of_document = |resources: Value| {
        fs::write(&document, resources.to_string()).unwrap();
        container.call("update", &["--resources", document.to_str().unwrap(), "--"])
    };
    if has("hugetlb") {
        of_document(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]})).ok();
        assert_eq!(limit("hugetlb.2MB.max").trim(), "2097152");
    }
    if has("pids") {
        container.call("update", &["--pids-limit", "33", "--"]).ok();
        assert_eq!(limit("pids.max").trim(), "33");
    }
    if has("memory") {
        container.call("update", &["--memory", "64M", "--memory-swap", "-1", "--"]).ok();
        assert_eq!(limit("memory.max").trim(), "67108864");
        let refused = of_document(json!({"memory": {"limit": 1, "checkBeforeUpdate": true}}));
        assert!(refused.code != 0 && refused.err.contains("in use"), "{refused:?}");
        assert_eq!(limit("memory.max").trim(), "67108864");
    }
    let unknown = of_document(json!({"colour": 1}));
    assert!(unknown.code != 0 && unknown.err.contains("colour"), "{unknown:?}");
}

#[test]
fn events_tell_of_want_of_memory_and_end_with_the_container() {
    let Some(machine) = Machine::new() else { return };
    if !fs::read_to_string(cgroup2().join("cgroup.controllers")).unwrap().contains("memory") {
        println!("skipped: the cgroup v2 hierarchy has no memory controller here");
        return;
    }
    let mut config = machine.shell("sleep 5; dd if=/dev/zero of=/dev/shm/full bs=1M count=60; sleep 3");
    config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let container = machine.start(&config);
    let events = container.call("events", &["--interval", "1", "--"]).ok();
    let kinds: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(kinds.iter().any(|kind| kind == "oom") && kinds[0] == "stats", "{events}");
}
