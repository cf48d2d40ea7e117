//! Mounts: type and option words to what mount_setattr(2) and fsconfig(2) take.

use super::{Place, PlanError, absolute, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{
    AccessTime, MOUNTS_MAX, Mount, MountAttributes, MountKind, Propagation,
};
use nacre_protocols::names::KATA_RUN_DIR;

/// Longest list of options of one mount, in entries.
const OPTIONS_MAX: usize = 64;

pub fn mounts(list: &[oci::Mount], place: Place) -> Result<Vec<Mount>, PlanError> {
    at_most("mounts", list.len(), MOUNTS_MAX)?;
    list.iter().map(|it| mount(it, place)).collect()
}

fn mount(mount: &oci::Mount, place: Place) -> Result<Mount, PlanError> {
    let destination = absolute("mounts.destination", &mount.destination)?;
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(PlanError::unsupported(format!("mount of {destination} with id mappings")));
    }
    let options = Options::read(&destination, &mount.options)?;
    let field = || format!("mount of {destination}");
    let data = options.data;
    let takes_no_data = |data: Vec<String>, kind: MountKind| match data.first() {
        None => Ok(kind),
        Some(option) => Err(PlanError::invalid(field(), format!("unknown option {option:?}"))),
    };
    let is_bind = options.bind || matches!(mount.r#type.as_str(), "bind" | "rbind");
    let kind = if is_bind {
        let recursive = options.recursive || mount.r#type == "rbind";
        takes_no_data(data, MountKind::Bind { source: bind_source(&mount.source, place)?, recursive })?
    } else {
        match mount.r#type.as_str() {
            "proc" => MountKind::Proc { data },
            "sysfs" => takes_no_data(data, MountKind::Sysfs)?,
            "tmpfs" => MountKind::Tmpfs { data, copy_up: options.copy_up },
            "devpts" => MountKind::Devpts { data },
            "mqueue" => takes_no_data(data, MountKind::Mqueue)?,
            // Whatever options the one hierarchy of the guest has, it has them already.
            "cgroup" | "cgroup2" => MountKind::Cgroup2,
            other => return Err(PlanError::unsupported(format!("{} with type {other:?}", field()))),
        }
    };
    Ok(Mount { destination, kind, attributes: options.attributes, propagation: options.propagation })
}

/// Only what was brought into a sandbox for its containers can be shown to them, nothing of the guest's own.
fn bind_source(source: &str, place: Place) -> Result<String, PlanError> {
    let source = absolute("mounts.source", source)?;
    let inside = source.strip_prefix(KATA_RUN_DIR).is_some_and(|rest| rest.starts_with('/'));
    if inside || place == Place::Host {
        Ok(source)
    } else {
        Err(PlanError::invalid("mounts.source", format!("{source:?} is not beneath {KATA_RUN_DIR}")))
    }
}

#[derive(Default)]
struct Options {
    attributes: MountAttributes,
    propagation: Option<Propagation>,
    bind: bool,
    recursive: bool,
    copy_up: bool,
    /// For the file system itself.
    data: Vec<String>,
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
            if matches!(word.as_str(), "rro" | "rrw" | "remount" | "idmap" | "ridmap") {
                return Err(PlanError::unsupported(format!("mount of {destination} with option {word:?}")));
            }
            options.apply(word);
        }
        Ok(options)
    }

    fn apply(&mut self, word: &str) {
        let attributes = &mut self.attributes;
        match word {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "tmpcopyup" => self.copy_up = true,
            "ro" => attributes.read_only = true,
            "rw" => attributes.read_only = false,
            "nosuid" => attributes.no_suid = true,
            "suid" => attributes.no_suid = false,
            "nodev" => attributes.no_dev = true,
            "dev" => attributes.no_dev = false,
            "noexec" => attributes.no_exec = true,
            "exec" => attributes.no_exec = false,
            "nosymfollow" => attributes.no_symlinks = true,
            "symfollow" => attributes.no_symlinks = false,
            "noatime" => attributes.access_time = AccessTime::Never,
            "strictatime" => attributes.access_time = AccessTime::Strict,
            "relatime" | "atime" | "norelatime" | "nostrictatime" => {
                attributes.access_time = AccessTime::Relative;
            }
            "nodiratime" => attributes.no_dir_access_time = true,
            "diratime" => attributes.no_dir_access_time = false,
            // Nothing to do, or of no effect on the file systems of a container.
            "" | "defaults" | "async" | "sync" | "dirsync" | "nomand" | "mand" | "silent" | "loud"
            | "lazytime" | "nolazytime" | "iversion" | "noiversion" => {}
            word => match propagation(word) {
                Some(propagation) => self.propagation = Some(propagation),
                None => self.data.push(word.to_owned()),
            },
        }
    }
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
        let words =
            ["nosuid", "nodev", "noexec", "ro", "rw", "noatime", "nodiratime", "rslave", "nosymfollow"];
        let mount = mount(&described("sysfs", "sysfs", &words), Place::Sandbox).unwrap();
        let expected = MountAttributes {
            read_only: false,
            no_suid: true,
            no_dev: true,
            no_exec: true,
            no_symlinks: true,
            access_time: AccessTime::Never,
            no_dir_access_time: true,
        };
        assert_eq!(mount.attributes, expected);
        assert_eq!(mount.propagation, Some(Propagation::RecursiveSlave));
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
            ("bind", shared, &["rro"]),
            ("sysfs", "sysfs", &["size=1"]),
            ("tmpfs", "tmpfs", &["size=1\0"]),
        ] {
            assert!(mount(&described(kind, source, options), Place::Sandbox).is_err(), "{kind} {options:?}");
        }
    }
}
