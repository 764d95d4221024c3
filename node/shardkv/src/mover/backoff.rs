//! Pauses after failures.

use super::MoverOptions;

/// The longest reason that is kept, in bytes: reasons come from elsewhere.
const MAX_REASON_BYTES: usize = 256;

/// Doubling pauses before something that keeps failing is tried again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: u64,
    why: String,
}

impl Backoff {
    /// It failed. The pause until the next try begins now. What fails during a pause was begun before it, together with what
    /// caused it, and counts as one with that.
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

    /// It worked.
    pub(super) fn succeed(&mut self) {
        self.failures = 0;
        self.until = 0;
        self.why.clear();
    }

    /// Whether the last try failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Until when not to try.
    pub(super) fn until(&self) -> u64 {
        self.until
    }

    /// Why the last try failed and when the next one is due, for people; `None` if it didn't fail.
    pub(super) fn why(&self, now: u64) -> Option<String> {
        let why = &self.why;
        match self.until.saturating_sub(now) {
            _ if self.failures == 0 => None,
            0 => Some(why.clone()),
            left => Some(format!("{why}; next try in {left} ms")),
        }
    }
}
