//! `cargo xtask bench vmm`: what a boot costs on our own VMM, in the lab, where time is counted in instructions.
//!
//! The marks are those of Firecracker 1.16 and cloud-hypervisor 53 with a lean kernel of the same version and an initrd, one
//! processor, 128 MiB: 102.7 and 84.7 million instructions to the first line of init, 5,487 and 854 exits, 4,136 and 6,480 KiB
//! resident; QEMU's microvm, which is measured here too, took 222.9.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{Figure, median};
use crate::cache::Cache;
use crate::demo::{build_nacre, make_image as make_layout};
use crate::{image, kernel, packages};

const PACKAGES: &[&str] = &["busybox-static", "cpio", "erofs-utils", "passt", "qemu-system-x86"];
const BUSYBOX: &str = "/bin/busybox";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const MEMORY_MIB: u64 = 128;
/// What init prints.
const LINE: &str = "the first line of init";
/// Of memory_pages: million instructions to the first line of init.
const MARKS: [(&str, u64); 2] = [("latency", 82), ("density", 112)];
/// With huge pages: without them every page that the guest touches is an exit.
const EXITS_MAX: u64 = 850;
/// KiB beside the guest's own memory, with all devices.
const RESIDENT_KIB_MAX: u64 = 4096;
const BINARY_BYTES_MAX: u64 = 5 << 20;
const DEBUGFS: &str = "/sys/kernel/debug";

#[derive(clap::Args)]
pub struct Options {
    /// How many boots of each kind; medians are printed.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measure here, with what is in this folder: what is run in the lab.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
    /// Of these, not of boots.
    #[arg(long, hide = true)]
    throughput: bool,
}

/// Files of a folder that goes into the lab.
const NACRE: &str = "nacre";
const KERNEL: &str = "vmlinux";
const LEAN_KERNEL: &str = "vmlinux-lean";
const IMAGE: &str = "image.erofs";
const INITRD: &str = "initrd";
/// For `nacre run`: the guest's own image, and a container's.
const GUEST_IMAGE: &str = "guest.erofs";
const LAYOUT: &str = "layout";
/// Made there.
const HOME: &str = "home";
/// As `nacre run --vmm` knows them: ours, and QEMU on the same KVM with our devices over vhost-user.
const VMMS: [&str; 2] = ["kvm", "qemu"];
/// What `nacre run --timings` calls its stages, from its start to the container's first instruction.
const STAGES: [&str; 4] = ["boot", "agent", "pull", "start"];

const RUN: &str = "nacre run";
const THROUGHPUT: &str = "throughput";

/// What is booted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As the marks were taken: a lean kernel, an initrd, no more devices than must be.
    Marks,
    /// The kernel and the kind of root disk of our guests, and every device.
    Whole,
    /// As the marks, on QEMU's microvm.
    Qemu,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Marks => "as the marks",
            Self::Whole => "guest kernel, all devices",
            Self::Qemu => "QEMU microvm",
        }
    }
}

pub fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.runs > 0, "--runs must be at least 1");
    if let Some(folder) = options.inside.as_deref() {
        inside(options.runs, options.throughput, folder)?;
        // What was measured is on stdout already.
        return Ok(Vec::new());
    }
    packages::ensure(PACKAGES)?;
    let cache = Cache::open()?;
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    let nacre = build_nacre()?;
    let files = [
        (NACRE, nacre.clone()),
        (KERNEL, kernel::make(&cache)?),
        (LEAN_KERNEL, kernel::make_for_figures(&cache)?),
        (GUEST_IMAGE, image::make(&cache, &[])?),
    ];
    for (name, file) in files {
        fs::copy(&file, work.path().join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    make_image(work.path())?;
    make_layout(&work.path().join(LAYOUT))?;
    let mut boots = lab(&["--icount"], &[], options.runs, work.path())?;
    // Two machines that talk to each other are as fast as the clock lets them; a clock of instructions stands still for them.
    boots.extend(lab(&[], &["--throughput"], options.runs, work.path())?);
    let mut figures = figures(&boots)?;
    let size = fs::metadata(&nacre).context("cannot look at nacre")?.len() as f64;
    figures.push(Figure::new("nacre", size, "bytes", Some(BINARY_BYTES_MAX)));
    Ok(figures)
}

/// What this command prints in the lab, with more words for either.
fn lab(lab: &[&str], bench: &[&str], runs: usize, work: &Path) -> anyhow::Result<Vec<Value>> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(&own)
        .arg("lab")
        .args(lab)
        .args(["--timeout", "2000", "--"])
        .arg(&own)
        .args(["bench", "vmm", "--runs", &runs.to_string()])
        .args(bench)
        .arg("--inside")
        .arg(work)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run the lab")?;
    ensure!(output.status.success(), "the lab: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn figures(boots: &[Value]) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (kind, pages, mark) in measured() {
        let of_kind: Vec<Value> = boots
            .iter()
            .filter(|boot| boot["kind"] == kind.name() && boot["pages"] == pages)
            .cloned()
            .collect();
        let value = |figure: &str| median(&of_kind, |boot| boot[figure].as_f64());
        let name = format!("{}, {pages}", kind.name());
        let marks = kind == Kind::Marks;
        let exits_max = (marks && pages == "latency").then_some(EXITS_MAX);
        let resident_max = (kind == Kind::Whole).then_some(RESIDENT_KIB_MAX);
        let time = value("ms")?;
        figures.push(Figure::new(format!("{name}: to init"), time, "vms", mark.filter(|_| marks)));
        figures.push(Figure::new(format!("{name}: VM exits"), value("exits")?, "exits", exits_max));
        figures.push(Figure::new(
            format!("{name}: VMM, resident"),
            value("resident_kib")?,
            "KiB",
            resident_max,
        ));
        figures.push(Figure::new(format!("{name}: guest, resident"), value("guest_kib")?, "KiB", None));
    }
    let starts: Vec<Value> = boots.iter().filter(|boot| boot["kind"] == RUN).cloned().collect();
    let mut whole = 0.0;
    for stage in STAGES {
        let time = median(&starts, |start| start[format!("{stage}_ms")].as_f64())?;
        figures.push(Figure::new(format!("{RUN}: {stage}"), time, "vms", None));
        whole += time;
    }
    figures.push(Figure::new(format!("{RUN}: to the first instruction of a container"), whole, "vms", None));
    for (way, _) in WAYS {
        let [ours, qemus] = VMMS.map(|vmm| {
            let of_vmm = |boot: &&Value| boot["kind"] == THROUGHPUT && boot["vmm"] == vmm;
            let runs: Vec<Value> = boots.iter().filter(of_vmm).cloned().collect();
            median(&runs, |run| run[way].as_f64())
        });
        let (ours, qemus) = (ours?, qemus?);
        figures.push(Figure::new(format!("{way}: ours"), ours, "MB/s", None));
        figures.push(Figure::new(format!("{way}: QEMU"), qemus, "MB/s", None));
        figures.push(Figure::new(format!("{way}: ours / QEMU"), ours / qemus, "ratio", None));
    }
    Ok(figures)
}

/// Kinds, with the pages of each and the mark.
fn measured() -> Vec<(Kind, &'static str, Option<u64>)> {
    let ours = [Kind::Marks, Kind::Whole].into_iter();
    let ours = ours.flat_map(|kind| MARKS.map(|(pages, mark)| (kind, pages, Some(mark))));
    ours.chain([(Kind::Qemu, "latency", None)]).collect()
}

/// Busybox alone, as a disk and as an initrd.
fn make_image(folder: &Path) -> anyhow::Result<()> {
    let tree = folder.join("tree");
    for name in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(tree.join(name)).context("cannot make a directory")?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox")).with_context(|| format!("cannot copy {BUSYBOX}"))?;
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.arg(folder.join(IMAGE)).arg(&tree);
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio --quiet -o -H newc -R 0:0 > \"$0\""]);
    cpio.arg(folder.join(INITRD)).current_dir(&tree);
    for (name, mut command) in [("mkfs.erofs", mkfs), ("cpio", cpio)] {
        let output = command.output().with_context(|| format!("cannot run {name}"))?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// MiB that go each way in the measurements of throughput.
const MIB: u64 = 32;
/// How their ways are called, and what measures each in a container: hundredths of a second, on its standard error.
const WAYS: [(&str, &str); 4] = [
    ("share, read", "dd if=/data/large of=/dev/null bs=1M"),
    ("share, written", "dd if=/dev/zero of=/data/new bs=1M count=$MIB conv=fsync"),
    ("vsock and agent, to standard output", "dd if=/dev/zero bs=64k count=$((MIB * 16))"),
    (
        "network, to the host",
        "nc -l -p 80 -e dd if=/dev/zero bs=64k count=$((MIB * 16)) & \
         until cat /proc/net/tcp* | grep -q ':0050 .* 0A '; do :; done; touch /data/ready; wait",
    ),
];
const PORT: u16 = 8080;

/// How long one run may take, in seconds.
const RUN_MAX: &str = "120";

/// In the lab: how much goes through the devices of a sandbox.
fn throughput(vmm: &str, work: &Path, layout: &Path) -> anyhow::Result<Value> {
    let share = work.join("share");
    fs::create_dir_all(&share).context("cannot make a directory")?;
    let _ = fs::remove_file(share.join("ready"));
    fs::write(share.join("large"), vec![7; (MIB << 20) as usize]).context("cannot write a file")?;
    let measured =
        WAYS.map(|(_, command)| format!("a=$(now); {{ {command}; }} 2> /dev/null; echo $(($(now) - a)) >&2"));
    let script =
        format!("MIB={MIB}; now() {{ cut -d' ' -f1 /proc/uptime | tr -d .; }}; {}", measured.join("; "));
    let mut command = run_command(work);
    command.args(["--vmm", vmm, "--publish", &format!("127.0.0.1:{PORT}:80"), "--volume"]);
    command.arg(format!("{}:/data", share.display())).arg(format!("oci:{}:latest", layout.display()));
    command.args(["sh", "-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut nacre = Guard(command.spawn().context("cannot run nacre")?);
    let mut stdout = nacre.0.stdout.take().context("no standard output")?;
    let output = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let mut goes_on = || {
        std::thread::sleep(Duration::from_millis(10));
        nacre.0.try_wait().context("cannot wait for nacre").map(|ended| ended.is_none())
    };
    while !share.join("ready").exists() && goes_on()? {}
    let mut received = 0;
    // One that is not taken after all ends at once.
    while received == 0 && goes_on()? {
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)) {
            received = std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0);
        }
    }
    let mut said = String::new();
    nacre.0.stderr.take().context("no standard error")?.read_to_string(&mut said).context("cannot read")?;
    let status = nacre.0.wait().context("cannot wait for nacre")?;
    let printed = output.join().ok().and_then(Result::ok).unwrap_or(0);
    let times: Vec<f64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    ensure!(
        status.success() && times.len() == WAYS.len() && printed == MIB << 20 && received == MIB << 20,
        "{vmm}: {status}, {printed} bytes printed, {received} received\n{said}"
    );
    let mut measured = json!({ "kind": THROUGHPUT, "vmm": vmm });
    for ((way, _), time) in WAYS.iter().zip(times) {
        measured[*way] = ((MIB << 20) as f64 / 1e6 / (time.max(1.0) / 100.0)).into();
    }
    Ok(measured)
}

/// In the lab: boots, or measures throughput, and prints one JSON object for each.
fn inside(runs: usize, is_throughput: bool, from: &Path) -> anyhow::Result<()> {
    let mounted = Command::new("mount").args(["-t", "debugfs", "debugfs", DEBUGFS]).status();
    ensure!(mounted.context("cannot run mount")?.success(), "debugfs cannot be mounted");
    // In the lab's own memory: reading through to the host takes as long as the host likes.
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    for name in [NACRE, KERNEL, LEAN_KERNEL, IMAGE, INITRD, GUEST_IMAGE] {
        fs::copy(from.join(name), work.path().join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let home = work.path().join(HOME);
    fs::create_dir(&home).context("cannot make a directory")?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).context("cannot change a mode")?;
    if is_throughput {
        for vmm in VMMS {
            for _ in 0..runs {
                println!("{}", throughput(vmm, work.path(), &from.join(LAYOUT))?);
            }
        }
        return Ok(());
    }
    for (kind, pages, _) in measured() {
        // The first boot of a kind finds nothing in the page cache, and is not counted.
        for number in 0..=runs {
            let boot = boot(kind, pages, work.path())?;
            if number > 0 {
                println!("{boot}");
            }
        }
    }
    for number in 0..=runs {
        let start = start(work.path(), &from.join(LAYOUT))?;
        if number > 0 {
            println!("{start}");
        }
    }
    Ok(())
}

/// `nacre run` with the kernel and the image that are here.
fn run_command(work: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", RUN_MAX]).arg(work.join(NACRE));
    command.args(["run", "--quiet", "--kernel"]).arg(work.join(KERNEL));
    command.arg("--image").arg(work.join(GUEST_IMAGE)).stdin(Stdio::null());
    command.env("HOME", work.join(HOME)).env("XDG_RUNTIME_DIR", work.join(HOME));
    command
}

/// A container from nothing, to its end.
fn start(work: &Path, layout: &Path) -> anyhow::Result<Value> {
    let timings = work.join("timings.json");
    let mut command = run_command(work);
    command.args(["--vmm", "kvm", "--timings"]).arg(&timings);
    command.arg(format!("oci:{}:latest", layout.display())).arg("true");
    let output = command.output().context("cannot run nacre")?;
    ensure!(output.status.success(), "{RUN}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let text = fs::read(&timings).context("cannot read the timings")?;
    let mut stages: Value = serde_json::from_slice(&text).context("the timings are not JSON")?;
    stages["kind"] = RUN.into();
    Ok(stages)
}

fn boot(kind: Kind, pages: &str, work: &Path) -> anyhow::Result<Value> {
    // The host's side of its network stays open; nobody is there.
    let (_host, network) = UnixStream::pair().context("cannot make a pair of sockets")?;
    rustix::io::fcntl_setfd(&network, rustix::io::FdFlags::empty()).context("cannot hand a socket on")?;
    let mut command = command(kind, pages, work, network.as_raw_fd())?;
    let begun = Instant::now();
    let mut vmm = Guard(command.spawn().context("cannot start the VMM")?);
    let console = BufReader::new(vmm.0.stdout.take().context("no console")?);
    let mut said = Vec::new();
    for line in console.lines() {
        let line = line.context("cannot read the console")?;
        if line.contains(LINE) {
            let elapsed = begun.elapsed();
            let exits = exits(vmm.0.id())?;
            let (resident, guest) = resident(vmm.0.id())?;
            return Ok(json!({
                "kind": kind.name(), "pages": pages, "ms": elapsed.as_secs_f64() * 1e3, "exits": exits,
                "resident_kib": resident, "guest_kib": guest,
            }));
        }
        said.push(line);
    }
    bail!("{}: the guest ended:\n{}", kind.name(), said.join("\n"))
}

fn command(kind: Kind, pages: &str, work: &Path, network: RawFd) -> anyhow::Result<Command> {
    const CONSOLE: &str = "console=ttyS0 quiet reboot=k panic=-1";
    let path = |name: &str| work.join(name);
    let echo = format!("echo \"{LINE}\"");
    let from_initrd = format!("{CONSOLE} rdinit={BUSYBOX} -- {echo}");
    let mut command;
    if kind == Kind::Qemu {
        command = Command::new(QEMU);
        command.args(["-M", "microvm,acpi=off,rtc=off,pit=off,pic=off", "-accel", "kvm", "-cpu", "host"]);
        command.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-nographic"]);
        command.args(["-serial", "stdio", "-kernel"]).arg(path(LEAN_KERNEL)).arg("-initrd").arg(path(INITRD));
        command.args(["-append", &from_initrd]);
    } else {
        let mut config =
            json!({ "version": 1, "processors": 1, "memory_mib": MEMORY_MIB, "memory_pages": pages });
        let fields = if kind == Kind::Marks {
            json!({ "kernel": path(LEAN_KERNEL), "initrd": path(INITRD), "command_line": from_initrd })
        } else {
            for socket in ["vsock", "control"] {
                let _ = fs::remove_file(path(socket));
            }
            json!({
                "kernel": path(KERNEL), "disks": [{ "file": { "path": path(IMAGE) }, "read_only": true }],
                "command_line": format!("{CONSOLE} root=/dev/vda rootfstype=erofs ro init={BUSYBOX} -- {echo}"),
                "vsock": { "guest_cid": 3, "socket": path("vsock") },
                "shares": [{ "name": "share", "path": work, "read_only": true }],
                "network": { "fd": network, "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500 },
                "balloon": true, "virtio_console": true, "control": path("control"),
                "memory_max_mib": 2 * MEMORY_MIB, "processors_max": 2,
            })
        };
        if let (Some(config), Value::Object(fields)) = (config.as_object_mut(), fields) {
            config.extend(fields);
        }
        fs::write(path("config.json"), config.to_string()).context("cannot write the configuration")?;
        command = Command::new(path(NACRE));
        command.args(["vmm", "--config"]).arg(path("config.json"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
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
