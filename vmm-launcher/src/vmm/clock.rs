//! What a translated guest has to be told about time.
//!
//! QEMU's translator gives the guest the host's time stamp counter and a timer whose ticks come late or not at all when the
//! host is busy. A guest that measures the one by the other finds neither usable: it then counts ticks, and its clock
//! goes slow. One that boots while ticks are missing panics, because it concludes that its timer is not connected.

use nacre_sys::tsc::Reading;

/// Takes that panic away (Documentation/admin-guide/kernel-parameters.txt).
const NO_TIMER_CHECK: &str = "no_timer_check";

/// A measurement of the host's counter that goes on while other things are started.
pub struct HostClock(Option<Reading>);

impl HostClock {
    /// Begins it, if the counter of this host keeps its pace.
    pub fn start() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self(keeps_pace(&info).then(Reading::now))
    }

    /// Words for the kernel's command line.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![NO_TIMER_CHECK.to_owned()];
        if let Some(khz) = self.0.and_then(Reading::khz_since) {
            // Reliable: not to be compared with the ticks.
            words.extend([format!("tsc_early_khz={khz}"), "tsc=reliable".to_owned()]);
        }
        words
    }
}

/// Whether the counter goes on at one rate, whatever the processor does to save power (proc_cpuinfo(5)).
fn keeps_pace(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    ["constant_tsc", "nonstop_tsc"].iter().all(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counter_that_keeps_its_pace_is_measured() {
        let info = |flags: &str| format!("processor\t: 0\nflags\t\t: fpu {flags} sse\n");
        assert!(keeps_pace(&info("constant_tsc rep_good nonstop_tsc")));
        assert!(!keeps_pace(&info("constant_tsc")) && !keeps_pace(&info("")) && !keeps_pace(""));
        assert_eq!(HostClock(None).words(), ["no_timer_check"]);
        let words = HostClock(Some(Reading::now())).words();
        assert!(words.len() == 3 && words[1].starts_with("tsc_early_khz="), "{words:?}");
    }
}
