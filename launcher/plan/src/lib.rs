//! From the OCI configuration that the host sends to the plan that the launcher applies: pure, and the only place where
//! rich input of the host is judged.
//!
//! What cannot be honoured is refused by name, never silently dropped, with these exceptions that the field itself makes:
//! unknown capabilities and unknown system call names are ignored as runc does, and labels of security modules that the
//! guest kernel does not have mean nothing.

mod attributes;
pub mod bpf;
mod capabilities;
mod devices;
mod hooks;
mod mounts;
mod namespaces;
pub mod oci;
mod process;
mod resources;
mod seccomp;

pub use attributes::{MEMORY_FLAGS, MEMORY_MODES};
pub use capabilities::{NAMES as CAPABILITIES, unknown as unknown_capabilities};
pub use process::{ImageDefaults, user_by_name};
pub use resources::limits;
pub use seccomp::CALLS;

use nacre_protocols::init_launcher::{
    ContainerPlan, ExecPlan, LIST_MAX, Namespace, PATH_MAX, Propagation, Rootfs, Seccomp,
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
    /// mount, pid and cgroup namespaces, which a container of a sandbox always has.
    pub spec: &'a oci::Spec,
    pub rootfs: Rootfs,
    /// A user by name, when the caller gives one: it goes before the specification's numbers.
    pub user: Option<NamedUser<'a>>,
    /// What the image says, when it was pulled here.
    pub image: Option<ImageDefaults<'a>>,
    /// The directory of the document, where there is one; hooks are told.
    pub bundle: &'a str,
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
    let (spec, place) = (input.spec, input.place);
    let none = oci::Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    refuse_unsupported(spec, linux)?;
    let state = |status: &str| hooks::state(input.id, status, input.bundle, spec);
    let namespaces = namespaces::namespaces(linux, place)?;
    let seccomp = linux.seccomp.as_ref();
    let seccomp = seccomp.map(|it| seccomp::program(it, place, || state("creating"))).transpose()?;
    let described = spec.process.as_ref().ok_or_else(|| PlanError::invalid("process", "is missing"))?;
    let mut process = process::process(described, input.user, input.image, seccomp, place)?;
    attributes::add_container(&mut process.attributes, linux)?;
    let mut mounts = mounts::mounts(&spec.mounts, place)?;
    mounts::add_volumes(&mut mounts, input.image.map_or(&[], |image| image.volumes))?;
    let (hostname, domainname) = host_names(spec, &namespaces.uts, input.id)?;
    Ok(ContainerPlan {
        id: input.id.to_owned(),
        hostname,
        domainname,
        rootfs: input.rootfs,
        rootfs_readonly: spec.root.as_ref().is_some_and(|root| root.readonly),
        rootfs_propagation: match linux.rootfs_propagation.as_str() {
            "" => Propagation::RecursivePrivate,
            word => mounts::propagation(word)
                .ok_or_else(|| PlanError::invalid("linux.rootfsPropagation", format!("{word:?}")))?,
        },
        mounts,
        devices: devices::nodes(&linux.devices)?,
        device_rules: devices::rules(linux.resources.as_ref())?,
        disks: Vec::new(),
        masked_paths: paths("linux.maskedPaths", &linux.masked_paths)?,
        readonly_paths: paths("linux.readonlyPaths", &linux.readonly_paths)?,
        cgroup: linux
            .resources
            .as_ref()
            .map(|it| resources::limits(it, place))
            .transpose()?
            .unwrap_or_default(),
        sysctls: sysctls(linux)?,
        net_devices: namespaces::net_devices(linux, &namespaces, place)?,
        hooks: hooks::hooks(spec.hooks.as_ref(), place, state)?,
        namespaces,
        process,
        inherited: 0,
    })
}

/// What an exec is started in.
#[derive(Debug, Clone)]
pub struct Exec<'a> {
    pub process: &'a oci::Process,
    pub user: Option<NamedUser<'a>>,
    /// The container's own program.
    pub seccomp: Option<Seccomp>,
    /// The container's own document, whose personality and memory policy count for every process of it.
    pub container: Option<&'a oci::Linux>,
    pub place: Place,
}

/// One more process in a container.
pub fn exec(input: Exec<'_>) -> Result<ExecPlan, PlanError> {
    let mut process = process::process(input.process, input.user, None, input.seccomp, input.place)?;
    if let Some(linux) = input.container {
        attributes::add_container(&mut process.attributes, linux)?;
    }
    Ok(ExecPlan { process })
}

/// Those hooks that the starter runs itself, in the runtime's namespaces: `prestart`, `createRuntime`, `poststart`,
/// `poststop`. `field` names the list in errors.
pub fn runtime_hooks(
    field: &'static str,
    list: &[oci::Hook],
) -> Result<Vec<nacre_protocols::init_launcher::Hook>, PlanError> {
    hooks::list(field, list)
}

/// The state of a container as JSON, cut where the number of its process belongs (runtime specification, "State").
pub fn state(
    id: &str,
    status: &str,
    bundle: &str,
    spec: &oci::Spec,
) -> nacre_protocols::init_launcher::StateText {
    hooks::state(id, status, bundle, spec)
}

/// What is for machines with Intel's allocation of caches, and for kernels with SELinux; no guest is either.
fn refuse_unsupported(spec: &oci::Spec, linux: &oci::Linux) -> Result<(), PlanError> {
    if linux.intel_rdt.as_ref().is_some_and(|rdt| *rdt != oci::IntelRdt::default()) {
        return Err(PlanError::unsupported("linux.intelRdt, as nothing is done in resctrl,"));
    }
    if !linux.mount_label.is_empty() {
        return Err(PlanError::unsupported("linux.mountLabel, as no mount gets a context of SELinux,"));
    }
    at_most("annotations", spec.annotations.len(), LIST_MAX)
}

/// Those of the document where the container has names of its own.
fn host_names(
    spec: &oci::Spec,
    uts: &Namespace,
    id: &str,
) -> Result<(Option<String>, Option<String>), PlanError> {
    if *uts == Namespace::Shared {
        return Ok((None, None));
    }
    let domainname = match spec.domainname.as_str() {
        "" => None,
        name if name.len() <= HOSTNAME_MAX && name.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Some(name.to_owned())
        }
        _ => {
            let reason = format!("is longer than {HOSTNAME_MAX} bytes or not printable");
            return Err(PlanError::invalid("domainname", reason));
        }
    };
    // A namespace that is joined has a name already.
    let named = *uts == Namespace::Fresh || !spec.hostname.is_empty();
    Ok((named.then(|| hostname(spec, id)).transpose()?, domainname))
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
        container(Container {
            id: "0123456789abcdef",
            spec,
            rootfs,
            user: None,
            image: None,
            bundle: "",
            place,
        })
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
        assert_eq!((plan.namespaces.ipc, plan.namespaces.network), (Namespace::Shared, Namespace::Shared));
        assert!(matches!(plan.mounts[0].kind, MountKind::Proc { .. }));
        assert!(plan.devices.iter().any(|device| device.path == "/dev/null"));
    }

    #[test]
    fn namespaces_of_its_own_are_those_of_the_list() {
        let mut spec = spec();
        let fresh = |kind: &str| oci::Namespace { r#type: kind.into(), path: String::new() };
        linux(&mut spec).namespaces = ["pid", "ipc", "uts"].map(fresh).to_vec();
        let own = plan(&spec).unwrap();
        assert_eq!((own.namespaces.ipc, own.namespaces.network), (Namespace::Fresh, Namespace::Shared));
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
                "hooks.prestart in the guest is not supported",
            ),
            (
                |spec| linux(spec).uid_mappings.push(oci::IdMapping::default()),
                "linux.uidMappings: needs a user namespace",
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
