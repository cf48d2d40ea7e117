//! Namespaces: which a container shares, which are its own, which it joins; ids and clocks of its own.

use super::{Place, PlanError, absolute, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{
    Clock, IdMapping, IdMappings, MAPPINGS_MAX, Namespace, Namespaces, NetDevice, TimeOffset,
};

const NANOSECONDS: u32 = 1_000_000_000;
/// Longest name of an interface, in bytes (IFNAMSIZ without its NUL).
const INTERFACE_MAX: usize = 15;
/// Most interfaces that move into a container.
const NET_DEVICES_MAX: usize = 64;

pub fn namespaces(linux: &oci::Linux, place: Place) -> Result<Namespaces, PlanError> {
    // What a container always has of its own, whatever the list says, where it shares a machine with others' secrets.
    let own = if place == Place::Sandbox { Namespace::Fresh } else { Namespace::Shared };
    let mut all = Namespaces { pid: own.clone(), mount: own.clone(), cgroup: own, ..Default::default() };
    let mut seen: Vec<&str> = Vec::new();
    at_most("linux.namespaces", linux.namespaces.len(), 16)?;
    for namespace in &linux.namespaces {
        let word = namespace.r#type.as_str();
        if seen.contains(&word) {
            return Err(PlanError::invalid("linux.namespaces", format!("{word:?} is there twice")));
        }
        seen.push(word);
        let slot = match word {
            "pid" => &mut all.pid,
            "mount" => &mut all.mount,
            "cgroup" => &mut all.cgroup,
            "ipc" => &mut all.ipc,
            "network" => &mut all.network,
            "uts" => &mut all.uts,
            "time" => &mut all.time,
            "user" => &mut all.user,
            word => {
                return Err(PlanError::invalid("linux.namespaces.type", format!("{word:?} is unknown")));
            }
        };
        *slot = match namespace.path.as_str() {
            "" => Namespace::Fresh,
            _ if place == Place::Sandbox => {
                let what = format!("linux.namespaces: joining a {word} namespace of the guest by path");
                return Err(PlanError::unsupported(what));
            }
            path => Namespace::At(absolute("linux.namespaces.path", path)?),
        };
    }
    if place == Place::Host && all.mount == Namespace::Shared {
        return Err(PlanError::unsupported("linux.namespaces without a mount namespace"));
    }
    all.time_offsets = time_offsets(linux, &all.time)?;
    all.user_mappings = user_mappings(linux, &all.user)?;
    Ok(all)
}

fn time_offsets(linux: &oci::Linux, time: &Namespace) -> Result<Vec<TimeOffset>, PlanError> {
    const FIELD: &str = "linux.timeOffsets";
    if !linux.time_offsets.is_empty() && *time != Namespace::Fresh {
        return Err(PlanError::invalid(FIELD, "needs a fresh time namespace"));
    }
    let offset = |(clock, offset): (&String, &oci::TimeOffset)| {
        let clock = match clock.as_str() {
            "monotonic" => Clock::Monotonic,
            "boottime" => Clock::Boottime,
            other => return Err(PlanError::invalid(FIELD, format!("clock {other:?} is unknown"))),
        };
        if offset.nanosecs >= NANOSECONDS {
            return Err(PlanError::invalid(FIELD, format!("{} nanoseconds are a second", offset.nanosecs)));
        }
        Ok(TimeOffset { clock, seconds: offset.secs, nanoseconds: offset.nanosecs })
    };
    linux.time_offsets.iter().map(offset).collect()
}

fn user_mappings(linux: &oci::Linux, user: &Namespace) -> Result<IdMappings, PlanError> {
    let given = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    match (user, given) {
        (Namespace::Fresh, _) => {
            let mappings = mappings("linux", &linux.uid_mappings, &linux.gid_mappings)?;
            if mappings.users.is_empty() || mappings.groups.is_empty() {
                let reason = "a fresh user namespace needs uidMappings and gidMappings";
                return Err(PlanError::invalid("linux.uidMappings", reason));
            }
            Ok(mappings)
        }
        (Namespace::Shared, true) => {
            Err(PlanError::invalid("linux.uidMappings", "needs a user namespace in linux.namespaces"))
        }
        // A namespace that is joined has the mappings that it has; engines repeat them.
        (Namespace::At(_), _) | (Namespace::Shared, false) => Ok(IdMappings::default()),
    }
}

pub fn mappings(
    field: &str,
    users: &[oci::IdMapping],
    groups: &[oci::IdMapping],
) -> Result<IdMappings, PlanError> {
    let list = |name: &str, list: &[oci::IdMapping]| {
        let field = || format!("{field}.{name}");
        if list.len() > MAPPINGS_MAX {
            return Err(PlanError::invalid(field(), format!("more than {MAPPINGS_MAX} entries")));
        }
        let mapping = |it: &oci::IdMapping| {
            let fits = |first: u32| it.size > 0 && first.checked_add(it.size).is_some();
            if !fits(it.container_id) || !fits(it.host_id) {
                let reason = format!("{} {} {} is no range of ids", it.container_id, it.host_id, it.size);
                return Err(PlanError::invalid(field(), reason));
            }
            Ok(IdMapping { inside: it.container_id, outside: it.host_id, count: it.size })
        };
        list.iter().map(mapping).collect()
    };
    Ok(IdMappings { users: list("uidMappings", users)?, groups: list("gidMappings", groups)? })
}

pub fn net_devices(
    linux: &oci::Linux,
    namespaces: &Namespaces,
    place: Place,
) -> Result<Vec<NetDevice>, PlanError> {
    const FIELD: &str = "linux.netDevices";
    at_most(FIELD, linux.net_devices.len(), NET_DEVICES_MAX)?;
    if linux.net_devices.is_empty() {
        return Ok(Vec::new());
    }
    if place == Place::Sandbox {
        return Err(PlanError::unsupported(
            "linux.netDevices: the sandbox's network is its containers' together, which",
        ));
    }
    if namespaces.network == Namespace::Shared {
        return Err(PlanError::invalid(FIELD, "needs a network namespace"));
    }
    let name = |name: &str| {
        let plain = (1..=INTERFACE_MAX).contains(&name.len())
            && !matches!(name, "." | "..")
            && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
        if plain {
            Ok(name.to_owned())
        } else {
            Err(PlanError::invalid(FIELD, format!("{name:?} is no name")))
        }
    };
    linux
        .net_devices
        .iter()
        .map(|(outside, device)| {
            let inside = if device.name.is_empty() { outside } else { &device.name };
            Ok(NetDevice { outside: name(outside)?, inside: name(inside)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(list: &[(&str, &str)]) -> oci::Linux {
        let namespace =
            |(kind, path): &(&str, &str)| oci::Namespace { r#type: (*kind).into(), path: (*path).into() };
        oci::Linux { namespaces: list.iter().map(namespace).collect(), ..Default::default() }
    }

    #[test]
    fn every_kind_is_made_joined_or_shared() {
        for (kind, of) in [
            ("pid", (|all| &all.pid) as fn(&Namespaces) -> &Namespace),
            ("cgroup", |all| &all.cgroup),
            ("ipc", |all| &all.ipc),
            ("network", |all| &all.network),
            ("uts", |all| &all.uts),
            ("time", |all| &all.time),
        ] {
            let all = |path| namespaces(&linux(&[("mount", ""), (kind, path)]), Place::Host).unwrap();
            assert_eq!(*of(&all("")), Namespace::Fresh, "{kind}");
            assert_eq!(*of(&all("/proc/1/ns/x")), Namespace::At("/proc/1/ns/x".into()), "{kind}");
            assert_eq!(*of(&namespaces(&linux(&[("mount", "")]), Place::Host).unwrap()), Namespace::Shared);
            assert!(namespaces(&linux(&[(kind, "/proc/1/ns/x")]), Place::Sandbox).is_err(), "{kind}");
        }
        let sandbox = namespaces(&linux(&[]), Place::Sandbox).unwrap();
        assert_eq!((&sandbox.pid, &sandbox.mount), (&Namespace::Fresh, &Namespace::Fresh));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let mapping = |size| oci::IdMapping { container_id: 0, host_id: 1, size };
        let mapped = |list: &[(&str, &str)], size| oci::Linux {
            uid_mappings: vec![mapping(size)],
            gid_mappings: vec![mapping(size)],
            ..linux(list)
        };
        let offset = |clock: &str, nanosecs| oci::Linux {
            time_offsets: [(clock.to_owned(), oci::TimeOffset { secs: 1, nanosecs })].into(),
            ..linux(&[("mount", ""), ("time", "")])
        };
        for (linux, expected) in [
            (linux(&[]), "without a mount namespace"),
            (linux(&[("mount", ""), ("mount", "")]), "twice"),
            (linux(&[("mount", ""), ("colour", "")]), "\"colour\""),
            (linux(&[("mount", ""), ("ipc", "x")]), "linux.namespaces.path"),
            (linux(&[("mount", ""), ("user", "")]), "linux.uidMappings"),
            (mapped(&[("mount", "")], 1), "linux.uidMappings"),
            (mapped(&[("mount", ""), ("user", "")], u32::MAX), "0 1 4294967295"),
            (mapped(&[("mount", ""), ("user", "")], 0), "0 1 0"),
            (offset("realtime", 0), "\"realtime\""),
            (offset("monotonic", NANOSECONDS), "nanoseconds"),
        ] {
            let error = namespaces(&linux, Place::Host).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let good = namespaces(&mapped(&[("mount", ""), ("user", "")], 65_536), Place::Host).unwrap();
        assert_eq!(good.user_mappings.users, [IdMapping { inside: 0, outside: 1, count: 65_536 }]);
    }
}
