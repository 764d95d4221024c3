//! The pace of the bases of copies: as fast as the group's log takes their parts without delay.
//!
//! A copy isn't urgent, because its shard is served while it runs. So it yields to the clients. Its parts pass the log that the
//! clients' writes pass, and how long they take tells how busy the group is: the rate falls while parts take clearly longer than the
//! least that was seen in the last minutes, or while a live follower is behind for as long, and rises while they don't. No measure of a
//! machine's speed has to be configured. The rate never falls below [`LEAST_RATE`], so that each copy comes to its end.
//!
//! The pages of a copy don't wait here: they catch up with the clients' writes. Neither does a pull, whose shard nobody serves.

use super::pace::Pace;

/// The least rate, in bytes a second, unless the limit is lower. It is also the first, so that the first delays are those of a group
/// that is hardly copying.
const LEAST_RATE: u64 = 4 << 20;
/// The shortest time between two changes of the rate, in milliseconds.
const INTERVAL_MS: u64 = 250;
/// The fewest parts by which the rate is changed.
const FEW_PARTS: u64 = 2;
/// The time for which the least delay counts, at least; at most twice as long. In milliseconds.
const MEMORY_MS: u64 = 300_000;
/// The time that a part may take beyond five quarters of the least delay before the group counts as busy, in milliseconds.
const TOLERANCE_MS: u64 = 2;

/// The pace of bases, for one group's leader.
#[derive(Debug)]
pub(super) struct Background {
    /// The highest rate, in bytes a second; 0 for no limit.
    limit: u64,
    rate: u64,
    /// The usual size of a part.
    request: u32,
    pace: Pace,
    /// The time for which the slowest live follower is behind, in milliseconds.
    lag: u64,
    interval: Interval,
    /// The least mean delay of an interval, in milliseconds: since `memory_since`, and in the [`MEMORY_MS`] before.
    least: [Option<u64>; 2],
    memory_since: u64,
}

/// The parts since the last change of the rate.
#[derive(Debug, Default)]
struct Interval {
    since: u64,
    parts: u64,
    took: u64,
}

impl Background {
    pub(super) fn new(limit: u64, request: u32) -> Self {
        let rate = within(LEAST_RATE, limit);
        Self {
            limit,
            rate,
            request,
            pace: Pace::new(rate, request),
            lag: 0,
            interval: Interval::default(),
            least: [None; 2],
            memory_since: 0,
        }
    }

    /// Sets the time for which the group's slowest live follower is behind the log, in milliseconds.
    pub(super) fn set_lag(&mut self, lag: u64) {
        self.lag = lag;
    }

    /// Returns the present rate, in bytes a second.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// Returns the time from which the next part may be requested, if it may not at once.
    pub(super) fn take(&mut self, now: u64) -> Result<(), u64> {
        self.pace.take(now, 0)
    }

    /// Counts a part that arrived.
    pub(super) fn came(&mut self, bytes: u64) {
        self.pace.came(0, bytes);
    }

    /// Takes the time for which a part went through the log, and changes the rate if enough parts have.
    pub(super) fn passed(&mut self, now: u64, took: u64) {
        self.interval.parts += 1;
        self.interval.took += took;
        let Interval { since, parts, .. } = self.interval;
        if parts < FEW_PARTS || now < since.saturating_add(INTERVAL_MS) {
            return;
        }
        let mean = self.interval.took / parts;
        self.interval = Interval {
            since: now,
            ..Interval::default()
        };
        let least = self.remember(now, mean);
        let is_busy = mean.max(self.lag) > least + least / 4 + TOLERANCE_MS;
        let next = if is_busy {
            self.rate / 2
        } else {
            self.rate.saturating_add(self.rate / 8)
        };
        self.rate = within(next, self.limit);
        self.pace.set_rate(self.rate, self.request);
    }

    /// Takes the mean delay of an interval into the memory of the least. Returns the least.
    fn remember(&mut self, now: u64, mean: u64) -> u64 {
        if now >= self.memory_since.saturating_add(MEMORY_MS) {
            self.memory_since = now;
            self.least = [None, self.least[0]];
        }
        let [newest, before] = self.least;
        let newest = newest.map_or(mean, |least| least.min(mean));
        self.least[0] = Some(newest);
        before.map_or(newest, |before| before.min(newest))
    }
}

/// Returns the rate that is next to `rate` and allowed.
fn within(rate: u64, limit: u64) -> u64 {
    let rate = rate.max(LEAST_RATE);
    if limit == 0 { rate } else { rate.min(limit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: u64 = 512 << 10;

    /// A group's log that passes parts in `took` milliseconds, for `seconds`. Returns the bytes a second in the last one.
    fn run(pace: &mut Background, now: &mut u64, seconds: u64, took: u64) -> u64 {
        let end = *now + seconds * 1_000;
        let mut last = 0;
        while *now < end {
            match pace.take(*now) {
                Ok(()) => {
                    pace.came(PART);
                    pace.passed(*now + took, took);
                    last += u64::from(*now >= end - 1_000) * PART;
                }
                Err(at) => *now = at.min(end),
            }
        }
        last
    }

    #[test]
    fn a_copy_is_fast_in_a_quiet_group_and_slow_in_a_busy_one() {
        let mut pace = Background::new(64 << 20, 512 << 10);
        let mut now = 0;
        assert!(run(&mut pace, &mut now, 10, 8) > 60 << 20, "quiet");
        let busy = run(&mut pace, &mut now, 10, 30);
        assert!((LEAST_RATE..LEAST_RATE * 5 / 4).contains(&busy), "{busy}");
        assert!(run(&mut pace, &mut now, 10, 9) > 60 << 20, "quiet again");
    }

    #[test]
    fn a_copy_is_slow_while_a_live_follower_is_behind() {
        let mut pace = Background::new(64 << 20, 512 << 10);
        let mut now = 0;
        run(&mut pace, &mut now, 10, 8);
        pace.set_lag(100);
        assert!(run(&mut pace, &mut now, 10, 8) < LEAST_RATE * 5 / 4);
        pace.set_lag(0);
        assert!(run(&mut pace, &mut now, 10, 8) > 60 << 20);
    }

    #[test]
    fn a_group_that_became_slower_for_good_is_not_busy_for_ever() {
        let mut pace = Background::new(64 << 20, 512 << 10);
        let mut now = 0;
        run(&mut pace, &mut now, 10, 8);
        run(&mut pace, &mut now, 2 * MEMORY_MS / 1_000 + 10, 30);
        assert!(run(&mut pace, &mut now, 10, 30) > 60 << 20);
    }

    #[test]
    fn no_rate_exceeds_the_limit() {
        let mut pace = Background::new(1 << 20, 512 << 10);
        assert!(run(&mut pace, &mut 0, 10, 1) <= (1 << 20) + PART);
        let mut pace = Background::new(0, 512 << 10);
        assert!(run(&mut pace, &mut 0, 20, 1) > 100 << 20, "0 is no limit");
    }
}
