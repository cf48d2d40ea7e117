//! Storages: what the host wants mounted in the sandbox before a container, or for all of them.

use crate::agent::Agent;
use crate::disk_address;
use crate::error::RpcError;
use crate::layered;
use nacre_protocols::agent_init::RequestBody;
use nacre_protocols::host_agent::kata::Storage;
use nacre_protocols::init_launcher::{DiskAddress, MountAttributes, Overlay, Plan, StorageStep};
use nacre_protocols::names::KATA_RUN_DIR;

/// Driver of an image that the guest pulls itself.
pub const GUEST_PULL: &str = "image_guest_pull";
/// What [`step`] understands, and [`GUEST_PULL`].
pub const DRIVERS: [&str; 10] = [
    "virtio-fs",
    "ephemeral",
    "local",
    "blk",
    "mmioblk",
    "scsi",
    "overlayfs",
    "watchable-bind",
    layered::DRIVER,
    GUEST_PULL,
];
/// Of Kata's, what is on a bus that no kernel of ours has.
const OF_NO_BUS: [&str; 2] = ["nvdimm", "blk-ccw"];
/// Most storages of one request, and longest list of options of one.
const STORAGES_MAX: usize = 128;
const OPTIONS_MAX: usize = 64;
/// Of a directory, where the host gives none.
const DIRECTORY_MODE: u32 = 0o777;
/// Of a tmpfs, where neither the host gives one.
const TMPFS_MODE: u32 = 0o1777;
const SET_GROUP_ID: u32 = 0o2000;

/// A mount that a request asks for.
pub struct Wanted {
    pub step: StorageStep,
    pub mount_point: String,
    /// Stays when nobody uses it.
    stays: bool,
}

impl Wanted {
    pub fn of(step: StorageStep, mount_point: &str) -> Self {
        Self { step, mount_point: mount_point.to_owned(), stays: false }
    }
}

impl Agent {
    /// Mounts what is not yet mounted and counts `container` as a user of each mount point; with `None` they belong to the
    /// sandbox and stay. Gives the mount points, also of those that failed, so that they can be given back.
    pub async fn mount_storages(
        &self,
        storages: &[&Storage],
        container: Option<&str>,
    ) -> Result<(), RpcError> {
        if storages.len() > STORAGES_MAX {
            return Err(RpcError::invalid(format!("storages: more than {STORAGES_MAX}")));
        }
        let (parts, single): (Vec<&Storage>, Vec<&Storage>) =
            storages.iter().partition(|storage| layered::is_part(storage));
        let mut wanted = Vec::new();
        for storage in single {
            let stays = storage.shared;
            wanted.push(Wanted { step: step(storage)?, mount_point: storage.mount_point.clone(), stays });
        }
        if !parts.is_empty() {
            wanted.extend(layered::wanted(&parts, container.unwrap_or("sandbox"))?);
        }
        let _turn = self.mounting.lock().await;
        for wanted in wanted {
            let is_mounted = self.use_mount(&wanted, container)?;
            if !is_mounted && let Err(error) = self.apply(vec![wanted.step]).await {
                self.unmount(&wanted.mount_point).await;
                return Err(error);
            }
        }
        self.watching.notify_one();
        Ok(())
    }

    /// Counts the user before the mount is asked for, so that an agent that dies in between leaves a trace of it. True when
    /// it was mounted already.
    fn use_mount(&self, wanted: &Wanted, container: Option<&str>) -> Result<bool, RpcError> {
        self.change(|kept| {
            let is_mounted = kept.mounts.contains_key(&wanted.mount_point);
            let mount = kept.mounts.entry(wanted.mount_point.clone()).or_default();
            mount.stays |= wanted.stays || container.is_none();
            if let StorageStep::Watched { source, .. } = &wanted.step {
                mount.watched = Some(source.clone());
            }
            if let Some(container) = container.and_then(|id| kept.containers.get_mut(id))
                && !container.mounts.contains(&wanted.mount_point)
            {
                mount.users += 1;
                container.mounts.push(wanted.mount_point.clone());
            }
            is_mounted
        })
    }

    /// Gives tmpfs that are mounted other options.
    pub async fn change_ephemeral(&self, storages: &[Storage]) -> Result<(), RpcError> {
        if storages.len() > STORAGES_MAX {
            return Err(RpcError::invalid(format!("storages: more than {STORAGES_MAX}")));
        }
        let mut steps = Vec::new();
        for storage in storages {
            match step(storage)? {
                StorageStep::Tmpfs { mount_point, data, .. } => {
                    if !self.kept(|kept| kept.mounts.contains_key(&storage.mount_point)) {
                        return Err(RpcError::invalid(format!("storage {mount_point} is not mounted")));
                    }
                    steps.push(StorageStep::ChangeTmpfs { mount_point, data });
                }
                // Its size is that of the huge pages there are.
                StorageStep::HugePages { .. } => {}
                _ => {
                    let message = format!("storage {:?} is not ephemeral", storage.mount_point);
                    return Err(RpcError::invalid(message));
                }
            }
        }
        let _turn = self.mounting.lock().await;
        self.apply(steps).await
    }

    /// Gives back what a container used; unmounts what nobody else does.
    ///
    /// # Errors
    /// Something cannot be unmounted, or that it was cannot be written down: then the container still uses it, and it can be
    /// tried again.
    pub async fn release_storages(&self, container: &str) -> Result<(), RpcError> {
        let _turn = self.mounting.lock().await;
        let used = self.kept(|kept| kept.containers.get(container).map(|it| it.mounts.clone()));
        // The last first: it may be made of the others.
        for mount_point in used.unwrap_or_default().iter().rev() {
            let is_last = self.kept(|kept| {
                kept.mounts.get(mount_point).is_some_and(|mount| mount.users <= 1 && !mount.stays)
            });
            if is_last {
                self.apply(vec![StorageStep::Unmount { mount_point: mount_point.clone() }]).await?;
            }
            self.change(|kept| {
                if is_last {
                    kept.mounts.remove(mount_point);
                } else if let Some(mount) = kept.mounts.get_mut(mount_point) {
                    mount.users = mount.users.saturating_sub(1);
                }
                if let Some(container) = kept.containers.get_mut(container) {
                    container.mounts.retain(|other| other != mount_point);
                }
            })?;
        }
        Ok(())
    }

    async fn unmount(&self, mount_point: &str) {
        let step = StorageStep::Unmount { mount_point: mount_point.to_owned() };
        match self.apply(vec![step]).await {
            Ok(()) => {
                let _ = self.change(|kept| kept.mounts.remove(mount_point));
            }
            Err(error) => crate::say(&format!("{mount_point} stays mounted: {}", error.message)),
        }
    }

    /// Has a launcher apply `steps`, all or up to the first that fails.
    pub async fn apply(&self, steps: Vec<StorageStep>) -> Result<(), RpcError> {
        if steps.is_empty() {
            return Ok(());
        }
        self.init.ask_with_plan(RequestBody::Storage, &Plan::Storage(steps)).await?;
        Ok(())
    }
}

/// A checked step for the launcher.
fn step(storage: &Storage) -> Result<StorageStep, RpcError> {
    let mount_point = beneath_run_dir(&storage.mount_point)?;
    if storage.fs_group.is_some() {
        return Err(RpcError::unsupported(format!("storage {mount_point}: fs_group")));
    }
    if storage.options.len() > OPTIONS_MAX {
        return Err(RpcError::invalid(format!("storage {mount_point}: more than {OPTIONS_MAX} options")));
    }
    match (storage.driver.as_str(), storage.fstype.as_str()) {
        ("virtio-fs", _) => virtio_fs(storage, mount_point),
        ("ephemeral", "" | "tmpfs") => {
            let (data, attributes) = tmpfs_options(&storage.options);
            Ok(StorageStep::Tmpfs { mount_point, data, attributes })
        }
        ("ephemeral", "hugetlbfs") => {
            let (data, attributes) = tmpfs_options(&storage.options);
            Ok(StorageStep::HugePages { mount_point, data, attributes })
        }
        ("local", _) => {
            let (mode, group) = directory_options(&storage.options)?;
            Ok(StorageStep::Directory { path: mount_point, mode, group })
        }
        ("blk", _) => disk(storage, disk_address::virtio(&storage.source)?, mount_point),
        ("mmioblk", _) => disk(storage, disk_address::name(&storage.source)?, mount_point),
        ("scsi", _) => disk(storage, disk_address::scsi(&storage.source)?, mount_point),
        ("overlayfs", _) => overlay(storage, mount_point),
        ("watchable-bind", _) => {
            let source = beneath_run_dir(&storage.source)?;
            Ok(StorageStep::Watched { source, mount_point })
        }
        (driver, _) if OF_NO_BUS.contains(&driver) => Err(RpcError::unsupported(format!(
            "storage {mount_point}: driver {driver:?}: this guest's kernel has no such bus, which"
        ))),
        (driver, fstype) => Err(RpcError::unsupported(format!(
            "storage {mount_point}: driver {driver:?} with file system {fstype:?}"
        ))),
    }
}

pub fn disk(storage: &Storage, address: DiskAddress, mount_point: String) -> Result<StorageStep, RpcError> {
    if let Some(option) = storage.driver_options.first() {
        return Err(RpcError::unsupported(format!("storage {mount_point}: driver option {option:?}")));
    }
    let (data, attributes) = mount_options(&storage.options);
    Ok(StorageStep::Disk { address, file_system: storage.fstype.clone(), data, attributes, mount_point })
}

/// `lowerdir=A:B`, topmost first, and `upperdir=` with `workdir=`, or neither.
fn overlay(storage: &Storage, mount_point: String) -> Result<StorageStep, RpcError> {
    let (data, attributes) = mount_options(&storage.options);
    let (mut lower, mut upper, mut work) = (Vec::new(), None, None);
    for option in data {
        match option.split_once('=') {
            Some(("lowerdir", list)) => {
                lower = list.split(':').map(beneath_run_dir).collect::<Result<_, _>>()?;
            }
            Some(("upperdir", path)) => upper = Some(beneath_run_dir(path)?),
            Some(("workdir", path)) => work = Some(beneath_run_dir(path)?),
            _ => return Err(RpcError::unsupported(format!("storage {mount_point}: option {option:?}"))),
        }
    }
    let writable = match (upper, work) {
        (Some(upper), Some(work)) => Some((upper, work)),
        (None, None) => None,
        _ => {
            let message = format!("storage {mount_point}: upperdir and workdir are not alone");
            return Err(RpcError::invalid(message));
        }
    };
    Ok(StorageStep::Overlay(Overlay { lower, writable, attributes, mount_point }))
}

/// Options for the file system itself, and those for the mount.
fn mount_options(options: &[String]) -> (Vec<String>, MountAttributes) {
    let mut attributes = MountAttributes::default();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => attributes.read_only = true,
            "nosuid" => attributes.no_suid = true,
            "nodev" => attributes.no_dev = true,
            "noexec" => attributes.no_exec = true,
            "" | "rw" | "relatime" | "defaults" => {}
            option => data.push(option.to_owned()),
        }
    }
    (data, attributes)
}

fn virtio_fs(storage: &Storage, mount_point: String) -> Result<StorageStep, RpcError> {
    let tag = storage.source.clone();
    if tag.is_empty() || tag.len() > 36 {
        let message = format!("storage {mount_point}: a virtio-fs tag has 1 to 36 bytes, not {tag:?}");
        return Err(RpcError::invalid(message));
    }
    let read_only = storage.options.iter().any(|option| option == "ro");
    Ok(StorageStep::VirtioFs { tag, mount_point, read_only })
}

/// Options for the file system itself, and those for the mount.
fn tmpfs_options(options: &[String]) -> (Vec<String>, MountAttributes) {
    let (all, attributes) = mount_options(options);
    let mut data = Vec::new();
    let (mut mode, mut group) = (None, None);
    for option in &all {
        match option.split_once('=') {
            // A group for the files of a volume, which tmpfs calls otherwise.
            Some(("fsgid", number)) => group = Some(number),
            Some(("mode", octal)) => mode = Some(octal),
            _ => data.push(option.clone()),
        }
    }
    // What is made in it later belongs to the group, too.
    match (mode, group) {
        (None, None) => {}
        (Some(octal), None) => data.push(format!("mode={octal}")),
        (octal, Some(group)) => {
            let mode = octal.and_then(octal_mode).unwrap_or(TMPFS_MODE) | SET_GROUP_ID;
            data.extend([format!("mode={mode:o}"), format!("gid={group}")]);
        }
    }
    (data, attributes)
}

/// Mode and group of a directory. What is made in it later belongs to the group, too.
fn directory_options(options: &[String]) -> Result<(u32, Option<u32>), RpcError> {
    let (mut mode, mut group) = (DIRECTORY_MODE, None);
    for option in options {
        let invalid = || RpcError::invalid(format!("storage option {option:?} of a directory"));
        match option.split_once('=') {
            Some(("mode", octal)) => mode = octal_mode(octal).ok_or_else(invalid)?,
            Some(("fsgid", number)) => group = Some(number.parse().map_err(|_| invalid())?),
            _ => return Err(RpcError::unsupported(format!("storage option {option:?} of a directory"))),
        }
    }
    Ok((if group.is_some() { mode | SET_GROUP_ID } else { mode }, group))
}

fn octal_mode(octal: &str) -> Option<u32> {
    u32::from_str_radix(octal, 8).ok().filter(|mode| *mode <= 0o7777)
}

pub fn beneath_run_dir(path: &str) -> Result<String, RpcError> {
    let path = path.trim_end_matches('/');
    let rest = path.strip_prefix(KATA_RUN_DIR).and_then(|rest| rest.strip_prefix('/'));
    let plain = rest.is_some_and(|rest| {
        !rest.contains('\0') && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
    });
    if plain && path.len() < nacre_protocols::init_launcher::PATH_MAX {
        Ok(path.to_owned())
    } else {
        Err(RpcError::invalid(format!("storage: mount point {path:?} is not beneath {KATA_RUN_DIR}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::host_agent::ttrpc::Code;

    fn storage(driver: &str, mount_point: &str, options: &[&str]) -> Storage {
        Storage {
            driver: driver.into(),
            source: "kataShared".into(),
            mount_point: mount_point.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_storages_of_a_pod_become_steps() {
        let shared = storage("virtio-fs", "/run/kata-containers/shared/containers/", &["nodev"]);
        let expected = StorageStep::VirtioFs {
            tag: "kataShared".into(),
            mount_point: "/run/kata-containers/shared/containers".into(),
            read_only: false,
        };
        assert_eq!(step(&shared), Ok(expected));
        let shm = "/run/kata-containers/sandbox/shm";
        let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"];
        let expected = StorageStep::Tmpfs {
            mount_point: shm.into(),
            data: vec!["size=67108864".into(), "mode=1777".into()],
            attributes: MountAttributes { no_exec: true, no_suid: true, no_dev: true, ..Default::default() },
        };
        assert_eq!(step(&storage("ephemeral", shm, &options)), Ok(expected));
        let local = "/run/kata-containers/sandbox/storage/x";
        let expected = StorageStep::Directory { path: local.into(), mode: 0o750, group: None };
        assert_eq!(step(&storage("local", local, &["mode=0750"])), Ok(expected));
        let expected = StorageStep::Directory { path: local.into(), mode: 0o2777, group: Some(5) };
        assert_eq!(step(&storage("local", local, &["fsgid=5"])), Ok(expected));
        let Ok(StorageStep::Tmpfs { data, .. }) = step(&storage("ephemeral", shm, &["fsgid=5"])) else {
            panic!("no tmpfs")
        };
        assert_eq!(data, ["mode=3777", "gid=5"]);
        let pages = Storage { fstype: "hugetlbfs".into(), ..storage("ephemeral", shm, &["pagesize=2M"]) };
        assert!(matches!(step(&pages), Ok(StorageStep::HugePages { .. })));
    }

    #[test]
    fn what_is_watched_is_beneath_the_run_directory() {
        let place = "/run/kata-containers/shared/containers/watchable/x";
        let source = "/run/kata-containers/shared/containers/x";
        let of = |source: &str| Storage {
            source: source.into(),
            ..storage("watchable-bind", place, &["bind", "ro"])
        };
        let expected = StorageStep::Watched { source: source.into(), mount_point: place.into() };
        assert_eq!(step(&of(source)), Ok(expected));
        for source in ["/etc", "kataShared", "/run/kata-containers/../x"] {
            assert_eq!(step(&of(source)).unwrap_err().code, Code::InvalidArgument, "{source}");
        }
    }

    #[test]
    fn disks_and_overlays_become_steps() {
        let good = "/run/kata-containers/sandbox/x";
        let disk = Storage {
            source: "/dev/vdb".into(),
            fstype: "ext4".into(),
            ..storage("mmioblk", good, &["ro", "noload"])
        };
        let expected = StorageStep::Disk {
            address: DiskAddress::Name("/dev/vdb".into()),
            file_system: "ext4".into(),
            data: vec!["noload".into()],
            attributes: MountAttributes { read_only: true, ..Default::default() },
            mount_point: good.into(),
        };
        assert_eq!(step(&disk), Ok(expected));
        for (driver, source, expected) in [
            ("blk", "02", disk_address::pci("02").unwrap()),
            ("scsi", "0:1", DiskAddress::Scsi { target: 0, lun: 1 }),
        ] {
            let disk = Storage { driver: driver.into(), source: source.into(), ..disk.clone() };
            let Ok(StorageStep::Disk { address, .. }) = step(&disk) else { panic!("{driver}") };
            assert_eq!(address, expected);
        }
        let at = |name: &str| format!("/run/kata-containers/{name}");
        let options = [
            format!("lowerdir={}:{}", at("a"), at("b")),
            format!("upperdir={}", at("u")),
            format!("workdir={}", at("w")),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let expected = Overlay {
            lower: vec![at("a"), at("b")],
            writable: Some((at("u"), at("w"))),
            attributes: MountAttributes::default(),
            mount_point: good.into(),
        };
        assert_eq!(step(&storage("overlayfs", good, &options)), Ok(StorageStep::Overlay(expected)));
    }

    #[test]
    fn other_places_and_drivers_are_refused_by_name() {
        let good = "/run/kata-containers/sandbox/x";
        for (driver, mount_point, options, code, text) in [
            ("virtio-fs", "/etc", &[][..], Code::InvalidArgument, "/etc"),
            ("virtio-fs", "/run/kata-containers", &[], Code::InvalidArgument, "mount point"),
            ("virtio-fs", "/run/kata-containers/../nacre", &[], Code::InvalidArgument, ".."),
            ("local", good, &["mode=9"], Code::InvalidArgument, "mode=9"),
            ("local", good, &["fsgid=five"], Code::InvalidArgument, "fsgid=five"),
            ("local", good, &["size=5"], Code::Unimplemented, "size=5"),
            ("nvdimm", good, &[], Code::Unimplemented, "\"nvdimm\": this guest's kernel has no such bus"),
            ("scsi", good, &[], Code::InvalidArgument, "kataShared"),
            ("mmioblk", good, &[], Code::Unimplemented, "kataShared"),
            ("floppy", good, &[], Code::Unimplemented, "\"floppy\""),
            ("blk", good, &[], Code::InvalidArgument, "kataShared"),
            ("overlayfs", good, &["lowerdir=/etc"], Code::InvalidArgument, "/etc"),
            ("overlayfs", good, &["upperdir=/run/kata-containers/u"], Code::InvalidArgument, "workdir"),
            ("overlayfs", good, &["metacopy=on"], Code::Unimplemented, "metacopy"),
        ] {
            let error = step(&storage(driver, mount_point, options)).unwrap_err();
            assert_eq!(error.code, code, "{driver} {mount_point}");
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
