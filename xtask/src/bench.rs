//! `cargo xtask bench`: tracked numbers, each with its unit and its budget.
//!
//! Sizes and memory have budgets, and missing one is a failure. Times alone have none: on a shared machine, and without
//! KVM, they say little. Times beside those of another program, taken in the same run, have.

mod agent;
mod pull;
mod vmm;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use nacre_guest_image as guest;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::demo::{build_nacre, busybox_layer};
use crate::image::{root, target};
use crate::oci::{self, Defaults, Layer};
use crate::{bench_launcher, demo, image, kernel, packages};

/// Memory budgets of the guest's own processes when idle, in KiB. Kata's agent 4.1, measured the same way, has 13,400
/// resident and 1,400 anonymous.
const AGENT_RESIDENT_KIB: u64 = 2048;
const AGENT_ANONYMOUS_KIB: u64 = 512;
const INIT_RESIDENT_KIB: u64 = 1536;
const INIT_ANONYMOUS_KIB: u64 = 256;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    bench: Bench,
    /// One JSON object a line: bench, figure, value, unit, budget, met.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// A start from nothing: boot stages, memory in the guest, pull throughput, sizes.
    Start {
        /// How many times; medians are printed.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Megabytes of layers in the image, before compression.
        #[arg(long, default_value_t = 96)]
        megabytes: usize,
    },
    /// The agent: what calls cost, beside the figures of Kata's, and what it and init take of memory.
    Agent,
    /// The launcher beside Debian's crun and runc, and beside the bare system calls: time, processor time, memory.
    Launcher {
        /// How many times each is measured; medians are printed.
        #[arg(long, default_value_t = 60)]
        runs: usize,
        /// How many containers are present for the last figure.
        #[arg(long, default_value_t = 1000)]
        containers: usize,
    },
    /// The puller beside containerd, skopeo with umoci, podman, and its own parts alone. Needs root.
    Pull(pull::Options),
    /// A boot on our own VMM, in the lab, in counted instructions. Needs root.
    Vmm(vmm::Options),
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let (bench, figures) = match &options.bench {
        Bench::Start { runs, megabytes } => {
            ensure!(*runs > 0, "--runs must be at least 1");
            ("start", start(*runs, *megabytes)?)
        }
        Bench::Agent => ("agent", agent::measure()?),
        Bench::Launcher { runs, containers } => ("launcher", bench_launcher::measure(*runs, *containers)?),
        Bench::Pull(options) => ("pull", pull::run(options)?),
        Bench::Vmm(options) => ("vmm", vmm::run(options)?),
    };
    let missed = figures.iter().filter(|figure| figure.met() == Some(false)).count();
    for figure in &figures {
        figure.print(bench, options.json);
    }
    ensure!(missed == 0, "{missed} figures are beyond their budgets");
    Ok(())
}

/// One measured number.
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub budget: Option<f64>,
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str, budget: Option<u64>) -> Self {
        let budget = budget.map(|budget| budget as f64);
        Self { name: name.into(), value, unit, budget }
    }

    fn met(&self) -> Option<bool> {
        self.budget.map(|budget| self.value <= budget)
    }

    fn print(&self, bench: &str, json: bool) {
        if json {
            let Figure { name, value, unit, budget } = self;
            let line = json!({"bench": bench, "figure": name, "value": value, "unit": unit, "budget": budget, "met": self.met()});
            println!("{line}");
            return;
        }
        // Seconds and ratios are small, bytes and milliseconds are not.
        let decimals = if matches!(self.unit, "s" | "ratio") { 3 } else { 1 };
        let budget = match (self.budget, self.met()) {
            (Some(budget), Some(true)) => format!("of at most {budget}"),
            (Some(budget), _) => format!("BEYOND its budget of {budget}"),
            _ => String::new(),
        };
        println!("{:<44} {:>12.decimals$} {:<6} {budget}", self.name, self.value, self.unit);
    }
}

fn start(runs: usize, megabytes: usize) -> anyhow::Result<Vec<Figure>> {
    packages::ensure(demo::PACKAGES)?;
    let cache = Cache::open()?;
    let vmlinux = kernel::make(&cache)?;
    let guest_image = image::make(&cache, &[])?;
    let nacre = build_nacre()?;
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    let layout = work.path().join("image");
    make_image(&layout, megabytes)?;

    let mut reports = Vec::with_capacity(runs);
    for number in 1..=runs {
        eprintln!("run {number} of {runs}");
        reports.push(one_start(&nacre, &layout, &work.path().join("timings.json"))?);
    }
    let mut figures = times(&reports)?;
    figures.extend(memory(&reports)?);
    figures.extend(sizes(&vmlinux, &guest_image, &nacre)?);
    Ok(figures)
}

/// Four layers: busybox, and three that compress about as well as programs do.
fn make_image(layout: &Path, megabytes: usize) -> anyhow::Result<()> {
    const FILE: usize = 256 << 10;
    let mut layers = vec![busybox_layer()?.finish()?];
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..3 {
        let mut layer = Layer::new();
        layer.directory(&format!("data{number}/"), 0o755)?;
        for file in 0..(megabytes << 20) / 3 / FILE {
            let mut content = Vec::with_capacity(FILE);
            while content.len() < FILE {
                // xorshift: half of the bytes are noise, half repeat.
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                content.extend_from_slice(&noise.to_le_bytes());
                content.extend_from_slice(b"\x48\x89\xe5\x41\x57\x41\x56\x00");
            }
            layer.file(&format!("data{number}/{file:05}"), 0o644, &content)?;
        }
        layers.push(layer.finish()?);
    }
    let defaults = Defaults { command: &["/bin/true"], environment: &["PATH=/bin"] };
    oci::write(layout, "latest", &layers, &defaults).map(drop)
}

/// Runs one container to its end; gives what `nacre` measured.
fn one_start(nacre: &Path, layout: &Path, timings: &Path) -> anyhow::Result<Value> {
    let output = Command::new(nacre)
        .args(["run", "--quiet", "--timings"])
        .arg(timings)
        .arg(format!("oci:{}:latest", layout.display()))
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", nacre.display()))?;
    if !output.status.success() {
        bail!("{}: {}\n{}", nacre.display(), output.status, String::from_utf8_lossy(&output.stderr));
    }
    let text = std::fs::read(timings).with_context(|| format!("cannot read {}", timings.display()))?;
    serde_json::from_slice(&text).context("the timings are not JSON")
}

fn times(reports: &[Value]) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let kvm = reports.iter().all(|report| report["kvm"] == true);
    figures.push(Figure::new("accelerated by KVM", f64::from(u8::from(kvm)), "yes=1", None));
    for stage in ["boot_ms", "agent_ms", "pull_ms", "start_ms"] {
        let value = median(reports, |report| report[stage].as_f64())?;
        figures.push(Figure::new(stage.trim_end_matches("_ms"), value, "ms", None));
    }
    let stages =
        reports.first().and_then(|report| report["guest_boot_us"].as_array()).cloned().unwrap_or_default();
    for (number, stage) in stages.iter().enumerate() {
        let name = stage[0].as_str().unwrap_or("?").to_owned();
        let value = median(reports, |report| report["guest_boot_us"][number][1].as_f64())?;
        figures.push(Figure::new(format!("guest: end of {name}"), value / 1000.0, "ms", None));
    }
    let throughput = median(reports, |report| {
        Some(report["compressed_bytes"].as_f64()? / 1e6 / (report["pull_ms"].as_f64()? / 1e3))
    })?;
    figures.push(Figure::new("pull throughput, compressed", throughput, "MB/s", None));
    Ok(figures)
}

fn memory(reports: &[Value]) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, resident, anonymous) in
        [("agent", AGENT_RESIDENT_KIB, AGENT_ANONYMOUS_KIB), ("init", INIT_RESIDENT_KIB, INIT_ANONYMOUS_KIB)]
    {
        for (figure, budget) in [("resident_kib", resident), ("anonymous_kib", anonymous)] {
            let value = median(reports, |report| {
                let process = report["guest_processes"].as_array()?.iter().find(|p| p["name"] == name)?;
                process[figure].as_f64()
            })?;
            let label = format!("{name}, {}", figure.trim_end_matches("_kib"));
            figures.push(Figure::new(label, value, "KiB", Some(budget)));
        }
    }
    Ok(figures)
}

fn sizes(vmlinux: &Path, guest_image: &Path, nacre: &Path) -> anyhow::Result<Vec<Figure>> {
    let bytes = |path: &Path| -> anyhow::Result<f64> {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        Ok(metadata.len() as f64)
    };
    let mut figures = vec![
        Figure::new("kernel", bytes(vmlinux)?, "bytes", Some(nacre_kernel_config::SIZE_BUDGET_BYTES)),
        Figure::new("guest image", bytes(guest_image)?, "bytes", Some(guest::SIZE_BUDGET_BYTES)),
    ];
    let programs = guest::compile(&root(), &target())?;
    for program in guest::PROGRAMS {
        let size = bytes(&programs.path(program.name))?;
        figures.push(Figure::new(program.name, size, "bytes", Some(program.size_budget_bytes)));
    }
    figures.push(Figure::new("nacre", bytes(nacre)?, "bytes", None));
    Ok(figures)
}

fn median(reports: &[Value], figure: impl Fn(&Value) -> Option<f64>) -> anyhow::Result<f64> {
    let mut values: Vec<f64> = reports
        .iter()
        .map(|report| figure(report).context("a figure is missing"))
        .collect::<Result<_, _>>()?;
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no runs")
}
