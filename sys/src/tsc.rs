//! How fast this processor's time stamp counter counts.

use std::time::{Duration, Instant};

/// Attempts at reading counter and clock at the same moment.
const ATTEMPTS: usize = 5;
/// Shortest time between two readings: an error of 100 ns in each is then one of 20 parts in a million.
const SPAN: Duration = Duration::from_millis(10);

/// A reading of both.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    time: Instant,
    count: u64,
}

impl Reading {
    /// The attempt in which the least time passed between looking at the clock and looking at it again.
    #[must_use]
    pub fn now() -> Self {
        let attempt = || {
            let before = Instant::now();
            // SAFETY: every x86_64 processor has the instruction, and it touches no memory. Where the kernel forbids it to
            // a process (prctl PR_SET_TSC), it ends by a signal and not in undefined behaviour.
            let count = unsafe { core::arch::x86_64::_rdtsc() };
            let gap = before.elapsed();
            (gap, Self { time: before + gap / 2, count })
        };
        let first = attempt();
        let best = (1..ATTEMPTS)
            .map(|_| attempt())
            .fold(first, |best, next| if next.0 < best.0 { next } else { best });
        best.1
    }

    /// Counts in a millisecond since then, which is kHz; waits until enough time has passed. `None` if the counter does
    /// not count.
    #[must_use]
    pub fn khz_since(self) -> Option<u32> {
        std::thread::sleep(SPAN.saturating_sub(self.time.elapsed()));
        let now = Self::now();
        let nanoseconds = now.time.duration_since(self.time).as_nanos();
        let counted = u128::from(now.count.checked_sub(self.count)?);
        u32::try_from((counted * 1_000_000).checked_div(nanoseconds)?).ok().filter(|khz| *khz > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let measure = || Reading::now().khz_since().unwrap();
        let (first, second) = (measure(), measure());
        assert!(first.abs_diff(second) < first / 500, "{first} kHz, then {second} kHz");
    }
}
