//! Trying again what failed in passing, with growing waits, a bounded number of times.

use std::time::Duration;

use super::RegistryError;
use super::transport::{Cancel, TransportError};

/// Longest wait that a server's `Retry-After` is believed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries after the first one.
    pub retries: u32,
    /// Wait before the first of them; each further one is twice as long.
    pub first_delay: Duration,
    pub longest_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retries: 5, first_delay: Duration::from_millis(500), longest_delay: Duration::from_secs(10) }
    }
}

/// How a try failed.
#[derive(Debug)]
pub enum Fault {
    /// A later try may do better; the server may have said how much later.
    Passing(RegistryError, Option<Duration>),
    Final(RegistryError),
}

impl Fault {
    pub fn transport(what: &str, source: TransportError) -> Self {
        let passing = source.is_passing();
        let error = RegistryError::Transport { what: what.to_owned(), source };
        if passing { Self::Passing(error, None) } else { Self::Final(error) }
    }
}

impl RetryPolicy {
    /// The wait before the `count`-th try again.
    pub fn delay(&self, count: u32) -> Duration {
        let factor = 1u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_delay.saturating_mul(factor).min(self.longest_delay)
    }

    pub fn run<T>(
        &self,
        cancel: &Cancel,
        what: &str,
        mut try_once: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T, RegistryError> {
        let mut count = 0;
        loop {
            let (error, after) = match try_once() {
                Ok(done) => return Ok(done),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(error, after)) => (error, after),
            };
            count += 1;
            if count > self.retries {
                return Err(error);
            }
            if !cancel.sleep(after.unwrap_or_else(|| self.delay(count))) {
                return Err(RegistryError::Transport {
                    what: what.to_owned(),
                    source: TransportError::Cancelled,
                });
            }
        }
    }
}

/// The wait of a `Retry-After` field in seconds; its other form, a date, is not worth a calendar.
pub fn retry_after(field: Option<&str>) -> Option<Duration> {
    field?.trim().parse().ok().map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit() {
        let policy = RetryPolicy::default();
        let waits: Vec<u128> = (1..=7).map(|count| policy.delay(count).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10000, 10000]);
        assert_eq!(policy.delay(0), policy.first_delay);
        assert_eq!(policy.delay(u32::MAX), policy.longest_delay);
        assert_eq!(retry_after(Some("3")), Some(Duration::from_secs(3)));
        assert_eq!(retry_after(Some("86400")), Some(RETRY_AFTER_MAX));
        assert_eq!(retry_after(Some("Fri, 31 Dec 1999 23:59:59 GMT")), None);
    }
}
