//! Devices of the host that a container gets: what the document says of them is about the host's numbers, which mean nothing
//! here. The launcher finds the guest's.

use crate::disk_address;
use crate::error::RpcError;
use nacre_plan::oci;
use nacre_protocols::host_agent::kata::Device;
use nacre_protocols::init_launcher::{Disk, DiskAddress};

/// What [`disks`] understands.
pub const HANDLERS: [&str; 3] = ["blk", "mmioblk", "scsi"];
/// Most devices of one container.
const DEVICES_MAX: usize = 128;
/// Permission bits of a node of which the document does not speak.
const MODE: u32 = 0o660;

/// The disks of a request, taken out of its document: node and rules of the same numbers go with them.
pub fn disks(devices: &[Device], document: &mut oci::Spec) -> Result<Vec<Disk>, RpcError> {
    if devices.len() > DEVICES_MAX {
        return Err(RpcError::invalid(format!("devices: more than {DEVICES_MAX}")));
    }
    devices.iter().map(|device| disk(device, document)).collect()
}

fn disk(device: &Device, document: &mut oci::Spec) -> Result<Disk, RpcError> {
    let path = device.container_path.clone();
    let mut disk = Disk { address: address(device)?, path, write: true, mode: MODE, uid: 0, gid: 0 };
    let Some(linux) = document.linux.as_mut() else { return Ok(disk) };
    let Some(at) = linux.devices.iter().position(|node| node.path == disk.path) else { return Ok(disk) };
    let node = linux.devices.remove(at);
    disk.mode = node.file_mode.map_or(MODE, |mode| mode & 0o777);
    (disk.uid, disk.gid) = (node.uid.unwrap_or_default(), node.gid.unwrap_or_default());
    if let Some(resources) = linux.resources.as_mut() {
        let is_same = |rule: &oci::DeviceRule| {
            rule.r#type == "b" && rule.major == Some(node.major) && rule.minor == Some(node.minor)
        };
        let mut rules = resources.devices.iter().filter(|rule| rule.allow && is_same(rule));
        // The last rule counts.
        if let Some(rule) = rules.next_back() {
            disk.write = rule.access.contains('w');
        }
        resources.devices.retain(|rule| !is_same(rule));
    }
    Ok(disk)
}

/// The id is the address of what is on a bus; where it is none, the path in the guest is one.
fn address(device: &Device) -> Result<DiskAddress, RpcError> {
    match device.r#type.as_str() {
        "blk" => disk_address::pci(&device.id).map_or_else(|| disk_address::virtio(&device.vm_path), Ok),
        "scsi" => disk_address::scsi(&device.id).or_else(|error| match device.vm_path.is_empty() {
            true => Err(error),
            false => disk_address::scsi(&device.vm_path),
        }),
        "mmioblk" => disk_address::name(&device.vm_path),
        kind => {
            let name = if device.id.is_empty() { &device.container_path } else { &device.id };
            Err(RpcError::unsupported(format!("device {name:?} of type {kind:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::host_agent::ttrpc::Code;

    fn device(kind: &str, vm_path: &str) -> Device {
        Device {
            r#type: kind.into(),
            vm_path: vm_path.into(),
            container_path: "/dev/xvda".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_hosts_numbers_leave_the_document() {
        let rule = |kind: &str, major, minor, access: &str| oci::DeviceRule {
            allow: true,
            r#type: kind.into(),
            major: Some(major),
            minor: Some(minor),
            access: access.into(),
        };
        let node = |path: &str, major, minor| oci::Device {
            path: path.into(),
            r#type: "b".into(),
            major,
            minor,
            file_mode: Some(0o640),
            uid: Some(7),
            gid: Some(8),
        };
        let mut document = oci::Spec {
            linux: Some(oci::Linux {
                devices: vec![node("/dev/xvda", 259, 3), node("/dev/other", 259, 4)],
                resources: Some(oci::Resources {
                    devices: vec![rule("b", 259, 3, "rm"), rule("b", 259, 4, "rwm"), rule("c", 259, 3, "r")],
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let disks = disks(&[device("mmioblk", "/dev/vdb")], &mut document).unwrap();
        let expected = Disk {
            address: DiskAddress::Name("/dev/vdb".into()),
            path: "/dev/xvda".into(),
            write: false,
            mode: 0o640,
            uid: 7,
            gid: 8,
        };
        assert_eq!(disks, [expected]);
        let linux = document.linux.unwrap();
        assert_eq!(linux.devices.len(), 1);
        assert_eq!(linux.resources.unwrap().devices.len(), 2);
    }

    #[test]
    fn the_address_on_a_bus_goes_before_the_name_that_the_host_guesses() {
        let scsi = |target, lun| DiskAddress::Scsi { target, lun };
        let name = DiskAddress::Name("/dev/vdb".into());
        for (kind, id, vm_path, expected) in [
            ("blk", "02/00", "/dev/vdb", disk_address::pci("02/00").unwrap()),
            ("blk", "", "02/00", disk_address::pci("02/00").unwrap()),
            ("blk", "drive-1", "/dev/vdb", name.clone()),
            ("mmioblk", "02", "/dev/vdb", name),
            ("scsi", "0:1", "/dev/sdb", scsi(0, 1)),
            ("scsi", "", "1:2", scsi(1, 2)),
        ] {
            let device = Device { id: id.into(), ..device(kind, vm_path) };
            let found = disks(&[device], &mut oci::Spec::default()).unwrap();
            assert_eq!(found[0].address, expected, "{kind} {id}");
        }
    }

    #[test]
    fn what_cannot_be_found_here_says_so() {
        for (kind, vm_path, code, text) in [
            ("vfio-pci", "", Code::Unimplemented, "vfio-pci"),
            ("mmioblk", "02/00", Code::Unimplemented, "02/00"),
            ("blk", "0:0", Code::InvalidArgument, "0:0"),
            ("scsi", "02/00", Code::InvalidArgument, "02/00"),
            ("scsi", "", Code::InvalidArgument, "SCSI address"),
        ] {
            let error = disks(&[device(kind, vm_path)], &mut oci::Spec::default()).unwrap_err();
            assert_eq!(error.code, code, "{kind} {vm_path}");
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
