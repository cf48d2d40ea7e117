//! `cargo xtask kernel`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nacre_kernel_config as config;

use crate::cache::{Cache, Key, sha256_of};
use crate::packages;

/// Which kernel.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavour {
    /// For our own VMM and QEMU's microvm: virtio over MMIO, nothing that is enumerated. What `nacre` boots.
    #[default]
    Small,
    /// For machines that shims for Kata have QEMU (q35) or Cloud Hypervisor make: with PCI, ACPI, SCSI and swap.
    Buses,
}

impl Flavour {
    /// The file in `current/` of the cache.
    fn current(self) -> &'static str {
        match self {
            Self::Small => "vmlinux",
            Self::Buses => "vmlinux-buses",
        }
    }

    fn fragments(self) -> Vec<config::Fragment> {
        match self {
            Self::Small => config::FRAGMENTS.to_vec(),
            Self::Buses => config::fragments_with_buses(),
        }
    }

    fn size_budget_bytes(self) -> u64 {
        match self {
            Self::Small => config::SIZE_BUDGET_BYTES,
            Self::Buses => config::SIZE_BUDGET_WITH_BUSES_BYTES,
        }
    }
}

#[derive(clap::Args, Default)]
pub struct Options {
    /// For which machines.
    #[arg(long, value_enum, default_value_t)]
    flavour: Flavour,
    /// Build again although the cache has this kernel, and fail when the bytes differ.
    #[arg(long)]
    check_reproducible: bool,
}

/// Builds the kernel, makes it current and prints its path.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    let vmlinux = make_flavour(options.flavour, &cache)?;
    if options.check_reproducible {
        check_reproducible(&options.flavour.fragments(), &vmlinux)?;
    }
    println!("{}", vmlinux.display());
    Ok(())
}

/// The kernel of this tree's fragments, made current.
pub fn make(cache: &Cache) -> anyhow::Result<PathBuf> {
    make_flavour(Flavour::Small, cache)
}

/// The same with what one flavour has.
pub fn make_flavour(flavour: Flavour, cache: &Cache) -> anyhow::Result<PathBuf> {
    let vmlinux = made_of(&flavour.fragments(), cache)?;
    let size = fs::metadata(&vmlinux).with_context(|| format!("cannot look at {}", vmlinux.display()))?.len();
    crate::image::report("kernel", &vmlinux, size, flavour.size_budget_bytes())?;
    cache.set_current(flavour.current(), &vmlinux)?;
    Ok(vmlinux)
}

/// The kernel that figures beside those of other VMMs are taken with.
pub fn make_for_figures(cache: &Cache) -> anyhow::Result<PathBuf> {
    made_of(&config::fragments_for_figures(), cache)
}

fn made_of(fragments: &[config::Fragment], cache: &Cache) -> anyhow::Result<PathBuf> {
    packages::ensure(config::PACKAGES)?;
    let folder = cache.get_or_make("kernel", &key(fragments)?, |out| {
        eprintln!("kernel: building; this takes several minutes, once");
        build(fragments, out)
    })?;
    Ok(folder.join("vmlinux"))
}

fn key(fragments: &[config::Fragment]) -> anyhow::Result<String> {
    let key = Key::new()
        .part("builder", config::BUILDER_VERSION.to_le_bytes())
        .part("source", packages::version(config::SOURCE_PACKAGE)?)
        .part("toolchain", config::toolchain()?);
    Ok(fragments.iter().fold(key, |key, fragment| key.part(fragment.name, fragment.text)).finish())
}

fn build(fragments: &[config::Fragment], out: &Path) -> anyhow::Result<()> {
    let work = out.join("work");
    let job =
        config::Build { source_tarball: Path::new(config::SOURCE_TARBALL), fragments, work: &work, out };
    config::build(&job)?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

fn check_reproducible(fragments: &[config::Fragment], vmlinux: &Path) -> anyhow::Result<()> {
    let again = tempfile::tempdir().context("cannot make a working directory")?;
    let out = again.path().join("out");
    build(fragments, &out)?;
    let (first, second) = (sha256_of(vmlinux)?, sha256_of(&out.join("vmlinux"))?);
    anyhow::ensure!(first == second, "the kernel is not reproducible: {first}, then {second}");
    eprintln!("kernel: built twice, same bytes");
    Ok(())
}
