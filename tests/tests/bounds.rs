//! `nacre run --bound`: what a sandbox may ever be asked for is fixed as it boots. `nacre agent-upgrade`, for which there must be
//! such a word.

use std::fs;

use nacre_tests::fixtures::images;
use nacre_tests::{Nacre, artefacts, require};

fn small() -> String {
    images().reference("small")
}

fn digest(tag: &str) -> String {
    images().find(tag)["digest"].as_str().expect("no digest").to_owned()
}

#[test]
fn each_word_bounds_what_it_says() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let shared = nacre.guard().folder().join("shared");
    fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/mnt", shared.display());
    for (bound, words, code, said) in [
        ("capabilities=0", vec!["-q"], 125, "capabilities"),
        ("capabilities=ffffffffff", vec!["-q"], 0, ""),
        ("storage=layers", vec!["-q", "-v", &volume], 125, "a share"),
        ("storage=layers,shares", vec!["-q", "-v", &volume], 0, ""),
        ("storage=shares", vec!["-q"], 125, "a layer"),
        ("containers=0", vec!["-q"], 125, "0 containers, its limit"),
        // A bound that is not understood is not left out.
        ("containers=two", vec!["-q"], 125, "\"nacre.containers=two\" of the command line is not understood"),
        ("colour=red", vec!["-q"], 125, "colour=red"),
    ] {
        let (reference, mut all) = (small(), vec!["run", "--bound", bound]);
        all.extend(words);
        all.extend([reference.as_str(), "true"]);
        let output = nacre.run(&all);
        assert_eq!(output.code, code, "{bound}: {output}");
        assert!(output.stderr.contains(said), "{bound}: {output}");
    }
}

#[test]
fn a_sandbox_for_some_images_runs_no_other() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let bound = format!("images={}", digest("small"));
    nacre.detach("box", ["--bound", &bound, &small(), "sleep", "1000"]);
    nacre.run(["exec", "box", "echo", "x"]).exited(0).printed("x\n");
    nacre.run(["run", "-q", "--in", "box", &small(), "echo", "y"]).exited(0).printed("y\n");
    let other = nacre.run(["run", "-q", "--in", "box", &images().reference("odd"), "true"]);
    other.exited(125).said(&["not among the images that the sandbox was booted for"]);
    nacre.remove("box");
}

#[test]
fn an_agent_is_upgraded_where_the_sandbox_allows_it() {
    require!(vm, tool "umoci", tool "busybox");
    let nacre = Nacre::new();
    let program = artefacts::guest_program("nacre-agent");
    let program = program.to_str().expect("no path");
    nacre.detach("open", ["--bound", "allow=upgrade", &small(), "sh", "-c", "sleep 1000"]);
    nacre.run(["agent-upgrade", "open", program]).exited(0);
    nacre.run(["exec", "open", "echo", "x"]).exited(0).printed("x\n");
    // What is no agent makes room for the image's, and the container goes on.
    let busybox = nacre_tests::tool::find("busybox").expect("no busybox");
    let refused = nacre.run(["agent-upgrade", "open", busybox.to_str().expect("no path")]);
    assert_ne!(refused.code, 0, "{refused}");
    nacre.run(["exec", "open", "echo", "y"]).exited(0).printed("y\n");
    nacre.remove("open");
    nacre.detach("shut", [&small(), "sleep", "1000"]);
    let refused = nacre.run(["agent-upgrade", "shut", program]);
    assert_ne!(refused.code, 0, "{refused}");
    refused.said(&["does not allow the agent to be upgraded"]);
    nacre.run(["exec", "shut", "true"]).exited(0);
    nacre.remove("shut");
}
