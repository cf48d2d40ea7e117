//! What most processes leave as it is: scheduling, placement, personality, labels.

use super::{Place, PlanError, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{MemoryPolicy, ProcessAttributes, SET_WORDS_MAX, Scheduler};

/// Longest label of a security module, in bytes.
const LABEL_MAX: usize = 4096;
/// `linux/sched.h`: SCHED_*.
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
/// `linux/sched.h`: SCHED_FLAG_*.
const SCHEDULER_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
/// `linux/ioprio.h`: class in the bits from 13 on.
const IO_CLASSES: [(&str, u16); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
/// `linux/mempolicy.h`: MPOL_*.
pub const MEMORY_MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
pub const MEMORY_FLAGS: [(&str, u32); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];
/// `linux/personality.h`.
const DOMAINS: [(&str, u32); 2] = [("LINUX", 0), ("LINUX32", 8)];

pub fn of_process(described: &oci::Process, place: Place) -> Result<ProcessAttributes, PlanError> {
    let affinity = described.exec_cpu_affinity.clone().unwrap_or_default();
    Ok(ProcessAttributes {
        scheduler: described.scheduler.as_ref().map(scheduler).transpose()?,
        io_priority: described.io_priority.as_ref().map(io_priority).transpose()?,
        personality: None,
        memory_policy: None,
        cpus_initial: set("process.execCPUAffinity.initial", &affinity.initial)?,
        cpus_final: set("process.execCPUAffinity.final", &affinity.r#final)?,
        apparmor_profile: label("process.apparmorProfile", &described.apparmor_profile, place)?,
        selinux_label: label("process.selinuxLabel", &described.selinux_label, place)?,
    })
}

/// What of the container's own counts for each of its processes.
pub fn add_container(attributes: &mut ProcessAttributes, linux: &oci::Linux) -> Result<(), PlanError> {
    attributes.personality = linux.personality.as_ref().map(personality).transpose()?;
    attributes.memory_policy = linux.memory_policy.as_ref().map(memory_policy).transpose()?;
    Ok(())
}

fn named<T: Copy>(field: &str, table: &[(&str, T)], word: &str) -> Result<T, PlanError> {
    let found = table.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    found.ok_or_else(|| PlanError::invalid(field, format!("{word:?} is unknown")))
}

fn scheduler(described: &oci::Scheduler) -> Result<Scheduler, PlanError> {
    const FIELD: &str = "process.scheduler";
    if !(-20..=19).contains(&described.nice) {
        return Err(PlanError::invalid(FIELD, format!("nice {} is not within -20 and 19", described.nice)));
    }
    let priority = u32::try_from(described.priority)
        .map_err(|_| PlanError::invalid(FIELD, format!("priority {} is negative", described.priority)))?;
    at_most("process.scheduler.flags", described.flags.len(), 16)?;
    let flag = |flags: u64, word: &String| Ok(flags | named(FIELD, &SCHEDULER_FLAGS, word)?);
    Ok(Scheduler {
        policy: named(FIELD, &POLICIES, &described.policy)?,
        flags: described.flags.iter().try_fold(0, flag)?,
        nice: described.nice,
        priority,
        runtime: described.runtime,
        deadline: described.deadline,
        period: described.period,
    })
}

fn io_priority(described: &oci::IoPriority) -> Result<u16, PlanError> {
    const FIELD: &str = "process.ioPriority";
    let class = named(FIELD, &IO_CLASSES, &described.class)?;
    match u16::try_from(described.priority) {
        Ok(level) if level <= 7 => Ok(class << 13 | level),
        _ => Err(PlanError::invalid(FIELD, format!("priority {} is not within 0 and 7", described.priority))),
    }
}

fn personality(described: &oci::Personality) -> Result<u32, PlanError> {
    if let Some(flag) = described.flags.first() {
        // The specification knows none yet.
        return Err(PlanError::unsupported(format!("linux.personality.flags {flag:?}")));
    }
    named("linux.personality.domain", &DOMAINS, &described.domain)
}

fn memory_policy(described: &oci::MemoryPolicy) -> Result<MemoryPolicy, PlanError> {
    const FIELD: &str = "linux.memoryPolicy";
    at_most("linux.memoryPolicy.flags", described.flags.len(), 16)?;
    let flag = |flags: u32, word: &String| Ok(flags | named(FIELD, &MEMORY_FLAGS, word)?);
    let mode = named(FIELD, &MEMORY_MODES, &described.mode)?;
    Ok(MemoryPolicy {
        mode: described.flags.iter().try_fold(mode, flag)?,
        nodes: set("linux.memoryPolicy.nodes", &described.nodes)?,
    })
}

/// `0-3,7` as a set of bits.
fn set(field: &str, list: &str) -> Result<Vec<u64>, PlanError> {
    let invalid = || {
        PlanError::invalid(field, format!("{list:?} is not a list of ranges below {}", SET_WORDS_MAX * 64))
    };
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| invalid());
    let mut words: Vec<u64> = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= SET_WORDS_MAX * 64 {
            return Err(invalid());
        }
        for bit in first..=last {
            if words.len() <= bit / 64 {
                words.resize(bit / 64 + 1, 0);
            }
            if let Some(word) = words.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
    }
    Ok(words)
}

/// A guest's kernel has no security module with labels.
fn label(field: &str, label: &str, place: Place) -> Result<Option<String>, PlanError> {
    if label.is_empty() {
        return Ok(None);
    }
    if place == Place::Sandbox {
        return Err(PlanError::unsupported(format!("{field}, for which the guest's kernel has no module,")));
    }
    if label.len() > LABEL_MAX || label.contains(['\0', '\n']) {
        return Err(PlanError::invalid(field, "is too long or has a NUL or a line's end in it"));
    }
    Ok(Some(label.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_the_numbers_of_the_kernel() {
        let described = oci::Process {
            scheduler: Some(oci::Scheduler {
                policy: "SCHED_DEADLINE".into(),
                flags: vec!["SCHED_FLAG_RESET_ON_FORK".into(), "SCHED_FLAG_DL_OVERRUN".into()],
                runtime: 1,
                deadline: 2,
                period: 3,
                ..Default::default()
            }),
            io_priority: Some(oci::IoPriority { class: "IOPRIO_CLASS_BE".into(), priority: 6 }),
            exec_cpu_affinity: Some(oci::CpuAffinity { initial: "0-1,64".into(), r#final: String::new() }),
            ..Default::default()
        };
        let mut attributes = of_process(&described, Place::Host).unwrap();
        let scheduler = attributes.scheduler.unwrap();
        assert_eq!((scheduler.policy, scheduler.flags, scheduler.period), (6, 5, 3));
        assert_eq!(attributes.io_priority, Some(2 << 13 | 6));
        assert_eq!((&attributes.cpus_initial[..], &attributes.cpus_final[..]), (&[3, 1][..], &[][..]));
        let linux = oci::Linux {
            personality: Some(oci::Personality { domain: "LINUX32".into(), flags: vec![] }),
            memory_policy: Some(oci::MemoryPolicy {
                mode: "MPOL_BIND".into(),
                nodes: "0".into(),
                flags: vec!["MPOL_F_STATIC_NODES".into()],
            }),
            ..Default::default()
        };
        add_container(&mut attributes, &linux).unwrap();
        assert_eq!(attributes.personality, Some(8));
        assert_eq!(attributes.memory_policy, Some(MemoryPolicy { mode: 2 | 1 << 15, nodes: vec![1] }));
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        let scheduler = |policy: &str, nice, priority| {
            let scheduler = oci::Scheduler { policy: policy.into(), nice, priority, ..Default::default() };
            oci::Process { scheduler: Some(scheduler), ..Default::default() }
        };
        let io = |class: &str, priority| {
            let priority = oci::IoPriority { class: class.into(), priority };
            oci::Process { io_priority: Some(priority), ..Default::default() }
        };
        let cpus = |list: &str| {
            let affinity = oci::CpuAffinity { initial: list.into(), ..Default::default() };
            oci::Process { exec_cpu_affinity: Some(affinity), ..Default::default() }
        };
        for (described, expected) in [
            (scheduler("SCHED_LOTTERY", 0, 0), "process.scheduler: \"SCHED_LOTTERY\""),
            (scheduler("SCHED_OTHER", 20, 0), "process.scheduler: nice 20"),
            (scheduler("SCHED_FIFO", 0, -1), "process.scheduler: priority -1"),
            (io("IOPRIO_CLASS_BE", 8), "process.ioPriority: priority 8"),
            (io("BE", 1), "process.ioPriority: \"BE\""),
            (cpus("1-0"), "process.execCPUAffinity.initial: \"1-0\""),
            (cpus("8192"), "process.execCPUAffinity.initial"),
            (cpus("x"), "process.execCPUAffinity.initial"),
            (
                oci::Process { apparmor_profile: "p".into(), ..Default::default() },
                "process.apparmorProfile, for which",
            ),
            (
                oci::Process { selinux_label: "p".into(), ..Default::default() },
                "process.selinuxLabel, for which",
            ),
        ] {
            let error = of_process(&described, Place::Sandbox).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
