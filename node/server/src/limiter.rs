//! A limit of bytes a second that many senders share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Spreads bytes over time. A sender pays after it sent: it waits, or refuses the next request.
pub(crate) struct Limiter {
    bytes_per_second: u64,
    paid_until: Mutex<Instant>,
}

impl Limiter {
    /// Creates a limiter. Zero bytes a second mean no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// Returns the limit.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Charges sent bytes. Returns the wait before more may be sent, if any.
    pub(crate) fn charge(&self, bytes: usize) -> Option<Duration> {
        self.charge_at(bytes, Instant::now())
    }

    /// Returns the time until all bytes sent are paid for.
    pub(crate) fn owed(&self) -> Duration {
        self.owed_at(Instant::now())
    }

    fn owed_at(&self, now: Instant) -> Duration {
        let paid_until = self
            .paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        paid_until.saturating_duration_since(now)
    }

    fn charge_at(&self, bytes: usize, now: Instant) -> Option<Duration> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let nanos = (bytes as u128 * 1_000_000_000) / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid_until = self
            .paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let until = (*paid_until).max(now).checked_add(cost).unwrap_or(now);
        *paid_until = until;
        Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_share_the_rate_and_idle_time_is_not_saved_up() {
        let limiter = Limiter::new(1_000);
        let start = Instant::now() + Duration::from_secs(1);
        let millis = Duration::from_millis;
        assert_eq!(limiter.charge_at(100, start), Some(millis(100)));
        assert_eq!(
            limiter.charge_at(100, start),
            Some(millis(200)),
            "another sender"
        );
        assert_eq!(limiter.owed_at(start), millis(200));
        assert_eq!(limiter.owed_at(start + millis(150)), millis(50));
        assert_eq!(limiter.owed_at(start + millis(250)), Duration::ZERO);
        let later = start + Duration::from_mins(1);
        assert_eq!(
            limiter.charge_at(100, later),
            Some(millis(100)),
            "no burst after a pause"
        );
        assert_eq!(Limiter::new(0).charge(1 << 30), None);
    }
}
