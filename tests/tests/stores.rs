//! Stores outlive sandboxes: what is in one is not fetched again, whatever became of the sandbox that put it there.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nacre_tests::fixtures::images;
use nacre_tests::proxy::{Answer, Proxy, Seen};
use nacre_tests::{Nacre, Registry, require, tool};

const OWN_FAILURE: i32 = 125;
const PATIENCE: Duration = Duration::from_secs(90);

/// The digests of an image's layers.
fn layers(tag: &str) -> Vec<String> {
    let manifest = images().manifest(tag);
    let layers = manifest["layers"].as_array().expect("no layers");
    layers.iter().map(|layer| layer["digest"].as_str().expect("no digest").to_owned()).collect()
}

fn fetched(proxy: &Proxy, layers: &[String]) -> usize {
    proxy.seen().iter().filter(|seen| layers.iter().any(|layer| seen.path.contains(layer))).count()
}

fn disk(nacre: &Nacre) -> PathBuf {
    nacre.guard().home().join(".local/share/nacre/stores/kept.disk")
}

fn with_store() -> Nacre {
    let nacre = Nacre::new();
    nacre.run(["store", "create", "--size", "1g", "kept"]).exited(0).printed("kept\n");
    nacre
}

#[test]
fn what_a_store_has_is_not_fetched_again() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small", "odd"]);
    let proxy = Proxy::start(registry.port, |_| Answer::Pass);
    let nacre = with_store();
    let small = proxy.reference("small");
    let pulled = nacre.run(["pull", "--store", "kept", &small]).exited(0);
    let digest = images().find("small")["digest"].as_str().expect("no digest").to_owned();
    assert_eq!(pulled.text().trim(), digest);
    assert_eq!(fetched(&proxy, &layers("small")), 1);
    let listed = nacre.run(["images", "--store", "kept"]).exited(0);
    assert!(listed.text().contains(&small) && listed.text().contains(&digest), "{listed}");

    // In a new boot it is hashed and indexed again, and not fetched.
    nacre.run(["run", "--store", "kept", &small, "echo", "kept"]).exited(0).printed("kept\n");
    assert_eq!(fetched(&proxy, &layers("small")), 1);

    // An image that only a run has pulled goes when room is wanted; the other was pulled on purpose.
    nacre.run(["run", "--store", "kept", &proxy.reference("odd"), "true"]).exited(0);
    let pruned = nacre.run(["images", "--store", "kept", "--prune"]).exited(0).said(&["removed 1 images"]);
    assert!(pruned.text().contains(&small) && !pruned.text().contains(":odd"), "{pruned}");
    let gone =
        nacre.run(["images", "--store", "kept", "--rm", &small]).exited(0).said(&["0 layers, 0 B used"]);
    assert!(!gone.text().contains(&small), "{gone}");
    nacre.run(["store", "rm", "kept"]).exited(0);
    nacre.run(["store", "ls", "-q"]).exited(0).printed("");
}

#[test]
fn images_go_one_by_one_and_files_of_this_host_are_one_however_often_they_run() {
    require!(vm, tool "umoci");
    let nacre = Nacre::new();
    let (small, odd) = (images().reference("small"), images().reference("odd"));
    nacre.detach("box", [&small, "sleep", "1000"]);
    for image in [&small, &odd, &odd] {
        nacre.run(["run", "--in", "box", image, "true"]).exited(0);
    }
    let shown = nacre.run(["images", "--in", "box"]).exited(0);
    let text = shown.text();
    let rows: Vec<&str> = text.lines().skip(1).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.starts_with("oci:/")), "{shown}");
    let name = |tag: &str| {
        let mut names = rows.iter().filter_map(|row| row.split_whitespace().next());
        names.find(|name| name.ends_with(tag)).unwrap_or_else(|| panic!("no {tag} in {shown}")).to_owned()
    };
    nacre.run(["images", "--in", "box", "--rm", "nobody/knows:it"]).exited(1).said(&["nobody/knows:it"]);
    assert_eq!(nacre.run(["images", "--in", "box"]).exited(0).text(), text, "it took others along");
    // A used one stays, and the other has layers of its own.
    nacre.run(["images", "--in", "box", "--rm", &name(":small")]).exited(0).said(&["removed 0 images"]);
    let left =
        nacre.run(["images", "--in", "box", "--rm", &name(":odd")]).exited(0).said(&["removed 1 images"]);
    assert!(left.text().contains(":small") && !left.text().contains(":odd"), "{left}");
    // Several names: those that are there are dealt with, and the others are said.
    nacre
        .run(["rm", "-f", "none", "box", "neither"])
        .exited(1)
        .printed("box\n")
        .said(&["\"none\"", "\"neither\""]);
}

#[test]
fn a_store_belongs_to_one_sandbox_at_a_time() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small", "odd"]);
    let nacre = with_store();
    let reference = registry.reference("small");
    nacre.run(["run", "-d", "--name", "box", "--store", "kept", &reference, "sleep", "1000"]).exited(0);
    assert!(nacre.run(["store", "ls"]).exited(0).text().contains("in use"));
    nacre
        .run(["run", "--store", "kept", &reference, "true"])
        .exited(OWN_FAILURE)
        .said(&["in use", "--in box"]);
    nacre.run(["store", "rm", "kept"]).exited(1).said(&["in use"]);
    // A pull goes into the sandbox that has it.
    nacre.run(["pull", "--store", "kept", &reference]).exited(0).said(&["1 there already"]);
    // What a container uses stays, kept or not.
    nacre.run(["images", "--in", "box", "--rm", &reference]).exited(0).said(&["removed 0 images, 0 layers"]);
    nacre.run(["exec", "box", "cat", "/etc/passwd"]).exited(0);
    nacre.remove("box");
    nacre
        .run(["run", "--store", "none", &reference, "true"])
        .exited(OWN_FAILURE)
        .said(&["nacre store create"]);
}

#[test]
fn a_store_survives_a_machine_that_is_killed_in_the_middle_of_a_pull() {
    require!(vm, tool "umoci", tool "docker-registry", tool "e2fsck");
    let registry = Registry::holding(images(), &["odd"]);
    let layers = layers("odd");
    let last = layers.last().expect("no layer").clone();
    let stalled = last.clone();
    let proxy = Proxy::start(registry.port, move |seen: &Seen| {
        match seen.path.contains(&stalled) && seen.earlier == 0 {
            true => Answer::StallAfter(10),
            false => Answer::Pass,
        }
    });
    let nacre = with_store();
    let reference = proxy.reference("odd");
    let pull = nacre.start(["pull", "--store", "kept", &reference]);
    let until = Instant::now() + PATIENCE;
    while fetched(&proxy, &layers) < layers.len() {
        assert!(Instant::now() < until, "the pull does not get on: {:?}", proxy.seen());
        std::thread::sleep(Duration::from_millis(50));
    }
    // The others have time to be committed, or not.
    std::thread::sleep(Duration::from_millis(1500));
    nacre.guard().kill_all();
    drop(pull);
    nacre.run(["run", "--store", "kept", &reference, "echo", "back"]).exited(0).printed("back\n");
    // At least those that were done before the last one began.
    let again = fetched(&proxy, &layers) - layers.len();
    assert!((1..layers.len()).contains(&again), "{again} of {} layers were fetched again", layers.len());
    // Replayed, and put away in order.
    let output =
        std::process::Command::new("e2fsck").arg("-fn").arg(disk(&nacre)).output().expect("no e2fsck");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code().is_some_and(|code| code < 4), "{text}");
}

#[test]
fn a_disk_that_is_not_a_whole_store_is_refused_and_left_alone() {
    require!(vm, tool "umoci", tool "mkfs.ext4");
    let nacre = with_store();
    let disk = disk(&nacre);
    let small = images().reference("small");
    let refused = |texts: &[&str]| {
        let before = fs::metadata(&disk).unwrap().modified().unwrap();
        nacre.run(["run", "--store", "kept", &small, "true"]).exited(OWN_FAILURE).said(texts);
        assert_eq!(fs::metadata(&disk).unwrap().modified().unwrap(), before, "the disk was written to");
    };
    tool::run("mkfs.ext4", ["-q", "-F", disk.to_str().unwrap()]);
    refused(&["kept disk", "label"]);
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0x5a; 4096], 0).unwrap();
    refused(&["kept disk", "something else"]);
    fs::remove_file(&disk).unwrap();
    nacre.run(["store", "create", "--size", "1g", "kept"]).exited(0);
    nacre.run(["run", "--store", "kept", &small, "true"]).exited(0);
    // One bit of its superblock.
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0xff], 1024 + 0x14).unwrap();
    refused(&["kept disk", "damaged", "checksum"]);
}

#[test]
fn the_quota_of_images_has_an_error_of_its_own() {
    require!(vm, tool "umoci");
    let nacre = Nacre::new();
    let output = nacre.run(["run", "--image-quota", "100k", &images().reference("small"), "true"]);
    output.exited(OWN_FAILURE).said(&["pull", "quota of 102400 bytes", "--image-quota"]);
}

#[test]
fn ctrl_c_ends_a_pull_into_a_sandbox_that_goes_on() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small", "odd"]);
    let mut odd = layers("odd");
    odd.retain(|layer| !layers("small").contains(layer));
    let waited_for = odd.clone();
    let stalled = Proxy::start(registry.port, move |seen: &Seen| {
        match odd.iter().any(|layer| seen.path.contains(layer)) {
            true => Answer::StallAfter(10),
            false => Answer::Pass,
        }
    });
    let nacre = Nacre::new();
    nacre.detach("box", [&stalled.reference("small"), "sleep", "1000"]);
    let mut pull = nacre.start(["pull", "--in", "box", &stalled.reference("odd")]);
    let until = Instant::now() + PATIENCE;
    while fetched(&stalled, &waited_for) == 0 {
        assert!(!pull.has_ended() && Instant::now() < until, "{:?}", stalled.seen());
        std::thread::sleep(Duration::from_millis(50));
    }
    pull.signal(rustix::process::Signal::INT);
    pull.finish(Duration::from_secs(30)).exited(130);
    nacre.run(["exec", "box", "echo", "still here"]).exited(0).printed("still here\n");
    nacre.remove("box");
}
