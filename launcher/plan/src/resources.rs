//! Resource limits to writes of cgroup v2 files (Documentation/admin-guide/cgroup-v2.rst).
//!
//! A limit that only version 1 of the hierarchy had is refused by name.

use super::{Place, PlanError, at_most};
use crate::oci;
use nacre_protocols::init_launcher::{CgroupLimits, CgroupWrite, LIST_MAX, Missing};

/// Microseconds; what the kernel has when none is given.
const CPU_PERIOD_US: u64 = 100_000;
/// Bounds of `cpu.shares` in version 1 of the hierarchy.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
/// Bounds of a weight of I/O in the document.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;
/// Longest list of processors or memory nodes, in bytes.
const CPU_LIST_MAX: usize = 1024;
/// Longest value of a file given as it is, in bytes.
const VALUE_MAX: usize = 4096;

/// What `resources` say but for devices: for a container that is made, or one whose limits change.
pub fn limits(resources: &oci::Resources, place: Place) -> Result<CgroupLimits, PlanError> {
    refuse_version_1(resources)?;
    let mut writes = Writes(Vec::new());
    if let Some(cpu) = &resources.cpu {
        self::cpu(cpu, &mut writes)?;
    }
    if let Some(memory) = &resources.memory {
        self::memory(memory, place, &mut writes)?;
    }
    if let Some(pids) = &resources.pids {
        writes.limit("pids.max", pids.limit);
    }
    if let Some(block) = &resources.block_io {
        block_io(block, &mut writes)?;
    }
    hugepages(&resources.hugepage_limits, &mut writes)?;
    rdma(resources, &mut writes)?;
    // Last: what is given as it is goes before what was made of other fields.
    unified(resources, &mut writes)?;
    let memory_at_most = resources
        .memory
        .as_ref()
        .filter(|memory| memory.check_before_update == Some(true))
        .and_then(|memory| memory.limit.and_then(|limit| u64::try_from(limit).ok()));
    Ok(CgroupLimits { memory_at_most, writes: writes.0 })
}

struct Writes(Vec<CgroupWrite>);

impl Writes {
    fn add(&mut self, file: &str, value: String) {
        self.add_or(file, value, Missing::Fails);
    }

    fn add_or(&mut self, file: &str, value: String, missing: Missing) {
        self.0.push(CgroupWrite { file: file.to_owned(), value, missing });
    }

    /// 0 is not given, what is negative has no limit.
    fn limit(&mut self, file: &str, limit: Option<i64>) {
        match limit.unwrap_or(0) {
            0 => {}
            ..0 => self.add(file, "max".to_owned()),
            limit => self.add(file, limit.to_string()),
        }
    }

    fn list(&mut self, file: &str, list: &str) -> Result<(), PlanError> {
        if list.len() > CPU_LIST_MAX || list.bytes().any(|b| !matches!(b, b'0'..=b'9' | b',' | b'-')) {
            return Err(PlanError::invalid(
                format!("linux.resources.cpu ({file})"),
                "is not a list of ranges",
            ));
        }
        if !list.is_empty() {
            self.add(file, list.to_owned());
        }
        Ok(())
    }
}

fn cpu(cpu: &oci::Cpu, writes: &mut Writes) -> Result<(), PlanError> {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        writes.add("cpu.weight", weight(shares).to_string());
    }
    // A weight has no meaning for an idle group, and the kernel refuses it there.
    if let Some(idle) = cpu.idle {
        if !matches!(idle, 0 | 1) {
            return Err(PlanError::invalid("linux.resources.cpu.idle", format!("{idle} is neither 0 nor 1")));
        }
        writes.add("cpu.idle", idle.to_string());
    }
    let (quota, period) = (cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0));
    if quota != 0 || period != 0 {
        let period = if period == 0 { CPU_PERIOD_US } else { period };
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        // A burst that is there may be above the new quota, which the kernel refuses.
        if cpu.burst.is_some() {
            writes.add_or("cpu.max.burst", "0".to_owned(), Missing::Passes);
        }
        writes.add("cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst {
        writes.add("cpu.max.burst", burst.to_string());
    }
    writes.list("cpuset.cpus", &cpu.cpus)?;
    writes.list("cpuset.mems", &cpu.mems)
}

fn memory(memory: &oci::Memory, place: Place, writes: &mut Writes) -> Result<(), PlanError> {
    let swap = match place {
        Place::Host => swap(memory)?,
        // A host that changes one limit sends the others as 0 or not at all, and they cannot be told apart.
        Place::Sandbox => swap(memory).unwrap_or_default(),
    };
    if let Some(swap) = swap {
        // A guest without swap uses none, whatever may be used.
        let is_nothing = matches!(swap.as_str(), "max" | "0") || place == Place::Sandbox;
        writes.add_or("memory.swap.max", swap, if is_nothing { Missing::Passes } else { Missing::Fails });
    }
    writes.limit("memory.max", memory.limit);
    writes.limit("memory.low", memory.reservation);
    Ok(())
}

/// The document limits memory and swap together, the kernel swap alone.
fn swap(memory: &oci::Memory) -> Result<Option<String>, PlanError> {
    let limit = memory.limit.unwrap_or(0);
    match memory.swap.unwrap_or(0) {
        // Without a limit of memory there is none of swap.
        0 => Ok((limit < 0).then(|| "max".to_owned())),
        ..0 => Ok(Some("max".to_owned())),
        swap if limit > 0 && swap >= limit => Ok(Some((swap - limit).to_string())),
        swap => {
            let reason = format!("{swap} needs a limit of memory that is not above it");
            Err(PlanError::invalid("linux.resources.memory.swap", reason))
        }
    }
}

/// By proportion where a scheduler of I/O weighs groups, by cost where the kernel does.
fn block_io(block: &oci::BlockIo, writes: &mut Writes) -> Result<(), PlanError> {
    const FIELD: &str = "linux.resources.blockIO";
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_| PlanError::invalid(FIELD, format!("{number} is no number of a device")))
    };
    let weigh = |device: &str, weight: u16, writes: &mut Writes| {
        if !WEIGHTS.contains(&weight) {
            return Err(PlanError::invalid(FIELD, format!("weight {weight} is not within 10 and 1000")));
        }
        let cost = 1 + (u32::from(weight) - 10) * 9_999 / 990;
        let instead = Missing::Instead { file: "io.weight".to_owned(), value: format!("{device}{cost}") };
        writes.add_or("io.bfq.weight", format!("{device}{weight}"), instead);
        Ok(())
    };
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        weigh("default ", weight, writes)?;
    }
    at_most("linux.resources.blockIO.weightDevice", block.weight_device.len(), LIST_MAX / 8)?;
    for device in &block.weight_device {
        let name = format!("{}:{} ", number(device.major)?, number(device.minor)?);
        if let Some(weight) = device.weight {
            weigh(&name, weight, writes)?;
        }
    }
    for (key, list) in [
        ("rbps", &block.throttle_read_bps_device),
        ("wbps", &block.throttle_write_bps_device),
        ("riops", &block.throttle_read_iops_device),
        ("wiops", &block.throttle_write_iops_device),
    ] {
        at_most("linux.resources.blockIO.throttle…Device", list.len(), LIST_MAX / 8)?;
        for device in list {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            let (major, minor) = (number(device.major)?, number(device.minor)?);
            writes.add("io.max", format!("{major}:{minor} {key}={rate}"));
        }
    }
    Ok(())
}

fn hugepages(limits: &[oci::HugepageLimit], writes: &mut Writes) -> Result<(), PlanError> {
    const FIELD: &str = "linux.resources.hugepageLimits";
    at_most(FIELD, limits.len(), 16)?;
    for limit in limits {
        let size = &limit.page_size;
        let digits = size.trim_end_matches("KB").trim_end_matches("MB").trim_end_matches("GB");
        let is_size = !digits.is_empty()
            && digits.len() + 2 == size.len()
            && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_size {
            return Err(PlanError::invalid(FIELD, format!("page size {size:?} is not one such as \"2MB\"")));
        }
        writes.add(&format!("hugetlb.{size}.max"), limit.limit.to_string());
        // What is reserved counts as well, where the kernel counts it.
        writes.add_or(&format!("hugetlb.{size}.rsvd.max"), limit.limit.to_string(), Missing::Passes);
    }
    Ok(())
}

fn rdma(resources: &oci::Resources, writes: &mut Writes) -> Result<(), PlanError> {
    at_most("linux.resources.rdma", resources.rdma.len(), LIST_MAX / 8)?;
    for (device, limit) in &resources.rdma {
        if device.is_empty() || device.len() > 64 || !device.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PlanError::invalid("linux.resources.rdma", format!("{device:?} is no device")));
        }
        let handles = limit.hca_handles.map(|count| format!(" hca_handle={count}")).unwrap_or_default();
        let objects = limit.hca_objects.map(|count| format!(" hca_object={count}")).unwrap_or_default();
        if !handles.is_empty() || !objects.is_empty() {
            writes.add("rdma.max", format!("{device}{handles}{objects}"));
        }
    }
    Ok(())
}

/// Files as they are. None of `cgroup.*`: they move processes and change what kind of group it is.
fn unified(resources: &oci::Resources, writes: &mut Writes) -> Result<(), PlanError> {
    const FIELD: &str = "linux.resources.unified";
    at_most(FIELD, resources.unified.len(), LIST_MAX / 8)?;
    for (file, value) in &resources.unified {
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'))
        };
        let allowed = match file.split_once('.') {
            Some(("cgroup", name)) => name.strip_prefix("max.").is_some_and(plain),
            Some((controller, name)) => plain(controller) && plain(name),
            None => false,
        };
        if !allowed {
            return Err(PlanError::invalid(FIELD, format!("{file:?} is not the name of a limit")));
        }
        if value.len() > VALUE_MAX || value.contains('\0') {
            return Err(PlanError::invalid(
                FIELD,
                format!("the value of {file} is longer than {VALUE_MAX} bytes"),
            ));
        }
        // A file of several lines takes one at a time.
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            writes.add(file, line.to_owned());
        }
    }
    Ok(())
}

/// Shares of version 1, 2 to 262144, laid linearly on weights of version 2, 1 to 10000.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    1 + (shares - SHARES_MIN) * 9_999 / (SHARES_MAX - SHARES_MIN)
}

/// What cgroup v2 has nothing for. A value that limits nothing asks for nothing.
fn refuse_version_1(resources: &oci::Resources) -> Result<(), PlanError> {
    let none = oci::Memory::default();
    let memory = resources.memory.as_ref().unwrap_or(&none);
    let limits = |limit: Option<i64>| limit.is_some_and(|limit| limit > 0);
    let cpu = resources.cpu.as_ref();
    let block = resources.block_io.as_ref();
    let network = resources.network.as_ref();
    for (is_there, field) in [
        (limits(memory.kernel), "memory.kernel"),
        (limits(memory.kernel_tcp), "memory.kernelTCP"),
        (memory.swappiness.is_some(), "memory.swappiness"),
        (memory.disable_oom_killer == Some(true), "memory.disableOOMKiller"),
        (memory.use_hierarchy == Some(false), "memory.useHierarchy"),
        (cpu.is_some_and(|cpu| cpu.realtime_runtime.unwrap_or(0) != 0), "cpu.realtimeRuntime"),
        (cpu.is_some_and(|cpu| cpu.realtime_period.unwrap_or(0) != 0), "cpu.realtimePeriod"),
        (block.is_some_and(|block| block.leaf_weight.unwrap_or(0) != 0), "blockIO.leafWeight"),
        (
            block.is_some_and(|block| block.weight_device.iter().any(|it| it.leaf_weight.unwrap_or(0) != 0)),
            "blockIO.weightDevice.leafWeight",
        ),
        (network.is_some_and(|network| network.class_id.unwrap_or(0) != 0), "network.classID"),
        (network.is_some_and(|network| !network.priorities.is_empty()), "network.priorities"),
    ] {
        if is_there {
            return Err(PlanError::unsupported(format!(
                "linux.resources.{field}, which cgroup v2 does not have,"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written_in(place: Place, resources: &oci::Resources) -> Vec<String> {
        let shown = |write: &CgroupWrite| {
            let missing = match &write.missing {
                Missing::Fails => String::new(),
                Missing::Passes => " or not".to_owned(),
                Missing::Instead { file, value } => format!(" or {file}={value}"),
            };
            format!("{}={}{missing}", write.file, write.value)
        };
        limits(resources, place).unwrap().writes.iter().map(shown).collect()
    }

    fn written(resources: &oci::Resources) -> Vec<String> {
        written_in(Place::Host, resources)
    }

    #[test]
    fn limits_become_writes() {
        let memory = oci::Memory {
            limit: Some(64 << 20),
            reservation: Some(-1),
            swap: Some(-1),
            ..Default::default()
        };
        let cpu =
            oci::Cpu { shares: Some(1024), quota: Some(50_000), cpus: "0-1,3".into(), ..Default::default() };
        let resources = oci::Resources {
            memory: Some(memory),
            cpu: Some(cpu),
            pids: Some(oci::Pids { limit: Some(100) }),
            ..Default::default()
        };
        let expected = [
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "cpuset.cpus=0-1,3",
            "memory.swap.max=max or not",
            "memory.max=67108864",
            "memory.low=max",
            "pids.max=100",
        ];
        assert_eq!(written(&resources), expected);
        assert!(written(&oci::Resources::default()).is_empty());
    }

    #[test]
    fn every_controller_is_spoken_for() {
        let device = |rate| oci::ThrottleDevice { major: 8, minor: 0, rate };
        let resources = oci::Resources {
            cpu: Some(oci::Cpu { quota: Some(5000), burst: Some(2000), idle: Some(1), ..Default::default() }),
            block_io: Some(oci::BlockIo {
                weight: Some(1000),
                weight_device: vec![oci::WeightDevice {
                    major: 8,
                    minor: 1,
                    weight: Some(10),
                    leaf_weight: None,
                }],
                throttle_read_bps_device: vec![device(1000)],
                throttle_write_iops_device: vec![device(0)],
                ..Default::default()
            }),
            hugepage_limits: vec![oci::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            rdma: [("mlx5_1".to_owned(), oci::Rdma { hca_handles: Some(3), hca_objects: Some(9) })].into(),
            unified: [("misc.max".to_owned(), "res_a 1\nres_b max\n".to_owned())].into(),
            ..Default::default()
        };
        let expected = [
            "cpu.idle=1",
            "cpu.max.burst=0 or not",
            "cpu.max=5000 100000",
            "cpu.max.burst=2000",
            "io.bfq.weight=default 1000 or io.weight=default 10000",
            "io.bfq.weight=8:1 10 or io.weight=8:1 1",
            "io.max=8:0 rbps=1000",
            "io.max=8:0 wiops=max",
            "hugetlb.2MB.max=0",
            "hugetlb.2MB.rsvd.max=0 or not",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=9",
            "misc.max=res_a 1",
            "misc.max=res_b max",
        ];
        assert_eq!(written(&resources), expected);
    }

    #[test]
    fn swap_is_what_is_left_beside_memory() {
        let of = |limit, swap, place| {
            let memory = oci::Memory { limit, swap, ..Default::default() };
            let resources = oci::Resources { memory: Some(memory), ..Default::default() };
            limits(&resources, place)
                .map(|limits| limits.writes.first().map(|it| (it.value.clone(), it.missing.clone())))
        };
        let some = |value: &str, missing| Ok(Some((value.to_owned(), missing)));
        assert_eq!(of(Some(100), Some(150), Place::Host), some("50", Missing::Fails));
        assert_eq!(of(Some(100), Some(150), Place::Sandbox), some("50", Missing::Passes));
        assert_eq!(of(None, Some(150), Place::Sandbox), Ok(None));
        assert_eq!(of(Some(100), Some(100), Place::Host), some("0", Missing::Passes));
        assert_eq!(of(Some(-1), None, Place::Host), some("max", Missing::Passes));
        assert!(of(None, Some(150), Place::Host).is_err());
        assert!(of(Some(100), Some(50), Place::Host).is_err());
    }

    #[test]
    fn memory_is_looked_at_before_it_is_limited_where_that_is_asked_for() {
        for (check, limit, expected) in [
            (Some(true), Some(5), Some(5)),
            (Some(true), Some(-1), None),
            (Some(false), Some(5), None),
            (None, Some(5), None),
        ] {
            let memory = oci::Memory { limit, check_before_update: check, ..Default::default() };
            let resources = oci::Resources { memory: Some(memory), ..Default::default() };
            assert_eq!(limits(&resources, Place::Host).unwrap().memory_at_most, expected);
        }
    }

    #[test]
    fn a_quota_below_one_is_no_limit() {
        let cpu = oci::Cpu { quota: Some(-1), period: Some(50_000), ..Default::default() };
        let resources = oci::Resources { cpu: Some(cpu), ..Default::default() };
        assert_eq!(written(&resources), ["cpu.max=max 50000"]);
    }

    #[test]
    fn weights_stay_in_their_range() {
        for (shares, expected) in [(1, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let cpu = |cpu: oci::Cpu| oci::Resources { cpu: Some(cpu), ..Default::default() };
        let memory = |memory: oci::Memory| oci::Resources { memory: Some(memory), ..Default::default() };
        let block = |block: oci::BlockIo| oci::Resources { block_io: Some(block), ..Default::default() };
        let unified = |file: &str| oci::Resources {
            unified: [(file.to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let huge = oci::HugepageLimit { page_size: "2M".into(), limit: 1 };
        for (resources, name) in [
            (cpu(oci::Cpu { cpus: "0;1".into(), ..Default::default() }), "cpuset.cpus"),
            (cpu(oci::Cpu { idle: Some(2), ..Default::default() }), "cpu.idle"),
            (cpu(oci::Cpu { realtime_period: Some(2), ..Default::default() }), "cpu.realtimePeriod"),
            (memory(oci::Memory { kernel: Some(1), ..Default::default() }), "memory.kernel"),
            (memory(oci::Memory { swappiness: Some(1), ..Default::default() }), "memory.swappiness"),
            (
                memory(oci::Memory { disable_oom_killer: Some(true), ..Default::default() }),
                "disableOOMKiller",
            ),
            (block(oci::BlockIo { weight: Some(5), ..Default::default() }), "weight 5"),
            (block(oci::BlockIo { leaf_weight: Some(50), ..Default::default() }), "blockIO.leafWeight"),
            (oci::Resources { hugepage_limits: vec![huge], ..Default::default() }, "hugepageLimits"),
            (unified("cgroup.procs"), "\"cgroup.procs\""),
            (unified("../memory.max"), "\"../memory.max\""),
            (unified("memory"), "\"memory\""),
        ] {
            let error = limits(&resources, Place::Host).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
