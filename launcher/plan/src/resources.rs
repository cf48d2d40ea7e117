//! Resource limits to writes of cgroup v2 files (Documentation/admin-guide/cgroup-v2.rst).

use super::PlanError;
use crate::oci;
use nacre_protocols::init_launcher::CgroupWrite;

/// Microseconds; what the kernel has when none is given.
const CPU_PERIOD_US: u64 = 100_000;
/// Bounds of `cpu.shares` in version 1 of the hierarchy.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
/// Longest list of processors or memory nodes, in bytes.
const CPU_LIST_MAX: usize = 1024;

pub fn writes(resources: &oci::Resources) -> Result<Vec<CgroupWrite>, PlanError> {
    refuse_unsupported(resources)?;
    let mut writes = Writes(Vec::new());
    if let Some(memory) = &resources.memory {
        // No write for swap: the guest has none.
        writes.limit("memory.max", memory.limit);
        writes.limit("memory.low", memory.reservation);
    }
    if let Some(cpu) = &resources.cpu {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            writes.add("cpu.weight", weight(shares).to_string());
        }
        let (quota, period) = (cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0));
        if quota != 0 || period != 0 {
            let period = if period == 0 { CPU_PERIOD_US } else { period };
            let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
            writes.add("cpu.max", format!("{quota} {period}"));
        }
        writes.list("cpuset.cpus", &cpu.cpus)?;
        writes.list("cpuset.mems", &cpu.mems)?;
    }
    if let Some(pids) = &resources.pids {
        writes.limit("pids.max", pids.limit);
    }
    Ok(writes.0)
}

struct Writes(Vec<CgroupWrite>);

impl Writes {
    fn add(&mut self, file: &str, value: String) {
        self.0.push(CgroupWrite { file: file.to_owned(), value });
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

/// Shares of version 1, 2 to 262144, laid linearly on weights of version 2, 1 to 10000.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    1 + (shares - SHARES_MIN) * 9_999 / (SHARES_MAX - SHARES_MIN)
}

fn refuse_unsupported(resources: &oci::Resources) -> Result<(), PlanError> {
    if let Some(cpu) = &resources.cpu
        && (cpu.realtime_runtime.unwrap_or(0) != 0 || cpu.realtime_period.unwrap_or(0) != 0)
    {
        return Err(PlanError::unsupported("a realtime limit of the processor"));
    }
    for (is_there, field) in [
        (!resources.unified.is_empty(), "linux.resources.unified"),
        (!resources.rdma.is_empty(), "linux.resources.rdma"),
        (resources.cpu.as_ref().is_some_and(|cpu| cpu.burst.is_some()), "linux.resources.cpu.burst"),
        (resources.cpu.as_ref().is_some_and(|cpu| cpu.idle.is_some()), "linux.resources.cpu.idle"),
    ] {
        if is_there {
            return Err(PlanError::unsupported(field));
        }
    }
    if resources.block_io.as_ref().is_some_and(|block| *block != oci::BlockIo::default()) {
        return Err(PlanError::unsupported("linux.resources.blockIO"));
    }
    // Kubernetes sends every page size of the node with a limit of 0.
    if resources.hugepage_limits.iter().any(|limit| limit.limit != 0) {
        return Err(PlanError::unsupported("a limit of huge pages"));
    }
    if let Some(network) = &resources.network
        && (network.class_id.unwrap_or(0) != 0 || !network.priorities.is_empty())
    {
        return Err(PlanError::unsupported("linux.resources.network"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(resources: &oci::Resources) -> Vec<String> {
        let writes = writes(resources).unwrap();
        writes.iter().map(|write| format!("{}={}", write.file, write.value)).collect()
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
            "memory.max=67108864",
            "memory.low=max",
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "cpuset.cpus=0-1,3",
            "pids.max=100",
        ];
        assert_eq!(written(&resources), expected);
        assert!(written(&oci::Resources::default()).is_empty());
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
    fn what_has_no_effect_here_is_refused() {
        let block = oci::BlockIo { weight: Some(10), ..Default::default() };
        let huge = oci::HugepageLimit { page_size: "2MB".into(), limit: 1 };
        let cpu = oci::Cpu { cpus: "0;1".into(), ..Default::default() };
        for resources in [
            oci::Resources { block_io: Some(block), ..Default::default() },
            oci::Resources { hugepage_limits: vec![huge], ..Default::default() },
            oci::Resources { cpu: Some(cpu), ..Default::default() },
        ] {
            assert!(writes(&resources).is_err(), "{resources:?}");
        }
        let none = oci::HugepageLimit { page_size: "2MB".into(), limit: 0 };
        let resources = oci::Resources { hugepage_limits: vec![none], ..Default::default() };
        assert!(written(&resources).is_empty());
    }
}
