//! Names of capabilities to the bits of `linux/capability.h`.

use super::{PlanError, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{Capabilities, LIST_MAX};

/// In the order of their numbers, without `CAP_`.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A process without the field has none.
pub fn capabilities(sets: Option<&oci::Capabilities>) -> Result<Capabilities, PlanError> {
    let Some(sets) = sets else { return Ok(Capabilities::default()) };
    Ok(Capabilities {
        bounding: bits("process.capabilities.bounding", &sets.bounding)?,
        effective: bits("process.capabilities.effective", &sets.effective)?,
        inheritable: bits("process.capabilities.inheritable", &sets.inheritable)?,
        permitted: bits("process.capabilities.permitted", &sets.permitted)?,
        ambient: bits("process.capabilities.ambient", &sets.ambient)?,
    })
}

/// A name that this kernel does not have gives no bit: a container made for a newer one must still start.
fn bits(field: &'static str, names: &[String]) -> Result<u64, PlanError> {
    at_most(field, names.len(), LIST_MAX)?;
    Ok(names.iter().filter_map(|name| number(name)).fold(0, |bits, number| bits | 1 << number))
}

/// Names of a document that give nothing, in their order and each once (runtime specification: they are to be warned of).
pub fn unknown(sets: &oci::Capabilities) -> Vec<&str> {
    let lists = [&sets.bounding, &sets.effective, &sets.inheritable, &sets.permitted, &sets.ambient];
    let mut names = Vec::new();
    for name in lists.into_iter().flatten() {
        if number(name).is_none() && !names.contains(&name.as_str()) {
            names.push(name.as_str());
        }
    }
    names
}

fn number(name: &str) -> Option<usize> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_kernel() {
        for (name, expected) in [
            ("CAP_CHOWN", Some(0)),
            ("CAP_SETPCAP", Some(8)),
            ("CAP_SYS_ADMIN", Some(21)),
            ("CAP_SETFCAP", Some(31)),
            ("CAP_CHECKPOINT_RESTORE", Some(40)),
            ("NET_RAW", Some(13)),
            ("CAP_TIME_TRAVEL", None),
        ] {
            assert_eq!(number(name), expected, "{name}");
        }
        let sets = oci::Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "CAP_KILL".into(), "CAP_TIME_TRAVEL".into()],
            ..Default::default()
        };
        assert_eq!(capabilities(Some(&sets)).unwrap().bounding, 1 | 1 << 5);
        let twice = oci::Capabilities { ambient: sets.bounding.clone(), ..sets };
        assert_eq!(unknown(&twice), ["CAP_TIME_TRAVEL"]);
        assert_eq!(capabilities(None).unwrap(), Capabilities::default());
    }
}
