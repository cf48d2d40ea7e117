//! `cargo xtask bench vmm`: what a boot costs on our own VMM, in the lab, where time is counted in instructions.
//!
//! The marks are those of Firecracker 1.16 and cloud-hypervisor 53 with the same kind of kernel, one processor, 128 MiB: 102.7 and
//! 84.7 million instructions to the first line of init, 5,487 and 854 exits, 4,136 and 6,480 KiB resident.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{Figure, median};
use crate::cache::Cache;
use crate::demo::build_nacre;
use crate::{kernel, packages};

const PACKAGES: &[&str] = &["busybox-static", "erofs-utils"];
const BUSYBOX: &str = "/bin/busybox";
const MEMORY_MIB: u64 = 128;
/// What init prints.
const LINE: &str = "the first line of init";
/// Time and memory of memory_pages: million instructions, VM exits, KiB beside the guest's own memory.
const MARKS: [(&str, u64); 2] = [("latency", 82), ("density", 112)];
const EXITS_MAX: u64 = 850;
const RESIDENT_KIB_MAX: u64 = 4096;
const BINARY_BYTES_MAX: u64 = 5 << 20;
const DEBUGFS: &str = "/sys/kernel/debug";

#[derive(clap::Args)]
pub struct Options {
    /// How many boots of each kind; medians are printed.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measure here, with this program, kernel and image: what is run in the lab.
    #[arg(long, hide = true, num_args = 3)]
    inside: Option<Vec<PathBuf>>,
}

pub fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.runs > 0, "--runs must be at least 1");
    if let Some([nacre, kernel, image]) = options.inside.as_deref() {
        inside(options.runs, nacre, kernel, image)?;
        // What was measured is on stdout already.
        return Ok(Vec::new());
    }
    packages::ensure(PACKAGES)?;
    let vmlinux = kernel::make(&Cache::open()?)?;
    let nacre = build_nacre()?;
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    let image = make_image(work.path())?;
    let own = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(&own)
        .args(["lab", "--icount", "--timeout", "3000", "--"])
        .arg(&own)
        .args(["bench", "vmm", "--runs", &options.runs.to_string(), "--inside"])
        .args([&nacre, &vmlinux, &image])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run the lab")?;
    ensure!(output.status.success(), "the lab: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let boots: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut figures = Vec::new();
    for (pages, mark) in MARKS {
        let of_kind: Vec<Value> = boots.iter().filter(|boot| boot["pages"] == pages).cloned().collect();
        let value = |figure: &str| median(&of_kind, |boot| boot[figure].as_f64());
        figures.push(Figure::new(
            format!("{pages}: to the first line of init"),
            value("ms")?,
            "vms",
            Some(mark),
        ));
        figures.push(Figure::new(format!("{pages}: VM exits"), value("exits")?, "exits", Some(EXITS_MAX)));
        let resident = value("resident_kib")?;
        figures.push(Figure::new(format!("{pages}: VMM, resident"), resident, "KiB", Some(RESIDENT_KIB_MAX)));
        figures.push(Figure::new(format!("{pages}: guest, resident"), value("guest_kib")?, "KiB", None));
    }
    let size = fs::metadata(&nacre).context("cannot look at nacre")?.len() as f64;
    figures.push(Figure::new("nacre", size, "bytes", Some(BINARY_BYTES_MAX)));
    Ok(figures)
}

/// Busybox alone: the kernel's command line says what it is to print.
fn make_image(folder: &Path) -> anyhow::Result<PathBuf> {
    let tree = folder.join("tree");
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(tree.join(name)).context("cannot make a directory")?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox")).with_context(|| format!("cannot copy {BUSYBOX}"))?;
    let image = folder.join("image.erofs");
    let output =
        Command::new("mkfs.erofs").arg(&image).arg(&tree).output().context("cannot run mkfs.erofs")?;
    ensure!(output.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&output.stderr));
    Ok(image)
}

/// In the lab: boots, and prints one JSON object for each.
fn inside(runs: usize, nacre: &Path, kernel: &Path, image: &Path) -> anyhow::Result<()> {
    let mounted = Command::new("mount").args(["-t", "debugfs", "debugfs", DEBUGFS]).status();
    ensure!(mounted.context("cannot run mount")?.success(), "debugfs cannot be mounted");
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    // The first boot finds nothing in the page cache, and is not counted.
    for (pages, _) in MARKS {
        for number in 0..=runs {
            let boot = boot(pages, work.path(), nacre, kernel, image)?;
            if number > 0 {
                println!("{boot}");
            }
        }
    }
    Ok(())
}

fn boot(pages: &str, work: &Path, nacre: &Path, kernel: &Path, image: &Path) -> anyhow::Result<Value> {
    let command_line = format!(
        "console=ttyS0 quiet reboot=k panic=-1 root=/dev/vda rootfstype=erofs ro init={BUSYBOX} -- sh -c \"echo {LINE}; sleep 60\""
    );
    // Every device, though none but the disk is used.
    let config = json!({
        "version": 1, "kernel": kernel, "command_line": command_line, "processors": 1, "memory_mib": MEMORY_MIB,
        "memory_pages": pages, "disks": [{ "file": { "path": image }, "read_only": true }],
        "vsock": { "guest_cid": 3, "socket": work.join("vsock") },
        "shares": [{ "name": "share", "path": work, "read_only": true }],
    });
    let path = work.join("config.json");
    fs::write(&path, config.to_string()).context("cannot write the configuration")?;
    let _ = fs::remove_file(work.join("vsock"));
    let begun = Instant::now();
    let mut vmm = Command::new(nacre);
    vmm.args(["vmm", "--config"]).arg(&path).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut vmm = Guard(vmm.spawn().with_context(|| format!("cannot start {}", nacre.display()))?);
    let console = BufReader::new(vmm.0.stdout.take().context("no console")?);
    let mut said = Vec::new();
    for line in console.lines() {
        let line = line.context("cannot read the console")?;
        if line.contains(LINE) {
            let elapsed = begun.elapsed();
            let exits = exits(vmm.0.id())?;
            let (resident, guest) = resident(vmm.0.id())?;
            return Ok(json!({
                "pages": pages, "ms": milliseconds(elapsed), "exits": exits, "resident_kib": resident, "guest_kib": guest,
            }));
        }
        said.push(line);
    }
    bail!("the guest ended:\n{}", said.join("\n"))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Exits of the machine so far (Documentation/virt/kvm/api.rst; `kvm_stat` reads the same file).
fn exits(pid: u32) -> anyhow::Result<u64> {
    let folder = Path::new(DEBUGFS).join("kvm");
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry.context("cannot list the machines")?;
        if entry.file_name().to_string_lossy().starts_with(&format!("{pid}-")) {
            let text = fs::read_to_string(entry.path().join("exits")).context("cannot read the exits")?;
            return text.trim().parse().context("the exits are no number");
        }
    }
    bail!("KVM knows no machine of process {pid}")
}

/// Resident KiB of a VMM: its own, and the guest's memory in it.
fn resident(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).context("cannot read smaps")?;
    let (mut own, mut guest, mut size) = (0, 0, 0);
    for line in text.lines() {
        let number = || line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        if line.starts_with("Size:") {
            size = number().unwrap_or(0);
        } else if line.starts_with("Rss:") {
            // The guest's memory is one mapping, and nothing else is that large.
            *(if size >= MEMORY_MIB << 10 { &mut guest } else { &mut own }) += number().unwrap_or(0);
        }
    }
    Ok((own, guest))
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
