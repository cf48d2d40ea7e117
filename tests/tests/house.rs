//! Rules of the house that a reader cannot check at a glance.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nacre_tests::{artefacts, tool};
use serde_json::Value;

/// The only crate that may say `unsafe`.
const SYS: &str = "nacre-sys";

/// Which edges a crate has, as features of `nacre-protocols`.
const EDGES: [(&str, &[&str]); 11] = [
    ("nacre-init", &["agent-init", "init-launcher"]),
    ("nacre-agent", &["agent-init", "agent-puller", "host-agent", "init-launcher"]),
    ("nacre-launcher", &["init-launcher"]),
    ("nacre-launcher-cli", &["init-launcher"]),
    ("xtask", &["init-launcher"]),
    ("nacre-plan", &["init-launcher"]),
    ("nacre-puller", &["agent-puller", "fetcher-indexer"]),
    ("nacre", &["host-agent", "host-vmm"]),
    ("nacre-tests", &["host-agent", "json"]),
    ("nacre-guest-image", &[]),
    ("nacre-kernel-config", &[]),
];

/// What decodes something rich has no place in a privileged process.
const RICH: [&str; 12] = [
    "serde_json",
    "prost",
    "tar",
    "httparse",
    "rustls",
    "flate2",
    "zlib-rs",
    "ruzstd",
    "zstd",
    "toml",
    "clap",
    "tokio",
];

/// Lines of one source file.
const LINES_MAX: usize = 900;

#[test]
fn only_sys_says_unsafe() {
    let metadata = metadata();
    for package in members(&metadata) {
        let name = package["name"].as_str().expect("no name");
        if name == SYS {
            continue;
        }
        let folder = PathBuf::from(package["manifest_path"].as_str().expect("no path"));
        let folder = folder.parent().expect("no folder");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("no manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
        for file in sources(folder) {
            let text = fs::read_to_string(&file).expect("not readable");
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let said = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code)"];
                let found = said.iter().find(|word| code.contains(**word) && !code.contains('"'));
                assert!(found.is_none(), "{}:{}: {line}", file.display(), number + 1);
            }
        }
    }
    let root = fs::read_to_string(artefacts::workspace().join("Cargo.toml")).expect("no manifest");
    assert!(root.contains("unsafe_code = \"forbid\""));
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    for file in sources(&artefacts::workspace().join("sys/src")) {
        let text = fs::read_to_string(&file).expect("not readable");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if !line.split("//").next().unwrap_or_default().contains("unsafe {") {
                continue;
            }
            // A statement may begin some lines above its unsafe block.
            let reason = lines[number.saturating_sub(12)..=number].iter().any(|line| line.contains("SAFETY"));
            assert!(reason, "{}:{}: no SAFETY comment", file.display(), number + 1);
        }
    }
}

#[test]
fn a_crate_compiles_its_own_edges_and_no_others() {
    let edges: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(name, edges)| (*name, edges.iter().copied().collect())).collect();
    for package in members(&metadata()) {
        let name = package["name"].as_str().expect("no name");
        let dependencies = package["dependencies"].as_array().expect("no dependencies");
        let protocols = dependencies
            .iter()
            .find(|dependency| dependency["name"] == "nacre-protocols" && dependency["kind"].is_null());
        let Some(protocols) = protocols else { continue };
        let features = protocols["features"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let features: BTreeSet<&str> = features.filter(|feature| *feature != "serde").collect();
        let expected = edges.get(name).unwrap_or_else(|| panic!("{name} is not in the table of edges"));
        assert_eq!(&features, expected, "{name}");
    }
}

#[test]
fn only_a_verified_image_is_mounted() {
    for file in sources(&artefacts::workspace().join("agent/src")) {
        if file.ends_with("verified.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("not readable");
        assert!(!text.contains("StorageStep::Layer"), "{}: mounts a layer by itself", file.display());
    }
}

#[test]
fn what_is_privileged_links_no_rich_decoder() {
    for package in ["nacre-init", "nacre-launcher"] {
        for name in dependencies(package) {
            assert!(!RICH.contains(&name.as_str()), "{package} links {name}");
        }
    }
}

#[test]
fn vm_memory_is_there_once() {
    let tree = tool::check(cargo().args([
        "tree",
        "--workspace",
        "--duplicates",
        "--depth",
        "0",
        "--prefix",
        "none",
    ]));
    let twice: Vec<&str> = tree.lines().filter(|line| line.starts_with("vm-memory ")).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn every_dependency_has_its_reason() {
    for package in members(&metadata()) {
        let path = PathBuf::from(package["manifest_path"].as_str().expect("no path"));
        let text = fs::read_to_string(&path).expect("no manifest");
        let mut inside = false;
        let mut before = "";
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
            } else if inside && line.contains('=') && !line.starts_with(' ') && !line.starts_with('#') {
                let ours = line.contains("workspace = true") || line.contains("path = ");
                let explained = ours || line.contains(" # ") || before.starts_with('#');
                assert!(explained, "{}:{}: {line}", path.display(), number + 1);
            }
            before = line;
        }
    }
}

#[test]
fn kernel_image_and_programs_are_within_their_budgets() {
    // `cargo xtask kernel` and `image` fail by themselves beyond a budget; this is for what they made before.
    const KERNEL_BYTES: u64 = 14 << 20;
    const IMAGE_BYTES: u64 = 8 << 20;
    let artefacts = match artefacts::find() {
        Ok(artefacts) => artefacts,
        Err(reason) => return nacre_tests::need::skip(&reason),
    };
    for (path, budget) in [(&artefacts.kernel, KERNEL_BYTES), (&artefacts.image, IMAGE_BYTES)] {
        let size = fs::metadata(path).expect("not there").len();
        assert!(size <= budget, "{}: {size} bytes of {budget}", path.display());
    }
}

#[test]
fn source_files_stay_readable() {
    let mut long = Vec::new();
    for package in members(&metadata()) {
        let path = PathBuf::from(package["manifest_path"].as_str().expect("no path"));
        for file in sources(path.parent().expect("no folder")) {
            let lines = fs::read_to_string(&file).expect("not readable").lines().count();
            if lines > LINES_MAX {
                long.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "more than {LINES_MAX} lines:\n{}", long.join("\n"));
}

fn metadata() -> Value {
    let text = tool::check(cargo().args(["metadata", "--format-version", "1", "--locked", "--no-deps"]));
    serde_json::from_str(&text).expect("not JSON")
}

fn members(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().expect("no packages")
}

/// All that a package links on Linux, by name.
fn dependencies(package: &str) -> BTreeSet<String> {
    let arguments = ["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--locked"];
    let tree = tool::check(cargo().args(arguments));
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(artefacts::workspace());
    command
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
