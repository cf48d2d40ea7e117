//! Which seccomp profile a container gets: our own, one from a file in docker's JSON form, or none.

use std::path::PathBuf;

use nacre_protocols::host_agent::kata::{
    LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, linux_syscall::ErrnoRet,
};
use serde::Deserialize;

use super::seccomp_table::{AF_VSOCK, ALLOWED, CLONE_NAMESPACES, PERSONALITIES, WITH_CAPABILITY};

/// Longest profile file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;
const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
/// PID 1's own filter refuses other architectures anyhow.
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
/// The name of this architecture in the profiles of docker.
const GO_ARCHITECTURE: &str = "amd64";
/// `clone3` hides its flags from filters: programs fall back to `clone` when it does not exist.
const ENOSYS: u32 = 38;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompChoice {
    #[default]
    Default,
    Unconfined,
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("read the seccomp profile {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the seccomp profile {path:?} is not in docker's form: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
}

pub(super) fn profile(
    choice: &SeccompChoice,
    capabilities: &[String],
) -> Result<Option<LinuxSeccomp>, SeccompError> {
    match choice {
        SeccompChoice::Unconfined => Ok(None),
        SeccompChoice::Default => Ok(Some(default_profile(capabilities))),
        SeccompChoice::File(path) => {
            let bytes = read_profile(path)?;
            let profile: DockerProfile = serde_json::from_slice(&bytes)
                .map_err(|source| SeccompError::Json { path: path.clone(), source })?;
            Ok(Some(profile.for_container(capabilities)))
        }
    }
}

fn default_profile(capabilities: &[String]) -> LinuxSeccomp {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut names: Vec<&str> = ALLOWED.iter().flat_map(|group| group.calls).copied().collect();
    for (capability, calls) in WITH_CAPABILITY {
        if has(capability) {
            names.extend(*calls);
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut syscalls = vec![rule(&names, ALLOW, None, &[])];
    for personality in PERSONALITIES {
        syscalls.push(rule(&["personality"], ALLOW, None, &[argument(0, "SCMP_CMP_EQ", personality, 0)]));
    }
    syscalls.push(rule(&["socket"], ALLOW, None, &[argument(0, "SCMP_CMP_NE", AF_VSOCK, 0)]));
    if !has("CAP_SYS_ADMIN") {
        let no_namespace = argument(0, "SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES, 0);
        syscalls.push(rule(&["clone"], ALLOW, None, &[no_namespace]));
        syscalls.push(rule(&["clone3"], ERRNO, Some(ENOSYS), &[]));
    }
    LinuxSeccomp {
        default_action: ERRNO.into(),
        architectures: vec![ARCHITECTURE.into()],
        flags: Vec::new(),
        syscalls,
    }
}

fn rule(names: &[&str], action: &str, errno: Option<u32>, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    LinuxSyscall {
        names: names.iter().map(|&name| name.into()).collect(),
        action: action.into(),
        errno_ret: errno.map(ErrnoRet::Errnoret),
        args: args.to_vec(),
    }
}

fn argument(index: u64, op: &str, value: u64, value_two: u64) -> LinuxSeccompArg {
    LinuxSeccompArg { index, value, value_two, op: op.into() }
}

fn read_profile(path: &std::path::Path) -> Result<Vec<u8>, SeccompError> {
    use std::io::Read;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(std::io::Error::other(format!("longer than the limit of {FILE_MAX} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| SeccompError::Read { path: path.to_owned(), source })
}

/// docker's form: the OCI profile, with rules that depend on capabilities, architecture and kernel.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerProfile {
    default_action: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<DockerRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<DockerArgument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerArgument {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// `minKernel` is not looked at: the sandbox's kernel is newer than any profile asks for.
#[derive(Deserialize, Default)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl DockerProfile {
    fn for_container(self, capabilities: &[String]) -> LinuxSeccomp {
        let rules = self.syscalls.into_iter().filter(|rule| rule.applies(capabilities));
        LinuxSeccomp {
            default_action: self.default_action,
            architectures: vec![ARCHITECTURE.into()],
            flags: self.flags,
            syscalls: rules.map(DockerRule::into_rule).collect(),
        }
    }
}

impl DockerRule {
    fn applies(&self, capabilities: &[String]) -> bool {
        let here = |arch: &String| arch == GO_ARCHITECTURE;
        let included = self.includes.caps.iter().all(|capability| capabilities.contains(capability))
            && (self.includes.arches.is_empty() || self.includes.arches.iter().any(here));
        let excluded = self.excludes.caps.iter().any(|capability| capabilities.contains(capability))
            || self.excludes.arches.iter().any(here);
        included && !excluded
    }

    fn into_rule(self) -> LinuxSyscall {
        let args = self.args.unwrap_or_default();
        LinuxSyscall {
            names: self.names.into_iter().chain(self.name).collect(),
            action: self.action,
            errno_ret: self.errno_ret.map(ErrnoRet::Errnoret),
            args: args.iter().map(|arg| argument(arg.index, &arg.op, arg.value, arg.value_two)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(profile: &LinuxSeccomp, name: &str) -> bool {
        profile.syscalls.iter().any(|rule| {
            rule.action == ALLOW && rule.args.is_empty() && rule.names.iter().any(|known| known == name)
        })
    }

    #[test]
    fn the_default_profile_follows_the_capabilities() {
        let plain = default_profile(&[]);
        let admin = default_profile(&["CAP_SYS_ADMIN".into(), "CAP_SYS_CHROOT".into()]);
        for (name, without, with) in [
            ("read", true, true),
            ("execve", true, true),
            ("mount", false, true),
            ("unshare", false, true),
            ("clone", false, true),
            ("clone3", false, true),
            ("chroot", false, true),
            ("kexec_load", false, false),
            ("init_module", false, false),
            ("keyctl", false, false),
            ("io_uring_setup", false, false),
            ("userfaultfd", false, false),
        ] {
            assert_eq!((allows(&plain, name), allows(&admin, name)), (without, with), "{name}");
        }
        let clone3 = plain.syscalls.iter().find(|rule| rule.names == ["clone3"]).unwrap();
        assert_eq!(clone3.errno_ret, Some(ErrnoRet::Errnoret(ENOSYS)));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut names: Vec<_> = ALLOWED.iter().flat_map(|group| group.calls).collect();
        names.sort_unstable();
        for pair in names.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
        assert!(ALLOWED.iter().all(|group| !group.why.is_empty()));
    }

    #[test]
    fn a_profile_in_dockers_form_is_resolved_for_the_container() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[],"syscalls":[
            {"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
            {"name":"chroot","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_CHROOT"]}},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["s390_pci"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}},
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        let choice = SeccompChoice::File(file.path().to_owned());
        let names = |capabilities: &[String]| {
            let profile = profile(&choice, capabilities).unwrap().unwrap();
            profile.syscalls.into_iter().flat_map(|rule| rule.names).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "write", "clone3", "personality"]);
        let both = ["CAP_SYS_CHROOT".to_owned(), "CAP_SYS_ADMIN".to_owned()];
        assert_eq!(names(&both), ["read", "write", "chroot", "personality"]);
        assert!(profile(&SeccompChoice::Unconfined, &[]).unwrap().is_none());
        std::fs::write(file.path(), "{").unwrap();
        assert!(matches!(profile(&choice, &[]), Err(SeccompError::Json { .. })));
    }
}
