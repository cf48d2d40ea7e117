//! The whole configuration of a container as the agent gets it, kept as text: whoever changes a default sees it in
//! the diff. `UPDATE_SNAPSHOTS=1 cargo test -p nacre --test spec` writes it anew.

use std::path::Path;

use nacre::sandbox::spec::{
    ContainerSettings, ImageProcess, Limits, SeccompChoice, TerminalSize, Volume, container_spec,
};

fn image() -> ImageProcess {
    ImageProcess {
        entrypoint: vec!["/entry".into()],
        command: vec!["serve".into()],
        env: vec!["PATH=/usr/bin:/bin".into(), "LANG=C.UTF-8".into()],
        working_directory: "/srv".into(),
        user: "web".into(),
        stop_signal: "SIGQUIT".into(),
    }
}

fn compare(name: &str, settings: &ContainerSettings) {
    let (spec, _) = container_spec("web-1", &image(), settings).unwrap();
    let text = format!("{spec:#?}\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    for (number, (found, expected)) in text.lines().zip(kept.lines()).enumerate() {
        assert_eq!(found, expected, "{} line {}", path.display(), number + 1);
    }
    assert_eq!(text.lines().count(), kept.lines().count());
}

#[test]
fn the_default_configuration_is_the_one_that_was_reviewed() {
    compare("default.txt", &ContainerSettings { hostname: "web-1".into(), ..Default::default() });
}

#[test]
fn every_option_lands_where_it_was_reviewed() {
    let settings = ContainerSettings {
        entrypoint: Some(vec!["/bin/sh".into()]),
        command: vec!["-c".into(), "id".into()],
        env: vec!["LANG=de_DE.UTF-8".into(), "TOKEN=x".into()],
        cwd: Some("/".into()),
        user: Some("1000:100".into()),
        hostname: "box".into(),
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        read_only: true,
        volumes: vec![Volume {
            host: "/home/me/data".into(),
            source: "/run/kata-containers/shared/containers/vol0".into(),
            destination: "/data".into(),
            read_only: true,
        }],
        cap_add: vec!["NET_ADMIN".into()],
        cap_drop: vec!["ALL".into()],
        no_new_privileges: true,
        seccomp: SeccompChoice::Unconfined,
        limits: Limits { memory: Some(256 << 20), cpus: Some(0.5), pids: Some(64) },
        no_network: true,
    };
    compare("options.txt", &settings);
}
