//! Devices of the host that a container gets: what the document says of them is about the host's numbers, which mean nothing
//! here. The launcher finds the guest's.

use crate::error::RpcError;
use crate::storage::disk_name;
use nacre_plan::oci;
use nacre_protocols::host_agent::kata::Device;
use nacre_protocols::init_launcher::Disk;

/// What [`disks`] understands.
pub const HANDLERS: [&str; 2] = ["blk", "mmioblk"];
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
    if !HANDLERS.contains(&device.r#type.as_str()) {
        let name = if device.id.is_empty() { &device.container_path } else { &device.id };
        return Err(RpcError::unsupported(format!("device {name:?} of type {:?}", device.r#type)));
    }
    let path = device.container_path.clone();
    let mut disk =
        Disk { device: disk_name(&device.vm_path)?, path, write: true, mode: MODE, uid: 0, gid: 0 };
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
            device: "/dev/vdb".into(),
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
    fn what_cannot_be_found_here_says_so() {
        for (kind, vm_path, text) in
            [("vfio-pci", "", "vfio-pci"), ("blk", "02/00", "02/00"), ("scsi", "0:0", "scsi")]
        {
            let error = disks(&[device(kind, vm_path)], &mut oci::Spec::default()).unwrap_err();
            assert_eq!(error.code, Code::Unimplemented);
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
