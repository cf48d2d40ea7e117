//! Trying again what failed in passing, with growing waits, a bounded number of times.

use std::time::{Duration, SystemTime};

use super::RegistryError;
use super::http::Head;
use super::tls;
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

    /// Sleeps before the `count`-th try again: half of the wait is left to chance, so that what failed together does not
    /// come back together. False if it was cancelled meanwhile.
    pub fn wait(&self, count: u32, cancel: &Cancel) -> bool {
        let half = self.delay(count) / 2;
        cancel.sleep(half + half.mul_f64(f64::from(tls::random_u16()) / f64::from(u16::MAX)))
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
            let undisturbed = match after {
                Some(after) => cancel.sleep(after),
                None => self.wait(count, cancel),
            };
            if !undisturbed {
                return Err(RegistryError::Transport {
                    what: what.to_owned(),
                    source: TransportError::Cancelled,
                });
            }
        }
    }
}

/// The wait that a `Retry-After` field asks for (RFC 9110 section 10.2.3): seconds, or a date, which counts from the
/// answer's own `Date`, since two clocks need not agree.
pub fn retry_after(head: &Head) -> Option<Duration> {
    let field = head.get("retry-after")?;
    let seconds = match field.parse() {
        Ok(seconds) => seconds,
        Err(_) => http_date(field)?.saturating_sub(head.get("date").and_then(http_date).unwrap_or_else(now)),
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that may be sent (RFC 9110 section 5.6.7).
pub fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let mut words = date.split(' ');
    let number = |text: &str, limit: u64| text.parse::<u64>().ok().filter(|number| *number <= limit);
    let day = number(words.next()?, 31).filter(|day| *day > 0)?;
    let month = words.next().and_then(|word| MONTHS.iter().position(|name| *name == word))? as u64;
    let year = number(words.next()?, 9999).filter(|year| *year >= 1970)?;
    let mut clock = words.next()?.split(':');
    let (hours, minutes) = (number(clock.next()?, 23)?, number(clock.next()?, 59)?);
    let seconds = number(clock.next()?, 60)?;
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (month * 306 + 5) / 10 + day - 1 - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
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
    }

    #[test]
    fn a_wait_is_at_least_half_of_what_it_may_be() {
        let policy = RetryPolicy { first_delay: Duration::from_millis(20), ..RetryPolicy::default() };
        let begun = std::time::Instant::now();
        assert!(policy.wait(1, &Cancel::default()));
        assert!(begun.elapsed() >= Duration::from_millis(10));
        let cancelled = Cancel::default();
        cancelled.set();
        assert!(!policy.wait(1, &cancelled));
    }

    #[test]
    fn a_server_says_how_long_in_seconds_or_by_a_date() {
        let date = Some("Fri, 31 Dec 1999 23:59:50 GMT");
        for (field, date, wait) in [
            ("3", None, Some(3)),
            ("86400", None, Some(RETRY_AFTER_MAX.as_secs())),
            ("Fri, 31 Dec 1999 23:59:59 GMT", date, Some(9)),
            ("Sat, 01 Jan 2000 00:00:10 GMT", date, Some(20)),
            ("Fri, 31 Dec 1999 23:59:00 GMT", date, Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", None, Some(RETRY_AFTER_MAX.as_secs())),
            ("Fri, 31 Dec 1999 23:59:59 GMT", None, Some(0)),
            ("soon", None, None),
            ("-1", None, None),
        ] {
            let mut fields = vec![("retry-after".to_owned(), field.to_owned())];
            fields.extend(date.map(|date| ("date".to_owned(), date.to_owned())));
            let head = Head { fields, ..Head::default() };
            assert_eq!(retry_after(&head), wait.map(Duration::from_secs), "{field}");
        }
    }

    #[test]
    fn dates_count_from_1970() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800)),
            ("Sat, 21 Nov 2026 14:24:49 GMT", Some(1_795_271_089)),
            ("Sat, 00 Nov 2026 14:24:49 GMT", None),
            ("Sat, 21 Nov 2026 24:24:49 GMT", None),
            ("Sat, 21 Nov 1969 14:24:49 GMT", None),
            ("Sat, 21 XXX 2026 14:24:49 GMT", None),
            ("2026-11-21", None),
            ("", None),
        ] {
            assert_eq!(http_date(text), seconds, "{text}");
        }
    }
}
