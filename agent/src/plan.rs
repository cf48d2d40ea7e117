//! From the OCI configuration as the Kata API carries it to the one that `nacre-plan` judges. Says what the wire means,
//! decides nothing.
//!
//! protobuf cannot tell an absent number from 0, so 0 is absent here where the two differ.

use nacre_plan::oci;
use nacre_plan::{NamedUser, PlanError};
use nacre_protocols::host_agent::{OWN_NAMESPACES_ANNOTATION, kata};

pub fn document(spec: &kata::Spec) -> Result<oci::Spec, PlanError> {
    Ok(oci::Spec {
        oci_version: spec.version.clone(),
        process: spec.process.as_ref().map(process),
        root: spec.root.as_ref().map(|root| oci::Root { path: root.path.clone(), readonly: root.readonly }),
        hostname: spec.hostname.clone(),
        domainname: String::new(),
        mounts: spec.mounts.iter().map(mount).collect(),
        hooks: spec.hooks.as_ref().map(hooks),
        annotations: spec.annotations.clone().into_iter().collect(),
        linux: Some(linux(spec)?),
    })
}

pub fn process(process: &kata::Process) -> oci::Process {
    oci::Process {
        terminal: process.terminal,
        console_size: process
            .console_size
            .as_ref()
            .map(|size| oci::ConsoleSize { height: size.height, width: size.width }),
        user: process.user.as_ref().map(user).unwrap_or_default(),
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        capabilities: process.capabilities.as_ref().map(|sets| oci::Capabilities {
            bounding: sets.bounding.clone(),
            effective: sets.effective.clone(),
            inheritable: sets.inheritable.clone(),
            permitted: sets.permitted.clone(),
            ambient: sets.ambient.clone(),
        }),
        rlimits: process
            .rlimits
            .iter()
            .map(|limit| oci::Rlimit { r#type: limit.r#type.clone(), hard: limit.hard, soft: limit.soft })
            .collect(),
        no_new_privileges: process.no_new_privileges,
        // The guest's kernel has neither module, and every node of a cluster sends what its own has.
        apparmor_profile: String::new(),
        selinux_label: String::new(),
        oom_score_adj: Some(process.oom_score_adj),
        ..Default::default()
    }
}

/// A user that a request names beside the document.
pub fn named_user(user: Option<&kata::StringUser>) -> Result<Option<NamedUser<'_>>, PlanError> {
    let Some(user) = user.filter(|user| !user.uid.is_empty()) else { return Ok(None) };
    if !user.additional_gids.is_empty() {
        return Err(PlanError::Unsupported { what: "string_user.additionalGids".to_owned() });
    }
    Ok(Some(NamedUser { user: &user.uid, group: &user.gid }))
}

fn user(user: &kata::User) -> oci::User {
    oci::User {
        uid: user.uid,
        gid: user.gid,
        umask: None,
        additional_gids: user.additional_gids.clone(),
        username: user.username.clone(),
    }
}

fn mount(mount: &kata::Mount) -> oci::Mount {
    oci::Mount {
        destination: mount.destination.clone(),
        r#type: mount.r#type.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

fn hooks(hooks: &kata::Hooks) -> oci::Hooks {
    let list = |list: &[kata::Hook]| {
        list.iter()
            .map(|hook| oci::Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: given(hook.timeout),
            })
            .collect()
    };
    oci::Hooks {
        prestart: list(&hooks.prestart),
        create_runtime: list(&hooks.create_runtime),
        create_container: list(&hooks.create_container),
        start_container: list(&hooks.start_container),
        poststart: list(&hooks.poststart),
        poststop: list(&hooks.poststop),
    }
}

fn linux(spec: &kata::Spec) -> Result<oci::Linux, PlanError> {
    let none = kata::Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    Ok(oci::Linux {
        uid_mappings: mappings(&linux.uid_mappings),
        gid_mappings: mappings(&linux.gid_mappings),
        sysctl: linux.sysctl.clone().into_iter().collect(),
        resources: linux.resources.as_ref().map(resources),
        namespaces: own_namespaces(spec)?,
        devices: linux.devices.iter().map(device).collect(),
        seccomp: linux.seccomp.as_ref().map(seccomp),
        rootfs_propagation: linux.rootfs_propagation.clone(),
        masked_paths: linux.masked_paths.clone(),
        readonly_paths: linux.readonly_paths.clone(),
        intel_rdt: linux
            .intel_rdt
            .as_ref()
            .map(|rdt| oci::IntelRdt { l3_cache_schema: rdt.l3_cache_schema.clone(), ..Default::default() }),
        // A path of the host's hierarchy; the guest has its own. The label: as the process's.
        ..Default::default()
    })
}

/// A pod's containers share the sandbox's IPC, UTS and network namespaces, whatever the list of the document, which is
/// about the host, says; who wants them apart says so by annotation.
fn own_namespaces(spec: &kata::Spec) -> Result<Vec<oci::Namespace>, PlanError> {
    let list = spec.annotations.get(OWN_NAMESPACES_ANNOTATION).map_or("", String::as_str);
    let words = list.split(',').filter(|word| !word.is_empty());
    words
        .map(|word| match word {
            "ipc" | "uts" | "network" => Ok(oci::Namespace { r#type: word.to_owned(), path: String::new() }),
            _ => Err(PlanError::Invalid {
                field: OWN_NAMESPACES_ANNOTATION.to_owned(),
                reason: format!("{word:?} is none of ipc, uts, network"),
            }),
        })
        .collect()
}

fn mappings(list: &[kata::LinuxIdMapping]) -> Vec<oci::IdMapping> {
    list.iter()
        .map(|mapping| oci::IdMapping {
            container_id: mapping.container_id,
            host_id: mapping.host_id,
            size: mapping.size,
        })
        .collect()
}

fn device(device: &kata::LinuxDevice) -> oci::Device {
    oci::Device {
        path: device.path.clone(),
        r#type: device.r#type.clone(),
        major: device.major,
        minor: device.minor,
        // Nobody means a node that nobody can open.
        file_mode: given(device.file_mode),
        uid: Some(device.uid),
        gid: Some(device.gid),
    }
}

fn seccomp(seccomp: &kata::LinuxSeccomp) -> oci::Seccomp {
    let arg = |arg: &kata::LinuxSeccompArg| oci::SeccompArg {
        index: arg.index,
        value: arg.value,
        value_two: arg.value_two,
        op: arg.op.clone(),
    };
    let call = |call: &kata::LinuxSyscall| oci::Syscall {
        names: call.names.clone(),
        action: call.action.clone(),
        errno_ret: call.errno_ret.as_ref().map(|kata::linux_syscall::ErrnoRet::Errnoret(errno)| *errno),
        args: call.args.iter().map(arg).collect(),
    };
    oci::Seccomp {
        default_action: seccomp.default_action.clone(),
        architectures: seccomp.architectures.clone(),
        flags: seccomp.flags.clone(),
        syscalls: seccomp.syscalls.iter().map(call).collect(),
        ..Default::default()
    }
}

pub fn resources(resources: &kata::LinuxResources) -> oci::Resources {
    let rule = |rule: &kata::LinuxDeviceCgroup| oci::DeviceRule {
        allow: rule.allow,
        r#type: rule.r#type.clone(),
        major: Some(rule.major),
        minor: Some(rule.minor),
        access: rule.access.clone(),
    };
    oci::Resources {
        devices: resources.devices.iter().map(rule).collect(),
        memory: resources.memory.as_ref().map(|memory| oci::Memory {
            limit: given(memory.limit),
            reservation: given(memory.reservation),
            swap: given(memory.swap),
            kernel: given(memory.kernel),
            kernel_tcp: given(memory.kernel_tcp),
            swappiness: given(memory.swappiness),
            disable_oom_killer: given(memory.disable_oom_killer),
            ..Default::default()
        }),
        cpu: resources.cpu.as_ref().map(|cpu| oci::Cpu {
            shares: given(cpu.shares),
            quota: given(cpu.quota),
            period: given(cpu.period),
            realtime_runtime: given(cpu.realtime_runtime),
            realtime_period: given(cpu.realtime_period),
            cpus: cpu.cpus.clone(),
            mems: cpu.mems.clone(),
            ..Default::default()
        }),
        pids: resources.pids.as_ref().map(|pids| oci::Pids { limit: given(pids.limit) }),
        block_io: resources.block_io.as_ref().map(block_io),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            // Kubernetes sends every page size of the node with a limit of 0.
            .filter(|limit| limit.limit != 0)
            .map(|limit| oci::HugepageLimit { page_size: limit.pagesize.clone(), limit: limit.limit })
            .collect(),
        network: resources.network.as_ref().map(|network| oci::Network {
            class_id: given(network.class_id),
            priorities: network
                .priorities
                .iter()
                .map(|it| oci::InterfacePriority { name: it.name.clone(), priority: it.priority })
                .collect(),
        }),
        ..Default::default()
    }
}

fn block_io(block: &kata::LinuxBlockIo) -> oci::BlockIo {
    let weight = |weight: u32| u16::try_from(weight).ok().filter(|weight| *weight != 0);
    let throttles = |list: &[kata::LinuxThrottleDevice]| {
        list.iter()
            .map(|it| oci::ThrottleDevice { major: it.major, minor: it.minor, rate: it.rate })
            .collect()
    };
    oci::BlockIo {
        weight: weight(block.weight),
        leaf_weight: weight(block.leaf_weight),
        weight_device: block
            .weight_device
            .iter()
            .map(|it| oci::WeightDevice {
                major: it.major,
                minor: it.minor,
                weight: weight(it.weight),
                leaf_weight: weight(it.leaf_weight),
            })
            .collect(),
        throttle_read_bps_device: throttles(&block.throttle_read_bps_device),
        throttle_write_bps_device: throttles(&block.throttle_write_bps_device),
        throttle_read_iops_device: throttles(&block.throttle_read_iops_device),
        throttle_write_iops_device: throttles(&block.throttle_write_iops_device),
    }
}

fn given<T: Default + PartialEq>(value: T) -> Option<T> {
    if value == T::default() { None } else { Some(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_plan::{Container, Place};
    use nacre_protocols::init_launcher::{ContainerPlan, Namespace, Rootfs};

    fn spec() -> kata::Spec {
        kata::Spec {
            process: Some(kata::Process { args: vec!["/bin/true".into()], ..Default::default() }),
            ..Default::default()
        }
    }

    fn plan(spec: &kata::Spec) -> Result<ContainerPlan, PlanError> {
        let rootfs = Rootfs::Layers(vec![]);
        let (spec, place) = (&document(spec)?, Place::Sandbox);
        nacre_plan::container(Container {
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
    fn namespaces_of_its_own_are_asked_for_by_annotation() {
        let mut spec = spec();
        // What the list says of the host's namespaces does not count.
        let net = kata::LinuxNamespace { r#type: "network".into(), path: "/proc/7/ns/net".into() };
        linux(&mut spec).namespaces.push(net);
        assert_eq!(plan(&spec).unwrap().hostname, None);
        spec.annotations.insert(OWN_NAMESPACES_ANNOTATION.into(), "ipc,uts".into());
        let own = plan(&spec).unwrap();
        assert_eq!((own.namespaces.ipc, own.namespaces.network), (Namespace::Fresh, Namespace::Shared));
        assert_eq!(own.hostname.as_deref(), Some("0123456789ab"));
        spec.annotations.insert(OWN_NAMESPACES_ANNOTATION.into(), "user".into());
        assert!(plan(&spec).unwrap_err().to_string().contains("\"user\""));
    }

    #[test]
    fn a_number_that_is_0_on_the_wire_is_absent() {
        let memory = kata::LinuxMemory { limit: 5, ..Default::default() };
        let hugepages = vec![kata::LinuxHugepageLimit { pagesize: "2MB".into(), limit: 0 }];
        let wire =
            kata::LinuxResources { memory: Some(memory), hugepage_limits: hugepages, ..Default::default() };
        let memory = oci::Memory { limit: Some(5), ..Default::default() };
        assert_eq!(resources(&wire), oci::Resources { memory: Some(memory), ..Default::default() });
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
