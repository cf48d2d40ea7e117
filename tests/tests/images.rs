//! Every file of an image is in the container as podman unpacks it: path, kind, mode, owner, times, xattrs, content.

use std::collections::BTreeMap;
use std::time::Duration;

use nacre_tests::fixtures::oracle::Podman;
use nacre_tests::fixtures::{Layout, debian, images};
use nacre_tests::{Nacre, Registry, artefacts, require};

/// Most differences that are shown.
const SHOWN: usize = 40;
/// Column of the time in a line of a tree.
const MTIME: usize = 7;
/// What every container engine mounts or makes in a container's root.
const ENGINE: [&str; 7] =
    ["/dev", "/proc", "/sys", "/probe", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

#[test]
fn an_odd_image_is_exact_whatever_its_form() {
    require!(vm, tool "umoci", tool "buildah", tool "podman", tool "docker-registry");
    let layout = images();
    let forms = ["odd", "odd-plain", "odd-zstd", "odd-docker", "odd-index"];
    let registry = Registry::holding(layout, &forms);
    let mut expected = Podman::new().tree(&format!("docker://{}", registry.reference("odd")));
    correct(&mut expected);
    for form in forms {
        compare(form, &in_a_container(&registry.reference(form)), &expected);
    }
}

#[test]
fn a_debian_of_several_layers_is_exact() {
    require!(vm, tool "debootstrap", tool "umoci", tool "buildah", tool "podman", tool "docker-registry");
    let layout = debian();
    let registry = Registry::holding(layout, &["debian", "debian-zstd"]);
    let expected = Podman::new().tree(&format!("docker://{}", registry.reference("debian")));
    assert!(expected.len() > 5_000, "{} files are not thousands", expected.len());
    for form in ["debian", "debian-zstd"] {
        compare(form, &in_a_container(&registry.reference(form)), &expected);
    }
}

#[test]
fn a_layout_and_archives_run_without_a_registry() {
    require!(vm, tool "umoci", tool "skopeo");
    let (nacre, layout) = (Nacre::new(), images());
    let archive = |name: &str| nacre.guard().folder().join("share").join(name).display().to_string();
    let (docker, oci) = (archive("docker.tar"), archive("oci.tar"));
    let skopeo = |to: &str| {
        nacre_tests::tool::run("skopeo", ["copy", "--quiet", &layout.reference("small"), to]);
    };
    skopeo(&format!("docker-archive:{docker}:test/small:latest"));
    skopeo(&format!("oci-archive:{oci}:small"));
    for image in [
        layout.reference("small"),
        layout.reference("small-index"),
        format!("docker-archive:{docker}"),
        format!("docker-archive:{docker}:test/small:latest"),
        format!("oci-archive:{oci}"),
    ] {
        nacre.run(["run", &image, "echo", "here"]).exited(0).printed("here\n");
    }
}

#[test]
fn an_image_for_another_platform_is_refused_by_name() {
    require!(vm, tool "umoci");
    let nacre = Nacre::new();
    let output = nacre.run(["run", &images().reference("small-foreign"), "true"]);
    output.exited(125).said(&["arm64", "amd64"]);
    let words = ["run", "--platform", "linux/s390x", &images().reference("small-index"), "true"];
    nacre.run(words).exited(125).said(&["s390x"]);
}

#[test]
fn volumes_of_an_image_are_writable_where_its_root_is_not() {
    require!(vm, tool "umoci");
    let nacre = Nacre::new();
    let layout = images().copy_to(nacre.guard().folder().join("volumes"));
    layout.with_config("small", "volumes", |config| {
        config["config"]["Volumes"] = serde_json::json!({ "/etc": {}, "/new/volume": {} });
    });
    // What the image has there is there; an end of the container's is an end of what was written.
    let script =
        "grep -c root /etc/passwd; echo x > /etc/x && echo x > /new/volume/x && echo written; echo x > /x";
    for _ in 0..2 {
        let words = ["run", "--read-only", &layout.reference("volumes"), "sh", "-c", script];
        let output = nacre.run(words).exited(1);
        output.printed("1\nwritten\n").said(&["Read-only file system"]);
    }
}

#[test]
fn an_image_larger_than_the_scratch_disk_says_so() {
    require!(vm, tool "debootstrap", tool "umoci", tool "buildah");
    let nacre = Nacre::new();
    let output = nacre.run(["run", "--scratch", "64m", &debian().reference("debian"), "true"]);
    output.exited(125).said(&["full", "--scratch"]);
}

#[test]
fn a_container_that_fills_the_scratch_disk_is_told() {
    require!(vm, tool "umoci");
    let script =
        "dd if=/dev/zero of=/file bs=1M count=200; echo code $?; rm /file; echo x > /small && cat /small";
    let output =
        Nacre::new().run(["run", "--scratch", "64m", &images().reference("small"), "sh", "-c", script]);
    output.exited(0).printed("code 1\nx\n").said(&["No space left on device"]);
}

#[test]
fn an_image_need_not_fit_into_memory() {
    require!(vm, tool "debootstrap", tool "umoci", tool "buildah");
    let nacre = Nacre::new();
    let words = ["run", "--vm-memory", "160m", &debian().reference("debian"), "cat", "/opt/program/data/one"];
    nacre.run(words).exited(0).printed("only\n");
}

/// The tree that a process of the container sees.
fn in_a_container(reference: &str) -> Vec<String> {
    let nacre = Nacre::new();
    let tree = artefacts::helper("nacre-tree");
    let share = format!("{}:/probe:ro", tree.parent().expect("no folder").display());
    let words =
        ["run", "--quiet", "-v", &share, "--cap-add", "DAC_READ_SEARCH", reference, "/probe/nacre-tree", "/"];
    let output = nacre.run_within(Duration::from_secs(300), words).exited(0);
    output.text().lines().map(str::to_owned).collect()
}

fn compare(what: &str, found: &[String], expected: &[String]) {
    let (found, expected) = (by_path(found), by_path(expected));
    let mut differences = Vec::new();
    for path in expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path))) {
        match (found.get(path), expected.get(path)) {
            (found, expected) if found == expected => {}
            (None, Some(line)) => differences.push(format!("missing: {line}")),
            (Some(line), None) => differences.push(format!("too much: {line}")),
            (found, expected) => differences.push(format!(
                "expected: {}\n   found: {}",
                expected.copied().unwrap_or_default(),
                found.copied().unwrap_or_default()
            )),
        }
    }
    let count = differences.len();
    differences.truncate(SHOWN);
    assert!(
        count == 0,
        "{what}: {count} differences among {} files:\n{}",
        expected.len(),
        differences.join("\n")
    );
}

/// Without what the engine puts there by itself. Of the root directory only the kind counts: an engine makes it.
fn by_path(lines: &[String]) -> BTreeMap<&str, &str> {
    let of_the_engine = |path: &str| {
        ENGINE
            .iter()
            .any(|own| path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    lines
        .iter()
        .filter(|line| !line.starts_with('#'))
        .map(|line| (line.split('\t').next().unwrap_or_default(), line.as_str()))
        .filter(|(path, _)| *path != "/" && !of_the_engine(path))
        .collect()
}

/// What podman loses of the image `odd`:
///
/// - times before 1970 and after 2262; every file of `/times` has its time in its name,
/// - extended attributes without a value,
/// - the time of a directory that a layer does not name: it takes that of unpacking, we 1970.
fn correct(lines: &mut [String]) {
    for line in lines {
        let mut columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        if columns[0] == "/xattrs/user" {
            *line = line.replace(",user.large=", ",user.empty=,user.large=");
        }
        if columns[0] == "/replaced" {
            columns[MTIME] = "0.000000000".to_owned();
            *line = columns.join("\t");
        }
        let Some(name) = columns[0].strip_prefix("/times/") else { continue };
        let time = name.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
        let mut seconds: i64 = seconds.parse().expect("no time in the name");
        let mut nanoseconds: i64 = format!("{fraction:0<9}").parse().expect("no fraction in the name");
        if time.starts_with('-') && nanoseconds > 0 {
            // Nanoseconds count forwards.
            (seconds, nanoseconds) = (seconds - 1, 1_000_000_000 - nanoseconds);
        }
        columns[MTIME] = format!("{seconds}.{nanoseconds:09}");
        *line = columns.join("\t");
    }
}

/// Two layouts do not share a registry by accident.
#[test]
fn the_fixtures_have_the_layers_that_they_promise() {
    require!(root, tool "umoci", tool "buildah", tool "podman", tool "docker-registry");
    let layers = |layout: &Layout, tag: &str| layout.manifest(tag)["layers"].as_array().map_or(0, Vec::len);
    assert_eq!(layers(images(), "small"), 1);
    assert_eq!(layers(images(), "odd"), 6);
    let registry = Registry::holding(images(), &["odd"]);
    let tree = Podman::new().tree(&format!("docker://{}", registry.reference("odd")));
    let kinds: std::collections::BTreeSet<&str> =
        tree.iter().filter_map(|line| line.split('\t').nth(1)).collect();
    assert_eq!(kinds.into_iter().collect::<String>(), "bcdflp");
    for text in [
        "security.capability=",
        "system.posix_acl_access=",
        "system.posix_acl_default=",
        "user.binary=",
        "\\xff",
    ] {
        assert!(tree.iter().any(|line| line.contains(text)), "nothing of the tree has {text}");
    }
}
