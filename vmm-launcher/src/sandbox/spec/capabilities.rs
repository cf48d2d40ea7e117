//! Capabilities by name (capabilities(7)).

use std::collections::BTreeSet;

/// What a container has unless asked otherwise: docker's fourteen.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All of Linux 6.12, in the order of their numbers.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no capability; see capabilities(7)")]
pub struct CapabilityError(String);

/// The default set with `add` and without `drop`; `ALL` stands for every one, and dropping all leaves what is added.
pub fn capability_set(add: &[String], drop: &[String]) -> Result<Vec<String>, CapabilityError> {
    let mut set: BTreeSet<&'static str> = DEFAULT_CAPABILITIES.into();
    let add = add.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?;
    let drop = drop.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?;
    if add.contains(&Named::All) {
        set.extend(ALL);
    }
    if drop.contains(&Named::All) {
        set.clear();
    }
    for one in &drop {
        if let Named::One(name) = one {
            set.remove(name);
        }
    }
    for one in &add {
        if let Named::One(name) = one {
            set.insert(name);
        }
    }
    Ok(set.into_iter().map(str::to_owned).collect())
}

#[derive(PartialEq, Eq)]
enum Named {
    All,
    One(&'static str),
}

fn named(text: &str) -> Result<Named, CapabilityError> {
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if full == "CAP_ALL" {
        return Ok(Named::All);
    }
    ALL.iter()
        .find(|name| **name == full)
        .map(|name| Named::One(name))
        .ok_or(CapabilityError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Result<Vec<String>, CapabilityError> {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        capability_set(&own(add), &own(drop))
    }

    #[test]
    fn sets_are_made_as_docker_makes_them() {
        assert_eq!(set(&[], &[]).unwrap(), DEFAULT_CAPABILITIES);
        assert_eq!(set(&["ALL"], &[]).unwrap().len(), ALL.len());
        assert!(set(&[], &["all"]).unwrap().is_empty());
        assert_eq!(set(&["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert_eq!(set(&["CAP_NET_ADMIN"], &["Chown"]).unwrap().len(), 14);
        assert!(!set(&["ALL"], &["SYS_ADMIN"]).unwrap().contains(&"CAP_SYS_ADMIN".to_owned()));
        assert_eq!(set(&["CAP_NOTHING"], &[]), Err(CapabilityError("CAP_NOTHING".into())));
    }
}
