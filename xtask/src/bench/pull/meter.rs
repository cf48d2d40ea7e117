//! What a piece of work costs: everything that its control group does.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Time between two looks at the memory of a group.
const LOOK: Duration = Duration::from_millis(20);
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Seconds, and the highest sum of what the processes of the group had resident at most.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub wall: f64,
    pub processor: f64,
    pub peak_mib: f64,
}

/// A control group (cgroup v2; `cpu.stat` has the times whatever controllers are on). Whoever is left in it at the end is
/// killed.
pub struct Meter {
    group: PathBuf,
}

impl Meter {
    pub fn new() -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let group = mount_point()?.join(format!("nacre-bench-{}-{number}", std::process::id()));
        fs::create_dir(&group)
            .with_context(|| format!("cannot make {}; this needs root", group.display()))?;
        Ok(Self { group })
    }

    /// A command that runs in the group.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(&self.group).arg(program);
        command
    }

    pub fn measure(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Cost> {
        let (before, begun, ended) = (self.processor()?, Instant::now(), AtomicBool::new(false));
        let (outcome, wall, peak_kib) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = 0;
                while !ended.load(Ordering::Relaxed) {
                    peak = peak.max(self.resident_kib());
                    std::thread::sleep(LOOK);
                }
                peak
            });
            let outcome = work();
            let wall = begun.elapsed().as_secs_f64();
            ended.store(true, Ordering::Relaxed);
            (outcome, wall, watcher.join().unwrap_or_default())
        });
        outcome?;
        Ok(Cost { wall, processor: self.processor()? - before, peak_mib: peak_kib as f64 / 1024.0 })
    }

    /// Seconds in user and kernel mode so far.
    fn processor(&self) -> anyhow::Result<f64> {
        let path = self.group.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let microseconds: f64 = usage.and_then(|number| number.parse().ok()).context("no usage_usec")?;
        Ok(microseconds / 1e6)
    }

    fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn resident_kib(&self) -> u64 {
        let peak = |pid: u32| peak_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
        self.processes().into_iter().filter_map(peak).sum()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("cgroup.kill"), "1");
        let until = Instant::now() + GONE;
        while fs::remove_dir(&self.group).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The most that a process ever had resident, out of `/proc/PID/status`.
fn peak_kib(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

fn mount_point() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    find_cgroup2(&mounts).map(|path| Path::new(path).to_owned()).context("no cgroup v2 is mounted")
}

fn find_cgroup2(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_beside_the_old_ones() {
        let mounts = "31 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      33 25 0:28 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find_cgroup2(""), None);
    }

    #[test]
    fn the_peak_is_what_the_kernel_kept_of_it() {
        assert_eq!(peak_kib("Name:\tx\nVmHWM:\t    5120 kB\nVmRSS:\t  12 kB\n"), Some(5120));
        assert_eq!(peak_kib("Name:\tkthreadd\n"), None);
    }
}
