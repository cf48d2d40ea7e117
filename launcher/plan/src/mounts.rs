//! Mounts: type and option words to what mount_setattr(2) and fsconfig(2) take.

use super::namespaces::mappings;
use super::{Place, PlanError, absolute, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{
    AccessTime, MOUNTS_MAX, Mount, MountAttributes, MountChanges, MountKind, MountMapping, Propagation,
};
use nacre_protocols::names::KATA_RUN_DIR;

/// Longest list of options of one mount, in entries.
const OPTIONS_MAX: usize = 64;

pub fn mounts(list: &[oci::Mount], place: Place) -> Result<Vec<Mount>, PlanError> {
    at_most("mounts", list.len(), MOUNTS_MAX)?;
    list.iter().map(|it| mount(it, place)).collect()
}

/// What an image says is to be a volume: where the caller mounts nothing, the image's own directory stays writable, whatever
/// becomes of the root. Before all else, since what the caller mounts may lie in it.
pub fn add_volumes(mounts: &mut Vec<Mount>, volumes: &[String]) -> Result<(), PlanError> {
    const FIELD: &str = "volumes of the image";
    let mut own: Vec<Mount> = Vec::new();
    for volume in volumes {
        let destination = absolute(FIELD, volume)?;
        if destination == "/" {
            return Err(PlanError::invalid(FIELD, "the root cannot be one"));
        }
        if mounts.iter().chain(&own).all(|mount| mount.destination != destination) {
            own.push(Mount {
                destination,
                kind: MountKind::Own,
                attributes: MountAttributes::default(),
                changes: MountChanges::default(),
                id_mapping: None,
                propagation: None,
            });
        }
    }
    // The outer before the inner.
    own.sort_by(|one, other| one.destination.cmp(&other.destination));
    at_most("mounts", mounts.len() + own.len(), MOUNTS_MAX)?;
    mounts.splice(0..0, own);
    Ok(())
}

fn mount(mount: &oci::Mount, place: Place) -> Result<Mount, PlanError> {
    let destination = absolute("mounts.destination", &mount.destination)?;
    let mut options = Options::read(&destination, &mount.options)?;
    let field = || format!("mount of {destination}");
    let data = std::mem::take(&mut options.data);
    let super_block = std::mem::take(&mut options.super_block);
    let takes_no_data = |data: Vec<String>, kind: MountKind| match data.first() {
        None => Ok(kind),
        Some(option) => Err(PlanError::invalid(field(), format!("unknown option {option:?}"))),
    };
    // Such words are about a file system as a whole, of which a bind or a mount that is there is no new one.
    let whole = |mut data: Vec<String>| {
        data.extend(super_block.iter().cloned());
        data
    };
    let is_bind = options.bind || matches!(mount.r#type.as_str(), "bind" | "rbind");
    let kind = if options.remount {
        takes_no_data(data, MountKind::Remount)?
    } else if is_bind {
        let recursive = options.recursive || mount.r#type == "rbind";
        takes_no_data(data, MountKind::Bind { source: bind_source(&mount.source, place)?, recursive })?
    } else {
        match mount.r#type.as_str() {
            "proc" => MountKind::Proc { data },
            "sysfs" => takes_no_data(data, MountKind::Sysfs)?,
            "tmpfs" => MountKind::Tmpfs { data: whole(data), copy_up: options.copy_up },
            "devpts" => MountKind::Devpts { data },
            "mqueue" => takes_no_data(data, MountKind::Mqueue)?,
            // Whatever options the one hierarchy has, it has them already.
            "cgroup" | "cgroup2" => MountKind::Cgroup2,
            name if place == Place::Host && is_file_system(name) => MountKind::Filesystem {
                name: name.to_owned(),
                source: mount.source.clone(),
                data: whole(data),
            },
            other => return Err(PlanError::unsupported(format!("{} with type {other:?}", field()))),
        }
    };
    if options.copy_up && !matches!(kind, MountKind::Tmpfs { .. }) {
        return Err(PlanError::invalid(field(), "tmpcopyup is for a tmpfs"));
    }
    Ok(Mount {
        id_mapping: id_mapping(mount, &options, &kind, place, &destination)?,
        destination,
        kind,
        attributes: options.attributes,
        changes: options.changes,
        propagation: options.propagation,
    })
}

/// With mappings of its own also without the word that asks for it (runtime specification, "Mounts").
fn id_mapping(
    mount: &oci::Mount,
    options: &Options,
    kind: &MountKind,
    place: Place,
    destination: &str,
) -> Result<Option<MountMapping>, PlanError> {
    let own = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    let Some(recursive) = options.mapped.or(own.then_some(false)) else { return Ok(None) };
    let field = format!("mount of {destination}");
    if place == Place::Sandbox && !matches!(kind, MountKind::Bind { .. })
        || matches!(kind, MountKind::Remount)
    {
        return Err(PlanError::invalid(field, "only a bind can have its ids mapped"));
    }
    let mappings = own.then(|| mappings(&field, &mount.uid_mappings, &mount.gid_mappings)).transpose()?;
    if mappings.as_ref().is_some_and(|all| all.users.is_empty() || all.groups.is_empty()) {
        return Err(PlanError::invalid(field, "needs both uidMappings and gidMappings"));
    }
    Ok(Some(MountMapping { mappings, recursive }))
}

/// In a sandbox only what was brought there for its containers can be shown to them, nothing of the guest's own.
fn bind_source(source: &str, place: Place) -> Result<String, PlanError> {
    let source = absolute("mounts.source", source)?;
    let inside = source.strip_prefix(KATA_RUN_DIR).is_some_and(|rest| rest.starts_with('/'));
    if inside || place == Place::Host {
        Ok(source)
    } else {
        Err(PlanError::invalid("mounts.source", format!("{source:?} is not beneath {KATA_RUN_DIR}")))
    }
}

/// The kernel knows whether there is one of that name.
fn is_file_system(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[derive(Default)]
struct Options {
    attributes: MountAttributes,
    changes: MountChanges,
    propagation: Option<Propagation>,
    bind: bool,
    recursive: bool,
    remount: bool,
    copy_up: bool,
    /// Ids are mapped; with `true` on all mounts beneath, too.
    mapped: Option<bool>,
    /// For the file system itself.
    data: Vec<String>,
    /// Flags of the file system itself that every one knows.
    super_block: Vec<String>,
}

impl Options {
    fn read(destination: &str, words: &[String]) -> Result<Self, PlanError> {
        at_most("mounts.options", words.len(), OPTIONS_MAX)?;
        let mut options = Self::default();
        for word in words {
            if word.contains('\0') {
                let reason = "an option has a NUL in it";
                return Err(PlanError::invalid(format!("mount of {destination}"), reason));
            }
            options.apply(word);
        }
        Ok(options)
    }

    fn apply(&mut self, word: &str) {
        let changes = &mut self.changes;
        if attribute(word, &mut self.attributes, &mut changes.cleared) {
            return;
        }
        // Every attribute has its twin for the mounts beneath.
        if let Some(word) = word.strip_prefix('r')
            && attribute(word, &mut changes.recursive, &mut changes.recursive_cleared)
        {
            return;
        }
        match word {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.mapped = Some(self.mapped.unwrap_or(false)),
            "ridmap" => self.mapped = Some(true),
            "sync" | "dirsync" | "lazytime" | "mand" => self.super_block.push(word.to_owned()),
            // What a file system is without them, and what says nothing to the kernel.
            "" | "defaults" | "async" | "nomand" | "nolazytime" | "silent" | "loud" | "iversion"
            | "noiversion" => {}
            word => match propagation(word) {
                Some(propagation) => self.propagation = Some(propagation),
                None => self.data.push(word.to_owned()),
            },
        }
    }
}

/// Sets or clears what `word` is about; false if it is about something else. The last word counts.
fn attribute(word: &str, set: &mut MountAttributes, cleared: &mut MountAttributes) -> bool {
    type Field = fn(&mut MountAttributes) -> &mut bool;
    let (field, on): (Field, bool) = match word {
        "ro" => (|it| &mut it.read_only, true),
        "rw" => (|it| &mut it.read_only, false),
        "nosuid" => (|it| &mut it.no_suid, true),
        "suid" => (|it| &mut it.no_suid, false),
        "nodev" => (|it| &mut it.no_dev, true),
        "dev" => (|it| &mut it.no_dev, false),
        "noexec" => (|it| &mut it.no_exec, true),
        "exec" => (|it| &mut it.no_exec, false),
        "nosymfollow" => (|it| &mut it.no_symlinks, true),
        "symfollow" => (|it| &mut it.no_symlinks, false),
        "nodiratime" => (|it| &mut it.no_dir_access_time, true),
        "diratime" => (|it| &mut it.no_dir_access_time, false),
        "noatime" | "strictatime" | "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            set.access_time = match word {
                "noatime" => AccessTime::Never,
                "strictatime" => AccessTime::Strict,
                _ => AccessTime::Relative,
            };
            return true;
        }
        _ => return false,
    };
    *field(set) = on;
    *field(cleared) = !on;
    true
}

/// The kinds of shared subtrees, as mount(8) names them.
pub fn propagation(word: &str) -> Option<Propagation> {
    Some(match word {
        "private" => Propagation::Private,
        "rprivate" => Propagation::RecursivePrivate,
        "slave" => Propagation::Slave,
        "rslave" => Propagation::RecursiveSlave,
        "shared" => Propagation::Shared,
        "rshared" => Propagation::RecursiveShared,
        "unbindable" => Propagation::Unbindable,
        "runbindable" => Propagation::RecursiveUnbindable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(kind: &str, source: &str, options: &[&str]) -> oci::Mount {
        oci::Mount {
            destination: "/at".into(),
            source: source.into(),
            r#type: kind.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn volumes_of_an_image_come_first_unless_the_caller_mounts_there() {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let given = oci::Mount { destination: "/given".into(), r#type: "tmpfs".into(), ..Default::default() };
        let mut all = vec![mount(&given, Place::Sandbox).unwrap()];
        add_volumes(&mut all, &strings(&["/a/b", "/given/", "/a", "/a"])).unwrap();
        let found: Vec<(&str, bool)> =
            all.iter().map(|mount| (mount.destination.as_str(), mount.kind == MountKind::Own)).collect();
        assert_eq!(found, [("/a", true), ("/a/b", true), ("/given", false)]);
        for (volume, words) in [("/", "cannot be one"), ("data", "not absolute"), ("/a/../b", "\"..\"")] {
            let error = add_volumes(&mut Vec::new(), &strings(&[volume])).unwrap_err().to_string();
            assert!(error.contains("volumes of the image") && error.contains(words), "{error}");
        }
        let many: Vec<String> = (0..=MOUNTS_MAX).map(|at| format!("/v{at}")).collect();
        assert!(matches!(add_volumes(&mut Vec::new(), &many), Err(PlanError::TooMany { .. })));
    }

    #[test]
    fn the_default_mounts_of_a_container_are_understood() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let shared = "/run/kata-containers/shared/containers/vol0";
        for (kind, source, options, expected) in [
            ("proc", "proc", &["hidepid=2"][..], MountKind::Proc { data: strings(&["hidepid=2"]) }),
            (
                "tmpfs",
                "shm",
                &["nosuid", "mode=1777", "size=65536k"],
                MountKind::Tmpfs { data: strings(&["mode=1777", "size=65536k"]), copy_up: false },
            ),
            ("tmpfs", "tmpfs", &["tmpcopyup"], MountKind::Tmpfs { data: vec![], copy_up: true }),
            (
                "devpts",
                "devpts",
                &["newinstance", "gid=5"],
                MountKind::Devpts { data: strings(&["newinstance", "gid=5"]) },
            ),
            ("sysfs", "sysfs", &["ro"], MountKind::Sysfs),
            ("mqueue", "mqueue", &[], MountKind::Mqueue),
            ("cgroup", "cgroup", &["ro", "nsdelegate"], MountKind::Cgroup2),
            ("bind", shared, &["ro"], MountKind::Bind { source: shared.into(), recursive: false }),
            ("none", shared, &["rbind"], MountKind::Bind { source: shared.into(), recursive: true }),
        ] {
            assert_eq!(
                mount(&described(kind, source, options), Place::Sandbox).unwrap().kind,
                expected,
                "{kind} {options:?}"
            );
        }
    }

    #[test]
    fn option_words_set_and_clear_attributes_in_order() {
        let words = [
            "nosuid",
            "nodev",
            "noexec",
            "ro",
            "rw",
            "noatime",
            "nodiratime",
            "rslave",
            "nosymfollow",
            "rro",
            "rexec",
        ];
        let mount = mount(&described("sysfs", "sysfs", &words), Place::Sandbox).unwrap();
        let expected = MountAttributes {
            no_suid: true,
            no_dev: true,
            no_exec: true,
            no_symlinks: true,
            access_time: AccessTime::Never,
            no_dir_access_time: true,
            read_only: false,
        };
        let changes = MountChanges {
            cleared: MountAttributes { read_only: true, ..Default::default() },
            recursive: MountAttributes { read_only: true, ..Default::default() },
            recursive_cleared: MountAttributes { no_exec: true, ..Default::default() },
        };
        assert_eq!((mount.attributes, mount.changes), (expected, changes));
        assert_eq!(mount.propagation, Some(Propagation::RecursiveSlave));
    }

    #[test]
    fn ids_are_mapped_by_word_or_by_mappings() {
        let source = "/run/kata-containers/shared/containers/vol0";
        let mapped = |options: &[&str], own: bool| {
            let mut described = described("bind", source, options);
            if own {
                described.uid_mappings = vec![oci::IdMapping { container_id: 0, host_id: 7, size: 9 }];
                described.gid_mappings = described.uid_mappings.clone();
            }
            let mapping = mount(&described, Place::Sandbox).unwrap().id_mapping;
            mapping.map(|it| (it.mappings.map(|all| all.users[0].outside), it.recursive))
        };
        assert_eq!(mapped(&[], false), None);
        assert_eq!(mapped(&[], true), Some((Some(7), false)));
        assert_eq!(mapped(&["idmap"], false), Some((None, false)));
        assert_eq!(mapped(&["rbind", "ridmap"], true), Some((Some(7), true)));
    }

    #[test]
    fn a_host_mounts_what_its_kernel_knows() {
        let overlay = described("overlay", "overlay", &["lowerdir=/a:/b", "sync"]);
        let data = ["lowerdir=/a:/b", "sync"].map(str::to_owned).to_vec();
        let kind = MountKind::Filesystem { name: "overlay".into(), source: "overlay".into(), data };
        assert_eq!(mount(&overlay, Place::Host).unwrap().kind, kind);
        assert!(mount(&overlay, Place::Sandbox).is_err());
        let again = described("none", "", &["bind", "remount", "ro"]);
        assert_eq!(mount(&again, Place::Host).unwrap().kind, MountKind::Remount);
    }

    #[test]
    fn nothing_of_the_guest_itself_can_be_bound() {
        for source in [
            "/",
            "/proc",
            "/run/kata-containers",
            "/run/kata-containersx/y",
            "/run/kata-containers/../nacre/scratch",
            "relative",
        ] {
            assert!(mount(&described("bind", source, &[]), Place::Sandbox).is_err(), "{source}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let shared = "/run/kata-containers/shared/containers/vol0";
        for (kind, source, options) in [
            ("ext4", "/dev/vdc", &[][..]),
            ("bind", shared, &["colour=blue"]),
            ("bind", shared, &["rcolour"]),
            ("sysfs", "sysfs", &["tmpcopyup"]),
            ("proc", "proc", &["idmap"]),
            ("sysfs", "sysfs", &["size=1"]),
            ("tmpfs", "tmpfs", &["size=1\0"]),
        ] {
            assert!(mount(&described(kind, source, options), Place::Sandbox).is_err(), "{kind} {options:?}");
        }
    }
}
