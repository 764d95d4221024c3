//! The rate limit of incoming shards.

/// The divisor of a second's bytes that gives the burst after a pause.
const BURST_PART: i128 = 10;

/// A token bucket: in any `t` milliseconds it grants at most `rate * t / 1000` bytes plus the bucket's size, which is a
/// tenth of a second's bytes or one request, whichever is more.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second; 0 for no limit.
    rate: u64,
    /// The bucket's size, in thousandths of a byte, so that each millisecond adds a whole number.
    size: i128,
    /// The bucket's level; below zero after a chunk that was larger than requested.
    level: i128,
    /// The time at which the bucket was last filled.
    at: u64,
}

impl Pace {
    pub(super) fn new(rate: u64, request: u32) -> Self {
        let size = bucket(rate, request);
        Self {
            rate,
            size,
            level: size,
            at: 0,
        }
    }

    /// Changes the rate. What was taken before stays taken.
    pub(super) fn set_rate(&mut self, rate: u64, request: u32) {
        self.rate = rate;
        self.size = bucket(rate, request);
        self.add(0);
    }

    /// Takes `bytes` for a request, or returns the time at which they will be available. The caller corrects the amount by
    /// [`Pace::came`]. A request of no bytes waits until the bytes that came before it are made up for.
    pub(super) fn take(&mut self, now: u64, bytes: u32) -> Result<(), u64> {
        if self.rate == 0 {
            return Ok(());
        }
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.add(i128::from(passed) * i128::from(self.rate));
        let lacking = i128::from(bytes) * 1_000 - self.level;
        if lacking > 0 {
            let wait = (lacking - 1) / i128::from(self.rate) + 1;
            return Err(now.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)));
        }
        self.level -= i128::from(bytes) * 1_000;
        Ok(())
    }

    /// Corrects the bytes taken for a request by the bytes received.
    pub(super) fn came(&mut self, taken: u32, bytes: u64) {
        if self.rate > 0 {
            self.add((i128::from(taken) - i128::from(bytes)) * 1_000);
        }
    }

    fn add(&mut self, thousandths: i128) {
        self.level = self.level.saturating_add(thousandths).min(self.size);
    }
}

/// Returns the bucket's size, in thousandths of a byte.
fn bucket(rate: u64, request: u32) -> i128 {
    (i128::from(rate) / BURST_PART).max(request.into()) * 1_000
}
