//! One system call of the launcher fails, or kills it, while a container is made, entered and taken away: each call, each fault, one
//! at a time (strace(1), `inject`). Whatever is hit, it ends in success or in an error that says what failed, nothing is left that
//! init does not take away, and the next round goes through.
//!
//! Every so-manieth in the usual run, all of them with `NACRE_TEST_ALL`. Needs what `harness` needs, and `strace`.

mod harness;

use harness::{Guest, container, make_rootfs, shell};
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{LAYERS_DIR, Sha256, UPPER_DIR};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const FAULTS: [&str; 5] = ["error=ENOMEM", "error=EIO", "error=ENOSPC", "error=EINTR", "signal=KILL"];
/// In the usual run.
const STRIDE: usize = 23;
/// How long a launcher that was hit may take, and what it leaves to be gone.
const PATIENCE: Duration = Duration::from_secs(20);
const STRACE: &str = "/usr/bin/strace";
const LAYER: Sha256 = Sha256([0xaa; 32]);
const SHM: &str = "/run/kata-containers/sandbox/shm";
/// What ends a process, and what the loader does before there is one of ours. brk(2) has no errors: what is refused looks granted.
const NEVER: [&str; 4] = ["execve", "exit_group", "exit", "brk"];

/// What launchers are asked, in the order of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Storage,
    Create,
    Exec,
    Remove,
}

const PARTS: [Part; 4] = [Part::Storage, Part::Create, Part::Exec, Part::Remove];

/// What became of one launcher.
#[derive(Debug)]
struct Outcome {
    frames: Vec<Status>,
    code: u8,
}

impl Outcome {
    fn is_success(&self) -> bool {
        let failed = self.frames.iter().any(|frame| matches!(frame, Status::Failed(_)));
        self.code == 0 && !failed && !self.frames.is_empty()
    }

    /// Success, an error in words, or a death that init sees.
    #[track_caller]
    fn check(&self, what: &str) {
        for frame in &self.frames {
            if let Status::Failed(failure) = frame {
                assert!(!failure.message.is_empty(), "{what}: {self:?}");
            }
        }
        assert!(self.is_success() || self.code != 0, "{what}: neither success nor an error: {self:?}");
    }
}

struct Bench {
    guest: Guest,
    log: tempfile::NamedTempFile,
}

impl Bench {
    fn new() -> Option<Self> {
        let guest = Guest::new()?;
        if !Path::new(STRACE).exists() {
            assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "cannot run: needs strace");
            eprintln!("skipped: needs strace (Debian package strace)");
            return None;
        }
        make_rootfs(&Path::new(LAYERS_DIR).join(LAYER.to_string()));
        Some(Self { guest, log: tempfile::NamedTempFile::new().unwrap() })
    }

    /// Launchers from here on run under strace, with what is injected.
    fn trace(&mut self, injection: &[&str]) {
        let log = self.log.path().to_str().unwrap();
        let words = [STRACE, "-f", "-o", log].into_iter().chain(injection.iter().copied());
        self.guest.wrapper = words.map(str::to_owned).collect();
    }

    fn trace_nothing(&mut self) {
        self.guest.wrapper.clear();
    }

    fn container(&self, script: &str) -> Plan {
        let mut plan = container(script);
        plan.rootfs = Rootfs::Layers(vec![LAYER]);
        plan.process.oom_score_adj = Some(100);
        Plan::Create(Box::new(plan))
    }

    /// The rest of a launcher's frames, and its end.
    fn end(launched: harness::Launched, mut frames: Vec<Status>) -> Outcome {
        frames.extend(std::iter::from_fn(|| launched.next_status().map(|(status, _)| status)));
        let mut launched = launched;
        Outcome { frames, code: launched.wait() }
    }

    fn plain(&self, mode: Mode, plan: &Plan) -> Outcome {
        Self::end(self.watched(self.guest.launch(mode, plan)), Vec::new())
    }

    /// One that hangs is killed, and not taken for one that ended.
    fn watched(&self, launched: harness::Launched) -> harness::Launched {
        let pidfd = launched.child.pidfd.try_clone().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            let _ = nacre_sys::process::signal(std::os::fd::AsFd::as_fd(&pidfd), 15);
        });
        launched
    }

    /// A container that runs.
    fn create(&self) -> harness::Launched {
        let mut launched = self.watched(self.guest.launch(Mode::Create, &self.container("exec sleep 1000")));
        launched.start();
        launched
    }

    /// One whose command ends at once: strace holds the status socket open until then.
    fn create_traced(&self) -> Outcome {
        let mut launched = self.watched(self.guest.launch(Mode::Create, &self.container("exec true")));
        match launched.next_status() {
            Some((Status::Ready, _)) => {
                launched.open_gate();
                Self::end(launched, vec![Status::Ready])
            }
            first => Self::end(launched, first.map(|(status, _)| status).into_iter().collect()),
        }
    }

    fn storage() -> Plan {
        Plan::Storage(vec![
            StorageStep::Directory {
                path: "/run/kata-containers/sandbox/local".to_owned(),
                mode: 0o770,
                group: Some(7),
            },
            StorageStep::Tmpfs {
                mount_point: SHM.to_owned(),
                data: vec!["size=1m".to_owned()],
                attributes: MountAttributes::default(),
            },
            StorageStep::File {
                path: "/run/kata-containers/sandbox/resolv.conf".to_owned(),
                content: b"x".to_vec(),
            },
        ])
    }

    fn removal() -> Plan {
        Plan::Storage(vec![
            StorageStep::RemoveWritable { container: "box".to_owned() },
            StorageStep::Unmount { mount_point: SHM.to_owned() },
        ])
    }

    /// A round in which the launcher of one part is traced; gives what became of that one.
    fn round(&mut self, traced: Part, injection: &[&str]) -> Outcome {
        let mut found = None;
        let mut running = None;
        for part in PARTS {
            match part == traced {
                true => self.trace(injection),
                false => self.trace_nothing(),
            }
            let outcome = match part {
                Part::Storage => self.plain(Mode::Storage, &Self::storage()),
                Part::Create if traced == Part::Create => self.create_traced(),
                Part::Create => {
                    running = Some(self.create());
                    continue;
                }
                Part::Exec => match &running {
                    Some(target) => {
                        Self::end(self.watched(self.guest.exec(target, shell("exec true"))), Vec::new())
                    }
                    None => continue,
                },
                Part::Remove => {
                    // With it go all of its pid namespace.
                    drop(running.take());
                    self.plain(Mode::Storage, &Self::removal())
                }
            };
            if part == traced {
                found = Some(outcome);
            }
        }
        self.trace_nothing();
        self.guest.renew_cgroup();
        found.unwrap()
    }

    /// By name, how many calls the launcher of a part makes until it is the command.
    fn calls(&mut self, part: Part) -> BTreeMap<String, usize> {
        let outcome = self.round(part, &[]);
        assert!(
            outcome.is_success(),
            "{part:?}: {outcome:?}\n{}",
            fs::read_to_string(self.log.path()).unwrap()
        );
        let log = fs::read_to_string(self.log.path()).unwrap();
        let mut counts = BTreeMap::new();
        let mut executed = 0;
        for line in log.lines() {
            let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
            let name = call.split('(').next().unwrap_or_default();
            executed += usize::from(name == "execve");
            if executed > 1 {
                break;
            }
            if call.contains('(') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                *counts.entry(name.to_owned()).or_insert(0) += 1;
            }
        }
        counts.retain(|name, _| !NEVER.contains(&name.as_str()));
        counts
    }

    /// Mounts of this thread's namespace, and containers' files.
    fn left(&self) -> (Vec<String>, usize) {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let place = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
        (mounts.lines().map(place).collect(), fs::read_dir(UPPER_DIR).unwrap().count())
    }

    fn assert_same(&self, before: &(Vec<String>, usize), what: &str) {
        let end = Instant::now() + PATIENCE;
        while self.left() != *before {
            assert!(Instant::now() < end, "{what}: {:?} instead of {before:?}", self.left());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_launcher_that_is_hit_anywhere_leaves_nothing() {
    let Some(mut bench) = Bench::new() else { return };
    let all = std::env::var_os("NACRE_TEST_ALL").is_some();
    let mut points = Vec::new();
    for part in PARTS {
        for (name, count) in bench.calls(part) {
            for when in 1..=count {
                points.extend(FAULTS.map(|fault| (part, name.clone(), when, fault)));
            }
        }
    }
    assert!(points.len() > 1000, "{} points", points.len());
    let before = bench.left();
    let (mut made, mut failed) = (0, 0);
    for (part, name, when, fault) in points.iter().step_by(if all { 1 } else { STRIDE }) {
        let what = format!("{part:?}, {name}:{fault}:when={when}");
        let injection = format!("inject={name}:{fault}:when={when}");
        let outcome = bench.round(*part, &["-e", &format!("trace={name}"), "-e", &injection]);
        outcome.check(&what);
        assert_ne!(outcome.code, 128 + 15, "{what}: it does not end");
        made += 1;
        failed += usize::from(!outcome.is_success());
        // What was hit may not have been undone: it is asked for again.
        let again = bench.plain(Mode::Storage, &Bench::removal());
        assert!(again.is_success(), "{what}: {again:?}");
        bench.assert_same(&before, &what);
    }
    let next = bench.round(Part::Create, &[]);
    assert!(next.is_success(), "{next:?}");
    println!("{made} of {} faults, {failed} launchers failed", points.len());
    assert!(failed > made / 4, "only {failed} of {made} launchers failed");
}
