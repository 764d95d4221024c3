//! Measures how far the slowest live follower is behind its leader's log.

use std::collections::VecDeque;

use raft::{Index, ProgressState};
use types::NodeId;

/// The shortest time between two samples, in milliseconds.
const SAMPLE_EVERY_MS: u64 = 50;
/// A follower that is behind for longer doesn't count as live: a snapshot brings it up.
const LIVE_WITHIN_MS: u64 = 5_000;

/// The end of the leader's log over the last [`LIVE_WITHIN_MS`], and once before.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// The times of samples with the log's last index, in order.
    samples: VecDeque<(u64, Index)>,
}

impl Lag {
    /// Forgets the samples, because this node doesn't lead any more.
    pub(super) fn forget(&mut self) {
        self.samples.clear();
    }

    /// Takes the last index of the leader's log, and the followers' match indexes. Returns the time for which the slowest live
    /// follower is behind, in milliseconds.
    pub(super) fn measure(
        &mut self,
        now_ms: u64,
        last: Index,
        followers: &[(NodeId, Index, ProgressState)],
    ) -> u64 {
        let followed = followers
            .iter()
            .filter(|(.., state)| *state == ProgressState::Replicate);
        let lags = followed.map(|(_, matched, _)| self.behind(now_ms, *matched));
        let lag = lags.filter(|lag| *lag < LIVE_WITHIN_MS).max();
        let is_due = |(at, _): &(u64, Index)| now_ms >= at.saturating_add(SAMPLE_EVERY_MS);
        if self.samples.back().is_none_or(is_due) {
            self.samples.push_back((now_ms, last));
        }
        // One old sample stays: what a follower that isn't live has missed.
        let is_old = |(at, _): &(u64, Index)| at.saturating_add(LIVE_WITHIN_MS) <= now_ms;
        while self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
        lag.unwrap_or_default()
    }

    /// Returns the age of the oldest sample that a follower with this match index hasn't reached.
    fn behind(&self, now_ms: u64, matched: Index) -> u64 {
        let missed = self.samples.iter().find(|(_, last)| *last > matched);
        missed.map_or(0, |(at, _)| now_ms.saturating_sub(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_live_follower_counts() {
        use ProgressState::{Probe, Replicate};
        let mut lag = Lag::default();
        let mut at = |now, last, slow| {
            let followers = [(last, Replicate), (slow, Replicate), (0, Probe)];
            let followers = (2..).zip(followers);
            let followers =
                followers.map(|(node, (matched, state))| (NodeId(node), Index(matched), state));
            lag.measure(now, Index(last), &followers.collect::<Vec<_>>())
        };
        assert_eq!(at(1_000, 10, 10), 0);
        assert_eq!(at(1_100, 20, 10), 0, "what came just now is on its way");
        assert_eq!(at(1_300, 30, 10), 200);
        assert_eq!(at(1_400, 40, 25), 100);
        assert_eq!(at(1_500, 40, 40), 0);
        assert_eq!(at(1_600, 50, 40), 0);
        assert_eq!(at(6_500, 60, 40), 4_900);
        for now in (6_600..20_000).step_by(100) {
            assert_eq!(at(now, now, 40), 0, "it needs a snapshot by now");
        }
        assert_eq!(at(20_000, 20_000, 19_900), 0, "it is back");
    }
}
