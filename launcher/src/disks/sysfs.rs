//! Where sysfs has a disk (`Documentation/admin-guide/sysfs-rules.rst`): by the way over PCI, or by target and unit of SCSI. Every
//! name on the way is either made of numbers here or checked before it is used.

use nacre_protocols::init_launcher::{DiskAddress, PciFunction};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// The bus that every machine begins with: segment and number.
const ROOT_BUS: &str = "0000:00";
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1024;
/// Longest name of a disk, in bytes (DISK_NAME_LEN).
const NAME_MAX: usize = 31;
/// Of sysfs, whatever the disk's own blocks have.
const SECTOR_BYTES: u64 = 512;

#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    Here {
        /// Of its node in `/dev`.
        name: String,
        /// Major and minor.
        number: (u32, u32),
    },
    NotYet,
    /// Neither now nor later.
    NoBus(&'static str),
}

/// `root` is where sysfs is mounted.
pub fn look(root: &Path, address: &DiskAddress) -> io::Result<Look> {
    match address {
        DiskAddress::Name(_) => Err(Errno::INVAL.into()),
        DiskAddress::Pci(way) => pci(root, way),
        DiskAddress::Scsi { target, lun } => scsi(root, *target, *lun),
    }
}

/// In bytes.
pub fn size(root: &Path, major: u32, minor: u32) -> io::Result<u64> {
    let text = read(&root.join(format!("dev/block/{major}:{minor}/size")))?;
    let sectors: u64 = text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(sectors.saturating_mul(SECTOR_BYTES))
}

fn pci(root: &Path, way: &[PciFunction]) -> io::Result<Look> {
    let mut place = root.join("devices").join(format!("pci{ROOT_BUS}"));
    if !is_there(&place) {
        return Ok(Look::NoBus("PCI"));
    }
    let mut bus = ROOT_BUS.to_owned();
    let mut rest = way.iter().peekable();
    while let Some(PciFunction { device, function }) = rest.next() {
        place.push(format!("{bus}:{device:02x}.{function:x}"));
        if rest.peek().is_some() {
            match only(&place.join("pci_bus"), is_bus)? {
                Some(next) => bus = next,
                None => return Ok(Look::NotYet),
            }
        }
    }
    // A virtio device is a function's only child.
    match only(&place, |name| is_numbered(name, "virtio"))? {
        Some(virtio) => disk(&place.join(virtio).join("block"), "vd"),
        None => Ok(Look::NotYet),
    }
}

/// Any controller: Kata has one. Were there two with such a disk, neither would be meant more than the other.
fn scsi(root: &Path, target: u8, lun: u16) -> io::Result<Look> {
    let devices = root.join("bus/scsi/devices");
    if !is_there(&devices) {
        return Ok(Look::NoBus("SCSI"));
    }
    let is_it = |name: &str| {
        let mut parts = name.splitn(2, ':');
        let host = parts.next().is_some_and(|host| host.parse::<u32>().is_ok());
        host && parts.next() == Some(format!("0:{target}:{lun}").as_str())
    };
    match only(&devices, is_it)? {
        Some(unit) => disk(&devices.join(unit).join("block"), "sd"),
        None => Ok(Look::NotYet),
    }
}

/// The only disk of a directory of disks.
fn disk(folder: &Path, prefix: &str) -> io::Result<Look> {
    let is_disk = |name: &str| {
        let letters = name.strip_prefix(prefix).unwrap_or_default();
        name.len() <= NAME_MAX && !letters.is_empty() && letters.bytes().all(|it| it.is_ascii_lowercase())
    };
    let Some(name) = only(folder, is_disk)? else { return Ok(Look::NotYet) };
    let text = match read(&folder.join(&name).join("dev")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::NotYet),
        text => text?,
    };
    let number = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match number {
        Some(number) => Ok(Look::Here { name, number }),
        None => Err(io::Error::other(format!("{name} has no number but {text:?}"))),
    }
}

/// The one entry of a directory that `fits`; `None` when there is none, or no directory.
fn only(folder: &Path, fits: impl Fn(&str) -> bool) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder_fd = match openat(CWD, folder, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let mut found: Option<String> = None;
    for entry in Dir::new(folder_fd)?.take(ENTRIES_MAX) {
        // It is being removed.
        let Ok(entry) = entry else { return Ok(None) };
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !fits(name) {
            continue;
        }
        if let Some(other) = &found {
            return Err(io::Error::other(format!("both {other} and {name} could be meant")));
        }
        found = Some(name.to_owned());
    }
    Ok(found)
}

/// Segment and number of a bus.
fn is_bus(name: &str) -> bool {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|it| it.is_ascii_hexdigit());
    name.split_once(':').is_some_and(|(segment, number)| hex(segment, 4) && hex(number, 2))
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|number| number.parse::<u32>().is_ok())
}

fn is_there(path: &Path) -> bool {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

/// A small file of the kernel's.
fn read(path: &PathBuf) -> io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A sysfs with a disk on the root bus, one behind two bridges, a bridge without anything, a network card, and SCSI.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        let disk = |path: &str, number: &str| {
            make(path);
            fs::write(root.path().join(path).join("dev"), format!("{number}\n")).unwrap();
            // A disk has more in it than its number.
            make(&format!("{path}/queue"));
        };
        let bus = "devices/pci0000:00";
        disk(&format!("{bus}/0000:00:02.0/virtio3/block/vda"), "254:0");
        make(&format!("{bus}/0000:00:02.0/msi_irqs"));
        make(&format!("{bus}/0000:00:03.0/pci_bus/0000:01"));
        make(&format!("{bus}/0000:00:03.0/0000:01:1f.0/pci_bus/0000:a2"));
        disk(&format!("{bus}/0000:00:03.0/0000:01:1f.0/0000:a2:00.5/virtio11/block/vdab"), "254:416");
        make(&format!("{bus}/0000:00:04.0/pci_bus/0000:05"));
        make(&format!("{bus}/0000:00:05.0/virtio4/net/eth0"));
        make(&format!("{bus}/0000:00:06.0/pci_bus/..:..x"));
        // Half of a disk: the name is there before the number.
        make(&format!("{bus}/0000:00:07.0/virtio5/block/vdc"));
        let units = "bus/scsi/devices";
        make(units);
        for (unit, name, number) in [("0:0:0:1", "sda", "8:0"), ("0:0:3:256", "sdab", "65:176")] {
            let place = format!("{bus}/0000:00:08.0/virtio6/host0/{unit}");
            disk(&format!("{place}/block/{name}"), number);
            symlink(format!("../../../{place}"), root.path().join(units).join(unit)).unwrap();
        }
        for name in ["host0", "target0:0:0", "0:1:7:0"] {
            make(&format!("{units}/{name}"));
        }
        make("dev/block/254:0");
        fs::write(root.path().join("dev/block/254:0/size"), "2048\n").unwrap();
        root
    }

    fn way(parts: &[(u8, u8)]) -> DiskAddress {
        DiskAddress::Pci(parts.iter().map(|&(device, function)| PciFunction { device, function }).collect())
    }

    #[test]
    fn a_disk_is_where_its_address_leads() {
        let machine = machine();
        let here = |name: &str, number| Look::Here { name: name.to_owned(), number };
        let scsi = |target, lun| DiskAddress::Scsi { target, lun };
        for (address, expected) in [
            (way(&[(2, 0)]), here("vda", (254, 0))),
            (way(&[(3, 0), (0x1f, 0), (0, 5)]), here("vdab", (254, 416))),
            (way(&[(2, 1)]), Look::NotYet),
            (way(&[(3, 0)]), Look::NotYet),
            (way(&[(4, 0), (0, 0)]), Look::NotYet),
            (way(&[(5, 0)]), Look::NotYet),
            (way(&[(6, 0), (0, 0)]), Look::NotYet),
            (way(&[(7, 0)]), Look::NotYet),
            (way(&[(9, 0), (0, 0)]), Look::NotYet),
            // A controller of SCSI is no disk itself.
            (way(&[(8, 0)]), Look::NotYet),
            (scsi(0, 1), here("sda", (8, 0))),
            (scsi(3, 256), here("sdab", (65, 176))),
            (scsi(0, 0), Look::NotYet),
            (scsi(7, 0), Look::NotYet),
        ] {
            assert_eq!(look(machine.path(), &address).unwrap(), expected, "{address:?}");
        }
        assert_eq!(size(machine.path(), 254, 0).unwrap(), 1 << 20);
        assert!(size(machine.path(), 254, 1).is_err());
    }

    #[test]
    fn a_machine_without_the_bus_is_not_waited_for() {
        let machine = tempfile::tempdir().unwrap();
        assert_eq!(look(machine.path(), &way(&[(2, 0)])).unwrap(), Look::NoBus("PCI"));
        let unit = DiskAddress::Scsi { target: 0, lun: 0 };
        assert_eq!(look(machine.path(), &unit).unwrap(), Look::NoBus("SCSI"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_followed_and_two_are_none() {
        let machine = machine();
        let block = machine.path().join("devices/pci0000:00/0000:00:02.0/virtio3/block");
        for name in ["vd.", "vd1", "sda", "vd", "vda1", &format!("vd{}", "a".repeat(30))] {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("devices/pci0000:00/0000:00:02.0/virtio0/block").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("dev"), "254:0\n").unwrap();
            assert_eq!(look(root.path(), &way(&[(2, 0)])).unwrap(), Look::NotYet, "{name}");
        }
        fs::write(block.join("vda/dev"), "254\n").unwrap();
        assert!(look(machine.path(), &way(&[(2, 0)])).is_err());
        fs::create_dir(block.join("vdb")).unwrap();
        let error = look(machine.path(), &way(&[(2, 0)])).unwrap_err().to_string();
        assert!(error.contains("vda") && error.contains("vdb"), "{error}");
        // The same unit on another controller.
        fs::create_dir(machine.path().join("bus/scsi/devices/1:0:0:1")).unwrap();
        assert!(look(machine.path(), &DiskAddress::Scsi { target: 0, lun: 1 }).is_err());
    }
}
