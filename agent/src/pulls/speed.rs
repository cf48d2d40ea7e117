//! How fast the bytes of a pull come.

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, Default)]
pub struct Speed {
    since: Option<(Instant, u64)>,
    /// Of late.
    pub bytes_per_second: u64,
}

impl Speed {
    /// Averaged over at least this.
    const INTERVAL: Duration = Duration::from_millis(500);

    /// `bytes` have come by `now`.
    pub fn update(&mut self, bytes: u64, now: Instant) {
        match self.since {
            Some((since, before)) if now - since >= Self::INTERVAL => {
                let milliseconds = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX).max(1);
                self.bytes_per_second = bytes.saturating_sub(before).saturating_mul(1000) / milliseconds;
                self.since = Some((now, bytes));
            }
            Some(_) => {}
            None => self.since = Some((now, bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_late() {
        let (mut speed, begun) = (Speed::default(), Instant::now());
        for (milliseconds, bytes, expected) in [
            (0, 1000, 0),
            // Too short a while to tell.
            (499, 500_000, 0),
            (1000, 2_001_000, 2_000_000),
            (1100, 9_000_000, 2_000_000),
            (3000, 2_001_000, 0),
            // A layer that begins anew has less than before.
            (4000, 1000, 0),
        ] {
            speed.update(bytes, begun + Duration::from_millis(milliseconds));
            assert_eq!(speed.bytes_per_second, expected, "after {milliseconds} ms");
        }
    }
}
