//! The pause before the next attempt.
//!
//! The pause grows with the *time since the first failure*, not with the number of attempts: a share of it, between bounds,
//! with jitter. With a share of an eighth a client finds a new leader at most about a fifth later than it could have,
//! whether the election took 50 ms or 5 s. With a share of one the pause doubles. Jitter keeps many clients from coming at
//! the same instant.

use std::time::Duration;

use crate::Time;

/// The failures of a call or a connection, and the pauses between its attempts.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// The divisor of the time since the first failure, which gives the pause.
    divisor: u32,
    since: Option<Time>,
    jitter: Jitter,
}

impl Backoff {
    /// Creates a backoff whose pauses are an eighth of the time since the first failure, from `min` to `max`.
    pub fn new(min: Duration, max: Duration, jitter: Jitter) -> Self {
        Self {
            min,
            max,
            divisor: 8,
            since: None,
            jitter,
        }
    }

    /// Makes each pause as long as the time since the first failure, so that pauses double, for callers with few attempts.
    #[must_use]
    pub fn doubling(mut self) -> Self {
        self.divisor = 1;
        self
    }

    /// Forgets the failures, after a success.
    pub fn reset(&mut self) {
        self.since = None;
    }

    /// Returns the pause after a failure at `now`: zero after the first, because the next address may do.
    pub fn pause(&mut self, now: Time) -> Duration {
        let Some(since) = self.since else {
            self.since = Some(now);
            return Duration::ZERO;
        };
        self.stretch(now.saturating_sub(since) / self.divisor)
    }

    /// Returns the pause after a failure at `now` if a node asks for a pause; zero leaves the pause to this backoff.
    pub fn pause_at_least(&mut self, now: Time, asked: Duration) -> Duration {
        let own = self.pause(now).max(self.min);
        own.max(self.stretch(asked))
    }

    /// Returns the pause of one call whose shard has kept it waiting for `age`, independently of the failures of other calls. A node
    /// may ask for more.
    pub fn pause_of(&mut self, age: Duration, asked: Duration) -> Duration {
        self.stretch(asked.max(age / self.divisor))
    }

    /// Returns `pause` within the bounds, times a factor from 0.75 to 1.25.
    fn stretch(&mut self, pause: Duration) -> Duration {
        let pause = pause.clamp(self.min, self.max);
        pause * self.jitter.between(750, 1_250) / 1_000
    }
}

/// A seeded generator of jitter (`SplitMix64`). Nothing depends on its quality.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Creates the generator of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number from `low` to `high`, both included.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
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
    const START: Time = Duration::from_secs(100);

    fn backoff() -> Backoff {
        Backoff::new(MIN, MAX, Jitter::new(1))
    }

    #[test]
    fn pauses_grow_with_the_age_of_the_trouble() {
        let mut backoff = backoff();
        assert_eq!(backoff.pause(START), Duration::ZERO, "try the next at once");
        for (age_ms, low_us, high_us) in [
            (0, 1_500, 2_500),
            (80, 7_500, 12_500),
            (800, 75_000, 125_000),
            (60_000, 187_500, 312_500),
        ] {
            for _ in 0..100 {
                let pause = backoff.pause(START + Duration::from_millis(age_ms));
                let bounds = Duration::from_micros(low_us)..=Duration::from_micros(high_us);
                assert!(bounds.contains(&pause), "{age_ms} ms: {pause:?}");
            }
        }
        backoff.reset();
        let later = START + Duration::from_secs(90);
        assert_eq!(backoff.pause(later), Duration::ZERO);
    }

    #[test]
    fn few_attempts_double_their_pauses() {
        let mut backoff = backoff().doubling();
        let mut now = START;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let pause = backoff.pause(now);
            now += pause;
            pauses.push(pause);
        }
        assert_eq!(pauses[0], Duration::ZERO);
        assert!(pauses[11] >= MAX * 3 / 4, "{pauses:?}");
    }

    #[test]
    fn a_pause_that_a_node_asks_for_is_respected_up_to_the_bound() {
        let mut backoff = backoff();
        let none = Duration::ZERO;
        assert!(backoff.pause_at_least(START, none) >= MIN, "never at once");
        let asked = Duration::from_millis(100);
        assert!(backoff.pause_at_least(START, asked) >= Duration::from_millis(75));
        assert!(backoff.pause_at_least(START, Duration::MAX) <= MAX * 5 / 4);
    }

    #[test]
    fn jitter_covers_its_range_and_repeats_with_its_seed() {
        let mut jitter = Jitter::new(7);
        let mut again = Jitter::new(7);
        let mut seen = [false; 5];
        for _ in 0..1_000 {
            let drawn = jitter.between(3, 7);
            assert_eq!(drawn, again.between(3, 7));
            seen[(drawn - 3) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(jitter.between(4, 4), 4);
        jitter.between(0, u32::MAX);
    }
}
