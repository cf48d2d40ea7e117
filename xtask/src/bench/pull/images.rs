//! The four images, out of this machine's own programs, and the registry that serves them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::contenders::check;
use crate::cache::{Cache, Key};
use crate::oci::{Blobs, Defaults, PackedLayer};

/// Changes whenever what is made does.
const VERSION: &str = "3";
/// Content of the files of image a, in bytes.
const CONTENT_BYTES: u64 = 300_000_000;
/// Larger files are left out: one of them would be all there is.
const FILE_BYTES_MAX: u64 = 48 << 20;
const LAYERS: usize = 8;
const SMALL_FILES: usize = 20_000;
const SMALL_FILE_BYTES_MAX: u64 = 4096;
/// How long the registry may take to listen.
const START: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Image {
    /// About 300 MB in one gzip layer.
    #[value(name = "a")]
    OneLayer,
    /// The same in eight.
    #[value(name = "b")]
    EightLayers,
    /// 20,000 small files in one gzip layer.
    #[value(name = "c")]
    SmallFiles,
    /// The first, with zstd.
    #[value(name = "d")]
    Zstd,
}

impl Image {
    pub const ALL: [Self; 4] = [Self::OneLayer, Self::EightLayers, Self::SmallFiles, Self::Zstd];

    fn tag(self) -> &'static str {
        match self {
            Self::OneLayer => "a",
            Self::EightLayers => "b",
            Self::SmallFiles => "c",
            Self::Zstd => "d",
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.tag())
    }
}

/// The folder with a layout for each image; made once, which takes minutes.
pub fn make(cache: &Cache) -> anyhow::Result<PathBuf> {
    let key = Key::new().part("version", VERSION).finish();
    cache.get_or_make("bench-images", &key, |out| {
        let work = tempfile::tempdir_in("/var/tmp").context("cannot make a working directory")?;
        let work = work.path();
        let found = regular_files();
        let files = sample(&found)?;
        let one = work.join("a.tar");
        eprintln!("making the images: {} files of /usr", files.len());
        pack(&files, &one)?;
        write(out, Image::SmallFiles, &[small_files(&found, work)?], "gzip")?;
        write(out, Image::OneLayer, std::slice::from_ref(&one), "gzip")?;
        write(out, Image::Zstd, &[one], "zstd")?;
        let mut parts = Vec::new();
        for part in 0..LAYERS {
            let files: Vec<PathBuf> = files.iter().skip(part).step_by(LAYERS).cloned().collect();
            let tar = work.join(format!("b{part}.tar"));
            pack(&files, &tar)?;
            parts.push(tar);
        }
        write(out, Image::EightLayers, &parts, "gzip")
    })
}

/// A file: the hash of its name, its length, its path.
type Found = ([u8; 32], u64, PathBuf);

/// The regular files of /usr with one name, in the order of the hashes of their names: a draw that has some of every kind.
fn regular_files() -> Vec<Found> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/usr")];
    while let Some(directory) = todo.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            if metadata.is_dir() {
                todo.push(path);
            } else if metadata.is_file() && metadata.nlink() == 1 {
                let hash = Sha256::digest(path.as_os_str().as_bytes()).into();
                found.push((hash, metadata.len(), path));
            }
        }
    }
    found.sort();
    found
}

fn sample(found: &[Found]) -> anyhow::Result<Vec<PathBuf>> {
    let (mut total, mut files) = (0, Vec::new());
    for (_, size, path) in found.iter().filter(|(_, size, _)| *size <= FILE_BYTES_MAX) {
        if total >= CONTENT_BYTES {
            break;
        }
        total += size;
        files.push(path.clone());
    }
    ensure!(total >= CONTENT_BYTES, "/usr has only {total} bytes in files of usual sizes");
    files.sort();
    Ok(files)
}

/// A tar of these files and of the directories on the way to them, as image builders write them.
fn pack(files: &[PathBuf], tar: &Path) -> anyhow::Result<()> {
    let mut names: BTreeSet<&Path> = BTreeSet::new();
    for file in files {
        names.extend(file.ancestors().filter(|name| *name != Path::new("/")));
    }
    let list = tar.with_extension("list");
    let mut text = Vec::new();
    for name in names {
        text.extend_from_slice(name.strip_prefix("/").unwrap_or(name).as_os_str().as_bytes());
        text.push(0);
    }
    fs::write(&list, text).context("cannot write a list of files")?;
    let words = ["--create", "--null", "--no-recursion", "--numeric-owner", "--format=gnu", "--directory=/"];
    let mut command = Command::new("tar");
    command.args(words).arg("--file").arg(tar).arg("--files-from").arg(&list);
    check(&mut command).map(drop)
}

/// A tar of small files. Where this machine has fewer of them, all of them come again below other directories.
fn small_files(found: &[Found], work: &Path) -> anyhow::Result<PathBuf> {
    let small: Vec<&PathBuf> = found
        .iter()
        .filter(|(_, size, _)| (1..=SMALL_FILE_BYTES_MAX).contains(size))
        .map(|(_, _, path)| path)
        .take(SMALL_FILES)
        .collect();
    ensure!(!small.is_empty(), "/usr has no small files");
    let path = work.join("c.tar");
    let mut tar = tar::Builder::new(BufWriter::new(File::create(&path).context("cannot make a tar")?));
    tar.mode(tar::HeaderMode::Complete);
    let mut directories = BTreeSet::new();
    for number in 0..SMALL_FILES {
        let source = small[number % small.len()];
        let name = Path::new(&format!("round{}", number / small.len()))
            .join(source.strip_prefix("/").unwrap_or(source));
        let mut missing: Vec<&Path> =
            name.ancestors().skip(1).filter(|name| !name.as_os_str().is_empty()).collect();
        missing.retain(|name| directories.insert(name.to_path_buf()));
        for directory in missing.into_iter().rev() {
            tar.append_dir(directory, "/usr").context("cannot add a directory")?;
        }
        tar.append_path_with_name(source, &name)
            .with_context(|| format!("cannot add {}", source.display()))?;
    }
    tar.into_inner().and_then(|mut file| file.flush()).context("cannot end a tar")?;
    Ok(path)
}

/// Compresses the tars into a layout of their own.
fn write(out: &Path, image: Image, tars: &[PathBuf], program: &str) -> anyhow::Result<()> {
    let folder = out.join(image.tag());
    let blobs = Blobs::at(&folder)?;
    let mut layers = Vec::new();
    for tar in tars {
        let packed = out.join("packed");
        let output = File::create(&packed).context("cannot make a blob")?;
        let level = if program == "gzip" { "-6" } else { "-3" };
        let mut command = Command::new(program);
        let status = command.args(["-c", level]).arg(tar).stdout(output).stderr(Stdio::null()).status();
        ensure!(status.with_context(|| format!("cannot run {program}"))?.success(), "{program} failed");
        let media_type = format!("application/vnd.oci.image.layer.v1.tar+{program}");
        let descriptor = blobs.take(&media_type, &packed, &sha256(&packed)?)?;
        layers.push(PackedLayer { descriptor, diff_id: format!("sha256:{}", sha256(tar)?) });
    }
    let defaults = Defaults { command: &["/bin/true"], environment: &[] };
    blobs.write_image(&folder, image.tag(), &layers, &defaults).map(drop)
}

/// By a program, which is not built for debugging.
fn sha256(file: &Path) -> anyhow::Result<String> {
    let said = check(Command::new("sha256sum").arg(file))?;
    said.split_whitespace().next().map(str::to_owned).context("sha256sum said nothing")
}

/// A running registry with all images; ends with its value.
pub struct Registry {
    process: Child,
    port: u16,
    images: PathBuf,
}

/// A layer of an image, for the parts.
pub struct Layer {
    pub url: String,
    pub blob: PathBuf,
    pub form: &'static str,
}

impl Layer {
    pub fn decompress(&self, to: &Path) -> anyhow::Result<()> {
        let to = File::create(to).context("cannot make a tar")?;
        let status = Command::new(self.form).args(["-d", "-c"]).arg(&self.blob).stdout(to).status();
        ensure!(status.with_context(|| format!("cannot run {}", self.form))?.success(), "cannot decompress");
        Ok(())
    }
}

impl Registry {
    pub fn start(work: &Path, images: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let port = listener.local_addr().context("no address")?.port();
        drop(listener);
        let config = work.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\nhttp:\n  addr: \"127.0.0.1:{port}\"\n",
            work.join("registry").display()
        );
        fs::write(&config, text).context("cannot write the registry's configuration")?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start docker-registry")?;
        let registry = Self { process, port, images: images.to_owned() };
        let until = Instant::now() + START;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            ensure!(Instant::now() < until, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        for image in Image::ALL {
            let from = format!("oci:{}:{image}", images.join(image.tag()).display());
            let words =
                ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"];
            let to = format!("docker://{}", registry.reference(image));
            check(Command::new("skopeo").args(words).args([from, to]))?;
        }
        Ok(registry)
    }

    pub fn reference(&self, image: Image) -> String {
        format!("127.0.0.1:{}/bench:{image}", self.port)
    }

    pub fn layers(&self, image: Image) -> anyhow::Result<Vec<Layer>> {
        let folder = self.images.join(image.tag());
        let read = |path: PathBuf| -> anyhow::Result<Value> {
            let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
        };
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap_or_default();
            folder.join("blobs").join(digest.replace(':', "/"))
        };
        let index = read(folder.join("index.json"))?;
        let manifest = read(blob(&index["manifests"][0]))?;
        let layers = manifest["layers"].as_array().context("a manifest without layers")?;
        let layer = |descriptor: &Value| Layer {
            url: format!(
                "http://127.0.0.1:{}/v2/bench/blobs/{}",
                self.port,
                descriptor["digest"].as_str().unwrap_or_default()
            ),
            blob: blob(descriptor),
            form: if image == Image::Zstd { "zstd" } else { "gzip" },
        };
        Ok(layers.iter().map(layer).collect())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
