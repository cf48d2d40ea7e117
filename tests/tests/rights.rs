//! The rights of the guest's own processes are those of ARCHITECTURE.md's table, seen from inside a running guest.
//!
//! The guest image of these tests has a stand-in for `/sbin/init` that leaves a prober behind and becomes the real init;
//! see `src/bin/test_init`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nacre_protocols::names::{FETCHER_MEMORY, INDEXER_MEMORY, OWN_PROCESSES};
use nacre_tests::fixtures::images;
use nacre_tests::nacre::Running;
use nacre_tests::proxy::{Answer, Proxy};
use nacre_tests::rights::{Found, Rights, table};
use nacre_tests::{Nacre, Registry, artefacts, require};

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn every_process_has_the_rights_of_the_table_and_no_others() {
    require!(vm, tool "umoci", tool "docker-registry");
    let sandbox = Pulling::start();
    let found = look(&sandbox.nacre, "box");
    // The puller's two processes see nothing of each other, nor of the rest, and have their bounds.
    let parts = ["nacre-init", "nacre-puller (fetcher)", "nacre-puller (indexer)"];
    for kind in ["mnt", "pid", "ipc", "uts", "cgroup"] {
        let own = parts.map(|name| find(&found, name).namespaces[kind].to_string());
        assert_eq!(BTreeSet::from(own.clone()).len(), parts.len(), "{kind}: {own:?}");
    }
    for (name, memory) in parts.into_iter().skip(1).zip([FETCHER_MEMORY, INDEXER_MEMORY]) {
        let limits = &find(&found, name).limits;
        let expected = [("memory.max", memory), ("pids.max", OWN_PROCESSES)];
        for (limit, expected) in expected {
            assert_eq!(limits[limit], expected.to_string(), "{name}: {limits}");
        }
    }
    let network_of = |name: &str| find(&found, name).namespaces["net"].clone();
    for rights in table() {
        let process = find(&found, &rights.process);
        let differences = differences(&rights, process);
        assert!(differences.is_empty(), "{}:\n  {}", rights.process, differences.join("\n  "));
        match rights.network.as_str() {
            "own, empty" => {
                assert_ne!(process.namespaces["net"], network_of("nacre-init"), "{}", rights.process);
                assert!(process.interfaces.iter().all(|name| name == "lo"), "{:?}", process.interfaces);
            }
            _ => assert_eq!(process.namespaces["net"], network_of("nacre-init"), "{}", rights.process),
        }
    }
    sandbox.end();
}

#[test]
fn nothing_runs_in_the_guest_that_the_table_does_not_name() {
    require!(vm, tool "umoci", tool "docker-registry");
    let sandbox = Pulling::start();
    let found = look(&sandbox.nacre, "box");
    let known: BTreeSet<String> = table().into_iter().map(|rights| rights.process).collect();
    for process in &found {
        let name = name(process);
        let of_a_container = process.namespaces["pid"] != find(&found, "nacre-init").namespaces["pid"];
        let prober = process.arguments.iter().any(|word| word == "--probe");
        assert!(known.contains(&name) || prober || of_a_container, "{name}: {process:?}");
    }
    sandbox.end();
}

#[test]
fn no_descriptor_leads_an_unprivileged_process_to_a_file_system() {
    require!(vm, tool "umoci", tool "docker-registry");
    let sandbox = Pulling::start();
    let found = look(&sandbox.nacre, "box");
    for name in ["nacre-agent", "nacre-puller (fetcher)", "nacre-puller (indexer)"] {
        for (number, target) in &find(&found, name).descriptors {
            let fetcher = name.contains("fetcher");
            let allowed = ["socket:", "anon_inode:", "pipe:", "/memfd:", "/dev/null", "/dev/console"]
                .iter()
                .any(|kind| target.starts_with(kind))
                // Pipes of the containers' streams, terminals, cgroup files that init handed over.
                || (name == "nacre-agent" && (target.starts_with("/dev/pts/") || target.starts_with("/sys/fs/cgroup/")))
                || (fetcher && target.starts_with("/store"))
                // The layers that the fetcher handed it.
                || (name.contains("indexer") && target.starts_with("/store/tmp/"));
            assert!(allowed, "{name} has descriptor {number} on {target}");
        }
    }
    sandbox.end();
}

#[test]
fn a_container_has_the_floor_beneath_its_own_filter() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let nacre = Nacre::new().image(artefacts::probed_image());
    nacre.detach("box", [&registry.reference("small"), "sleep", "1000"]);
    nacre
        .run([
            "run",
            "-d",
            "--in",
            "box",
            "--name",
            "free",
            "--security-opt",
            "seccomp=unconfined",
            &registry.reference("small"),
            "sleep",
            "1001",
        ])
        .exited(0);
    let found = look(&nacre, "box");
    for (seconds, filters) in [("1000", "2"), ("1001", "1")] {
        let process = found.iter().find(|process| process.arguments == ["sleep", seconds]);
        let process = process.unwrap_or_else(|| panic!("no sleep {seconds} in {found:?}"));
        assert_eq!(process.status("Seccomp_filters"), filters, "sleep {seconds}");
        assert_eq!(process.status("Seccomp"), "2");
        let init = find(&found, "nacre-init");
        for name in ["mnt", "pid", "ipc", "uts", "cgroup"] {
            assert_ne!(process.namespaces[name], init.namespaces[name], "{name}");
        }
        for (number, target) in &process.descriptors {
            assert!(number.parse::<u32>().is_ok_and(|number| number <= 2), "descriptor {number} on {target}");
        }
    }
    nacre.remove("free");
    nacre.remove("box");
}

#[test]
fn nothing_of_a_killed_container_stays_in_the_guest() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let nacre = Nacre::new().image(artefacts::probed_image());
    nacre.detach("box", [&registry.reference("small"), "sleep", "1000"]);
    let script = "for i in 1 2 3 4 5; do setsid sleep 4711 & done; echo up; sleep 4711";
    let words = ["run", "--in", "box", "--name", "forks", &registry.reference("small"), "sh", "-c", script];
    let mut running = nacre.start(words);
    running.wait_for("up", PATIENCE);
    let marked = |found: &[Found]| {
        found.iter().filter(|process| process.arguments.iter().any(|word| word == "4711")).count()
    };
    assert_eq!(marked(&look(&nacre, "box")), 6);
    nacre.run(["kill", "forks"]).exited(0);
    running.finish(PATIENCE).exited(137);
    let found = look(&nacre, "box");
    assert_eq!(marked(&found), 0, "{found:?}");
    // Nor a descriptor that init kept for it.
    let before = find(&found, "nacre-init").descriptors.len();
    for _ in 0..5 {
        let words = ["run", "--in", "box", "--name", "again", &registry.reference("small"), "true"];
        nacre.run(words).exited(0);
        nacre.run(["exec", "box", "true"]).exited(0);
    }
    let after = find(&look(&nacre, "box"), "nacre-init").descriptors.len();
    assert!(after <= before, "init's descriptors grew from {before} to {after}");
    nacre.remove("box");
}

/// A sandbox with a container, and a pull under way that does not get on: the puller lives no longer than its work.
struct Pulling {
    nacre: Nacre,
    pull: Running,
    _proxy: Proxy,
    _registry: Registry,
}

impl Pulling {
    fn start() -> Self {
        let registry = Registry::holding(images(), &["small", "odd"]);
        let layers = images().manifest("odd")["layers"].clone();
        let last = layers[5]["digest"].as_str().expect("six layers").to_owned();
        let proxy = Proxy::start(registry.port, move |seen| match seen.path.contains(&last) {
            true => Answer::StallAfter(10),
            false => Answer::Pass,
        });
        let nacre = Nacre::new().image(artefacts::probed_image());
        nacre.detach("box", [&proxy.reference("small"), "sleep", "1000"]);
        let pull = nacre.start(["run", "--in", "box", "--name", "other", &proxy.reference("odd"), "true"]);
        let until = Instant::now() + PATIENCE;
        while proxy.seen().iter().filter(|seen| seen.is_blob()).count() < 4 {
            assert!(Instant::now() < until, "the pull does not begin: {:?}", proxy.seen());
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { nacre, pull, _proxy: proxy, _registry: registry }
    }

    fn end(self) {
        self.pull.signal(rustix::process::Signal::INT);
        self.pull.finish(PATIENCE);
        self.nacre.remove("box");
    }
}

fn differences(rights: &Rights, process: &Found) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, found: String, expected: String| {
        if found != expected {
            differences.push(format!("{what}: {found}, the table says {expected}"));
        }
    };
    compare("uids", format!("{:?}", process.uids()), format!("{:?}", vec![rights.uid; 4]));
    compare("gids", format!("{:?}", process.gids()), format!("{:?}", vec![rights.uid; 4]));
    compare("groups", format!("{:?}", process.groups()), "[]".to_owned());
    compare("capabilities", format!("{:x?}", process.capabilities()), format!("{:x?}", rights.capabilities));
    compare(
        "no_new_privs",
        process.status("NoNewPrivs").to_owned(),
        u8::from(rights.no_new_privs).to_string(),
    );
    compare("seccomp mode", process.status("Seccomp").to_owned(), "2".to_owned());
    compare("seccomp filters", process.status("Seccomp_filters").to_owned(), rights.filters.to_string());
    differences
}

/// What the prober sees in its next whole round.
fn look(nacre: &Nacre, sandbox: &str) -> Vec<Found> {
    let console = nacre.guard().runtime().join("nacre").join(sandbox).join("console.log");
    let rounds = |text: &str| text.matches("PROBE END").count();
    let read = || String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
    // The round that is under way may have begun before; the one after has not.
    let wanted = rounds(&read()) + 2;
    let until = Instant::now() + PATIENCE;
    let text = loop {
        let text = read();
        if rounds(&text) >= wanted {
            break text;
        }
        assert!(Instant::now() < until, "the prober is silent; the console:\n{text}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let (_, round) = text.split_at(text.rfind("PROBE BEGIN").expect("no round"));
    let round = match round.contains("PROBE END") {
        true => round,
        false => text[..text.len() - round.len()].rsplit_once("PROBE BEGIN").expect("no round").1,
    };
    round.lines().filter_map(|line| line.trim().strip_prefix("PROBE ")).filter_map(Found::parse).collect()
}

/// As the table names it.
fn name(process: &Found) -> String {
    let executable = process.executable.rsplit('/').next().unwrap_or_default();
    let arguments = process.arguments.join(" ");
    match executable {
        _ if process.pid == 1 => "nacre-init".to_owned(),
        "nacre-puller" if arguments.contains("index") => "nacre-puller (indexer)".to_owned(),
        "nacre-puller" => "nacre-puller (fetcher)".to_owned(),
        other => other.to_owned(),
    }
}

fn find<'a>(found: &'a [Found], wanted: &str) -> &'a Found {
    let process = found.iter().find(|process| name(process) == wanted);
    process.unwrap_or_else(|| {
        panic!("no {wanted} in the guest: {:?}", found.iter().map(name).collect::<Vec<_>>())
    })
}
