//! PID 1 of a booted guest: a system call of its that fails, and thousands of containers. A prober behind it traces it and tells what
//! is left over; see `src/bin/test_init`.

mod guest;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::{END, Guest};
use nacre::vmm::VmEnd;
use nacre_protocols::names::AGENT_VSOCK_PORT;
use nacre_tests::agentctl::{Client, encode, reply};
use nacre_tests::{artefacts, require};
use serde_json::{Value, json};

/// At which the prober is asked.
const PORT: u32 = 4096;
/// How long one answer may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// errno(3). A signal cannot kill PID 1.
const ERRORS: [(&str, i32); 4] = [("EINTR", 4), ("ENOMEM", 12), ("EIO", 5), ("ENOSPC", 28)];
/// Of each system call, the first so many fail, with the first so many errors; with `--all` every one, with each.
const FEW: u64 = 1;
const FEW_ERRORS: usize = 2;
/// What init or its allocator says when it cannot go on.
const LAST_WORDS: [&str; 2] = ["fatal: ", "memory allocation"];
const CONTAINER: &str = "app0";

fn process(script: &str) -> Value {
    json!({"args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"})
}

/// What every container mounts: its root is the host's, which takes no device node.
fn own_mounts() -> Vec<Value> {
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
    ]
}

/// A guest whose prober does as it is told.
struct Probed {
    guest: Guest,
    client: Client,
    prober: BufReader<UnixStream>,
    /// What is there without a container.
    bare: Value,
}

impl Probed {
    fn boot() -> Self {
        let folder = tempfile::tempdir().expect("no folder");
        let port = folder.path().join("port");
        std::fs::write(&port, PORT.to_string()).expect("cannot write");
        let image = artefacts::image_with(&[("etc/nacre-test-control", &port)]);
        let guest = Guest::boot_with(|_, config| config.image = Some(image));
        let client = guest.client();
        let (prober, _) = guest.dial(PORT).expect("no prober");
        prober.set_read_timeout(Some(PATIENCE)).expect("no limit");
        let mut probed = Self { guest, client, prober: BufReader::new(prober), bare: Value::Null };
        let share = json!({"driver": "virtio-fs", "source": "kataShared", "fstype": "virtiofs",
            "mount_point": "/run/kata-containers/shared/containers/"});
        probed.call("CreateSandbox", &json!({"sandbox_id": "box", "storages": [share]})).expect("no sandbox");
        // What is made once and stays is made by the first.
        probed.round().expect("a round without a fault");
        probed.bare = probed.look().expect("the prober is gone")["left"].clone();
        probed
    }

    fn call(&self, method: &str, request: &Value) -> Result<Value, String> {
        let (service, payload) = encode(method, request)?;
        let pending = self.client.begin(service, method, payload, None).map_err(|error| error.to_string())?;
        match pending.wait(PATIENCE).map_err(|error| error.to_string())? {
            Some(response) => match response.into_result() {
                Ok(payload) => reply(method, &payload),
                Err(status) if status.message.is_empty() => panic!("{method} failed without a word"),
                Err(status) => Err(status.message),
            },
            // An init that has ended answers nothing any more.
            None if self.guest.vm.wait_for(Duration::ZERO).is_some() => Err("the guest has ended".to_owned()),
            None => panic!("{method} was never answered; the console:\n{}", self.guest.console()),
        }
    }

    fn ask(&mut self, what: &Value) -> io::Result<Value> {
        self.prober.get_mut().write_all(format!("{what}\n").as_bytes())?;
        let mut line = String::new();
        match self.prober.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }

    fn look(&mut self) -> io::Result<Value> {
        self.ask(&json!({"ask": "look"}))
    }

    /// A container with so much beside its root, made and started.
    fn start(&self, storages: &Value, mounts: &Value) -> Result<(), String> {
        let root = format!("/run/kata-containers/shared/containers/{CONTAINER}/rootfs");
        let oci = json!({"root": {"path": root}, "mounts": mounts, "process": process("exec sleep 1000")});
        let create =
            json!({"container_id": CONTAINER, "exec_id": CONTAINER, "storages": storages, "oci": oci});
        self.call("CreateContainer", &create)?;
        self.call("StartContainer", &json!({"container_id": CONTAINER})).map(drop)
    }

    /// Killed and removed.
    fn end(&self) -> Result<(), String> {
        let container = json!({"container_id": CONTAINER});
        self.call("SignalProcess", &json!({"container_id": CONTAINER, "signal": 9}))?;
        self.call("WaitProcess", &container)?;
        self.call("RemoveContainer", &container).map(drop)
    }

    /// A container that comes and goes.
    fn short_round(&self) -> Result<(), String> {
        self.start(&json!([]), &Value::Array(own_mounts()))?;
        self.end()
    }

    /// A container with a volume, and a process more in it.
    fn round(&self) -> Result<(), String> {
        let volume = "/run/kata-containers/sandbox/volume";
        let storages =
            json!([{"driver": "ephemeral", "source": "tmpfs", "fstype": "tmpfs", "mount_point": volume}]);
        let shared =
            json!({"destination": "/tmp", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
        self.start(&storages, &Value::Array([own_mounts(), vec![shared]].concat()))?;
        let of_exec = |mut with: Value| {
            (with["container_id"], with["exec_id"]) = (json!(CONTAINER), json!("e"));
            with
        };
        let script = process("read line; echo $line; exit 3");
        self.call("ExecProcess", &of_exec(json!({"process": script})))?;
        self.call("WriteStdin", &of_exec(json!({"data": "said\n"})))?;
        self.call("ReadStdout", &of_exec(json!({"len": 100})))?;
        self.call("WaitProcess", &of_exec(json!({})))?;
        self.end()
    }

    /// Removes what a broken round has left, as a shim does, and looks that nothing is.
    fn clean(&mut self, what: &str) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut left;
        loop {
            let removed = self.call("RemoveContainer", &json!({"container_id": CONTAINER}));
            left = self.look()?["left"].clone();
            let is_gone = removed.as_ref().err().is_none_or(|error| error.contains("Invalid container id"));
            // The agent may have been replaced; its connections go with it.
            if !is_gone && let Ok(client) = Client::connect(self.guest.vm.vsock_path(), AGENT_VSOCK_PORT) {
                self.client = client;
            }
            if is_gone && left == self.bare {
                return Ok(());
            }
            let differing: Vec<_> = ["processes", "mounts", "cgroups", "files"]
                .into_iter()
                .filter(|what| left[*what] != self.bare[*what])
                .map(|what| (&left[what], &self.bare[what]))
                .collect();
            let console = self.guest.console();
            assert!(
                Instant::now() < until,
                "{what}: {removed:?} and, left and before, {differing:#?}\n{console}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Probed {
    /// One fault in one round, and what is left; false when the round did not come to it. An error: the guest has ended.
    fn survives(&mut self, what: &str, fault: &Value) -> io::Result<bool> {
        self.ask(fault)?;
        let outcome = self.round();
        if self.ask(&json!({"ask": "traced"}))?["injected"] != true {
            // Calls vary with what is ready when; this round had fewer.
            assert_eq!(outcome, Ok(()), "{what}: nothing was injected");
            return Ok(false);
        }
        self.clean(what)?;
        if let Err(error) = self.round() {
            self.look()?;
            panic!("{what}: the next round: {error}\n{}", self.guest.console());
        }
        self.clean(what)?;
        Ok(true)
    }
}

#[test]
fn a_call_of_init_that_fails_is_survived_or_ends_the_sandbox_with_a_word() {
    require!(vm, tool "busybox");
    let mut probed = Probed::boot();
    probed.ask(&json!({"ask": "trace"})).expect("PID 1 cannot be traced");
    probed.round().expect("a round that is only looked at");
    let seen = probed.ask(&json!({"ask": "traced"})).expect("no end of the trace");
    let calls: BTreeMap<String, u64> = serde_json::from_value(seen["calls"].clone()).expect("no calls");
    eprintln!("system calls of a round, by number: {calls:?}");
    assert!(calls.len() > 15, "{calls:?}");
    let all = std::env::var_os("NACRE_TEST_ALL").is_some();
    let (mut runs, mut survived, mut ended) = (0, 0, Vec::new());
    for (call, count) in &calls {
        for (name, error) in ERRORS.into_iter().take(if all { ERRORS.len() } else { FEW_ERRORS }) {
            for when in 1..=if all { *count } else { FEW } {
                let what = format!("call {call} number {when} with {name}");
                let call: u64 = call.parse().expect("a number");
                runs += 1;
                match probed
                    .survives(&what, &json!({"ask": "trace", "call": call, "error": error, "when": when}))
                {
                    Ok(true) => survived += 1,
                    Ok(false) => {}
                    // It was fatal, and somebody says so.
                    Err(_) => {
                        let end = probed.guest.vm.wait_for(END);
                        let console = probed.guest.console();
                        let is_end = matches!(end, Some(VmEnd::Finished | VmEnd::Panicked { .. }));
                        assert!(is_end, "{what}: {end:?}\n{console}");
                        let said = LAST_WORDS.iter().any(|words| console.contains(words));
                        assert!(said, "{what}: the sandbox ended without a word\n{console}");
                        ended.push(what);
                        probed = Probed::boot();
                    }
                }
            }
        }
    }
    eprintln!("{runs} runs: {survived} faults survived, {} ended the sandbox: {ended:#?}", ended.len());
    assert!(survived > runs / 2, "{survived} of {runs}");
}

#[test]
fn containers_that_come_and_go_leave_nothing_in_the_guest() {
    require!(vm, tool "busybox");
    let mut probed = Probed::boot();
    let rounds =
        |few: usize, all: usize| if std::env::var_os("NACRE_TEST_ALL").is_some() { all } else { few };
    let run = |probed: &Probed, count: usize| {
        for number in 0..count {
            if let Err(error) = probed.short_round() {
                let (end, console) =
                    (probed.guest.vm.wait_for(Duration::from_secs(5)), probed.guest.console());
                panic!("round {number}: {error}; the guest: {end:?}\n{console}");
            }
        }
    };
    run(&probed, rounds(20, 200));
    let sizes = |probed: &mut Probed| {
        let sizes = probed.look().expect("the prober is gone")["sizes"].clone();
        ["nacre-init", "nacre-agent"].map(|name| {
            let size =
                |what: &str| sizes[name][what].as_u64().unwrap_or_else(|| panic!("no {name}: {sizes}"));
            (size("descriptors"), size("anonymous_kib"))
        })
    };
    probed.clean("before").expect("the prober is gone");
    let before = sizes(&mut probed);
    let (mut done, mut after) = (0, before);
    while done < rounds(60, 10_000) {
        let part = rounds(60, 500);
        run(&probed, part);
        done += part;
        probed.clean("after").expect("the prober is gone");
        after = sizes(&mut probed);
        eprintln!(
            "{done} rounds: descriptors and anonymous KiB of init and agent {before:?}, then {after:?}"
        );
    }
    for (before, after) in before.into_iter().zip(after) {
        assert_eq!(before.0, after.0, "descriptors");
        assert!(after.1 <= before.1 + 64, "anonymous memory went from {} to {} KiB", before.1, after.1);
    }
}
