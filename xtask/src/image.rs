//! `cargo xtask image`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nacre_guest_image as guest;

use crate::cache::{Cache, Key, sha256_of};
use crate::packages;

/// The file in `current/` of the cache.
const CURRENT: &str = "guest.erofs";
/// Changes whenever packing does.
const PACKER_VERSION: u32 = 1;

#[derive(clap::Args, Default)]
pub struct Options {
    /// Put a file of this machine into the image. Such an image is never made current.
    #[arg(long, value_name = "PATH=FILE", value_parser = parse_extra)]
    extra: Vec<Extra>,
    /// Build and pack once more in other directories, and fail when the bytes differ.
    #[arg(long)]
    check_reproducible: bool,
}

/// A file of this machine and its place in the image.
#[derive(Clone)]
pub struct Extra {
    path: String,
    file: PathBuf,
}

/// Builds the image and prints its path.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    let image = make(&cache, &options.extra)?;
    if options.check_reproducible {
        check_reproducible(&options.extra, &image)?;
    }
    println!("{}", image.display());
    Ok(())
}

/// The image of this tree's guest programs; made current unless it has something extra.
pub fn make(cache: &Cache, extra: &[Extra]) -> anyhow::Result<PathBuf> {
    packages::ensure(guest::PACKAGES)?;
    let programs = guest::compile(&root(), &target())?;
    for program in guest::PROGRAMS {
        let path = programs.path(program.name);
        // Reported only: what counts in the end is the image.
        let _ = report(program.name, &path, size_of(&path)?, program.size_budget_bytes);
    }
    let layout = layout(&programs, extra)?;
    let folder = cache.get_or_make("image", &key(&layout)?, |out| pack(&layout, out))?;
    let image = folder.join(CURRENT);
    report("guest image", &image, size_of(&image)?, guest::SIZE_BUDGET_BYTES)?;
    if extra.is_empty() {
        cache.set_current(CURRENT, &image)?;
    }
    Ok(image)
}

/// Prints what was made, how large it is and how large it may be. Too large is an error.
pub fn report(what: &str, path: &Path, size_bytes: u64, budget_bytes: u64) -> anyhow::Result<()> {
    let within = size_bytes <= budget_bytes;
    eprintln!(
        "{what}: {} of at most {}{}, sha256 {}",
        mib(size_bytes),
        mib(budget_bytes),
        if within { "" } else { " (OVER BUDGET)" },
        sha256_of(path)?
    );
    anyhow::ensure!(within, "{what} is too large: {size_bytes} bytes, the budget is {budget_bytes}");
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The workspace of this program.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Cargo's target directory for everything that a command builds; absolute, because cargo is started elsewhere.
pub fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.and_then(|path| std::path::absolute(path).ok()).unwrap_or_else(|| root().join("target"))
}

fn layout(programs: &guest::Programs, extra: &[Extra]) -> anyhow::Result<guest::Layout> {
    let mut layout = guest::Layout::guest(programs)?;
    for Extra { path, file } in extra {
        layout.extra(path, file)?;
    }
    Ok(layout)
}

/// What decides the bytes: every entry with its content, and the packer.
fn key(layout: &guest::Layout) -> anyhow::Result<String> {
    let mut key = Key::new()
        .part("packer", PACKER_VERSION.to_le_bytes())
        .part("erofs-utils", packages::version("erofs-utils")?);
    for (path, entry) in layout.entries() {
        key = key.part(path, entry.mode.to_le_bytes());
        key = match &entry.content {
            guest::Content::Directory => key.part("directory", ""),
            guest::Content::Bytes(bytes) => key.part("file", bytes),
            guest::Content::File(file) => {
                key.part("file", fs::read(file).with_context(|| format!("cannot read {}", file.display()))?)
            }
            guest::Content::Link(text) => key.part("link", text),
        };
    }
    Ok(key.finish())
}

fn pack(layout: &guest::Layout, out: &Path) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    Ok(guest::pack(layout, work.path(), &out.join(CURRENT))?)
}

/// Compiles from a copy of the sources at another path, into another target directory.
fn check_reproducible(extra: &[Extra], image: &Path) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("cannot make a working directory")?;
    let copy = work.path().join("elsewhere");
    copy_sources(&root(), &copy)?;
    let built = guest::compile(&root(), &target())?;
    let programs = guest::compile(&copy, &work.path().join("target"))?;
    for program in guest::PROGRAMS {
        let here = sha256_of(&built.path(program.name))?;
        let there = sha256_of(&programs.path(program.name))?;
        anyhow::ensure!(here == there, "{} is not reproducible: {here}, then {there}", program.name);
    }
    let out = work.path().join("out");
    fs::create_dir(&out).with_context(|| format!("cannot make {}", out.display()))?;
    pack(&layout(&programs, extra)?, &out)?;
    let (first, second) = (sha256_of(image)?, sha256_of(&out.join(CURRENT))?);
    anyhow::ensure!(first == second, "the image is not reproducible: {first}, then {second}");
    eprintln!("guest image: built twice in different directories, same bytes");
    Ok(())
}

/// Copies a source tree without what is made from it.
fn copy_sources(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            copy_sources(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

fn size_of(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len())
}

fn parse_extra(text: &str) -> Result<Extra, String> {
    match text.split_once('=') {
        Some((path, file)) if !path.is_empty() && !file.is_empty() => {
            Ok(Extra { path: path.to_owned(), file: PathBuf::from(file) })
        }
        _ => Err("want PATH=FILE: a path in the image, and the file that goes there".to_owned()),
    }
}
