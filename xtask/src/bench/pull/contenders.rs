//! Those who pull: we, the others, and the parts alone.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use super::disk::Disk;
use super::images::{Image, Registry};
use super::meter::{Cost, Meter};
use super::page_cache;

/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    Nacre,
    Containerd,
    Skopeo,
    Podman,
    /// Each layer's tar written as one file.
    Parts,
    /// Each layer's tar unpacked.
    Unpacked,
}

impl Contender {
    pub const OTHERS: [Self; 5] = [Self::Containerd, Self::Skopeo, Self::Podman, Self::Parts, Self::Unpacked];

    /// Debian's umoci knows no zstd. Unpacking says something where there are many files.
    pub fn can(self, image: Image) -> bool {
        !(self == Self::Skopeo && image == Image::Zstd
            || self == Self::Unpacked && image != Image::SmallFiles)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Nacre => "nacre",
            Self::Containerd => "containerd",
            Self::Skopeo => "skopeo",
            Self::Podman => "podman",
            Self::Parts => "parts",
            Self::Unpacked => "unpacked",
        })
    }
}

/// What all measurements share.
pub struct Place {
    pub puller: PathBuf,
    pub pull: PathBuf,
    pub parts: PathBuf,
    pub work: PathBuf,
    pub registry: Registry,
}

impl Place {
    /// One pull on a fresh disk; of ours also how many times over reading it takes memory.
    pub fn measure(&self, contender: Contender, image: Image) -> anyhow::Result<(Cost, Option<f64>)> {
        let disk = Disk::fresh(&self.work)?;
        let meter = Meter::new()?;
        let cost = match contender {
            Contender::Nacre => {
                let cost = self.nacre(&meter, &disk, image)?;
                let cached = page_cache::ratio(&disk.at.join("store"), &self.work.join("layer"))?;
                return Ok((cost, cached));
            }
            Contender::Containerd => self.containerd(&meter, &disk, image),
            Contender::Skopeo => self.skopeo(&meter, &disk, image),
            Contender::Podman => self.podman(&meter, &disk, image),
            Contender::Parts | Contender::Unpacked => self.parts(&meter, &disk, image, contender),
        };
        Ok((cost?, None))
    }

    fn nacre(&self, meter: &Meter, disk: &Disk, image: Image) -> anyhow::Result<Cost> {
        let mut said = String::new();
        let cost = meter.measure(|| {
            let mut command = meter.command(&self.pull);
            command.arg(&self.puller).arg(disk.at.join("store")).arg(self.registry.reference(image));
            said = check(&mut command)?;
            Ok(())
        })?;
        // It knows its two processes' own peaks to the byte; what started them is no part of a pull.
        let peaks = said.split("VmHWM: ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok());
        let peaks: Vec<f64> = peaks.collect();
        ensure!(peaks.len() == 2, "two processes were expected in:\n{said}");
        Ok(Cost { peak_mib: peaks.iter().sum::<f64>() / 1024.0, ..cost })
    }

    fn containerd(&self, meter: &Meter, disk: &Disk, image: Image) -> anyhow::Result<Cost> {
        let daemon = Containerd::start(meter, &disk.at)?;
        let cost = meter.measure(|| {
            let mut command = meter.command("ctr");
            command.arg("--address").arg(&daemon.socket);
            command.args(["image", "pull", "--plain-http", &self.registry.reference(image)]);
            check(&mut command).map(drop)
        });
        drop(daemon);
        cost
    }

    fn skopeo(&self, meter: &Meter, disk: &Disk, image: Image) -> anyhow::Result<Cost> {
        let layout = disk.at.join("layout").display().to_string();
        let from = format!("docker://{}", self.registry.reference(image));
        meter.measure(|| {
            let copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"];
            check(meter.command("skopeo").args(copy).args([&from, &format!("oci:{layout}:image")]))?;
            let unpack = ["unpack", "--image", &format!("{layout}:image")];
            check(meter.command("umoci").args(unpack).arg(disk.at.join("bundle"))).map(drop)
        })
    }

    fn podman(&self, meter: &Meter, disk: &Disk, image: Image) -> anyhow::Result<Cost> {
        let at = |name: &str| disk.at.join(name).display().to_string();
        let (storage, state) = (at("storage"), at("run"));
        let place = ["--root", &storage, "--runroot", &state, "--storage-driver", "overlay"];
        let policy = disk.at.join("policy.json");
        fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).context("cannot write")?;
        meter.measure(|| {
            let mut command = meter.command("podman");
            command.args(place).args(["pull", "--quiet", "--tls-verify=false", "--signature-policy"]);
            command.arg(&policy).arg(self.registry.reference(image));
            check(&mut command).map(drop)
        })
    }

    /// Fetching the blobs, hashing them and their tars, decompressing, and writing the tars or what is in them, one after the
    /// other.
    fn parts(&self, meter: &Meter, disk: &Disk, image: Image, as_what: Contender) -> anyhow::Result<Cost> {
        let mut sum = Cost { wall: 0.0, processor: 0.0, peak_mib: 0.0 };
        let mut add = |what: &str, command: &mut Command| -> anyhow::Result<()> {
            let cost = meter.measure(|| check(command).map(drop))?;
            eprintln!("    {what}: {:.3} s of processor time", cost.processor);
            sum.wall += cost.wall;
            sum.processor += cost.processor;
            sum.peak_mib = sum.peak_mib.max(cost.peak_mib);
            Ok(())
        };
        for layer in self.registry.layers(image)? {
            let (blob, tar) = (disk.at.join("blob"), disk.at.join("tar"));
            let curl = ["--silent", "--show-error", "--fail", "--output", "/dev/null", &layer.url];
            add("fetch", meter.command("curl").args(curl))?;
            fs::copy(&layer.blob, &blob).context("cannot copy a blob")?;
            add("sha256 of the blob", meter.command(&self.parts).arg("sha256").arg(&blob))?;
            add("decompress", meter.command(&self.parts).args(["decompress", layer.form]).arg(&blob))?;
            layer.decompress(&tar)?;
            add("sha256 of the tar", meter.command(&self.parts).arg("sha256").arg(&tar))?;
            if as_what == Contender::Unpacked {
                let files = disk.at.join("files");
                fs::create_dir_all(&files).context("cannot make a directory")?;
                add("unpack", meter.command("tar").arg("-C").arg(&files).arg("-xf").arg(&tar))?;
                fs::remove_file(&tar).context("cannot remove the tar")?;
                continue;
            }
            let bytes = fs::metadata(&tar).context("cannot look at the tar")?.len().to_string();
            fs::remove_file(&tar).context("cannot remove the tar")?;
            add("write", meter.command(&self.parts).args(["write", &bytes]).arg(&tar))?;
        }
        Ok(sum)
    }
}

/// A daemon with everything of its own below one directory.
struct Containerd {
    process: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(meter: &Meter, folder: &Path) -> anyhow::Result<Self> {
        let socket = folder.join("containerd.sock");
        let config = folder.join("config.toml");
        // The CRI plugin looks for networks and sandboxes; nobody here asks it.
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n[ttrpc]\naddress = \"{0}/ttrpc.sock\"\n",
            folder.display()
        );
        fs::write(&config, text).context("cannot write containerd's configuration")?;
        let log_path = folder.join("containerd.log");
        let log = File::create(&log_path).context("cannot make containerd's log")?;
        let mut command = meter.command("setpriv");
        command.args(["--pdeathsig", "KILL", "containerd", "--config"]).arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = Self { process: command.spawn().context("cannot start containerd")?, socket };
        let until = Instant::now() + START;
        loop {
            let mut ask = Command::new("ctr");
            let ask = ask.arg("--address").arg(&daemon.socket).arg("version").stderr(Stdio::null());
            if ask.stdout(Stdio::null()).status().context("cannot run ctr")?.success() {
                return Ok(daemon);
            }
            if Instant::now() > until {
                bail!("containerd does not answer:\n{}", fs::read_to_string(&log_path).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a command to its good end; returns what it printed.
pub fn check(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
