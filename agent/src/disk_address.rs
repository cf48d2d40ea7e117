//! How a host names a disk: by name, by its way over PCI as Kata writes it (`02/00`: in hex, each part the device on the bus that
//! the part before leads to, with `.1` for another function than 0), or by target and unit of SCSI (`0:1`). Whether there is such a
//! bus is for the launcher to see.

use crate::error::RpcError;
use nacre_protocols::init_launcher::{
    DiskAddress, PCI_DEPTH_MAX, PCI_DEVICE_MAX, PCI_FUNCTION_MAX, PciFunction, SCSI_LUN_MAX,
};

/// Of a virtio disk: a name or a way over PCI.
pub fn virtio(text: &str) -> Result<DiskAddress, RpcError> {
    if text.starts_with("/dev/") {
        return name(text);
    }
    pci(text).ok_or_else(|| {
        let message = format!("disk {text:?}: neither a name such as /dev/vdb nor a PCI path such as 02/00");
        RpcError::invalid(message)
    })
}

/// Of disks with names, the kernel's own are found by theirs.
pub fn name(text: &str) -> Result<DiskAddress, RpcError> {
    if text.starts_with("/dev/vd") {
        Ok(DiskAddress::Name(text.to_owned()))
    } else {
        Err(RpcError::unsupported(format!("disk {text:?}: by name, another than a virtio disk (/dev/vdb)")))
    }
}

pub fn scsi(text: &str) -> Result<DiskAddress, RpcError> {
    let parse = || {
        let (target, lun) = text.split_once(':')?;
        let (target, lun) = (number(target)?.parse().ok()?, number(lun)?.parse().ok()?);
        (lun <= SCSI_LUN_MAX).then_some(DiskAddress::Scsi { target, lun })
    };
    parse().ok_or_else(|| {
        let message = format!(
            "disk {text:?}: no SCSI address such as 0:1, a target up to {} and a unit up to {SCSI_LUN_MAX}",
            u8::MAX
        );
        RpcError::invalid(message)
    })
}

/// The same as numbers of devices alone.
pub fn slots(path: &[u32]) -> Result<DiskAddress, RpcError> {
    let way: Option<Vec<_>> = path.iter().map(|slot| function(u8::try_from(*slot).ok()?, 0)).collect();
    way.and_then(whole).ok_or_else(|| RpcError::invalid(format!("PCIPath {path:?} is no way over PCI")))
}

/// `None` when it has another form, or numbers that no bus has.
pub fn pci(text: &str) -> Option<DiskAddress> {
    let part = |part: &str| {
        let (device, of_it) = part.split_once('.').unwrap_or((part, "0"));
        let is_hex = |text: &str, most| {
            (1..=most).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_hexdigit())
        };
        if !is_hex(device, 2) || !is_hex(of_it, 1) {
            return None;
        }
        function(u8::from_str_radix(device, 16).ok()?, u8::from_str_radix(of_it, 16).ok()?)
    };
    whole(text.split('/').map(part).collect::<Option<_>>()?)
}

fn whole(way: Vec<PciFunction>) -> Option<DiskAddress> {
    (1..=PCI_DEPTH_MAX).contains(&way.len()).then_some(DiskAddress::Pci(way))
}

fn function(device: u8, function: u8) -> Option<PciFunction> {
    (device <= PCI_DEVICE_MAX && function <= PCI_FUNCTION_MAX).then_some(PciFunction { device, function })
}

/// Digits alone: what else `parse` takes, nobody writes.
fn number(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|it| it.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::host_agent::ttrpc::Code;

    fn way(parts: &[(u8, u8)]) -> DiskAddress {
        DiskAddress::Pci(parts.iter().map(|&(device, function)| PciFunction { device, function }).collect())
    }

    #[test]
    fn the_ways_to_name_a_disk_are_told_apart() {
        for (text, expected) in [
            ("02/00", way(&[(2, 0), (0, 0)])),
            ("01", way(&[(1, 0)])),
            ("1f.7/0/0a.1", way(&[(31, 7), (0, 0), (10, 1)])),
            ("/dev/vdb", DiskAddress::Name("/dev/vdb".into())),
        ] {
            assert_eq!(virtio(text), Ok(expected), "{text}");
        }
        assert_eq!(scsi("3:256"), Ok(DiskAddress::Scsi { target: 3, lun: 256 }));
        assert_eq!(slots(&[2, 31]), Ok(way(&[(2, 0), (31, 0)])));
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        let long = ["00"; PCI_DEPTH_MAX + 1].join("/");
        for text in [
            "",
            "/",
            "02/",
            "/02",
            "20",
            "02.8",
            "002",
            "+2",
            "02:00",
            "2/../3",
            "0x2",
            "g0",
            "kataShared",
            &long,
        ] {
            let error = virtio(text).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{text}");
            assert!(error.message.contains(&format!("{text:?}")), "{}", error.message);
        }
        for text in ["/dev/sda", "/dev/../vdb", "/dev/"] {
            assert_eq!(virtio(text).unwrap_err().code, Code::Unimplemented, "{text}");
        }
        for text in ["", "0", ":", "0:", "256:0", "0:16384", "0:0:0:1", "+1:1", "a:b", "0/1"] {
            assert_eq!(scsi(text).unwrap_err().code, Code::InvalidArgument, "{text}");
        }
        for path in [&[][..], &[32], &[256], &[0; PCI_DEPTH_MAX + 1]] {
            assert_eq!(slots(path).unwrap_err().code, Code::InvalidArgument, "{path:?}");
        }
    }
}
