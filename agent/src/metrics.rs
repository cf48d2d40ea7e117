//! GetMetrics: files of `/proc` as Prometheus text, by the names that kata-monitor knows. Pure.

use crate::stats;
use std::fmt::Write;

/// Size of a page, in bytes.
const PAGE: u64 = 4096;
/// Ticks a second in which the kernel counts processor time for programs (`USER_HZ`).
const TICKS: f64 = 100.0;
/// Longest line of a file that is looked at, in words.
const WORDS_MAX: usize = 64;

/// The files, empty where the kernel has none.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    pub load_average: String,
    pub stat: String,
    pub memory: String,
    pub virtual_memory: String,
    pub disks: String,
    pub network_devices: String,
    pub agent_stat: String,
    pub agent_status: String,
    pub agent_io: String,
}

/// One page of metrics. `scrapes`: how often they were asked for, this time included.
pub fn page(texts: &Texts, scrapes: u64) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    agent(&mut page, texts, scrapes);
    guest(&mut page, texts);
    page.0
}

fn agent(page: &mut Page, texts: &Texts, scrapes: u64) {
    page.one("kata_agent_scrape_count", "counter", "Metrics scrape count.", scrapes);
    // What follows the name, which may hold spaces, in proc_pid_stat(5): its first field is the third.
    let after_name = texts.agent_stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<u64> = after_name.split_whitespace().map(stats::number).collect();
    let field =
        |number: usize| number.checked_sub(3).and_then(|at| fields.get(at)).copied().unwrap_or_default();
    let seconds = |number| field(number) as f64 / TICKS;
    page.one("kata_agent_threads", "gauge", "Threads of the agent.", field(20));
    page.one(
        "kata_agent_total_time",
        "gauge",
        "Processor time of the agent, in seconds.",
        seconds(14) + seconds(15),
    );
    page.one("kata_agent_total_vm", "gauge", "Virtual memory of the agent, in bytes.", field(23));
    page.one(
        "kata_agent_total_rss",
        "gauge",
        "Resident memory of the agent, in bytes.",
        field(24).saturating_mul(PAGE),
    );
    page.head("kata_agent_proc_stat", "gauge", "/proc/PID/stat of the agent.");
    for (item, number) in [("utime", 14), ("stime", 15), ("cutime", 16), ("cstime", 17)] {
        page.line("kata_agent_proc_stat", &[("item", item)], seconds(number));
    }
    page.head("kata_agent_proc_status", "gauge", "/proc/PID/status of the agent.");
    for (name, value) in named(&texts.agent_status) {
        page.line("kata_agent_proc_status", &[("item", &name.to_lowercase())], value);
    }
    page.head("kata_agent_io_stat", "gauge", "/proc/PID/io of the agent.");
    for (name, value) in named(&texts.agent_io) {
        page.line("kata_agent_io_stat", &[("item", &name.to_lowercase().replace('_', ""))], value);
    }
}

fn guest(page: &mut Page, texts: &Texts) {
    let words: Vec<&str> = texts.load_average.split_whitespace().take(WORDS_MAX).collect();
    page.head("kata_guest_load", "gauge", "Load of the guest.");
    for (item, word) in ["load1", "load5", "load15"].iter().zip(&words) {
        page.line("kata_guest_load", &[("item", item)], word.parse::<f64>().unwrap_or_default());
    }
    page.head("kata_guest_tasks", "gauge", "Tasks of the guest.");
    if let Some((running, all)) = words.get(3).and_then(|word| word.split_once('/')) {
        page.line("kata_guest_tasks", &[("item", "cur")], stats::number(running));
        page.line("kata_guest_tasks", &[("item", "max")], stats::number(all));
    }
    page.head("kata_guest_cpu_time", "gauge", "Processor time of the guest, in seconds.");
    const CPU_ITEMS: [&str; 10] =
        ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
    for line in texts.stat.lines().filter(|line| line.starts_with("cpu")) {
        let mut words = line.split_whitespace();
        let cpu = match words.next().unwrap_or_default() {
            "cpu" => "total",
            one => one.trim_start_matches("cpu"),
        };
        for (item, word) in CPU_ITEMS.iter().zip(words) {
            page.line(
                "kata_guest_cpu_time",
                &[("cpu", cpu), ("item", item)],
                stats::number(word) as f64 / TICKS,
            );
        }
    }
    page.head("kata_guest_vm_stat", "gauge", "/proc/vmstat of the guest.");
    for (item, value) in stats::fields(&texts.virtual_memory) {
        page.line("kata_guest_vm_stat", &[("item", &item)], value);
    }
    page.head("kata_guest_meminfo", "gauge", "/proc/meminfo of the guest, in KiB.");
    for (name, value) in named(&texts.memory) {
        let item = name.to_lowercase().replace(['(', ')'], "_");
        page.line("kata_guest_meminfo", &[("item", item.trim_end_matches('_'))], value);
    }
    network(page, &texts.network_devices);
    disks(page, &texts.disks);
}

fn network(page: &mut Page, dev: &str) {
    page.head("kata_guest_netdev_stat", "gauge", "Network devices of the guest.");
    for found in stats::interfaces(dev) {
        for (item, value) in [
            ("recv_bytes", found.rx_bytes),
            ("recv_packets", found.rx_packets),
            ("recv_errs", found.rx_errors),
            ("recv_drop", found.rx_dropped),
            ("sent_bytes", found.tx_bytes),
            ("sent_packets", found.tx_packets),
            ("sent_errs", found.tx_errors),
            ("sent_drop", found.tx_dropped),
        ] {
            page.line("kata_guest_netdev_stat", &[("interface", &found.name), ("item", item)], value);
        }
    }
}

/// Documentation/admin-guide/iostats.rst: numbers and name of the device, then its figures.
fn disks(page: &mut Page, text: &str) {
    const ITEMS: [&str; 17] = [
        "reads",
        "merged",
        "sectors_read",
        "time_reading",
        "writes",
        "writes_merged",
        "sectors_written",
        "time_writing",
        "in_progress",
        "time_in_progress",
        "weighted_time_in_progress",
        "discards",
        "discards_merged",
        "sectors_discarded",
        "time_discarding",
        "flushes",
        "time_flushing",
    ];
    page.head("kata_guest_diskstat", "gauge", "Disks of the guest.");
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(2);
        let Some(disk) = words.next() else { continue };
        for (item, word) in ITEMS.iter().zip(words) {
            page.line("kata_guest_diskstat", &[("disk", disk), ("item", item)], stats::number(word));
        }
    }
}

/// Lines of `name: number`, whatever comes behind; others are left out.
fn named(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        Some((name.trim(), rest.split_whitespace().next()?.parse().ok()?))
    })
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (number, (label, text)) in labels.iter().enumerate() {
            let text = text.replace(['\\', '"', '\n'], "_");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if number == 0 { "{" } else { "," });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_what_a_monitor_reads() {
        let texts = Texts {
            load_average: "0.10 0.20 0.30 1/55 200\n".into(),
            stat: "cpu  100 0 50 1000 0 0 0 0 0 0\ncpu0 100 0 50 1000 0 0 0 0 0 0\nintr 5 1\n".into(),
            memory: "MemTotal:  200000 kB\nActive(anon):  5 kB\n".into(),
            virtual_memory: "nr_free_pages 7\n".into(),
            disks: " 254 0 vda 1 2 3 4 5 6 7 8 9 10 11\n".into(),
            network_devices: "h\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n".into(),
            agent_stat: "40 (a (b) c) S 1 40 40 0 -1 0 1 2 3 4 500 25 0 0 20 0 1 0 9 8192 3\n".into(),
            agent_status: "Name:\tnacre-agent\nVmRSS:\t     900 kB\nThreads:\t1\n".into(),
            agent_io: String::new(),
        };
        let page = page(&texts, 2);
        for line in [
            "kata_agent_scrape_count 2",
            "kata_agent_threads 1",
            "kata_agent_total_time 5.25",
            "kata_agent_total_vm 8192",
            "kata_agent_total_rss 12288",
            "kata_agent_proc_status{item=\"vmrss\"} 900",
            "kata_agent_proc_stat{item=\"stime\"} 0.25",
            "kata_guest_load{item=\"load15\"} 0.3",
            "kata_guest_tasks{item=\"max\"} 55",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} 1",
            "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"} 10",
            "kata_guest_meminfo{item=\"memtotal\"} 200000",
            "kata_guest_meminfo{item=\"active_anon\"} 5",
            "kata_guest_vm_stat{item=\"nr_free_pages\"} 7",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"sent_bytes\"} 9",
            "kata_guest_diskstat{disk=\"vda\",item=\"sectors_written\"} 7",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\nis not in\n{page}");
        }
        // Of every name one head, before its lines.
        for head in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = head.split(' ').next().unwrap();
            assert_eq!(page.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
        }
        assert!(super::page(&Texts::default(), 1).contains("kata_agent_threads 0\n"));
    }
}
