//! From the OCI configuration that the host sends to the plan that the launcher applies: pure, and the only place where
//! rich input of the host is judged.
//!
//! What cannot be honoured is refused by name, never silently dropped, with these exceptions that the field itself makes:
//! unknown capabilities and unknown system call names are ignored as runc does, and labels of security modules that the
//! guest kernel does not have mean nothing.

pub mod bpf;
mod capabilities;
mod devices;
mod mounts;
pub mod oci;
mod process;
mod resources;
mod seccomp;

pub use process::{ImageDefaults, user_by_name};
pub use seccomp::CALLS;

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
#[derive(Debug, Clone)]
pub struct Container<'a> {
    pub id: &'a str,
    /// Its list of namespaces is meant as it stands: what is not in it is shared with who starts the container, but for
    /// mount, pid and cgroup namespaces, which a container always has.
    pub spec: &'a oci::Spec,
    pub rootfs: Rootfs,
    /// A user by name, when the caller gives one: it goes before the specification's numbers.
    pub user: Option<NamedUser<'a>>,
    /// What the image says, when it was pulled here.
    pub image: Option<ImageDefaults<'a>>,
    pub place: Place,
}

/// Where the container is to run, and so what its document may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a sandbox: of its guest, only what was brought there for containers.
    Sandbox,
    /// On the machine of whoever wrote the document, with that one's rights.
    Host,
}

/// Names or numbers; an empty user is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedUser<'a> {
    pub user: &'a str,
    pub group: &'a str,
}

pub fn container(input: Container<'_>) -> Result<ContainerPlan, PlanError> {
    let spec = input.spec;
    let none = oci::Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    refuse_unsupported(spec, linux)?;
    let own = OwnNamespaces::of(linux)?;
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
        mounts: mounts::mounts(&spec.mounts, input.place)?,
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
    described: &oci::Process,
    user: Option<NamedUser<'_>>,
    seccomp: Option<Seccomp>,
) -> Result<ExecPlan, PlanError> {
    Ok(ExecPlan { process: process::process(described, user, None, seccomp)? })
}

fn refuse_unsupported(spec: &oci::Spec, linux: &oci::Linux) -> Result<(), PlanError> {
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
    if linux.intel_rdt.as_ref().is_some_and(|rdt| *rdt != oci::IntelRdt::default()) {
        return Err(PlanError::unsupported("intelRdt"));
    }
    for (is_there, field) in [
        (!spec.domainname.is_empty(), "domainname"),
        (!linux.net_devices.is_empty(), "linux.netDevices"),
        (linux.memory_policy.is_some(), "linux.memoryPolicy"),
        (linux.personality.is_some(), "linux.personality"),
        (!linux.time_offsets.is_empty(), "linux.timeOffsets"),
    ] {
        if is_there {
            return Err(PlanError::unsupported(field));
        }
    }
    Ok(())
}

#[derive(Default)]
struct OwnNamespaces {
    ipc: bool,
    uts: bool,
    network: bool,
}

impl OwnNamespaces {
    fn of(linux: &oci::Linux) -> Result<Self, PlanError> {
        let mut own = Self::default();
        for namespace in &linux.namespaces {
            if !namespace.path.is_empty() {
                return Err(PlanError::unsupported(format!(
                    "joining a {} namespace by path",
                    namespace.r#type
                )));
            }
            match namespace.r#type.as_str() {
                "pid" | "mount" | "cgroup" => {}
                "ipc" => own.ipc = true,
                "uts" => own.uts = true,
                "network" => own.network = true,
                word @ ("user" | "time") => {
                    return Err(PlanError::unsupported(format!("a {word} namespace")));
                }
                word => {
                    return Err(PlanError::invalid("linux.namespaces.type", format!("{word:?} is unknown")));
                }
            }
        }
        Ok(own)
    }
}

/// The specification's, or the first 12 characters of the id as docker does.
fn hostname(spec: &oci::Spec, id: &str) -> Result<String, PlanError> {
    let name = if spec.hostname.is_empty() { id.chars().take(12).collect() } else { spec.hostname.clone() };
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    if name.len() > HOSTNAME_MAX || !printable {
        let reason = format!("is longer than {HOSTNAME_MAX} bytes or not printable");
        return Err(PlanError::invalid("hostname", reason));
    }
    Ok(name)
}

fn sysctls(linux: &oci::Linux) -> Result<Vec<(String, String)>, PlanError> {
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

    fn spec() -> oci::Spec {
        oci::Spec {
            process: Some(oci::Process { args: vec!["/bin/true".into()], ..Default::default() }),
            ..Default::default()
        }
    }

    fn plan(spec: &oci::Spec) -> Result<ContainerPlan, PlanError> {
        let rootfs = Rootfs::Layers(vec![]);
        let place = Place::Sandbox;
        container(Container { id: "0123456789abcdef", spec, rootfs, user: None, image: None, place })
    }

    #[test]
    fn a_small_specification_becomes_a_plan() {
        let mut spec = spec();
        spec.mounts.push(oci::Mount {
            destination: "/proc".into(),
            r#type: "proc".into(),
            source: "proc".into(),
            options: vec!["nosuid".into()],
            ..Default::default()
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
    fn namespaces_of_its_own_are_those_of_the_list() {
        let mut spec = spec();
        let fresh = |kind: &str| oci::Namespace { r#type: kind.into(), path: String::new() };
        linux(&mut spec).namespaces = ["pid", "ipc", "uts"].map(fresh).to_vec();
        let own = plan(&spec).unwrap();
        assert_eq!((own.own_ipc, own.own_network), (true, false));
        assert_eq!(own.hostname.as_deref(), Some("0123456789ab"));
        spec.hostname = "web".into();
        assert_eq!(plan(&spec).unwrap().hostname.as_deref(), Some("web"));
        linux(&mut spec).namespaces.push(fresh("colour"));
        assert!(plan(&spec).unwrap_err().to_string().contains("\"colour\""));
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
        type Change = fn(&mut oci::Spec);
        let cases: [(Change, &str); 6] = [
            (|spec| spec.process = None, "process: is missing"),
            (
                |spec| {
                    let hook = oci::Hook { path: "/hook".into(), ..Default::default() };
                    spec.hooks = Some(oci::Hooks { prestart: vec![hook], ..Default::default() });
                },
                "running hooks in the guest is not supported",
            ),
            (
                |spec| linux(spec).uid_mappings.push(oci::IdMapping::default()),
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

    fn linux(spec: &mut oci::Spec) -> &mut oci::Linux {
        spec.linux.get_or_insert_default()
    }
}
