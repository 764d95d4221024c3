//! Pauses after failures.

use super::MoverOptions;

/// The longest reason that is kept, in bytes. Reasons come from other processes, so they need a bound.
const MAX_REASON_BYTES: usize = 256;

/// Doubling pauses before something that keeps failing is tried again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: u64,
    why: String,
}

impl Backoff {
    /// Records a failure. The pause before the next attempt begins now. A failure during a pause belongs to an attempt that
    /// began before the pause, together with the one that caused it, so both count as one.
    pub(super) fn fail(&mut self, now: u64, why: &str, options: &MoverOptions) {
        let end = why.floor_char_boundary(MAX_REASON_BYTES);
        why.get(..end).unwrap_or_default().clone_into(&mut self.why);
        if self.failures > 0 && now < self.until {
            return;
        }
        let least = u64::from(options.min_retry_ms.max(1));
        let most = u64::from(options.max_retry_ms).max(least);
        let pause = least.saturating_mul(1 << self.failures.min(30)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.until = now.saturating_add(pause);
    }

    /// Records a success.
    pub(super) fn succeed(&mut self) {
        self.failures = 0;
        self.until = 0;
        self.why.clear();
    }

    /// Returns the failures since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the time before which there must be no attempt.
    pub(super) fn until(&self) -> u64 {
        self.until
    }

    /// Returns, for display, the reason of the last failure and the time until the next attempt; `None` if the last attempt
    /// succeeded.
    pub(super) fn why(&self, now: u64) -> Option<String> {
        let why = &self.why;
        match self.until.saturating_sub(now) {
            _ if self.failures == 0 => None,
            0 => Some(why.clone()),
            left => Some(format!("{why}; next try in {left} ms")),
        }
    }
}
