//! What the runtime specification and runc's command line promise, as one table that any runtime can be held to.
//!
//! Ours has to fulfil every line. With `NACRE_TEST_ALL` the same table is put to Debian's crun and runc, and where they differ is
//! printed: a difference is a finding about them or about a line of ours, not a failure.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::*;

type Check = fn(&Machine);

/// Behaviour and how it is checked; a check panics where it is missed.
const TABLE: &[(&str, Check)] = &[
    ("create: the process waits, and start lets it go", |m| {
        let marker = m.path("rootfs/work/marker");
        let _ = fs::remove_file(&marker);
        let it = m.create(&m.shell("echo begun >/work/marker; sleep 1000"));
        assert_eq!(it.status(), "created");
        assert!(!marker.exists());
        it.call("start", &[]).ok();
        eventually(|| marker.exists(), || "the command".into());
        assert_eq!(it.status(), "running");
    }),
    ("create: an id that is there is refused", |m| {
        let it = m.create(&m.config(&["true"]));
        let bundle = m.bundle(&m.config(&["true"]));
        assert_ne!(m.call(&["create", "--bundle", bundle.to_str().unwrap(), &it.id]).code, 0);
        assert_eq!(it.status(), "created");
    }),
    ("create: ids that are no name are refused", |m| {
        let bundle = m.bundle(&m.config(&["true"]));
        for id in ["", "../x", "a/b", ".."] {
            assert_ne!(m.call(&["create", "--bundle", bundle.to_str().unwrap(), id]).code, 0, "{id:?}");
        }
    }),
    ("create: what fails leaves no container", |m| {
        let (bundle, id) = (m.bundle(&m.config(&["/nowhere"])), m.id());
        assert_ne!(m.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]).code, 0);
        assert_ne!(m.call(&["state", &id]).code, 0);
        assert!(!cgroup2().join(&id).exists(), "a cgroup is left");
    }),
    ("create: a missing config.json, root or process is refused", |m| {
        assert_ne!(m.call(&["create", "--bundle", "/nowhere", &m.id()]).code, 0);
        for field in ["root", "process"] {
            let mut config = m.config(&["true"]);
            config.as_object_mut().unwrap().remove(field);
            let (bundle, id) = (m.bundle(&config), m.id());
            let created = m.call(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
            let started = m.call(&["start", &id]);
            m.call(&["delete", "--force", &id]);
            assert!(created.code != 0 || started.code != 0, "{field}");
        }
    }),
    ("create: a field of no specification is refused by name", |m| {
        let mut config = m.config(&["true"]);
        config["linux"]["resources"]["colour"] = json!("blue");
        let output = m.run(&config);
        assert_ne!(output.code, 0);
        assert!(output.err.contains("colour"), "{output:?}");
    }),
    ("create: the pid file has the number of the state", |m| {
        let (bundle, id) = (m.bundle(&m.config(&["true"])), m.id());
        let file = m.path("pid");
        m.call(&["create", "--bundle", bundle.to_str().unwrap(), "--pid-file", file.to_str().unwrap(), &id])
            .ok();
        let it = Container { machine: m, id };
        assert_eq!(fs::read_to_string(file).unwrap().trim(), it.pid().to_string());
    }),
    ("start: a container that runs or has stopped is refused", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        assert_ne!(it.call("start", &[]).code, 0);
        it.call("kill", &["KILL"]).ok();
        it.wait_for("stopped");
        assert_ne!(it.call("start", &[]).code, 0);
    }),
    ("start: one that is not there is refused", |m| assert_ne!(m.call(&["start", "nowhere"]).code, 0)),
    ("state: has what the specification asks for", |m| {
        let mut config = m.config(&["sleep", "1000"]);
        config["annotations"] = json!({"org.example.a": "b"});
        let it = m.start(&config);
        let state = it.state();
        assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
        assert_eq!(state["id"], json!(it.id));
        assert_eq!(state["status"], "running");
        assert!(state["pid"].as_i64().unwrap() > 0);
        assert!(std::path::Path::new(state["bundle"].as_str().unwrap()).join("config.json").exists());
        assert_eq!(state["annotations"]["org.example.a"], "b");
    }),
    ("state: stopped without a pid after the end", |m| {
        let it = m.start(&m.config(&["true"]));
        it.wait_for("stopped");
        assert_eq!(it.state()["pid"].as_i64().unwrap_or(0), 0);
    }),
    ("state: one that is not there is refused", |m| assert_ne!(m.call(&["state", "nowhere"]).code, 0)),
    ("run: gives the exit code", |m| assert_eq!(m.run(&m.shell("exit 42")).code, 42)),
    ("run: gives 128 and the number of the signal", |m| {
        let (bundle, id) = (m.bundle(&m.config(&["sleep", "1000"])), m.id());
        let mut child = m.command(&["run", "--bundle", bundle.to_str().unwrap(), &id]).spawn().unwrap();
        let it = Container { machine: m, id };
        eventually(|| it.call("state", &[]).out.contains("running"), || "running".into());
        it.call("kill", &["KILL"]).ok();
        assert_eq!(wait(&mut child, || "run".into()), 137);
    }),
    ("run: a command that is not there fails", |m| assert_ne!(m.run(&m.config(&["nowhere"])).code, 0)),
    ("run: leaves no container behind", |m| {
        let (bundle, id) = (m.bundle(&m.config(&["true"])), m.id());
        m.call(&["run", "--bundle", bundle.to_str().unwrap(), &id]).ok();
        assert_ne!(m.call(&["state", &id]).code, 0);
        assert!(!cgroup2().join(&id).exists());
    }),
    ("run --detach: the container runs on", |m| {
        let (bundle, id) = (m.bundle(&m.config(&["sleep", "1000"])), m.id());
        m.call(&["run", "--detach", "--bundle", bundle.to_str().unwrap(), &id]).ok();
        assert_eq!(Container { machine: m, id }.status(), "running");
    }),
    ("run --preserve-fds: the command has them, and no others", |m| {
        let bundle = m.bundle(&m.shell("cat <&3; ls /proc/self/fd | wc -l"));
        let command =
            m.command(&["run", "--preserve-fds", "1", "--bundle", bundle.to_str().unwrap(), &m.id()]);
        let mut with = std::process::Command::new("sh");
        with.args(["-c", "exec 3<<X 4</\nthree\nX\nexec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        // 0, 1, 2, 3 and the directory that ls reads.
        assert_eq!(finish(with, m.work.path()).ok().split_whitespace().collect::<Vec<_>>(), ["three", "5"]);
    }),
    ("exec: runs inside, with the exit code", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        let output = it.exec("hostname; readlink /proc/1/exe; exit 7");
        assert_eq!((output.code, output.out.as_str()), (7, "nacre\n/bin/busybox\n"), "{output:?}");
    }),
    ("exec: user, directory and environment are those of the words", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        let script = "id -u; id -g; pwd; echo $A";
        let words = ["--user", "1000:1001", "--cwd", "/work", "--env", "A=b", "--", "sh", "-c", script];
        assert_eq!(it.call("exec", &words).ok(), "1000\n1001\n/work\nb\n");
    }),
    ("exec --process: everything comes from the document", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        let file = m.path("process.json");
        let process = json!({"args": ["sh", "-c", "id -u; echo $X"], "env": ["PATH=/bin", "X=y"], "cwd": "/", "user": {"uid": 5, "gid": 5}});
        fs::write(&file, process.to_string()).unwrap();
        assert_eq!(it.call("exec", &["--process", file.to_str().unwrap(), "--"]).ok(), "5\ny\n");
    }),
    ("exec --detach: comes back, and the pid file is of the process", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        let file = m.path("exec-pid");
        it.call("exec", &["--detach", "--pid-file", file.to_str().unwrap(), "--", "sleep", "777"]).ok();
        let pid = fs::read_to_string(file).unwrap();
        eventually(
            || {
                fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()))
                    .is_ok_and(|line| line.contains("777"))
            },
            || "the process".into(),
        );
    }),
    ("exec: a stopped container and a command that is not there are refused", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        assert_ne!(it.call("exec", &["nowhere"]).code, 0);
        it.call("kill", &["KILL"]).ok();
        it.wait_for("stopped");
        assert_ne!(it.exec("true").code, 0);
    }),
    ("exec: the seccomp profile of the container counts", |m| {
        let mut config = m.config(&["sleep", "1000"]);
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        });
        let it = m.start(&config);
        let output = it.exec("mkdir /tmp/x");
        assert!(output.err.contains("No space left"), "{output:?}");
    }),
    ("kill: the signal arrives, and a stopped container is refused", |m| {
        let it = m.start(&m.shell("trap 'exit 3' USR1; touch /work/ready; while true; do sleep 0.05; done"));
        eventually(|| m.path("rootfs/work/ready").exists(), || "the trap".into());
        let _ = fs::remove_file(m.path("rootfs/work/ready"));
        it.call("kill", &["USR1"]).ok();
        it.wait_for("stopped");
        assert_ne!(it.call("kill", &["TERM"]).code, 0);
    }),
    ("kill: names and numbers are understood, others refused", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        for signal in ["0x", "NOSUCH", "1000"] {
            assert_ne!(it.call("kill", &[signal]).code, 0, "{signal}");
        }
        for signal in ["SIGWINCH", "WINCH", "28"] {
            it.call("kill", &[signal]).ok();
        }
        assert_eq!(it.status(), "running");
    }),
    ("kill --all: reaches every process", |m| {
        let it = m.start(&m.shell("sleep 1000 & sleep 1000 & wait"));
        eventually(|| pids(&it).len() == 3, || "three processes".into());
        it.call("kill", &["--all", "--", "KILL"]).ok();
        it.wait_for("stopped");
    }),
    ("kill: a created container can be killed", |m| {
        let it = m.create(&m.config(&["sleep", "1000"]));
        it.call("kill", &["KILL"]).ok();
        it.wait_for("stopped");
    }),
    ("delete: a running container is refused, with --force it goes", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        assert_ne!(it.call("delete", &[]).code, 0);
        it.call("delete", &["--force", "--"]).ok();
        assert_ne!(it.call("state", &[]).code, 0);
        assert!(!cgroup2().join(&it.id).exists());
    }),
    ("delete: a stopped one goes, once", |m| {
        let it = m.start(&m.config(&["true"]));
        it.wait_for("stopped");
        it.call("delete", &[]).ok();
        assert_ne!(it.call("delete", &[]).code, 0);
        it.call("delete", &["--force", "--"]).ok();
    }),
    ("delete: a created one goes", |m| {
        let it = m.create(&m.config(&["sleep", "1000"]));
        let pid = it.pid();
        it.call("delete", &["--force", "--"]).ok();
        eventually(|| !alive(pid), || "the process ends".into());
    }),
    ("pause and resume: nothing runs in between", |m| {
        let it = m.start(&m.shell("i=0; while true; do i=$((i+1)); echo $i >/work/count; sleep 0.01; done"));
        let count = || fs::read_to_string(m.path("rootfs/work/count")).unwrap_or_default();
        eventually(|| !count().is_empty(), || "counting".into());
        it.call("pause", &[]).ok();
        assert_eq!(it.status(), "paused");
        let before = count();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(count(), before);
        it.call("resume", &[]).ok();
        assert_eq!(it.status(), "running");
        eventually(|| count() != before, || "counting on".into());
    }),
    ("ps: lists the processes as JSON", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        assert_eq!(pids(&it), [it.pid()]);
    }),
    ("list: has the container, quietly too", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        let list: Value = serde_json::from_str(&m.call(&["list", "--format", "json"]).ok()).unwrap();
        assert!(
            list.as_array()
                .unwrap()
                .iter()
                .any(|one| one["id"] == json!(it.id) && one["status"] == "running")
        );
        assert!(m.call(&["list", "--quiet"]).ok().lines().any(|line| line == it.id));
    }),
    ("events --stats: is JSON of type stats", |m| {
        let it = m.start(&m.config(&["sleep", "1000"]));
        let event: Value = serde_json::from_str(&it.call("events", &["--stats", "--"]).ok()).unwrap();
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(it.id)));
    }),
    ("features: is JSON with versions and mount options", |m| {
        let features: Value = serde_json::from_str(&m.call(&["features"]).ok()).unwrap();
        assert!(features["ociVersionMax"].as_str().unwrap().starts_with("1."));
        assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rbind")));
    }),
    ("config: namespaces are those of the list", |m| {
        let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        let mut config = m.shell("for n in ipc uts net pid mnt; do readlink /proc/self/ns/$n; done");
        let fresh = m.run(&config).ok();
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|it| it["type"] != "network");
        config["mounts"].as_array_mut().unwrap().retain(|it| it["type"] != "sysfs" && it["type"] != "cgroup");
        let shared = m.run(&config).ok();
        for (line, kind) in ["ipc", "uts", "net", "pid", "mnt"].into_iter().enumerate() {
            assert_ne!(fresh.lines().nth(line).unwrap(), own(kind), "{kind}");
        }
        assert_eq!(shared.lines().nth(2).unwrap(), own("net"));
    }),
    ("config: a namespace is joined by its path", |m| {
        let first = m.start(&m.config(&["sleep", "1000"]));
        let path = format!("/proc/{}/ns/net", first.pid());
        let mut config = m.shell("readlink /proc/self/ns/net");
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
        assert_eq!(m.run(&config).ok().trim(), fs::read_link(path).unwrap().display().to_string());
    }),
    ("config: mounts have their options", |m| {
        let volume = m.path("volume");
        fs::create_dir_all(&volume).unwrap();
        let mut config = m.shell("touch /vol/x; grep -E ' /(vol|small) ' /proc/self/mountinfo");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "ro", "nosuid"]}));
        mounts.push(json!({"destination": "/small", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "noexec", "nodev"]}));
        let output = m.run(&config);
        assert!(output.err.contains("Read-only"), "{output:?}");
        let line = |at: &str| {
            output
                .out
                .lines()
                .find(|line| line.contains(at))
                .unwrap_or_else(|| panic!("{output:?}"))
                .to_owned()
        };
        assert!(line(" /vol ").contains("ro,nosuid"), "{output:?}");
        assert!(line(" /small ").contains("nodev") && line(" /small ").contains("size=64k"), "{output:?}");
    }),
    ("config: a read-only root stays so, /dev does not", |m| {
        let mut config = m.shell("touch /x || echo refused; touch /dev/x && echo made");
        config["root"]["readonly"] = json!(true);
        assert_eq!(m.run(&config).ok(), "refused\nmade\n");
    }),
    ("config: masked and read-only paths", |m| {
        let mut config = m.shell("cat /etc/passwd; ls /work | wc -l; touch /tmp/x || echo refused");
        fs::write(m.path("rootfs/work/seen"), "x").unwrap();
        config["linux"]["maskedPaths"] = json!(["/etc/passwd", "/work", "/not/there"]);
        config["linux"]["readonlyPaths"] = json!(["/tmp", "/not/there"]);
        assert_eq!(m.run(&config).ok(), "0\nrefused\n");
    }),
    ("config: the default devices are there, in and out", |m| {
        let script = "for d in null zero full random urandom tty; do stat -c '%F %a' /dev/$d; done; echo x >/dev/null; head -c 4 /dev/zero | wc -c; \
                      for l in fd stdin ptmx; do readlink /dev/$l; done";
        let output = m.run(&m.shell(script)).ok();
        assert_eq!(output.matches("character special file 666").count(), 6, "{output}");
        assert!(output.ends_with("4\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n"), "{output}");
    }),
    ("config: a device of the list can be used, others cannot", |m| {
        let mut config = m.shell("stat -c '%t:%T %a %u' /dev/mine; echo x >/dev/mine; mknod /dev/kmsg2 c 1 11; cat /dev/kmsg2 >/dev/null");
        config["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7, "gid": 7}]);
        let output = m.run(&config);
        assert!(output.out.contains("1:3 600 7"), "{output:?}");
        assert!(output.err.contains("Operation not permitted"), "{output:?}");
    }),
    ("config: capabilities, user and no_new_privs", |m| {
        let mut config = m.shell("grep -E 'CapBnd|CapEff|NoNewPrivs|^Uid|^Groups' /proc/self/status");
        config["process"]["capabilities"] =
            json!({"bounding": ["CAP_CHOWN"], "effective": [], "permitted": []});
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [44]});
        let output = m.run(&config).ok();
        for expected in [
            "CapBnd:\t0000000000000001",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Uid:\t1000\t1000\t1000\t1000",
            "44",
        ] {
            assert!(output.contains(expected), "{expected}: {output}");
        }
    }),
    ("config: ambient capabilities reach a user", |m| {
        let mut config = m.shell("grep -E 'CapAmb|CapEff' /proc/self/status");
        let net = json!(["CAP_NET_BIND_SERVICE"]);
        config["process"]["capabilities"] =
            json!({"bounding": net, "effective": net, "permitted": net, "inheritable": net, "ambient": net});
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        assert_eq!(m.run(&config).ok().matches("0000000000000400").count(), 2);
    }),
    ("config: limits, umask and oom score", |m| {
        let mut config = m.shell("ulimit -n; umask; cat /proc/self/oom_score_adj");
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
        config["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 0o027});
        config["process"]["oomScoreAdj"] = json!(321);
        assert_eq!(m.run(&config).ok(), "77\n0027\n321\n");
    }),
    ("config: host name, sysctl and environment", |m| {
        let mut config = m.shell("hostname; cat /proc/sys/net/ipv4/ip_forward; echo $A");
        config["hostname"] = json!("named");
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        config["process"]["env"] = json!(["PATH=/bin", "A=b c"]);
        assert_eq!(m.run(&config).ok(), "named\n1\nb c\n");
    }),
    ("config: a working directory that is missing is made", |m| {
        let mut config = m.config(&["pwd"]);
        config["process"]["cwd"] = json!("/made/here");
        assert_eq!(m.run(&config).ok(), "/made/here\n");
    }),
    ("config: a relative working directory is refused", |m| {
        let mut config = m.config(&["pwd"]);
        config["process"]["cwd"] = json!("made/here");
        assert_ne!(m.run(&config).code, 0);
    }),
    ("config: seccomp answers as it says", |m| {
        let mut config = m.shell("mkdir /tmp/a; chmod 700 /tmp; echo $?");
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_KILL_PROCESS"},
            ],
        });
        let output = m.run(&config);
        assert!(output.err.contains("No space left"), "{output:?}");
        assert_eq!(output.out.trim(), "159", "{output:?}");
    }),
    ("config: the cgroup is the root of what is seen inside", |m| {
        assert!(m.run(&m.shell("cat /proc/self/cgroup")).ok().lines().any(|line| line == "0::/"));
    }),
    ("config: cgroupsPath is where the container is", |m| {
        let mut config = m.config(&["sleep", "1000"]);
        let path = format!("/{}/below", m.id());
        config["linux"]["cgroupsPath"] = json!(path);
        let it = m.start(&config);
        let text = fs::read_to_string(format!("/proc/{}/cgroup", it.pid())).unwrap();
        drop(it);
        let _ = fs::remove_dir(cgroup2().join(path.split('/').nth(1).unwrap()));
        assert!(text.lines().any(|line| line == format!("0::{path}")), "{text}");
    }),
    ("hooks: run in their order, with the state on standard input", |m| {
        let log = m.path("hooks.log");
        let hook = |name: &str| {
            let script = format!(
                "echo {name} $(sed 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/' | tr -d '\\n') >>{}",
                log.display()
            );
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
        };
        let mut config = m.config(&["true"]);
        let host = ["prestart", "createRuntime", "poststart", "poststop"];
        config["hooks"] = Value::Object(host.iter().map(|name| ((*name).to_owned(), hook(name))).collect());
        m.run(&config).ok();
        let text = fs::read_to_string(&log).unwrap();
        let names: Vec<_> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, host, "{text}");
    }),
    ("hooks: one that fails ends the container", |m| {
        let mut config = m.config(&["true"]);
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
        assert_ne!(m.run(&config).code, 0);
    }),
];

fn pids(it: &Container<'_>) -> Vec<i64> {
    let list = it.call("ps", &["--format", "json", "--"]).ok();
    serde_json::from_str(&list).unwrap()
}

fn alive(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

/// What a runtime does not do, and how it is seen.
fn missed(runtime: Runtime) -> Option<Vec<(&'static str, String)>> {
    let mut missed = Vec::new();
    for (behaviour, check) in TABLE {
        let machine = Machine::of(runtime)?;
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| check(&machine))) {
            let why = why
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| why.downcast_ref::<&str>().map(|it| (*it).to_owned()));
            missed.push((*behaviour, why.unwrap_or_default()));
        }
    }
    Some(missed)
}

#[test]
fn the_launcher_does_what_the_specification_says() {
    let Some(missed) = missed(Runtime::Nacre) else { return };
    let text: Vec<_> = missed.iter().map(|(behaviour, why)| format!("{behaviour}\n  {why}")).collect();
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), TABLE.len(), text.join("\n"));
}

#[test]
fn where_debians_runtimes_differ_is_reported() {
    if std::env::var_os("NACRE_TEST_ALL").is_none() {
        return;
    }
    for (runtime, name) in [(Runtime::Crun, "crun"), (Runtime::Runc, "runc")] {
        if !std::process::Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            println!("skipped: needs {name} (Debian package {name})");
            continue;
        }
        let Some(missed) = missed(runtime) else { return };
        // Who misses most of it was not run as it should be.
        assert!(missed.len() < TABLE.len() / 2, "{name}: {missed:#?}");
        println!("{name} differs in {} of {}:", missed.len(), TABLE.len());
        for (behaviour, why) in missed {
            println!("  {behaviour}\n    {}", why.lines().take(3).collect::<Vec<_>>().join(" "));
        }
    }
}
