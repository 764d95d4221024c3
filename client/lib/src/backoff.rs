//! How long to wait before the next try.
//!
//! The pause grows with the *age of the trouble*, not with the number of tries: an eighth of it, between two
//! bounds, with jitter. So a client finds a new leader at most about a fifth later than it could have, whether
//! the election took 50 ms or 5 s, and many clients don't come at the same instant.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// The trouble that a call or a connection is in.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    since: Option<Instant>,
    random: Random,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            since: None,
            random: Random::new(),
        }
    }

    /// All is well again.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// The pause after a failure at `now`: none after the first, because the next address may do.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        let Some(since) = self.since else {
            self.since = Some(now);
            return Duration::ZERO;
        };
        self.stretch((now - since) / 8)
    }

    /// The pause when a node says itself how long to wait, in milliseconds; 0 if it leaves that to us.
    pub(crate) fn pause_at_least(&mut self, now: Instant, asked_ms: u32) -> Duration {
        let own = self.pause(now).max(self.min);
        own.max(self.stretch(Duration::from_millis(asked_ms.into())))
    }

    /// The pause of one call whose shard has kept it waiting for `age`, whatever became of others; a node may ask for more
    /// milliseconds.
    pub(crate) fn pause_of(&mut self, age: Duration, asked_ms: u32) -> Duration {
        let asked = Duration::from_millis(asked_ms.into());
        self.stretch(asked.max(age / 8))
    }

    /// `pause` within the bounds, times a factor from 0.75 to 1.25.
    fn stretch(&mut self, pause: Duration) -> Duration {
        let pause = pause.clamp(self.min, self.max);
        pause * self.random.between(750, 1_250) / 1_000
    }
}

/// Numbers for jitter: `SplitMix64` from a random seed. Nothing depends on their quality.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        Self(RandomState::new().hash_one(0))
    }

    /// A number from `low` to `high`.
    pub(crate) fn between(&mut self, low: u32, high: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let span = u64::from(high.saturating_sub(low)) + 1;
        // The remainder is below `span`, which fits 33 bits, and `low` plus it is at most `high`.
        low.saturating_add(u32::try_from(mixed % span).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(2);
    const MAX: Duration = Duration::from_millis(250);

    #[test]
    fn pauses_grow_with_the_age_of_the_trouble() {
        let start = Instant::now();
        let mut backoff = Backoff::new(MIN, MAX);
        assert_eq!(backoff.pause(start), Duration::ZERO, "try the next at once");
        for (age_ms, low_us, high_us) in [
            (0, 1_500, 2_500),
            (80, 7_500, 12_500),
            (800, 75_000, 125_000),
            (60_000, 187_500, 312_500),
        ] {
            for _ in 0..100 {
                let pause = backoff.pause(start + Duration::from_millis(age_ms));
                let bounds = Duration::from_micros(low_us)..=Duration::from_micros(high_us);
                assert!(bounds.contains(&pause), "{age_ms} ms: {pause:?}");
            }
        }
        backoff.reset();
        let later = start + Duration::from_secs(90);
        assert_eq!(backoff.pause(later), Duration::ZERO);
    }

    #[test]
    fn a_nodes_wish_is_respected_up_to_the_bound() {
        let now = Instant::now();
        let mut backoff = Backoff::new(MIN, MAX);
        assert!(backoff.pause_at_least(now, 0) >= MIN, "never at once");
        assert!(backoff.pause_at_least(now, 100) >= Duration::from_millis(75));
        assert!(backoff.pause_at_least(now, u32::MAX) <= MAX * 5 / 4);
    }

    #[test]
    fn jitter_covers_its_range() {
        let mut random = Random::new();
        let mut seen = [false; 5];
        for _ in 0..1_000 {
            seen[(random.between(3, 7) - 3) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(random.between(4, 4), 4);
        random.between(0, u32::MAX);
    }
}
