//! What a container uses, out of the files of its cgroup (Documentation/admin-guide/cgroup-v2.rst). Pure: text in,
//! messages out; what is missing or does not parse counts as 0.

use nacre_protocols::host_agent::kata::{
    BlkioStats, BlkioStatsEntry, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, NetworkStats,
    PidsStats, ThrottlingData,
};
use std::collections::BTreeMap;

/// Most devices of `io.stat`, and most interfaces.
const DEVICES_MAX: usize = 64;
const NANOSECONDS: u64 = 1000;

/// Of the files of the memory controller.
#[derive(Debug, Clone, Default)]
pub struct MemoryTexts {
    pub current: String,
    pub peak: String,
    pub max: String,
    pub events: String,
    pub stat: String,
    pub swap: String,
}

/// `cpu.stat`, which counts in microseconds.
pub fn cpu(stat: &str) -> CpuStats {
    let fields = fields(stat);
    let count = |name: &str| fields.get(name).copied().unwrap_or_default();
    let time = |name: &str| count(name).saturating_mul(NANOSECONDS);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: time("usage_usec"),
            percpu_usage: Vec::new(),
            usage_in_kernelmode: time("system_usec"),
            usage_in_usermode: time("user_usec"),
        }),
        throttling_data: Some(ThrottlingData {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: time("throttled_usec"),
        }),
    }
}

pub fn memory(texts: &MemoryTexts) -> MemoryStats {
    let stats = fields(&texts.stat);
    let failures = fields(&texts.events).get("max").copied().unwrap_or_default();
    let data = |usage: &str, peak: &str, limit: u64, failcnt: u64| MemoryData {
        usage: number(usage),
        max_usage: number(peak),
        failcnt,
        limit,
    };
    MemoryStats {
        cache: stats.get("file").copied().unwrap_or_default(),
        usage: Some(data(&texts.current, &texts.peak, limit(&texts.max).unwrap_or(u64::MAX), failures)),
        swap_usage: Some(data(&texts.swap, "", 0, 0)),
        kernel_usage: Some(MemoryData {
            usage: stats.get("kernel").copied().unwrap_or_default(),
            ..Default::default()
        }),
        use_hierarchy: true,
        stats,
    }
}

/// A limit of 0 is none.
pub fn pids(current: &str, max: &str) -> PidsStats {
    PidsStats { current: number(current), limit: limit(max).unwrap_or_default() }
}

/// `io.stat`: a line a device, `MAJOR:MINOR` and `name=value` words.
pub fn blocks(stat: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in stat.lines().take(DEVICES_MAX) {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut stats.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                "dios" => (&mut stats.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlkioStatsEntry { major, minor, op: op.to_owned(), value: number(value) });
        }
    }
    stats
}

/// `hugetlb.SIZE.current` and `hugetlb.SIZE.events`.
pub fn huge_pages(current: &str, events: &str) -> HugetlbStats {
    let failcnt = fields(events).get("max").copied().unwrap_or_default();
    HugetlbStats { usage: number(current), max_usage: 0, failcnt }
}

/// `/proc/net/dev`: two lines of heads, then a line an interface: eight numbers received, eight sent.
pub fn interfaces(dev: &str) -> Vec<NetworkStats> {
    let mut found = Vec::new();
    for line in dev.lines().take(DEVICES_MAX) {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = numbers.split_whitespace().map(number).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, sent @ ..] = numbers.as_slice() else {
            continue;
        };
        let [tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = sent else { continue };
        found.push(NetworkStats {
            name: name.trim().to_owned(),
            rx_bytes: *rx_bytes,
            rx_packets: *rx_packets,
            rx_errors: *rx_errors,
            rx_dropped: *rx_dropped,
            tx_bytes: *tx_bytes,
            tx_packets: *tx_packets,
            tx_errors: *tx_errors,
            tx_dropped: *tx_dropped,
        });
    }
    found
}

/// Lines of `name value`.
pub fn fields(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

pub fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// `None` for `max`, and for what is no number.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_cgroup_become_figures() {
        let cpu = cpu(
            "usage_usec 12\nuser_usec 8\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
        );
        let usage = cpu.cpu_usage.unwrap();
        assert_eq!(
            (usage.total_usage, usage.usage_in_usermode, usage.usage_in_kernelmode),
            (12_000, 8000, 4000)
        );
        let throttled = cpu.throttling_data.unwrap();
        assert_eq!((throttled.periods, throttled.throttled_periods, throttled.throttled_time), (3, 2, 1000));
        let memory = memory(&MemoryTexts {
            current: "4096\n".into(),
            peak: "8192\n".into(),
            max: "max\n".into(),
            events: "low 0\nhigh 0\nmax 7\noom 0\n".into(),
            stat: "anon 1\nfile 2048\nkernel 512\n".into(),
            swap: String::new(),
        });
        let usage = memory.usage.unwrap();
        assert_eq!((usage.usage, usage.max_usage, usage.failcnt, usage.limit), (4096, 8192, 7, u64::MAX));
        assert_eq!((memory.cache, memory.kernel_usage.unwrap().usage), (2048, 512));
        assert_eq!(pids("3\n", "max\n"), PidsStats { current: 3, limit: 0 });
        assert_eq!(pids("3\n", "10\n"), PidsStats { current: 3, limit: 10 });
        let blocks = blocks("254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nnonsense\n");
        let first = BlkioStatsEntry { major: 254, minor: 0, op: "Read".into(), value: 10 };
        assert_eq!(blocks.io_service_bytes_recursive.first(), Some(&first));
        assert_eq!((blocks.io_service_bytes_recursive.len(), blocks.io_serviced_recursive.len()), (3, 3));
        assert_eq!(huge_pages("2097152\n", "max 1\n").failcnt, 1);
    }

    #[test]
    fn interfaces_have_received_and_sent() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n lo: 1 2\n";
        let found = interfaces(text);
        let [eth0] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes, eth0.rx_dropped, eth0.tx_bytes, eth0.tx_dropped),
            ("eth0", 1, 4, 9, 12)
        );
    }
}
