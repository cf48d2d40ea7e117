//! Containers that live on: in the background, several in one sandbox, badly behaved ones.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nacre::client::Client;
use nacre_tests::fixtures::images;
use nacre_tests::{Nacre, Registry, require};

const PATIENCE: Duration = Duration::from_secs(60);
/// What the agent may hold resident whatever its containers do, in KiB.
const AGENT_RESIDENT_KIB: u32 = 6 * 1024;

fn small() -> String {
    images().reference("small")
}

#[test]
fn a_detached_container_is_listed_logged_stopped_and_gone() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let script = "trap 'echo bye; exit 3' TERM; echo one; echo two >&2; while :; do sleep 0.1; done";
    nacre
        .run(["run", "-d", "--name", "web", "--keep", &small(), "sh", "-c", script])
        .exited(0)
        .printed("web\n");
    let listed = nacre.run(["ps"]).exited(0).text();
    assert!(listed.contains("web") && listed.contains("running") && listed.contains("oci:"), "{listed}");
    nacre.run(["ps", "-q"]).exited(0).printed("web\n");
    until("the output is in the log", || nacre.run(["logs", "web"]).stderr.contains("two"));
    nacre.run(["logs", "web"]).exited(0).printed("one\n").said(&["two"]);
    nacre.run(["stop", "web"]).exited(0).printed("web\n");
    nacre.run(["ps", "-q"]).exited(0).printed("");
    let listed = nacre.run(["ps", "-a"]).exited(0).text();
    assert!(listed.contains("exited (3)"), "{listed}");
    nacre.run(["logs", "web"]).exited(0).printed("one\nbye\n");
    nacre.run(["rm", "web"]).exited(0);
    nacre.run(["ps", "-aq"]).exited(0).printed("");
    for command in ["logs", "stop", "kill", "rm"] {
        nacre.run([command, "web"]).exited(1).said(&["web"]);
    }
    nacre.run(["exec", "web", "true"]).exited(125).said(&["web"]);
}

#[test]
fn a_followed_log_ends_with_the_container() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("slow", [&small(), "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.5; done"]);
    nacre.run(["logs", "--follow", "slow"]).exited(0).printed("1\n2\n3\n4\n5\n");
    until("nothing runs", || nacre.run(["ps", "-q"]).text().is_empty());
}

#[test]
fn a_container_that_ignores_to_be_stopped_is_killed() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("deaf", ["--keep", &small(), "sh", "-c", "trap '' TERM INT; while :; do sleep 0.1; done"]);
    let begun = Instant::now();
    nacre.run(["stop", "--time", "1", "deaf"]).exited(0);
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(nacre.run(["ps", "-a"]).text().contains("exited (137)"));
    nacre.run(["rm", "deaf"]).exited(0);
}

#[test]
fn a_name_is_taken_once() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("one", [&small(), "sleep", "1000"]);
    nacre.run(["run", "--name", "one", &small(), "true"]).exited(125).said(&["one", "taken"]);
    nacre.remove("one");
    nacre.run(["run", "--name", "one", &small(), "true"]).exited(0);
}

#[test]
fn commands_run_beside_the_first_process() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("box", ["-e", "A=first", "-w", "/var", &small(), "sleep", "1000"]);
    nacre.run(["exec", "box", "sh", "-c", "echo $A $FROM_IMAGE; pwd"]).exited(0).printed("first yes\n/var\n");
    let words =
        ["exec", "-e", "A=second", "-w", "/tmp", "-u", "user", "box", "sh", "-c", "echo $A; pwd; id -u"];
    nacre.run(words).exited(0).printed("second\n/tmp\n1000\n");
    nacre.run_with_input(b"typed", ["exec", "-i", "box", "cat"]).exited(0).printed("typed");
    // They share the namespaces: a file, a process, the cgroup.
    nacre.run(["exec", "box", "sh", "-c", "echo x > /tmp/file"]).exited(0);
    nacre.run(["exec", "box", "cat", "/tmp/file"]).exited(0).printed("x\n");
    nacre.run(["exec", "box", "cat", "/proc/1/comm"]).exited(0).printed("sleep\n");
    // Several at once.
    let running: Vec<_> =
        (0..8).map(|i| nacre.start(["exec", "box", "sh", "-c", &format!("sleep 0.5; echo {i}")])).collect();
    for (i, running) in running.into_iter().enumerate() {
        running.finish(PATIENCE).exited(0).printed(&format!("{i}\n"));
    }
    nacre.remove("box");
}

#[test]
fn two_containers_of_one_sandbox_share_its_layers() {
    require!(vm, tool "umoci", tool "buildah", tool "docker-registry");
    let registry = Registry::holding(images(), &["odd", "small"]);
    let nacre = Nacre::new();
    nacre.detach("one", [&registry.reference("odd"), "sleep", "1000"]);
    let layers = images().manifest("odd")["layers"].as_array().map_or(0, Vec::len);
    let fetched = registry.answered("GET", "/blobs/");
    // The layers and the configuration.
    assert_eq!(fetched, layers + 1, "blobs for {layers} layers");
    let words = ["run", "--in", "one", "--name", "two", &registry.reference("odd"), "sh", "-c"];
    let output = nacre.run([&words[..], &["echo mine > /kept/changed; cat /kept/changed"]].concat());
    output.exited(0).printed("mine\n");
    // Another image of the same lowest layer.
    let other = registry.reference("small");
    nacre.run(["run", "--in", "one", "--name", "three", &other, "cat", "/etc/plain"]).exited(0);
    let layer = images().manifest("small")["layers"][0]["digest"].as_str().expect("no digest").to_owned();
    assert_eq!(registry.answered("GET", &layer), 1, "the shared layer was fetched again");
    for digest in images().manifest("odd")["layers"].as_array().into_iter().flatten() {
        let digest = digest["digest"].as_str().expect("no digest");
        assert_eq!(registry.answered("GET", digest), 1, "{digest} was fetched again");
    }
    // What one wrote the other does not see.
    nacre.run(["exec", "one", "cat", "/kept/changed"]).exited(0).printed("x\n");
    // They share the network and nothing else.
    nacre.run(["exec", "one", "sh", "-c", "ps | grep -c sleep"]).exited(0);
    nacre.remove("one");
}

#[test]
fn a_killed_container_leaves_the_others_alone() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("one", [&small(), "sleep", "1000"]);
    let mut running =
        nacre.start(["run", "--in", "one", "--name", "two", &small(), "sh", "-c", "echo up; sleep 1000"]);
    running.wait_for("up", PATIENCE);
    nacre.run(["kill", "two"]).exited(0).printed("two\n");
    running.finish(PATIENCE).exited(137);
    nacre.run(["exec", "one", "echo", "alive"]).exited(0).printed("alive\n");
    nacre.run(["ps", "-q"]).exited(0).printed("one\n");
    nacre.remove("one");
}

#[test]
fn children_of_a_container_end_with_it() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("one", [&small(), "sleep", "1000"]);
    let script =
        "for i in 1 2 3 4 5; do setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' & done; exit 7";
    let begun = Instant::now();
    nacre.run(["run", "--in", "one", "--name", "forks", &small(), "sh", "-c", script]).exited(7);
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    // The same with a storm of them, killed from outside.
    let storm = "f() { while :; do (sleep 0.01) & f2=$!; done; }; echo up; f";
    let words = ["run", "--in", "one", "--name", "storm", "--pids-limit", "60", &small(), "sh", "-c", storm];
    let mut running = nacre.start(words);
    running.wait_for("up", PATIENCE);
    std::thread::sleep(Duration::from_secs(1));
    nacre.run(["kill", "storm"]).exited(0);
    running.finish(PATIENCE).exited(137);
    nacre.run(["exec", "one", "echo", "alive"]).exited(0).printed("alive\n");
    nacre.remove("one");
}

#[test]
fn the_limits_of_a_container_hold() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let words = ["run", "-d", "--name", "box", "-m", "64m", "--cpus", "0.5", "--pids-limit", "20", &small()];
    nacre.run([&words[..], &["sleep", "1000"]].concat()).exited(0);
    for (file, value) in [("memory.max", "67108864"), ("pids.max", "20"), ("cpu.max", "50000 100000")] {
        nacre
            .run(["exec", "box", "cat", &format!("/sys/fs/cgroup/{file}")])
            .exited(0)
            .printed(&format!("{value}\n"));
    }
    let script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo unreached";
    let output = nacre.run(["exec", "box", "sh", "-c", script]);
    assert!(!output.text().contains("unreached"), "{output}");
    nacre.remove("box");
}

#[test]
fn two_processors_are_two_processors() {
    require!(vm, tool "umoci", tool "busybox");
    let expected = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    let output =
        Nacre::new().run(["run", "--cpus", "2", &small(), "sh", "-c", "nproc; cat /sys/fs/cgroup/cpu.max"]);
    output.exited(0).printed(&format!("{expected}\n200000 100000\n"));
}

#[test]
fn out_of_memory_is_137_and_said() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    // Reads one endless line into memory.
    let output = nacre.run(["run", "-m", "48m", &small(), "tail", "/dev/zero"]);
    output.exited(137).said(&["out of memory"]);
    // Of the sandbox, another container lives on.
    nacre.detach("one", [&small(), "sleep", "1000"]);
    let words = ["run", "--in", "one", "--name", "two", "-m", "48m", &small(), "tail", "/dev/zero"];
    nacre.run(words).exited(137).said(&["out of memory"]);
    nacre.run(["exec", "one", "echo", "alive"]).exited(0).printed("alive\n");
    nacre.remove("one");
}

#[test]
fn output_that_nobody_reads_stops_the_container_and_costs_the_agent_nothing() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let mut command = nacre.command(["run", "-q", "--name", "flood", &small(), "sh", "-c"]);
    command.arg("echo begin; exec yes 0123456789abcdef0123456789abcdef0123456789abcdef");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("cannot start");
    let mut stdout = child.stdout.take().expect("no stdout");
    let mut first = [0; 6];
    stdout.read_exact(&mut first).expect("no output");
    assert_eq!(&first, b"begin\n");
    std::thread::sleep(Duration::from_secs(3));
    let resident = agent_resident_kib(&nacre, "flood");
    assert!(resident <= AGENT_RESIDENT_KIB, "the agent holds {resident} KiB of at most {AGENT_RESIDENT_KIB}");
    // Others are served meanwhile.
    nacre.run(["exec", "flood", "echo", "served"]).exited(0).printed("served\n");
    // It goes on when somebody reads.
    let mut more = vec![0; 4 << 20];
    stdout.read_exact(&mut more).expect("no more output");
    assert!(more.split(|byte| *byte == b'\n').skip(1).take(1000).all(|line| line.len() == 48));
    nacre.run(["kill", "flood"]).exited(0);
    drop(stdout);
    child.wait().expect("cannot wait");
}

#[test]
fn a_detached_flood_costs_a_bounded_log() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("flood", [&small(), "yes"]);
    std::thread::sleep(Duration::from_secs(8));
    let bytes = bytes_below(&nacre.guard().runtime());
    assert!(bytes < 40 << 20, "{bytes} bytes of log");
    let resident = agent_resident_kib(&nacre, "flood");
    assert!(resident <= AGENT_RESIDENT_KIB, "the agent holds {resident} KiB of at most {AGENT_RESIDENT_KIB}");
    nacre.run(["exec", "flood", "echo", "served"]).exited(0).printed("served\n");
    nacre.remove("flood");
}

#[test]
fn commands_that_nobody_waits_for_do_not_pile_up() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    nacre.detach("box", [&small(), "sleep", "1000"]);
    for _ in 0..5 {
        nacre.run(["exec", "box", "true"]).exited(0);
    }
    let before = agent_resident_kib(&nacre, "box");
    for _ in 0..30 {
        nacre.run(["exec", "box", "true"]).exited(0);
    }
    let after = agent_resident_kib(&nacre, "box");
    assert!(after <= before + 256, "the agent grew from {before} to {after} KiB in 30 commands");
    nacre.remove("box");
}

/// Resident memory of the agent of a sandbox, as its report has it.
fn agent_resident_kib(nacre: &Nacre, sandbox: &str) -> u32 {
    let socket = PathBuf::from(nacre.record(sandbox)["vsock"].as_str().expect("no vsock in the record"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("no runtime");
    let report = runtime.block_on(async {
        let client = Client::new(&socket);
        client.wait_until_up(PATIENCE).await.expect("no agent");
        client.report().await.expect("no report")
    });
    let found = report.processes.iter().find(|found| found.name.contains("agent"));
    found.unwrap_or_else(|| panic!("no agent in {:?}", report.processes)).resident_kib
}

fn bytes_below(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
