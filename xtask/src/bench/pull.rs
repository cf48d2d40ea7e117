//! `cargo xtask bench pull`: what a pull costs us, others, and its parts alone.
//!
//! Four images on Debian's `docker-registry` on loopback. Every measurement has an ext4 of its own on a loop device,
//! formatted just before: one emptied by `rm` still owes seconds of its clean-up. Everybody's processor time is that of a
//! control group, so daemons and children count and nobody's threads are missed.
//!
//! Wall time depends on who else uses the machine; processor time hardly does.

mod contenders;
mod disk;
mod images;
mod meter;
mod page_cache;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use nacre_guest_image as guest;

use super::Figure;
use crate::cache::Cache;
use crate::image::{root, target};
use crate::packages;
use contenders::{Contender, Place};
use images::{Image, Registry};
use meter::Cost;

/// What the peers are, and what serves and measures them.
pub const PACKAGES: &[&str] = &[
    "containerd",
    "curl",
    "docker-registry",
    "e2fsprogs",
    "gzip",
    "mount",
    "podman",
    "skopeo",
    "tar",
    "umoci",
    "util-linux",
    "zstd",
];

/// Ours against containerd's, wall and processor time.
const AGAINST_CONTAINERD: [(Image, f64); 4] =
    [(Image::OneLayer, 0.25), (Image::EightLayers, 0.25), (Image::SmallFiles, 0.1), (Image::Zstd, 0.25)];
/// Our processor time against that of fetching, hashing, decompressing and writing alone.
const AGAINST_PARTS: f64 = 1.1;
/// Fetcher and indexer together, the highest that either ever had, in MiB.
const PEAK_MIB: f64 = 24.0;
/// Pages cached after all files of the image were read, against those that its files have.
const PAGE_CACHE: f64 = 1.05;

#[derive(clap::Args)]
pub struct Options {
    /// How often each is measured; medians are printed.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these images: a (one layer), b (eight layers), c (small files), d (a in zstd).
    #[arg(long, value_delimiter = ',', default_values_t = Image::ALL)]
    images: Vec<Image>,
    /// Only these besides nacre.
    #[arg(long, value_delimiter = ',', default_values_t = Contender::OTHERS)]
    against: Vec<Contender>,
}

pub fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    ensure!(options.runs > 0, "--runs must be at least 1");
    packages::ensure(PACKAGES)?;
    let work = working_directory()?;
    let programs = guest::compile_with_examples(&root(), &target(), "nacre-puller", &["parts", "pull"])?;
    let place = Place {
        puller: open_copy(programs.path("nacre-puller"), &work)?,
        pull: programs.path("examples/pull"),
        parts: programs.path("examples/parts"),
        work: work.path().to_owned(),
        registry: Registry::start(work.path(), &images::make(&Cache::open()?)?)?,
    };
    let mut figures = Vec::new();
    for &image in &options.images {
        let mut costs: BTreeMap<Contender, Vec<Cost>> = BTreeMap::new();
        let mut cached = None;
        for run in 1..=options.runs {
            for &contender in [Contender::Nacre].iter().chain(&options.against) {
                if !contender.can(image) {
                    continue;
                }
                eprintln!("image {image}, run {run} of {}: {contender}", options.runs);
                let (cost, seen) = place.measure(contender, image)?;
                costs.entry(contender).or_default().push(cost);
                cached = seen.or(cached);
            }
        }
        figures.extend(judge(image, &costs)?);
        if let Some(ratio) = cached {
            figures.push(figure(format!("{image}: page cache / image"), ratio, "ratio", Some(PAGE_CACHE)));
        }
    }
    Ok(figures)
}

/// On a disk, where /tmp may be memory, and open to the puller's users.
fn working_directory() -> anyhow::Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let mut builder = tempfile::Builder::new();
    builder.prefix("nacre-bench-").permissions(std::fs::Permissions::from_mode(0o755));
    builder.tempdir_in("/var/tmp").context("cannot make a working directory")
}

/// The puller's users may not see the build directory.
fn open_copy(program: PathBuf, work: &tempfile::TempDir) -> anyhow::Result<PathBuf> {
    let copy = work.path().join("nacre-puller");
    std::fs::copy(&program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
    Ok(copy)
}

fn judge(image: Image, costs: &BTreeMap<Contender, Vec<Cost>>) -> anyhow::Result<Vec<Figure>> {
    let median = |contender: Contender, figure: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.get(&contender)?.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let mut figures = Vec::new();
    for contender in costs.keys().copied() {
        let value = |figure| median(contender, figure).context("nothing was measured");
        let name = |what: &str| format!("{image}: {contender}, {what}");
        figures.push(figure(name("wall"), value(|cost| cost.wall)?, "s", None));
        figures.push(figure(name("processor"), value(|cost| cost.processor)?, "s", None));
        let budget = (contender == Contender::Nacre).then_some(PEAK_MIB);
        figures.push(figure(name("peak resident"), value(|cost| cost.peak_mib)?, "MiB", budget));
    }
    let budget_of = |contender| match contender {
        Contender::Containerd => {
            AGAINST_CONTAINERD.iter().find(|(of, _)| *of == image).map(|(_, budget)| *budget)
        }
        _ => None,
    };
    for contender in costs.keys().copied().filter(|contender| *contender != Contender::Nacre) {
        let ratio = |figure| Some(median(Contender::Nacre, figure)? / median(contender, figure)?);
        let budget = budget_of(contender);
        if matches!(contender, Contender::Parts | Contender::Unpacked) {
            let processor = ratio(|cost| cost.processor).context("nothing was measured")?;
            let name = format!("{image}: processor, nacre / {contender}");
            // Writing one file has no part in what many small ones cost.
            let judged = (image == Image::SmallFiles) == (contender == Contender::Unpacked);
            figures.push(figure(name, processor, "ratio", judged.then_some(AGAINST_PARTS)));
            continue;
        }
        let wall = ratio(|cost| cost.wall).context("nothing was measured")?;
        let processor = ratio(|cost| cost.processor).context("nothing was measured")?;
        figures.push(figure(format!("{image}: wall, nacre / {contender}"), wall, "ratio", budget));
        figures.push(figure(format!("{image}: processor, nacre / {contender}"), processor, "ratio", budget));
    }
    Ok(figures)
}

fn figure(name: String, value: f64, unit: &'static str, budget: Option<f64>) -> Figure {
    Figure { name, value, unit, budget }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared_with_the_peer_of_the_same_run() {
        let cost = |wall, processor, peak_mib| Cost { wall, processor, peak_mib };
        let costs = BTreeMap::from([
            (Contender::Nacre, vec![cost(1.0, 1.0, 9.0), cost(9.0, 3.0, 25.0), cost(2.0, 2.0, 10.0)]),
            (Contender::Containerd, vec![cost(10.0, 4.0, 100.0)]),
            (Contender::Parts, vec![cost(1.0, 1.0, 5.0)]),
            (Contender::Unpacked, vec![cost(1.0, 4.0, 5.0)]),
        ]);
        let figures = judge(Image::SmallFiles, &costs).unwrap();
        let of = |name: &str| {
            let figure = figures.iter().find(|figure| figure.name == name);
            figure.map(|figure| (figure.value, figure.budget, figure.met()))
        };
        assert_eq!(of("c: nacre, wall"), Some((2.0, None, None)));
        assert_eq!(of("c: nacre, peak resident"), Some((10.0, Some(24.0), Some(true))));
        assert_eq!(of("c: wall, nacre / containerd"), Some((0.2, Some(0.1), Some(false))));
        assert_eq!(of("c: processor, nacre / containerd"), Some((0.5, Some(0.1), Some(false))));
        assert_eq!(of("c: processor, nacre / parts"), Some((2.0, None, None)));
        assert_eq!(of("c: processor, nacre / unpacked"), Some((0.5, Some(1.1), Some(true))));
        let others = judge(Image::OneLayer, &costs).unwrap();
        let parts = others.iter().find(|figure| figure.name == "a: processor, nacre / parts").unwrap();
        assert_eq!((parts.budget, parts.met()), (Some(1.1), Some(false)));
        assert_eq!(of("c: wall, nacre / parts"), None);
    }
}
