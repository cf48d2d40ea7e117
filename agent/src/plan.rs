//! From the OCI configuration that the host sends to the plan that the launcher applies: pure, and the only place where
//! rich input of the host is judged.
//!
//! What cannot be honoured is refused by name, never silently dropped, with these exceptions that the field itself makes:
//! unknown capabilities and unknown system call names are ignored as runc does, and labels of security modules that the
//! guest kernel does not have mean nothing.

mod capabilities;
mod devices;
mod mounts;
mod process;
mod resources;
mod seccomp;

pub use process::{ImageDefaults, user_by_name};

use nacre_protocols::host_agent::{OWN_NAMESPACES_ANNOTATION, kata};
use nacre_protocols::init_launcher::{
    ContainerPlan, ExecPlan, LIST_MAX, PATH_MAX, Propagation, Rootfs, Seccomp,
};

/// Longest host name, in bytes (HOST_NAME_MAX).
const HOSTNAME_MAX: usize = 64;

/// Why a configuration does not become a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("{field} has more than {limit} entries")]
    TooMany { field: &'static str, limit: usize },
}

impl PlanError {
    fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}

/// Everything that decides a container's plan.
pub struct Container<'a> {
    pub id: &'a str,
    pub spec: &'a kata::Spec,
    pub rootfs: Rootfs,
    /// A user by name, when the caller gives one: it goes before the specification's numbers.
    pub user: Option<&'a kata::StringUser>,
    /// What the image says, when it was pulled here.
    pub image: Option<ImageDefaults<'a>>,
}

pub fn container(input: Container<'_>) -> Result<ContainerPlan, PlanError> {
    let spec = input.spec;
    let none = kata::Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    refuse_unsupported(spec, linux)?;
    let own = OwnNamespaces::of(spec)?;
    let seccomp = linux.seccomp.as_ref().map(seccomp::program).transpose()?;
    let described = spec.process.as_ref().ok_or_else(|| PlanError::invalid("process", "is missing"))?;
    let process = process::process(described, input.user, input.image, seccomp)?;
    Ok(ContainerPlan {
        id: input.id.to_owned(),
        hostname: own.uts.then(|| hostname(spec, input.id)).transpose()?,
        own_ipc: own.ipc,
        own_network: own.network,
        rootfs: input.rootfs,
        rootfs_readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        rootfs_propagation: match linux.rootfs_propagation.as_str() {
            "" => Propagation::RecursivePrivate,
            word => mounts::propagation(word)
                .ok_or_else(|| PlanError::invalid("linux.rootfsPropagation", format!("{word:?}")))?,
        },
        mounts: mounts::mounts(&spec.mounts)?,
        devices: devices::nodes(&linux.devices)?,
        device_rules: devices::rules(linux.resources.as_ref())?,
        masked_paths: paths("linux.maskedPaths", &linux.masked_paths)?,
        readonly_paths: paths("linux.readonlyPaths", &linux.readonly_paths)?,
        cgroup: linux.resources.as_ref().map(resources::writes).transpose()?.unwrap_or_default(),
        sysctls: sysctls(linux)?,
        process,
        inherited: 0,
    })
}

/// One more process. It runs under the container's own `seccomp` program.
pub fn exec(
    described: &kata::Process,
    user: Option<&kata::StringUser>,
    seccomp: Option<Seccomp>,
) -> Result<ExecPlan, PlanError> {
    Ok(ExecPlan { process: process::process(described, user, None, seccomp)? })
}

fn refuse_unsupported(spec: &kata::Spec, linux: &kata::Linux) -> Result<(), PlanError> {
    if let Some(hooks) = &spec.hooks {
        let all = [
            &hooks.prestart,
            &hooks.poststart,
            &hooks.poststop,
            &hooks.create_runtime,
            &hooks.create_container,
            &hooks.start_container,
        ];
        if all.iter().any(|hooks| !hooks.is_empty()) {
            return Err(PlanError::unsupported("running hooks in the guest"));
        }
    }
    if !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty() {
        return Err(PlanError::unsupported("a user namespace"));
    }
    if linux.intel_rdt.as_ref().is_some_and(|rdt| !rdt.l3_cache_schema.is_empty()) {
        return Err(PlanError::unsupported("intelRdt"));
    }
    Ok(())
}

/// A pod's containers share the sandbox's IPC and UTS namespaces, so Kata's shims do not say; who wants them apart
/// says so by annotation.
#[derive(Default)]
struct OwnNamespaces {
    ipc: bool,
    uts: bool,
    network: bool,
}

impl OwnNamespaces {
    fn of(spec: &kata::Spec) -> Result<Self, PlanError> {
        let mut own = Self::default();
        let list = spec.annotations.get(OWN_NAMESPACES_ANNOTATION).map_or("", String::as_str);
        for word in list.split(',').filter(|word| !word.is_empty()) {
            match word {
                "ipc" => own.ipc = true,
                "uts" => own.uts = true,
                "network" => own.network = true,
                _ => {
                    let reason = format!("{word:?} is none of ipc, uts, network");
                    return Err(PlanError::invalid(OWN_NAMESPACES_ANNOTATION, reason));
                }
            }
        }
        Ok(own)
    }
}

/// The specification's, or the first 12 characters of the id as docker does.
fn hostname(spec: &kata::Spec, id: &str) -> Result<String, PlanError> {
    let name = if spec.hostname.is_empty() { id.chars().take(12).collect() } else { spec.hostname.clone() };
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    if name.len() > HOSTNAME_MAX || !printable {
        let reason = format!("is longer than {HOSTNAME_MAX} bytes or not printable");
        return Err(PlanError::invalid("hostname", reason));
    }
    Ok(name)
}

fn sysctls(linux: &kata::Linux) -> Result<Vec<(String, String)>, PlanError> {
    at_most("linux.sysctl", linux.sysctl.len(), LIST_MAX)?;
    let is_name = |name: &str| {
        name.split(['.', '/']).all(|part| !part.is_empty())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
    };
    let check = |(name, value): (&String, &String)| {
        if is_name(name) && !value.contains('\0') {
            Ok((name.clone(), value.clone()))
        } else {
            Err(PlanError::invalid("linux.sysctl", format!("{name:?} is not a name, or its value has a NUL")))
        }
    };
    linux.sysctl.iter().map(check).collect()
}

fn paths(field: &'static str, list: &[String]) -> Result<Vec<String>, PlanError> {
    at_most(field, list.len(), LIST_MAX)?;
    list.iter().map(|path| absolute(field, path)).collect()
}

/// An absolute path of at most [`PATH_MAX`] bytes, without a NUL or a `..`, in its plain form.
fn absolute(field: &str, path: &str) -> Result<String, PlanError> {
    let shown: String = path.chars().take(128).collect();
    if !path.starts_with('/') {
        return Err(PlanError::invalid(field, format!("{shown:?} is not absolute")));
    }
    if path.len() > PATH_MAX {
        return Err(PlanError::invalid(field, format!("{shown:?}… is longer than {PATH_MAX} bytes")));
    }
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(PlanError::invalid(field, format!("{shown:?} has a NUL or \"..\" in it")));
    }
    let mut plain = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        plain.push('/');
        plain.push_str(part);
    }
    if plain.is_empty() {
        plain.push('/');
    }
    Ok(plain)
}

fn at_most(field: &'static str, length: usize, limit: usize) -> Result<(), PlanError> {
    if length > limit { Err(PlanError::TooMany { field, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocols::init_launcher::{MountKind, User};

    fn spec() -> kata::Spec {
        kata::Spec {
            process: Some(kata::Process { args: vec!["/bin/true".into()], ..Default::default() }),
            ..Default::default()
        }
    }

    fn plan(spec: &kata::Spec) -> Result<ContainerPlan, PlanError> {
        let rootfs = Rootfs::Layers(vec![]);
        container(Container { id: "0123456789abcdef", spec, rootfs, user: None, image: None })
    }

    #[test]
    fn a_small_specification_becomes_a_plan() {
        let mut spec = spec();
        spec.mounts.push(kata::Mount {
            destination: "/proc".into(),
            r#type: "proc".into(),
            source: "proc".into(),
            options: vec!["nosuid".into()],
        });
        let plan = plan(&spec).unwrap();
        assert_eq!(plan.process.args, ["/bin/true"]);
        assert_eq!(plan.process.cwd, "/");
        assert_eq!(plan.process.user, User::Ids { uid: 0, gid: 0, additional: vec![] });
        assert_eq!(plan.hostname, None);
        assert!(!plan.own_ipc && !plan.own_network);
        assert!(matches!(plan.mounts[0].kind, MountKind::Proc { .. }));
        assert!(plan.devices.iter().any(|device| device.path == "/dev/null"));
    }

    #[test]
    fn namespaces_of_its_own_are_asked_for_by_annotation() {
        let mut spec = spec();
        spec.annotations.insert(OWN_NAMESPACES_ANNOTATION.into(), "ipc,uts".into());
        let own = plan(&spec).unwrap();
        assert_eq!((own.own_ipc, own.own_network), (true, false));
        assert_eq!(own.hostname.as_deref(), Some("0123456789ab"));
        spec.hostname = "web".into();
        assert_eq!(plan(&spec).unwrap().hostname.as_deref(), Some("web"));
        spec.annotations.insert(OWN_NAMESPACES_ANNOTATION.into(), "user".into());
        assert!(plan(&spec).unwrap_err().to_string().contains("\"user\""));
    }

    #[test]
    fn paths_take_their_plain_form() {
        for (path, plain) in
            [("/", "/"), ("//", "/"), ("/a/./b//c/", "/a/b/c"), ("/a/...", "/a/..."), ("/.", "/")]
        {
            assert_eq!(absolute("path", path).as_deref(), Ok(plain), "{path}");
        }
        for path in ["", "a", "./a", "/a/..", "/../a", "/a\0b", &format!("/{}", "x".repeat(PATH_MAX))] {
            assert!(absolute("path", path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        type Change = fn(&mut kata::Spec);
        let cases: [(Change, &str); 6] = [
            (|spec| spec.process = None, "process: is missing"),
            (
                |spec| {
                    let hook = kata::Hook { path: "/hook".into(), ..Default::default() };
                    spec.hooks = Some(kata::Hooks { prestart: vec![hook], ..Default::default() });
                },
                "running hooks in the guest is not supported",
            ),
            (
                |spec| linux(spec).uid_mappings.push(kata::LinuxIdMapping::default()),
                "a user namespace is not supported",
            ),
            (
                |spec| linux(spec).masked_paths.push("proc/kcore".into()),
                "linux.maskedPaths: \"proc/kcore\" is not absolute",
            ),
            (
                |spec| linux(spec).readonly_paths = vec!["/a".into(); LIST_MAX + 1],
                "linux.readonlyPaths has more than 1024 entries",
            ),
            (|spec| drop(linux(spec).sysctl.insert("../x".into(), "1".into())), "linux.sysctl: \"../x\""),
        ];
        for (change, expected) in cases {
            let mut spec = spec();
            change(&mut spec);
            let error = plan(&spec).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    /// A small stand-in for the fuzz target `oci_plan`, which goes on for longer: every byte of a rich message changed in
    /// many ways, and the message cut everywhere.
    #[test]
    fn no_bytes_of_a_specification_make_the_judge_panic() {
        let mut spec = spec();
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        spec.mounts.push(kata::Mount {
            destination: "/dev/pts".into(),
            r#type: "devpts".into(),
            source: "devpts".into(),
            options: strings(&["newinstance", "noexec", "gid=5"]),
        });
        let arg = kata::LinuxSeccompArg { index: 1, value: 7, value_two: 1, op: "SCMP_CMP_MASKED_EQ".into() };
        let call = kata::LinuxSyscall {
            names: strings(&["read", "clone3"]),
            action: "SCMP_ACT_ERRNO".into(),
            errno_ret: Some(kata::linux_syscall::ErrnoRet::Errnoret(38)),
            args: vec![arg],
        };
        linux(&mut spec).seccomp = Some(kata::LinuxSeccomp {
            default_action: "SCMP_ACT_ALLOW".into(),
            syscalls: vec![call],
            ..Default::default()
        });
        linux(&mut spec).masked_paths.push("/proc/kcore".into());
        linux(&mut spec).resources = Some(kata::LinuxResources {
            cpu: Some(kata::LinuxCpu { shares: 1024, quota: -1, cpus: "0-1".into(), ..Default::default() }),
            devices: vec![kata::LinuxDeviceCgroup {
                allow: true,
                r#type: "c".into(),
                major: 10,
                ..Default::default()
            }],
            ..Default::default()
        });
        let bytes = prost::Message::encode_to_vec(&spec);
        let judge = |bytes: &[u8]| {
            <kata::Spec as prost::Message>::decode(bytes).is_ok_and(|spec| plan(&spec).is_ok())
        };
        assert!(judge(&bytes));
        let mut passed = 0;
        for at in 0..bytes.len() {
            judge(&bytes[..at]);
            for value in [
                0,
                1,
                0x2e,
                0x2f,
                0x7f,
                0x80,
                0xff,
                bytes[at] ^ 1,
                bytes[at] ^ 0x40,
                bytes[at].wrapping_add(1),
            ] {
                let mut changed = bytes.clone();
                changed[at] = value;
                passed += u32::from(judge(&changed));
            }
        }
        assert!(passed > 100, "only {passed} changed messages were judged to their end");
    }

    fn linux(spec: &mut kata::Spec) -> &mut kata::Linux {
        spec.linux.get_or_insert_default()
    }
}
