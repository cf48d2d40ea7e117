//! Device nodes and the device cgroup.

use super::{PlanError, absolute, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{DEVICES_MAX, DeviceKind, DeviceNode, DeviceRule};

/// Major and minor of what every container has (runtime specification, Linux, default devices).
const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// What every container may use beyond them: the pty multiplexer and the ptys.
const DEFAULT_TERMINALS: [(u32, Option<u32>); 2] = [(5, Some(2)), (136, None)];
/// The guest's own console. Engines allow it by habit; a container's `/dev/console` is a pty.
const CONSOLE: (u32, u32) = (5, 1);
/// Permission bits of a node whose description has none.
const DEFAULT_MODE: u32 = 0o666;

/// The default nodes, then the specification's own; one that it describes itself is made as described.
pub fn nodes(described: &[oci::Device]) -> Result<Vec<DeviceNode>, PlanError> {
    at_most("linux.devices", described.len(), DEVICES_MAX - DEFAULT_NODES.len())?;
    let own: Vec<DeviceNode> = described.iter().map(node).collect::<Result<_, _>>()?;
    let mut all: Vec<DeviceNode> = DEFAULT_NODES
        .iter()
        .filter(|(path, ..)| own.iter().all(|node| node.path != *path))
        .map(|(path, major, minor)| DeviceNode {
            path: (*path).to_owned(),
            kind: DeviceKind::Character,
            major: *major,
            minor: *minor,
            mode: DEFAULT_MODE,
            uid: 0,
            gid: 0,
        })
        .collect();
    all.extend(own);
    Ok(all)
}

fn node(device: &oci::Device) -> Result<DeviceNode, PlanError> {
    let path = absolute("linux.devices.path", &device.path)?;
    let invalid = |reason: String| PlanError::invalid(format!("device {path}"), reason);
    let kind = kind(&device.r#type).ok_or_else(|| invalid(format!("type {:?} is unknown", device.r#type)))?;
    let number =
        |number: i64| u32::try_from(number).map_err(|_| invalid(format!("{number} is no device number")));
    let (major, minor) =
        if kind == DeviceKind::Fifo { (0, 0) } else { (number(device.major)?, number(device.minor)?) };
    let mode = device.file_mode.map_or(DEFAULT_MODE, |mode| mode & 0o7777);
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    Ok(DeviceNode { kind, major, minor, mode, uid, gid, path })
}

/// The specification's rules in their order, then what every container may use. Nothing else is allowed.
pub fn rules(resources: Option<&oci::Resources>) -> Result<Vec<DeviceRule>, PlanError> {
    let described = resources.map_or(&[][..], |resources| &resources.devices);
    at_most("linux.resources.devices", described.len(), DEVICES_MAX / 2)?;
    let mut all = vec![MAKE_ANY];
    for rule in described {
        let rule = self::rule(rule)?;
        // Denying everything is where every list begins.
        let is_everything = rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none();
        if is_everything && !rule.allow && rule.read && rule.write && rule.mknod {
            all.truncate(1);
        } else {
            all.push(rule);
        }
    }
    let nodes = DEFAULT_NODES.iter().map(|(_, major, minor)| (*major, Some(*minor)));
    all.extend(nodes.chain(DEFAULT_TERMINALS).map(|(major, minor)| DeviceRule {
        allow: true,
        kind: Some(DeviceKind::Character),
        major: Some(major),
        minor,
        read: true,
        write: true,
        mknod: true,
    }));
    Ok(all)
}

/// A node may be made without a right to open it.
const MAKE_ANY: DeviceRule =
    DeviceRule { allow: true, kind: None, major: None, minor: None, read: false, write: false, mknod: true };

fn rule(rule: &oci::DeviceRule) -> Result<DeviceRule, PlanError> {
    let invalid = |reason: String| PlanError::invalid("linux.resources.devices", reason);
    let kind = match rule.r#type.as_str() {
        "" | "a" => None,
        word => Some(
            kind(word)
                .filter(|kind| *kind != DeviceKind::Fifo)
                .ok_or_else(|| invalid(format!("type {word:?} is none of a, b, c")))?,
        ),
    };
    if let Some(letter) = rule.access.chars().find(|letter| !matches!(letter, 'r' | 'w' | 'm')) {
        return Err(invalid(format!("access {letter:?} is none of r, w, m")));
    }
    // -1 is any number; so is everything when the kind is everything.
    let number = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok()).filter(|_| kind.is_some());
    let may = |letter| rule.access.is_empty() || rule.access.contains(letter);
    let (major, minor) = (number(rule.major), number(rule.minor));
    let opens = !(rule.allow && (major, minor) == (Some(CONSOLE.0), Some(CONSOLE.1)));
    Ok(DeviceRule {
        allow: rule.allow,
        kind,
        major,
        minor,
        read: opens && may('r'),
        write: opens && may('w'),
        mknod: may('m'),
    })
}

fn kind(word: &str) -> Option<DeviceKind> {
    Some(match word {
        "c" | "u" => DeviceKind::Character,
        "b" => DeviceKind::Block,
        "p" => DeviceKind::Fifo,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_described_default_node_replaces_the_default() {
        let null = oci::Device {
            path: "/dev/null".into(),
            r#type: "c".into(),
            major: 1,
            minor: 3,
            file_mode: Some(0o600),
            ..Default::default()
        };
        let all = nodes(&[null]).unwrap();
        assert_eq!(all.len(), DEFAULT_NODES.len());
        let null: Vec<_> = all.iter().filter(|node| node.path == "/dev/null").collect();
        assert_eq!((null.len(), null[0].mode), (1, 0o600));
    }

    #[test]
    fn bad_nodes_are_refused() {
        for (path, kind, major) in [("dev/x", "c", 1), ("/dev/x", "d", 1), ("/dev/x", "c", -1)] {
            let device = oci::Device { path: path.into(), r#type: kind.into(), major, ..Default::default() };
            assert!(nodes(&[device]).is_err(), "{path} {kind} {major}");
        }
    }

    #[test]
    fn the_usual_rules_allow_the_default_devices_and_no_disk() {
        let deny_all = oci::DeviceRule { access: "rwm".into(), ..Default::default() };
        let fuse = oci::DeviceRule {
            allow: true,
            r#type: "c".into(),
            major: Some(10),
            minor: Some(229),
            access: "rw".into(),
        };
        let console =
            oci::DeviceRule { major: Some(5), minor: Some(1), access: "rwm".into(), ..fuse.clone() };
        let resources = oci::Resources { devices: vec![deny_all, fuse, console], ..Default::default() };
        let rules = rules(Some(&resources)).unwrap();
        let can_read = |kind, major, minor| {
            rules.iter().any(|rule| {
                rule.allow
                    && rule.read
                    && rule.kind.is_none_or(|k| k == kind)
                    && rule.major.is_none_or(|m| m == major)
                    && rule.minor.is_none_or(|m| m == minor)
            })
        };
        assert!(can_read(DeviceKind::Character, 1, 3));
        assert!(can_read(DeviceKind::Character, 136, 7));
        assert!(can_read(DeviceKind::Character, 10, 229));
        assert!(!can_read(DeviceKind::Character, 1, 1), "memory");
        assert!(!can_read(DeviceKind::Character, 5, 1), "the guest's console");
        assert!(!can_read(DeviceKind::Character, 5, 1), "the guest's console");
        assert!(!can_read(DeviceKind::Block, 254, 0), "the guest's own disk");
    }

    #[test]
    fn denying_everything_forgets_what_was_allowed_before() {
        let rule = |allow, kind: &str| oci::DeviceRule {
            allow,
            r#type: kind.into(),
            major: Some(-1),
            minor: Some(-1),
            access: "rwm".into(),
        };
        let before = oci::Resources { devices: vec![rule(true, "a")], ..Default::default() };
        assert!(rules(Some(&before)).unwrap().iter().any(|rule| rule.kind.is_none() && rule.read));
        let after = oci::Resources { devices: vec![rule(true, "a"), rule(false, "a")], ..Default::default() };
        assert_eq!(rules(Some(&after)).unwrap(), rules(None).unwrap());
    }
}
