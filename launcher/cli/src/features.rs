//! `features`: what a `config.json` may ask of this launcher (runtime specification, `features.md`). The lists are compared with
//! the plan's own judgement by the tests below.

use crate::args::Words;
use crate::error::Result;
use crate::lifecycle::print_json;
use crate::state::OCI_VERSION;
use serde_json::{Value, json};

const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];
const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];
const HOOKS: &[&str] =
    &["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

pub fn command(words: Vec<String>) -> Result<u8> {
    Words::new(words).end()?;
    print_json(&features());
    Ok(0)
}

fn features() -> Value {
    let names = |table: &[(&'static str, u32)]| table.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let capabilities: Vec<_> = nacre_plan::CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": capabilities,
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "knownFlags": FLAGS,
                "supportedFlags": FLAGS,
            },
            "apparmor": {"enabled": true},
            // A process has its label; linux.mountLabel is refused.
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "memoryPolicy": {
                "modes": names(&nacre_plan::MEMORY_MODES),
                "flags": names(&nacre_plan::MEMORY_FLAGS),
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_plan::{Container, Place, PlanError, oci};
    use nacre_protocols::init_launcher::Rootfs;

    /// What the plan makes of a small document with `change`.
    fn judged(change: impl FnOnce(&mut Value)) -> Result<(), String> {
        let mut config = crate::spec::config();
        change(&mut config);
        let spec: oci::Spec =
            oci::from_json(config.to_string().as_bytes()).map_err(|error| error.to_string())?;
        let rootfs = Rootfs::Guest("/".into());
        let (user, image, bundle, place) = (None, None, "/", Place::Host);
        let plan =
            nacre_plan::container(Container { id: "box", spec: &spec, rootfs, user, image, bundle, place });
        plan.map(drop).map_err(|error: PlanError| error.to_string())
    }

    #[test]
    fn mount_options_are_those_of_the_list_and_no_others() {
        let taken = |option: &str| {
            let kind = if option == "tmpcopyup" { "tmpfs" } else { "bind" };
            judged(|config| {
                let mut mount =
                    json!({"destination": "/x", "type": kind, "source": "/x", "options": [option]});
                if option.ends_with("idmap") {
                    let all = json!([{"containerID": 0, "hostID": 5, "size": 7}]);
                    (mount["uidMappings"], mount["gidMappings"]) = (all.clone(), all);
                }
                config["mounts"] = json!([mount]);
            })
        };
        for option in MOUNT_OPTIONS {
            assert_eq!(taken(option), Ok(()), "{option}");
            let twin = format!("r{option}");
            assert_eq!(taken(&twin).is_ok(), MOUNT_OPTIONS.contains(&twin.as_str()), "{twin}");
        }
        for option in ["colour", "ro=1", "bindx", "no"] {
            assert!(taken(option).is_err_and(|error| error.contains(option)), "{option}");
        }
        assert!(MOUNT_OPTIONS.is_sorted());
    }

    #[test]
    fn words_of_seccomp_are_those_of_the_lists_and_no_others() {
        let rule = |action: &str, operator: &str, flag: &str, architecture: &str| {
            judged(|config| {
                config["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW", "flags": [flag], "architectures": [architecture],
                    "listenerPath": if action == "SCMP_ACT_NOTIFY" { "/agent" } else { "" },
                    "syscalls": [{"names": ["read"], "action": action, "args": [{"index": 0, "value": 1, "op": operator}]}],
                });
            })
        };
        let (action, operator, flag, architecture) = (ACTIONS[0], OPERATORS[0], FLAGS[0], "SCMP_ARCH_X86");
        for action in ACTIONS {
            assert_eq!(rule(action, operator, flag, architecture), Ok(()), "{action}");
        }
        for operator in OPERATORS {
            assert_eq!(rule(action, operator, flag, architecture), Ok(()), "{operator}");
        }
        for flag in FLAGS {
            assert_eq!(rule(action, operator, flag, architecture), Ok(()), "{flag}");
        }
        for (words, expected) in [
            (["SCMP_ACT_WISH", operator, flag, architecture], "SCMP_ACT_WISH"),
            ([action, "SCMP_CMP_ABOUT", flag, architecture], "SCMP_CMP_ABOUT"),
            ([action, operator, "SECCOMP_FILTER_FLAG_X", architecture], "SECCOMP_FILTER_FLAG_X"),
            ([action, operator, flag, "x86"], "x86"),
        ] {
            let [action, operator, flag, architecture] = words;
            assert!(rule(action, operator, flag, architecture).is_err_and(|error| error.contains(expected)));
        }
    }

    #[test]
    fn namespaces_hooks_and_the_rest_are_what_they_say() {
        let namespaces = |list: Value| judged(|config| config["linux"]["namespaces"] = list);
        for kind in NAMESPACES.iter().filter(|kind| !matches!(**kind, "mount" | "user")) {
            assert_eq!(namespaces(json!([{"type": "mount"}, {"type": kind}])), Ok(()), "{kind}");
        }
        assert!(
            namespaces(json!([{"type": "mount"}, {"type": "user"}]))
                .is_err_and(|it| it.contains("uidMappings"))
        );
        assert!(
            namespaces(json!([{"type": "mount"}, {"type": "colour"}])).is_err_and(|it| it.contains("colour"))
        );
        for hook in HOOKS {
            assert_eq!(
                judged(|config| config["hooks"] = json!({*hook: [{"path": "/hook"}]})),
                Ok(()),
                "{hook}"
            );
        }
        assert!(judged(|config| config["hooks"] = json!({"afterwards": []})).is_err());
        for mode in features()["linux"]["memoryPolicy"]["modes"].as_array().unwrap() {
            let policy = json!({"mode": mode, "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
            assert_eq!(judged(|config| config["linux"]["memoryPolicy"] = policy), Ok(()), "{mode}");
        }
        // Where it says no, it means no.
        for (field, value) in [
            ("intelRdt", json!({"closID": "a", "l3CacheSchema": "L3:0=f"})),
            ("mountLabel", json!("system_u:object_r:container_file_t:s0")),
        ] {
            let error = judged(|config| config["linux"][field] = value).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
        assert_eq!(judged(|config| config["process"]["apparmorProfile"] = json!("profile")), Ok(()));
        assert_eq!(features()["linux"]["capabilities"][0], "CAP_CHOWN");
    }
}
