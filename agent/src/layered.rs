//! Roots of several disks, as shims send them whose snapshotter gives each layer of an image as an EROFS of its own: storages of one
//! request that belong together. Pure.
//!
//! | option | |
//! |---|---|
//! | `X-kata.multi-layer=true` | belongs to the root; so does what has the driver [`DRIVER`] |
//! | `X-kata.overlay-upper` | the writable one, whose mount point is that of the whole; otherwise the one with ext4 |
//! | `X-kata.overlay-lower` | a layer, topmost first; otherwise those with erofs |
//! | `X-kata.mkdir.path=…` | directories in the writable one, which are made anyway |

use crate::disk_address;
use crate::error::RpcError;
use crate::storage::{Wanted, beneath_run_dir, disk};
use nacre_protocols::host_agent::kata::Storage;
use nacre_protocols::init_launcher::{LAYERS_MAX, MountAttributes, Overlay, StorageStep};
use nacre_protocols::names::KATA_RUN_DIR;

pub const DRIVER: &str = "erofs.multi-layer";
const MARK: &str = "X-kata.";
const PART: &str = "X-kata.multi-layer=true";
const UPPER: &str = "X-kata.overlay-upper";
const LOWER: &str = "X-kata.overlay-lower";

pub fn is_part(storage: &Storage) -> bool {
    storage.driver == DRIVER || storage.options.iter().any(|option| option == PART)
}

/// What mounts them: each disk in a place of its own beneath the container's directory, and one over the other. `id` is the
/// container's.
pub fn wanted(parts: &[&Storage], id: &str) -> Result<Vec<Wanted>, RpcError> {
    let is = |part: &Storage, mark: &str, file_system: &str| {
        let others = [UPPER, LOWER];
        let marked = |mark: &str| part.options.iter().any(|option| option == mark);
        marked(mark) || part.fstype == file_system && !others.into_iter().any(marked)
    };
    let uppers: Vec<_> = parts.iter().filter(|part| is(part, UPPER, "ext4")).collect();
    let lowers: Vec<_> = parts.iter().filter(|part| is(part, LOWER, "erofs")).collect();
    let [upper] = uppers.as_slice() else {
        let message = format!("storages: {} writable layers of a root instead of one", uppers.len());
        return Err(RpcError::invalid(message));
    };
    if lowers.is_empty() || lowers.len() > LAYERS_MAX || lowers.len() + 1 != parts.len() {
        let (count, all) = (lowers.len(), parts.len());
        let message = format!("storages: {count} layers, at most {LAYERS_MAX}, of a root of {all} disks");
        return Err(RpcError::invalid(message));
    }
    let place = |name: &str| format!("{KATA_RUN_DIR}/{id}/layers/{name}");
    let mount_point = beneath_run_dir(&upper.mount_point)?;
    let writable = place("writable");
    let mut all = vec![Wanted::of(bare(upper, &writable)?, &writable)];
    let mut lower = Vec::new();
    for (number, part) in lowers.iter().enumerate() {
        let at = place(&number.to_string());
        let part =
            Storage { options: [part.options.as_slice(), &["ro".to_owned()]].concat(), ..(**part).clone() };
        all.push(Wanted::of(bare(&part, &at)?, &at));
        lower.push(at);
    }
    let overlay = Overlay {
        lower,
        writable: Some((format!("{writable}/upper"), format!("{writable}/work"))),
        attributes: MountAttributes::default(),
        mount_point,
    };
    all.push(Wanted::of(StorageStep::Overlay(overlay), &upper.mount_point));
    Ok(all)
}

/// The disk alone, without the marks.
fn bare(part: &Storage, at: &str) -> Result<StorageStep, RpcError> {
    let mut part = part.clone();
    part.options.retain(|option| !option.starts_with(MARK));
    disk(&part, disk_address::virtio(&part.source)?, at.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::host_agent::ttrpc::Code;

    const ROOT: &str = "/run/kata-containers/c/rootfs";

    fn part(source: &str, fstype: &str, options: &[&str]) -> Storage {
        Storage {
            driver: DRIVER.into(),
            source: source.into(),
            fstype: fstype.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            mount_point: ROOT.into(),
            ..Default::default()
        }
    }

    #[test]
    fn disks_that_belong_together_become_one_root() {
        let upper =
            part("/dev/vdb", "ext4", &[PART, UPPER, "noexec", "X-kata.mkdir.path={{ mount 0 }}/upper"]);
        let top = part("/dev/vdc", "erofs", &[PART, LOWER, "ro"]);
        let base = Storage { driver: "blk".into(), ..part("/dev/vdd", "erofs", &[PART]) };
        assert!(is_part(&base) && is_part(&part("", "", &[])) && !is_part(&Storage::default()));
        let wanted = wanted(&[&top, &upper, &base], "c").unwrap();
        let at = |name: &str| format!("/run/kata-containers/c/layers/{name}");
        let disk = |device: &str, file_system: &str, attributes, place: &str| StorageStep::Disk {
            address: disk_address::name(device).unwrap(),
            file_system: file_system.into(),
            data: vec![],
            attributes,
            mount_point: at(place),
        };
        let read_only = MountAttributes { read_only: true, ..Default::default() };
        let no_exec = MountAttributes { no_exec: true, ..Default::default() };
        let expected = [
            disk("/dev/vdb", "ext4", no_exec, "writable"),
            disk("/dev/vdc", "erofs", read_only, "0"),
            disk("/dev/vdd", "erofs", read_only, "1"),
            StorageStep::Overlay(Overlay {
                lower: vec![at("0"), at("1")],
                writable: Some((at("writable/upper"), at("writable/work"))),
                attributes: MountAttributes::default(),
                mount_point: ROOT.into(),
            }),
        ];
        let steps: Vec<_> = wanted.iter().map(|it| it.step.clone()).collect();
        assert_eq!(steps, expected);
        assert_eq!(wanted.last().unwrap().mount_point, ROOT);
    }

    #[test]
    fn what_makes_no_root_is_refused() {
        let upper = || part("/dev/vdb", "ext4", &[PART]);
        let lower = || part("/dev/vdc", "erofs", &[PART]);
        for (parts, code, text) in [
            (vec![lower()], Code::InvalidArgument, "0 writable layers"),
            (vec![upper(), upper(), lower()], Code::InvalidArgument, "2 writable layers"),
            (vec![upper()], Code::InvalidArgument, "0 layers"),
            (vec![upper(), lower(), part("/dev/vdd", "xfs", &[])], Code::InvalidArgument, "of 3 disks"),
            (vec![upper(), part("02:00", "erofs", &[])], Code::InvalidArgument, "02:00"),
        ] {
            let error = wanted(&parts.iter().collect::<Vec<_>>(), "c").err().unwrap();
            assert_eq!(error.code, code, "{}", error.message);
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
