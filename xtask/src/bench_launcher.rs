//! `cargo xtask bench launcher`: our launcher, Debian's crun and runc, and the bare system calls, side by side.
//!
//! Everything is measured in turns, a few rounds of each, so that what else the machine does falls on all alike, in a mount
//! namespace where `/sys/fs/cgroup` is the cgroup v2 hierarchy: on a hybrid machine Debian's crun refuses to work. Time is from
//! the start of the first command until nothing of the container is left; processor time is that of all processes of a
//! round, counted by the kernel. On a shared machine only the latter, and ratios, can be compared.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use nacre_guest_image as guest;

use crate::bench::Figure;
use crate::image::{root, target};
use crate::{bundle, packages};

const PACKAGES: &[&str] = &["busybox-static", "crun", "mount", "runc", "util-linux"];
/// Rounds that one measures before it is the next one's turn.
const TURN: usize = 10;

/// What the launcher may take, as a part of what a peer takes.
const RUN_OF_CRUN: f64 = 0.45;
const RUN_OF_BARE: f64 = 1.4;
const CYCLE_OF_CRUN: f64 = 0.45;
const EXEC_OF_CRUN: f64 = 0.5;
const AMONG_MANY_OF_FIRST: f64 = 1.1;
const RESIDENT_KIB: f64 = 1536.0;

/// Runs a command where `/sys/fs/cgroup` is version 2, and where our programs lie on a read-only mount if this process
/// may not tell the kernel which file it executes (CAP_SYS_RESOURCE), which spares the launcher a second exec.
const PLACE: &str = "set -e
[ \"$(stat -f -c %T /sys/fs/cgroup)\" = cgroup2fs ] || mount -t cgroup2 none /sys/fs/cgroup
if [ $((0x$(sed -n 's/^CapEff:\\t//p' /proc/self/status) >> 24 & 1)) = 0 ]; then
  mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"
fi
exec \"$@\"";

/// A file system in memory that every Linux has.
const MEMORY: &str = "/dev/shm";

struct Bench {
    programs: PathBuf,
    work: tempfile::TempDir,
    /// Where runtimes keep their containers' state, which is below /run by default, and so in memory.
    state: tempfile::TempDir,
}

/// Who is measured.
struct Peer {
    name: &'static str,
    program: PathBuf,
    samples: Vec<Sample>,
}

/// One round.
#[derive(Clone, Copy)]
struct Sample {
    wall_us: f64,
    processor_us: f64,
    resident_kib: f64,
}

pub fn measure(runs: usize, containers: usize) -> anyhow::Result<Vec<Figure>> {
    ensure!(runs > 0, "--runs must be at least 1");
    packages::ensure(PACKAGES)?;
    let bench = Bench::prepare()?;
    let mut figures = Vec::new();
    bench.run(runs, &mut figures)?;
    bench.cycle(runs, &mut figures)?;
    bench.exec(runs, &mut figures)?;
    if containers > 0 {
        bench.among_many(runs, containers, &mut figures)?;
    }
    Ok(figures)
}

impl Bench {
    fn prepare() -> anyhow::Result<Self> {
        let programs = guest::compile_like_guest("nacre-launcher-cli", &root(), &target())?;
        let work = tempfile::tempdir().context("cannot make a working directory")?;
        let state = tempfile::tempdir_in(MEMORY).context("cannot make a directory in memory")?;
        let rootfs = work.path().join("rootfs");
        bundle::make_rootfs(&rootfs)?;
        let config = bundle::write(&work.path().join("true"), &rootfs, &["true"])?;
        bundle::write(&work.path().join("sleep"), &rootfs, &["sleep", "1000"])?;
        std::fs::write(work.path().join("filter"), filter(&config)?).context("cannot write the filter")?;
        Ok(Self { programs, work, state })
    }

    fn path(&self, name: &str) -> String {
        self.work.path().join(name).display().to_string()
    }

    fn peers(&self, names: &[&'static str]) -> Vec<Peer> {
        let program = |name: &str| match name {
            "nacre" => self.programs.join("nacre-launcher"),
            "bare" => self.programs.join("bare-container"),
            other => PathBuf::from(other),
        };
        names.iter().map(|name| Peer { name, program: program(name), samples: Vec::new() }).collect()
    }

    /// The words in front of a command of a runtime like runc.
    fn runtime(&self, peer: &Peer) -> Vec<String> {
        let root = self.state.path().join(peer.name).display().to_string();
        vec![peer.program.display().to_string(), "--root".into(), root]
    }

    /// A command of ours in [`PLACE`].
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", PLACE]).arg(&self.programs).args(words);
        command.stdin(Stdio::null());
        command
    }

    fn meter(&self, times: usize, steps: &[Vec<String>]) -> anyhow::Result<Vec<Sample>> {
        let mut words = vec![
            self.programs.join("bare-container").display().to_string(),
            "meter".into(),
            times.to_string(),
        ];
        words.extend(steps.join(&";".to_owned()));
        let output = self.command(&words).stderr(Stdio::piped()).output().context("cannot run unshare")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let samples: Vec<Sample> = text.lines().filter_map(sample).collect();
        if !output.status.success() || samples.len() != times {
            bail!("{steps:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(samples)
    }

    /// All peers in turns.
    fn turns(
        &self,
        runs: usize,
        peers: &mut [Peer],
        steps: impl Fn(&Peer) -> Vec<Vec<String>>,
    ) -> anyhow::Result<()> {
        let mut left = runs;
        while left > 0 {
            let turn = left.min(TURN);
            for peer in peers.iter_mut() {
                peer.samples.extend(self.meter(turn, &steps(peer))?);
            }
            left -= turn;
        }
        Ok(())
    }

    fn run(&self, runs: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        eprintln!("run");
        let mut peers = self.peers(&["nacre", "bare", "crun", "runc"]);
        self.turns(runs, &mut peers, |peer| self.run_steps(peer))?;
        report("run", &peers, figures);
        ratios("run", &peers, "crun", RUN_OF_CRUN, figures);
        ratios("run", &peers, "bare", RUN_OF_BARE, figures);
        let resident = median(&peers[0].samples, |sample| sample.resident_kib);
        figures.push(figure("run: nacre, resident at most".into(), resident, "KiB", Some(RESIDENT_KIB)));
        Ok(())
    }

    fn run_steps(&self, peer: &Peer) -> Vec<Vec<String>> {
        let id = format!("nacre-bench-{}-@", std::process::id());
        if peer.name == "bare" {
            let words = [
                "run",
                &self.path("rootfs"),
                &format!("/sys/fs/cgroup/{id}"),
                &self.path("filter"),
                "/bin/true",
                "devices",
            ];
            return vec![
                [vec![peer.program.display().to_string()], words.map(str::to_owned).to_vec()].concat(),
            ];
        }
        vec![[self.runtime(peer), words(&["run", "--bundle", &self.path("true"), &id])].concat()]
    }

    fn cycle(&self, runs: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        eprintln!("create, start, delete");
        let mut peers = self.peers(&["nacre", "crun", "runc"]);
        let id = format!("nacre-bench-{}-@", std::process::id());
        self.turns(runs, &mut peers, |peer| {
            let command = |rest: &[&str]| [self.runtime(peer), words(rest)].concat();
            vec![
                command(&["create", "--bundle", &self.path("true"), &id]),
                command(&["start", &id]),
                words(&["wait"]),
                command(&["delete", &id]),
            ]
        })?;
        report("create+start+delete", &peers, figures);
        ratios("create+start+delete", &peers, "crun", CYCLE_OF_CRUN, figures);
        Ok(())
    }

    fn exec(&self, runs: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        eprintln!("exec");
        let id = format!("nacre-bench-{}", std::process::id());
        let mut peers = self.peers(&["nacre", "crun", "runc"]);
        let command = |peer: &Peer, rest: &[&str]| [self.runtime(peer), words(rest)].concat();
        let begun = peers.iter().try_for_each(|peer| {
            self.alone(&command(
                peer,
                &["create", "--bundle", &self.path("sleep"), &format!("{id}-{}", peer.name)],
            ))?;
            self.alone(&command(peer, &["start", &format!("{id}-{}", peer.name)]))
        });
        let measured = begun.and_then(|()| {
            self.turns(runs, &mut peers, |peer| {
                vec![command(peer, &["exec", &format!("{id}-{}", peer.name), "true"])]
            })
        });
        for peer in &peers {
            let _ = self.alone(&command(peer, &["delete", "--force", &format!("{id}-{}", peer.name)]));
        }
        measured?;
        report("exec", &peers, figures);
        ratios("exec", &peers, "crun", EXEC_OF_CRUN, figures);
        Ok(())
    }

    /// The same start among many containers and, before and after it, without them: what the machine does meanwhile falls on
    /// both alike. The bare calls beside it tell how much of the growth is the kernel's (the list of sysfs's superblocks, the
    /// walk of pivot_root over all tasks).
    fn among_many(&self, runs: usize, containers: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        eprintln!("among {containers} containers");
        let mut alone = self.peers(&["nacre", "bare"]);
        let mut among = self.peers(&["nacre", "bare"]);
        self.turns(runs.div_ceil(2), &mut alone, |peer| self.run_steps(peer))?;
        let prefix = format!("nacre-bench-{}-many", std::process::id());
        let nacre = self.runtime(&alone[0]);
        let loop_of = |what: &str| {
            let script = format!(
                "i=0; while [ $i -lt {containers} ]; do \"$@\" {what} {prefix}-$i || exit 1; i=$((i+1)); done"
            );
            [words(&["sh", "-c", &script, "sh"]), nacre.clone()].concat()
        };
        let made = self.alone(&loop_of(&format!("create --bundle {}", self.path("sleep"))));
        let measured = made.and_then(|()| self.turns(runs, &mut among, |peer| self.run_steps(peer)));
        self.alone(&loop_of("delete --force"))?;
        measured?;
        self.turns(runs.div_ceil(2), &mut alone, |peer| self.run_steps(peer))?;
        for (alone, among) in alone.iter().zip(&among) {
            let budget = (alone.name == "nacre").then_some(AMONG_MANY_OF_FIRST);
            for (what, of) in FIGURES {
                let ratio = median(&among.samples, of) / median(&alone.samples, of);
                let name = format!("run among {containers}: {}, {what} of the first", alone.name);
                figures.push(figure(name, ratio, "ratio", budget));
            }
        }
        Ok(())
    }

    /// A command that is not measured; what a peer needs on this machine it gets too.
    fn alone(&self, command: &[String]) -> anyhow::Result<()> {
        let bare = self.programs.join("bare-container").display().to_string();
        let words = [vec![bare, "peer".to_owned()], command.to_vec()].concat();
        // A container holds its standard streams: with pipes, waiting for their end would be waiting for its.
        let status = self.command(&words).stdout(Stdio::null()).status().context("cannot run unshare")?;
        if status.success() { Ok(()) } else { bail!("{command:?}: {status}") }
    }
}

type Of = fn(&Sample) -> f64;
const FIGURES: [(&str, Of); 2] =
    [("time", |sample| sample.wall_us), ("processor time", |sample| sample.processor_us)];

fn report(what: &str, peers: &[Peer], figures: &mut Vec<Figure>) {
    for peer in peers {
        for (name, of) in FIGURES {
            let value = median(&peer.samples, of) / 1000.0;
            figures.push(figure(format!("{what}: {}, {name}", peer.name), value, "ms", None));
        }
        let resident = median(&peer.samples, |sample| sample.resident_kib);
        figures.push(figure(format!("{what}: {}, resident", peer.name), resident, "KiB", None));
    }
}

/// Of the first peer to the one that `to` names.
fn ratios(what: &str, peers: &[Peer], to: &str, budget: f64, figures: &mut Vec<Figure>) {
    let Some(other) = peers.iter().find(|peer| peer.name == to) else { return };
    for (name, of) in FIGURES {
        let ratio = median(&peers[0].samples, of) / median(&other.samples, of);
        figures.push(figure(format!("{what}: {name} of {to}'s"), ratio, "ratio", Some(budget)));
    }
}

fn figure(name: String, value: f64, unit: &'static str, budget: Option<f64>) -> Figure {
    Figure { name, value, unit, budget }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sample(line: &str) -> Option<Sample> {
    let mut numbers = line.split(' ').map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Sample { wall_us: next()?, processor_us: next()?, resident_kib: next()? })
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// The profile as the kernel takes it, for who compiles none.
fn filter(config: &serde_json::Value) -> anyhow::Result<Vec<u8>> {
    let spec: nacre_plan::oci::Spec = nacre_plan::oci::from_json(config.to_string().as_bytes())?;
    let plan = nacre_plan::container(nacre_plan::Container {
        id: "bench",
        spec: &spec,
        rootfs: nacre_protocols::init_launcher::Rootfs::Guest("/".into()),
        user: None,
        image: None,
        bundle: "/",
        place: nacre_plan::Place::Host,
    })?;
    let program = plan.process.seccomp.context("the bundle has no seccomp profile")?.program;
    Ok(program
        .iter()
        .flat_map(|(code, jt, jf, k)| {
            let mut bytes = code.to_ne_bytes().to_vec();
            bytes.extend([*jt, *jf]);
            bytes.extend(k.to_ne_bytes());
            bytes
        })
        .collect())
}
