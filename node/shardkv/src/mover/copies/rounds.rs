//! The rounds of a copy, which decide when it has caught up with its source.
//!
//! Rounds follow a shard that changes. If the copy is faster than the changes, each round is smaller than the one before, however large
//! the shard is, until one is so small that the shard waits only for a moment at the cut. If the changes are as fast as the
//! copy, more rounds bring nothing: then the copy is *hurried*, and the shard waits at the cut for about as long as a round takes.

/// A round of at most this many bytes leaves little to do at the cut.
const SMALL_ROUND_BYTES: u64 = 64 << 10;
/// So does one that the copy's pace makes up for in this many milliseconds.
const SMALL_ROUND_MS: u64 = 20;
/// The least rounds before a copy is hurried: one round may be larger than the one before by chance.
const MIN_ROUNDS: u32 = 3;
/// The most rounds before a copy is hurried.
const MAX_ROUNDS: u32 = 24;

/// The rounds of one copy since this leader drives it.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// The rounds since the last small one.
    ended: u32,
    /// The bytes of the present round, and of the one before.
    bytes: u64,
    before: u64,
    is_hurried: bool,
}

impl Rounds {
    /// Counts bytes of the present round.
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Ends the present round of a copy that receives `pace` bytes a millisecond. Returns true if the copy has caught up.
    pub(super) fn end(&mut self, pace: u64) -> bool {
        self.ended = self.ended.saturating_add(1);
        let bytes = std::mem::take(&mut self.bytes);
        let before = std::mem::replace(&mut self.before, bytes);
        if bytes <= SMALL_ROUND_BYTES.max(pace.saturating_mul(SMALL_ROUND_MS)) {
            // A burst after it begins another chase.
            self.ended = 0;
            return true;
        }
        let shrinks = bytes <= before / 4 * 3;
        self.is_hurried |= self.ended >= MAX_ROUNDS || self.ended >= MIN_ROUNDS && !shrinks;
        self.is_hurried
    }

    /// Returns true if the copy counts as caught up although its rounds aren't small.
    pub(super) fn are_hurried(&self) -> bool {
        self.is_hurried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends rounds of these many bytes. Returns the number of the first after which the copy has caught up, and whether it was hurried.
    fn caught_up(rounds: impl IntoIterator<Item = u64>, pace: u64) -> (u32, bool) {
        let mut all = Rounds::default();
        for (number, bytes) in (1..).zip(rounds) {
            all.add(bytes);
            if all.end(pace) {
                return (number, all.are_hurried());
            }
        }
        panic!("it never caught up");
    }

    #[test]
    fn a_small_round_ends_the_chase() {
        assert_eq!(caught_up([SMALL_ROUND_BYTES], 0), (1, false));
        assert_eq!(
            caught_up([SMALL_ROUND_BYTES + 1, SMALL_ROUND_BYTES], 0),
            (2, false)
        );
        let pace = 64 << 10;
        let small = pace * SMALL_ROUND_MS;
        assert_eq!(caught_up([small + 1, small], pace), (2, false));
    }

    #[test]
    fn a_copy_that_is_faster_than_the_changes_needs_no_hurry_however_large_the_shard_is() {
        let halves = std::iter::successors(Some(1_u64 << 34), |bytes| Some(bytes / 2));
        assert_eq!(caught_up(halves, 0), (19, false));
        let slower = std::iter::successors(Some(8_u64 << 20), |bytes| Some(bytes / 4 * 3));
        assert_eq!(caught_up(slower, 0), (18, false));
    }

    #[test]
    fn a_copy_that_gains_nothing_is_hurried() {
        assert_eq!(caught_up([1 << 20; 10], 0), (MIN_ROUNDS, true));
        // The third round isn't smaller by a quarter.
        let bytes = 8 << 20;
        assert_eq!(
            caught_up([2 * bytes, bytes, bytes / 4 * 3 + 1], 0),
            (MIN_ROUNDS, true)
        );
        assert_eq!(
            caught_up([2 * bytes, bytes, bytes / 4 * 3, bytes], 0),
            (4, true)
        );
    }

    #[test]
    fn rounds_end() {
        let endless = std::iter::successors(Some(1_u64 << 60), |bytes| Some(bytes / 4 * 3));
        assert_eq!(caught_up(endless, 0), (MAX_ROUNDS, true));
    }

    #[test]
    fn a_hurried_copy_stays_caught_up_and_another_one_may_fall_behind() {
        let mut rounds = Rounds::default();
        for _ in 0..MAX_ROUNDS {
            rounds.add(1);
            assert!(rounds.end(0));
        }
        for _ in 1..MIN_ROUNDS {
            rounds.add(1 << 20);
            assert!(!rounds.end(0), "a round was large again");
        }
        rounds.add(1 << 20);
        assert!(rounds.end(0));
        rounds.add(1 << 10);
        assert!(rounds.end(0) && rounds.are_hurried());
    }
}
