//! Storages that are more than one mount: directories that are watched, and roots of several disks.

mod support;

use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::kata::{self, Storage};
use nacre_protocols::init_launcher::StorageStep;
use support::client::Client;
use support::{Sandbox, can_run, eventually};

const SHARED: &str = "/run/kata-containers/shared/containers";

fn create(client: &mut Client, id: &str, root: &str, storages: Vec<Storage>) {
    let request = kata::CreateContainerRequest {
        container_id: id.into(),
        storages,
        oci: Some(kata::Spec {
            root: Some(kata::Root { path: root.into(), readonly: false }),
            process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    client.call::<CreateContainer>(&request).unwrap();
}

fn remove(client: &mut Client, id: &str) {
    let request = kata::RemoveContainerRequest { container_id: id.into(), timeout: 0 };
    client.call::<RemoveContainer>(&request).unwrap();
}

#[test]
fn what_is_watched_is_looked_at_until_it_is_unmounted() {
    if !can_run() {
        return;
    }
    let mut sandbox = Sandbox::new();
    let place = format!("{SHARED}/watchable/volume");
    let watched = Storage {
        driver: "watchable-bind".into(),
        source: format!("{SHARED}/volume"),
        fstype: "bind".into(),
        options: vec!["bind".into(), "ro".into()],
        mount_point: place.clone(),
        ..Default::default()
    };
    let looks = |sandbox: &Sandbox| {
        let is = |step: &StorageStep| matches!(step, StorageStep::Watched { mount_point, .. } if *mount_point == place);
        sandbox.init.steps().iter().filter(|step| is(step)).count()
    };
    create(&mut sandbox.connect(), "c", &format!("{SHARED}/c/rootfs"), vec![watched]);
    eventually("it is looked at again", || looks(&sandbox) >= 3);
    // The next agent goes on with it.
    sandbox.kill_agent();
    sandbox.start_agent();
    let before = looks(&sandbox);
    eventually("it is looked at by the next agent", || looks(&sandbox) >= before + 2);
    remove(&mut sandbox.connect(), "c");
    assert!(sandbox.init.steps().contains(&StorageStep::Unmount { mount_point: place.clone() }));
    let after = looks(&sandbox);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(looks(&sandbox), after, "nobody uses it any more");
}

#[test]
fn a_root_of_several_disks_goes_the_way_it_came() {
    if !can_run() {
        return;
    }
    let sandbox = Sandbox::new();
    let root = "/run/kata-containers/c/rootfs";
    let part = |source: &str, fstype: &str, mark: &str| Storage {
        driver: "erofs.multi-layer".into(),
        source: source.into(),
        fstype: fstype.into(),
        options: vec!["X-kata.multi-layer=true".into(), mark.into()],
        mount_point: root.into(),
        ..Default::default()
    };
    let parts = vec![
        part("/dev/vdb", "ext4", "X-kata.overlay-upper"),
        part("/dev/vdc", "erofs", "X-kata.overlay-lower"),
        part("/dev/vdd", "erofs", "X-kata.overlay-lower"),
    ];
    let mut client = sandbox.connect();
    create(&mut client, "c", root, parts);
    let made: Vec<String> = sandbox
        .init
        .steps()
        .into_iter()
        .filter_map(|step| match step {
            StorageStep::Disk { mount_point, .. } => Some(mount_point),
            StorageStep::Overlay(overlay) => Some(overlay.mount_point),
            _ => None,
        })
        .collect();
    let at = |name: &str| format!("/run/kata-containers/c/layers/{name}");
    assert_eq!(made, [at("writable"), at("0"), at("1"), root.to_owned()]);
    remove(&mut client, "c");
    let gone: Vec<String> = sandbox
        .init
        .steps()
        .into_iter()
        .filter_map(|step| match step {
            StorageStep::Unmount { mount_point } => Some(mount_point),
            _ => None,
        })
        .collect();
    assert_eq!(gone, made.into_iter().rev().collect::<Vec<_>>());
}
