//! Images of other people's tools, pulled by the processes, mounted as the launcher mounts them, and compared file by file
//! with what podman and containerd make of them; each layer's index with that of Debian 13's `mkfs.erofs --tar=i`.
//!
//! Needs root, loop devices, a kernel with EROFS, and the tools; the first time the fixtures take minutes.

mod common;
mod puller;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::request;
use nacre_protocols::agent_puller::Pull;
use nacre_tests::fixtures::oracle::{Containerd, Podman};
use nacre_tests::fixtures::{Layout, debian, images};
use nacre_tests::{Registry, require, tool, tree};
use puller::{Puller, Start};
use support::erofs_utils::ErofsUtils;
use support::mounted::Mounted;
use support::snapshot::Snapshot;
use support::{can_mount, skip};

/// Most differences that are shown.
const SHOWN: usize = 20;
/// Columns of a tree's line.
const MTIME: usize = 7;
const XATTRS: usize = 11;

/// Layers of one image, mounted.
struct Pulled {
    root: Mounted,
    /// The topmost first.
    _layers: Vec<Mounted>,
    work: tempfile::TempDir,
    puller: Puller,
    diff_ids: Vec<String>,
}

impl Pulled {
    fn new(reference: &str) -> Self {
        let (registry, _) = reference.split_once('/').expect("a registry");
        let ports = registry.rsplit(':').next().and_then(|port| port.parse().ok()).into_iter().collect();
        let puller = Puller::start_with(|_| (), &Start { ports, ..Start::default() }).expect("no puller");
        let loopback = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let order = Pull { reference: reference.into(), ..request(loopback) };
        let pulled = puller.pull(1, order).unwrap_or_else(|error| panic!("{reference}: {error:?}"));
        let work = tempfile::tempdir().unwrap();
        let mut diff_ids: Vec<String> = pulled.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let store = puller.store().join("layers");
        let mount = |(at, diff_id): (usize, &String)| {
            let layer = store.join(diff_id);
            Mounted::layer(
                &layer.join("index.erofs"),
                &layer.join("layer.tar"),
                &work.path().join(at.to_string()),
            )
        };
        let layers: Vec<Mounted> = diff_ids.iter().enumerate().rev().map(mount).collect();
        let lower: Vec<&Path> = layers.iter().map(|layer| layer.at.as_path()).collect();
        let root = match lower.as_slice() {
            // An overlay has at least two.
            [one] => Mounted::overlay(&[one, &empty(work.path())], &work.path().join("root")),
            several => Mounted::overlay(several, &work.path().join("root")),
        };
        diff_ids.sort();
        diff_ids.dedup();
        Self { root, _layers: layers, work, puller, diff_ids }
    }

    fn tree(&self) -> Vec<String> {
        tree::lines(&self.root.at).unwrap()
    }

    fn end(self) {
        let Self { root, _layers, work, puller, .. } = self;
        drop((root, _layers));
        drop(work);
        puller.end();
    }
}

fn empty(work: &Path) -> std::path::PathBuf {
    let path = work.join("empty");
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Of the root directory only the kind counts: whoever unpacks makes it.
fn by_path(lines: &[String]) -> BTreeMap<&str, &str> {
    let lines = lines.iter().filter(|line| !line.starts_with('#'));
    let named = lines.map(|line| (line.split('\t').next().unwrap_or_default(), line.as_str()));
    named.filter(|(path, _)| *path != "/").collect()
}

fn compare(what: &str, found: &[String], expected: &[String]) {
    let (found, expected) = (by_path(found), by_path(expected));
    let paths: BTreeSet<&str> = found.keys().chain(expected.keys()).copied().collect();
    let differ = paths.into_iter().filter(|path| found.get(path) != expected.get(path));
    let differences: Vec<String> = differ
        .map(|path| {
            format!(
                "expected: {}\n   found: {}",
                expected.get(path).unwrap_or(&"nothing"),
                found.get(path).unwrap_or(&"nothing")
            )
        })
        .collect();
    let shown = differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{what}: {} of {} files:\n{shown}", differences.len(), expected.len());
}

fn each(lines: &[String], change: impl Fn(&mut Vec<String>)) -> Vec<String> {
    let change = |line: &String| {
        let mut columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        if columns.len() > XATTRS {
            change(&mut columns);
        }
        columns.join("\t")
    };
    lines.iter().map(change).collect()
}

/// What both lose of the image `odd`, as far as files can be compared all the same:
///
/// - times before 1970 and after 2262, which Go's clocks of nanoseconds do not have,
/// - extended attributes without a value,
/// - the time of a directory that a layer does not name: it takes that of unpacking, we 1970.
fn comparable(lines: &[String]) -> Vec<String> {
    each(lines, |columns| {
        let name = columns[0].clone();
        if name.starts_with("/times/") || name == "/replaced" {
            columns[MTIME] = "-".into();
        }
        columns[XATTRS] = columns[XATTRS].replace("user.empty=,", "");
    })
}

/// The forms in which the real tools push one image.
fn push_by_tools(registry: &Registry, layout: &Layout, name: &str) -> Vec<String> {
    let from = layout.reference(name);
    let to = |tag: &str| format!("docker://{}", registry.reference(tag));
    let mut tags = Vec::new();
    for (format, compression) in [("oci", "gzip"), ("v2s2", "gzip"), ("oci", "zstd")] {
        let tag = format!("{name}-skopeo-{format}-{compression}");
        let words = ["copy", "--insecure-policy", "--quiet", "--dest-tls-verify=false", "--format", format];
        let compressed = ["--dest-compress-format", compression];
        tool::run("skopeo", words.iter().copied().chain(compressed).chain([from.as_str(), &to(&tag)]));
        tags.push(tag);
    }
    let folder = tempfile::Builder::new().prefix("nacre-buildah-").tempdir_in("/var/tmp").unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (storage, state) = (at("storage"), at("run"));
    let buildah = |words: &[&str]| {
        let place = ["--root", &storage, "--runroot", &state, "--storage-driver", "overlay"];
        tool::run("buildah", place.iter().chain(words).copied())
    };
    let container = buildah(&["from", "--tls-verify=false", &to(name)]);
    let id = buildah(&["commit", "--quiet", container.trim()]);
    for format in ["oci", "v2s2"] {
        let tag = format!("{name}-buildah-{format}");
        buildah(&["push", "--quiet", "--tls-verify=false", "--format", format, id.trim(), &to(&tag)]);
        tags.push(tag);
    }
    buildah(&["rm", "--all"]);
    tags
}

/// The image `odd` as `tame`, without what containerd does not unpack: umoci writes whiteouts of what was in a directory
/// that is a file in the same layer.
fn tame(layout: &Layout, folder: &Path) -> Layout {
    const UMOCI_S: usize = 2;
    let layout = layout.copy_to(folder.join("oci"));
    let mut manifest = layout.manifest("odd");
    let tar = folder.join("layer.tar");
    let packed = folder.join("layer.tar.gz");
    std::fs::write(&packed, layout.blob(&manifest["layers"][UMOCI_S])).unwrap();
    tool::run("gunzip", [packed.as_os_str()]);
    let entry = std::ffi::OsStr::new("replaced/by-file/.wh.inner");
    tool::run("tar", ["--delete".as_ref(), "-f".as_ref(), tar.as_os_str(), entry]);
    let bytes = std::fs::read(&tar).unwrap();
    let diff_id = nacre_puller::digest::Digest::of(&bytes).to_string();
    manifest["layers"][UMOCI_S] = layout.put("application/vnd.oci.image.layer.v1.tar", &bytes);
    layout.tag("untamed", &layout.put_json(common::MANIFEST_TYPE, &manifest));
    layout.with_config("untamed", "tame", |config| config["rootfs"]["diff_ids"][UMOCI_S] = diff_id.into());
    layout
}

#[test]
fn an_image_of_any_tool_and_form_is_what_podman_and_containerd_make_of_it() {
    require!(root, tool "umoci", tool "buildah", tool "skopeo", tool "podman", tool "containerd", tool "docker-registry");
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let forms = ["odd", "odd-plain", "odd-zstd", "odd-docker", "odd-index"];
    let folder = tempfile::Builder::new().prefix("nacre-tame-").tempdir_in("/var/tmp").unwrap();
    let tame = tame(images(), folder.path());
    let registry = Registry::holding(&tame, &forms);
    registry.push(&tame, "tame");
    let by_tools = push_by_tools(&registry, &tame, "tame");
    let podman = Podman::new();
    let of_podman = |tag: &str| comparable(&podman.tree(&format!("docker://{}", registry.reference(tag))));
    let containerd = Containerd::start();
    let (odd, tame) = (of_podman("odd"), of_podman("tame"));
    for form in forms {
        let pulled = Pulled::new(&registry.reference(form));
        compare(&format!("{form}, podman"), &comparable(&pulled.tree()), &odd);
        pulled.end();
    }
    for form in by_tools.iter().map(String::as_str).chain(["tame"]) {
        let pulled = Pulled::new(&registry.reference(form));
        let found = comparable(&pulled.tree());
        assert!(found.len() > 100, "{form}");
        // What buildah commits went through its own unpacking.
        if !form.contains("buildah") {
            compare(&format!("{form}, podman"), &found, &tame);
        }
        let expected = comparable(&containerd.tree(&registry.reference(form)));
        compare(&format!("{form}, containerd"), &found, &expected);
        pulled.end();
    }
}

#[test]
fn a_debian_is_what_podman_and_containerd_make_of_it() {
    require!(root, tool "debootstrap", tool "umoci", tool "buildah", tool "podman", tool "containerd", tool "docker-registry");
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let registry = Registry::holding(debian(), &["debian"]);
    let reference = registry.reference("debian");
    let pulled = Pulled::new(&reference);
    let found = pulled.tree();
    assert!(found.len() > 5_000, "{} files are not thousands", found.len());
    compare("podman", &found, &Podman::new().tree(&format!("docker://{reference}")));
    compare("containerd", &found, &Containerd::start().tree(&reference));
    pulled.end();
}

/// A directory as we make it where a layer names only what is in it.
fn is_nameless(node: &support::snapshot::Node) -> bool {
    (node.mode, node.seconds, node.nanoseconds) == (0o40755, 0, 0)
}

#[test]
fn every_layer_s_index_shows_what_the_reference_s_does() {
    require!(root, tool "debootstrap", tool "umoci", tool "buildah", tool "docker-registry");
    if !can_mount() {
        return skip("mounting EROFS needs root, loop devices and a kernel with EROFS");
    }
    let tools = match ErofsUtils::get() {
        Ok(tools) => tools,
        Err(reason) => return skip(&reason),
    };
    for (layout, name) in [(images(), "odd"), (debian(), "debian")] {
        let registry = Registry::holding(layout, &[name]);
        let pulled = Pulled::new(&registry.reference(name));
        let mut compared = 0;
        for diff_id in &pulled.diff_ids {
            let layer = pulled.puller.store().join("layers").join(diff_id);
            let (tar, index) = (layer.join("layer.tar"), layer.join("index.erofs"));
            let reference = pulled.work.path().join("reference.erofs");
            // Two layers of `odd` are beyond it: "invalid tar", while GNU tar reads them.
            let made = tools
                .command("mkfs.erofs")
                .args(["--quiet", "--tar=i", "--aufs"])
                .arg(&reference)
                .arg(&tar)
                .output();
            if !made.unwrap().status.success() {
                assert_eq!(name, "odd", "the reference must read every layer of {name}");
                continue;
            }
            compared += 1;
            let theirs = Mounted::layer(&reference, &tar, &pulled.work.path().join("reference"));
            let ours = Mounted::layer(&index, &tar, &pulled.work.path().join("ours"));
            let ours = Snapshot::of(&ours.at);
            let comparable = |snapshot: Snapshot| {
                snapshot.map(|path, node| {
                    // A directory without an entry: open to all in the reference, and dated to the time of its run.
                    if ours.nodes.get(path).is_some_and(is_nameless) {
                        (node.mode, node.seconds, node.nanoseconds) = (0, 0, 0);
                    }
                    // Nobody sees a whiteout's time; nor the mark that only the reference makes, of merged directories.
                    if (node.mode, node.rdev) == (0o20000, 0) {
                        (node.seconds, node.nanoseconds) = (0, 0);
                        // Ours are one inode.
                        (node.links, node.same_as) = (1, path.to_owned());
                    }
                    node.xattrs.remove(&b"trusted.overlay.origin"[..]);
                    // It reads the fraction of 0.25 seconds as 25 nanoseconds, and that of times before 1970 as it likes.
                    while node.nanoseconds > 0 && node.nanoseconds % 10 == 0 {
                        node.nanoseconds /= 10;
                    }
                    if node.seconds < 0 {
                        (node.seconds, node.nanoseconds) = (0, 0);
                    }
                })
            };
            let (mut theirs, mut ours) = (comparable(Snapshot::of(&theirs.at)), comparable(ours.clone()));
            // It does not know the sparse files of pax archives.
            for snapshot in [&mut theirs, &mut ours] {
                snapshot.nodes.retain(|path, _| !path.starts_with("sparse"));
            }
            theirs.assert_eq(&ours, &format!("{name}, layer {diff_id}"));
        }
        assert!(
            compared + if name == "odd" { 2 } else { 0 } == pulled.diff_ids.len(),
            "{name}: only {compared} layers were compared"
        );
        pulled.end();
    }
}
