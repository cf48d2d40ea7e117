//! The agent from outside: what calls cost, and what it and init take of memory.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use nacre_guest_image as guest;
use serde_json::Value;

use super::Figure;
use crate::cache::Cache;
use crate::demo::{self, build_nacre, make_image};
use crate::image::{root, target};
use crate::{image, kernel, packages};

/// KiB of the agent and of init, in a guest without a container, and of the agent with [`CONTAINERS`].
const AGENT_RESIDENT_KIB: u64 = 1536;
const AGENT_ANONYMOUS_KIB: u64 = 192;
const AGENT_RESIDENT_BUSY_KIB: u64 = 2048;
const INIT_RESIDENT_KIB: u64 = 1024;
const INIT_ANONYMOUS_KIB: u64 = 96;
/// Of each program, in bytes.
const PROGRAM_BYTES: u64 = 3 << 19;
const CONTAINERS: usize = 10;

/// A sandbox that is gone with this.
struct Sandbox<'a> {
    nacre: &'a Path,
    work: &'a Path,
    guest: [(&'a str, &'a Path); 2],
}

pub fn measure() -> anyhow::Result<Vec<Figure>> {
    packages::ensure(demo::PACKAGES)?;
    let cache = Cache::open()?;
    let vmlinux = kernel::make(&cache)?;
    let guest_image = image::make(&cache, &[])?;
    let nacre = build_nacre()?;
    let work = tempfile::Builder::new().prefix("nb").tempdir().context("cannot make a working directory")?;
    let layout = work.path().join("image");
    make_image(&layout)?;
    let guest = [("NACRE_KERNEL", &*vmlinux), ("NACRE_IMAGE", &*guest_image)];
    let sandbox = Sandbox { nacre: &nacre, work: work.path(), guest };
    let reference = format!("oci:{}:latest", layout.display());
    let idle = sandbox.of_tests(&["--example", "idle"])?;
    sandbox.nacre(vec!["run", "-d", "--name", "c0", &reference, "sleep", "100000"])?;
    let costs = sandbox.agentctl(&["--bench", "c0"])?;
    let used = sandbox.agentctl(&["GetReport"])?;
    for number in 1..CONTAINERS {
        let name = format!("c{number}");
        sandbox.nacre(vec!["run", "-d", "--in", "c0", "--name", &name, &reference, "sleep", "100000"])?;
    }
    let busy = sandbox.agentctl(&["GetReport"])?;

    let cost = |field: &str| costs[field].as_f64().with_context(|| format!("{field} is missing"));
    let mut figures = vec![
        Figure::new("Check, round trip (Kata's agent: 38)", cost("check_us")?, "us", None),
        Figure::new("Check, processor time of the agent", cost("check_agent_us")?, "us", None),
        Figure::new("exec of true, cycle (Kata's agent: 22)", cost("exec_ms")?, "ms", None),
        Figure::new("stdout (Kata's agent: 55)", cost("stdout_mb_s")?, "MB/s", None),
        Figure::new("a read, processor time of the agent", cost("stdout_agent_us_per_read")?, "us", None),
    ];
    for (report, name, field, budget, label) in [
        (&idle, "agent", "resident_kib", Some(AGENT_RESIDENT_KIB), "agent, resident, idle"),
        (&idle, "agent", "anonymous_kib", Some(AGENT_ANONYMOUS_KIB), "agent, anonymous, idle"),
        (&used, "agent", "resident_kib", None, "agent, resident, after all of the above"),
        (&used, "agent", "anonymous_kib", None, "agent, anonymous, after all of the above"),
        (&busy, "agent", "resident_kib", Some(AGENT_RESIDENT_BUSY_KIB), "agent, resident, ten containers"),
        (&busy, "agent", "anonymous_kib", None, "agent, anonymous, ten containers"),
        (&idle, "init", "resident_kib", Some(INIT_RESIDENT_KIB), "init, resident, idle"),
        (&idle, "init", "anonymous_kib", Some(INIT_ANONYMOUS_KIB), "init, anonymous, idle"),
        // No more is allowed to it later.
        (&busy, "init", "resident_kib", Some(INIT_RESIDENT_KIB), "init, resident, ten containers"),
        (&busy, "init", "anonymous_kib", Some(INIT_ANONYMOUS_KIB), "init, anonymous, ten containers"),
    ] {
        let processes = report["processes"].as_array().context("no processes")?;
        let process = processes.iter().find(|process| process["name"] == name).context("no process")?;
        figures.push(Figure::new(label, process[field].as_f64().context("no figure")?, "KiB", budget));
    }
    let programs = guest::compile(&root(), &target())?;
    for name in ["nacre-agent", "nacre-init"] {
        let size = std::fs::metadata(programs.path(name)).context("no program")?.len();
        figures.push(Figure::new(name, size as f64, "bytes", Some(PROGRAM_BYTES)));
    }
    Ok(figures)
}

impl Sandbox<'_> {
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("XDG_RUNTIME_DIR", self.work).envs(self.guest).current_dir(root());
        command
    }

    fn nacre(&self, words: Vec<&str>) -> anyhow::Result<Output> {
        let output = self.command(self.nacre).args(&words).output().context("cannot run nacre")?;
        ensure!(output.status.success(), "nacre {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    fn agentctl(&self, words: &[&str]) -> anyhow::Result<Value> {
        self.of_tests(&[&["--bin", "nacre-agentctl", "--", "c0"], words].concat())
    }

    /// What a program of the tests says.
    fn of_tests(&self, words: &[&str]) -> anyhow::Result<Value> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = self.command(Path::new(&cargo));
        command.args(["run", "--quiet", "--locked", "--package", "nacre-tests"]);
        command.args(words).env("CARGO_TARGET_DIR", target());
        let output = command.output().context("cannot run cargo")?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).with_context(|| format!("{words:?}: the answer is not JSON"))
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        for number in (0..CONTAINERS).rev() {
            // What did not start is not there.
            let _ = self.command(self.nacre).args(["rm", "-f", &format!("c{number}")]).output();
        }
    }
}
