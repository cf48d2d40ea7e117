//! Memory of the guest's own processes, for `nacre` and the benchmarks.

use nacre_protocols::agent_init::ProcessReport;

/// Resident and anonymous memory of `pid`, from `/proc/PID/status`; `None` when it is gone.
pub fn process(name: &str, pid: u32) -> Option<ProcessReport> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(ProcessReport {
        name: name.to_owned(),
        pid,
        resident_kib: field(&status, "VmRSS:")?,
        anonymous_kib: field(&status, "RssAnon:")?,
    })
}

/// True when the process has a handler for `signal`; also when that cannot be read.
pub fn handles_signal(pid: u32, signal: u8) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let Some(caught) = status.lines().find_map(|line| line.strip_prefix("SigCgt:")) else { return true };
    match u64::from_str_radix(caught.trim(), 16) {
        Ok(mask) => signal.checked_sub(1).is_some_and(|bit| bit < 64 && mask >> bit & 1 == 1),
        Err(_) => true,
    }
}

fn field(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
