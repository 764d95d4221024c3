//! The leader's view of one follower, and the window of unanswered appends to it.
//!
//! # Invariants
//!
//! - `match_index < next_index`. `match_index` never goes back within a term.
//! - In `Probe` at most one append is unanswered, in `Replicate` at most the window. If heartbeats show that answers
//!   may be lost, the leader repeats the probe, or sends an append without entries. In `Snapshot` it sends no appends.
//! - `inflight` is empty but in `Replicate`; its indexes ascend within `(match_index, next_index)`, and
//!   `inflight_bytes` is the sum of its sizes.
//! - `match_index` is at most the leader's last index.

use std::collections::VecDeque;

use crate::{Index, LeasePromise, Options, ProgressState, StateDigest};

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) match_index: Index,
    pub(crate) next_index: Index,
    pub(crate) state: ProgressState,
    /// Ticks since the last answer of the follower.
    pub(crate) silent_ticks: u32,
    /// True if the follower answered in this term.
    pub(crate) answered: bool,
    /// The highest feature level that the follower supports, once it told this leader.
    pub(crate) feature_level: Option<u32>,
    /// The promise of the follower to leaders with leases, once it told this leader.
    pub(crate) lease: Option<LeasePromise>,
    /// The latest digest of its state that the follower told this leader.
    pub(crate) digest: Option<StateDigest>,
    /// The latest read round that the follower answered.
    pub(crate) read_round: u64,
    /// True if an append is due even if there is no entry to send.
    pub(crate) nudge: bool,
    /// The greatest commit index that a message to the follower carried.
    told_commit: Index,
    probe: ProbeSent,
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
}

/// The state of the unanswered probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeSent {
    No,
    Yes,
    /// A heartbeat left after the probe. If the follower answers the heartbeat first, the probe may be lost.
    BeforeHeartbeat,
}

impl Progress {
    pub(crate) fn new(next_index: Index) -> Self {
        Self {
            match_index: Index(0),
            next_index,
            state: ProgressState::Probe,
            silent_ticks: 0,
            answered: false,
            feature_level: None,
            lease: None,
            digest: None,
            read_round: 0,
            nudge: true,
            told_commit: Index(0),
            probe: ProbeSent::No,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// Records that the follower answered.
    pub(crate) fn hear(&mut self) {
        self.silent_ticks = 0;
        self.answered = true;
    }

    /// Returns true if the leader may send entries now.
    pub(crate) fn has_room(&self, options: &Options) -> bool {
        match self.state {
            ProgressState::Probe => self.probe == ProbeSent::No,
            ProgressState::Replicate => {
                self.inflight.len() < options.max_inflight_appends
                    && self.inflight_bytes < options.max_inflight_bytes
            }
            ProgressState::Snapshot => false,
        }
    }

    /// Returns true if an append is due, where the leader's log ends at `last`. An append without entries needs no room
    /// in the window: when the answers to a full window were lost, the answer to it opens the window again.
    pub(crate) fn is_due(&self, options: &Options, last: Index) -> bool {
        let asks = self.nudge && self.state == ProgressState::Replicate;
        asks || self.has_room(options) && (self.next_index <= last || self.nudge)
    }

    /// Returns true if the follower must be told that its whole log is committed, where the leader's log ends at `last`. While
    /// entries wait for a quorum or for the follower, the appends that carry the next ones tell it.
    pub(crate) fn owes_commit(&self, commit: Index, last: Index) -> bool {
        self.state == ProgressState::Replicate
            && commit == last
            && self.match_index == last
            && self.told_commit < commit
    }

    /// Records that a message told the follower the commit index.
    pub(crate) fn commit_told(&mut self, commit: Index) {
        self.told_commit = self.told_commit.max(commit);
    }

    /// Records that an append that ends at `last` was sent.
    pub(crate) fn sent(&mut self, last: Index, bytes: usize, empty: bool) {
        self.nudge = false;
        match self.state {
            ProgressState::Probe => self.probe = ProbeSent::Yes,
            ProgressState::Replicate if !empty => {
                self.next_index = last.next();
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
            }
            ProgressState::Replicate | ProgressState::Snapshot => {}
        }
    }

    /// Records that the follower holds everything up to `match_index`. Returns true if its match index advanced.
    pub(crate) fn accepted(&mut self, match_index: Index) -> bool {
        let advanced = match_index > self.match_index;
        self.match_index = self.match_index.max(match_index);
        self.next_index = self.next_index.max(self.match_index.next());
        while let Some((_, bytes)) = self.inflight.pop_front_if(|(last, _)| *last <= match_index) {
            self.inflight_bytes -= bytes;
        }
        if self.state == ProgressState::Probe {
            self.switch_to(ProgressState::Replicate);
            self.next_index = self.match_index.next();
        }
        advanced
    }

    /// Records that the follower refused an append after `refused`; its log may agree up to `candidate`. Returns false
    /// if the answer is stale.
    pub(crate) fn rejected(&mut self, refused: Index, candidate: Index) -> bool {
        let stale = match self.state {
            ProgressState::Replicate => refused <= self.match_index,
            ProgressState::Probe => refused != self.next_index.prev(),
            ProgressState::Snapshot => true,
        };
        if stale {
            return false;
        }
        self.next_index = candidate.min(refused.prev()).max(self.match_index).next();
        self.switch_to(ProgressState::Probe);
        self.nudge = true;
        true
    }

    /// Records that a heartbeat was sent.
    pub(crate) fn heartbeat_sent(&mut self) {
        if self.probe == ProbeSent::Yes {
            self.probe = ProbeSent::BeforeHeartbeat;
        }
    }

    /// Records that the follower answered a heartbeat. Earlier appends that it didn't answer may be lost, so an append
    /// is due that asks for its position.
    pub(crate) fn alive(&mut self, last: Index) {
        self.hear();
        match self.state {
            ProgressState::Probe if self.probe == ProbeSent::BeforeHeartbeat => {
                self.probe = ProbeSent::No;
                self.nudge = true;
            }
            ProgressState::Replicate => self.nudge |= self.match_index < last,
            ProgressState::Probe | ProgressState::Snapshot => {}
        }
    }

    /// Treats all appends in flight as lost and probes from the match index. The follower's process may be another now.
    pub(crate) fn restart(&mut self) {
        self.feature_level = None;
        self.lease = None;
        self.digest = None;
        if self.state == ProgressState::Replicate {
            self.next_index = self.match_index.next();
            self.switch_to(ProgressState::Probe);
        }
        self.probe = ProbeSent::No;
        self.nudge = true;
    }

    pub(crate) fn switch_to(&mut self, state: ProgressState) {
        self.state = state;
        self.probe = ProbeSent::No;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// Panics if the view violates the invariants of this module; `last` is the last index of the leader's log.
    pub(crate) fn check_invariants(&self, last: Index) {
        assert!(
            self.match_index < self.next_index,
            "match_index < next_index"
        );
        assert!(self.match_index <= last, "a follower matches what exists");
        if self.state != ProgressState::Replicate {
            assert!(self.inflight.is_empty(), "only Replicate sends ahead");
        }
        let (mut before, mut bytes) = (self.match_index, 0);
        for (index, size) in &self.inflight {
            assert!(*index > before, "appends in flight ascend after the match");
            before = *index;
            bytes += size;
        }
        assert!(
            before < self.next_index,
            "appends in flight end before the next"
        );
        assert!(bytes == self.inflight_bytes, "bytes in flight are counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            max_inflight_appends: 2,
            ..Options::default()
        }
    }

    fn replicating() -> Progress {
        let mut progress = Progress::new(Index(1));
        progress.sent(Index(1), 10, false);
        progress.accepted(Index(1));
        progress.nudge = false;
        progress
    }

    #[test]
    fn a_full_window_lets_only_questions_through() {
        let mut progress = replicating();
        progress.sent(Index(2), 10, false);
        progress.sent(Index(3), 10, false);
        assert!(!progress.is_due(&options(), Index(9)));
        for _ in 0..10 {
            progress.heartbeat_sent();
            progress.alive(Index(9));
            assert!(progress.is_due(&options(), Index(9)));
            assert!(!progress.has_room(&options()), "heartbeats open no window");
            progress.sent(Index(3), 0, true);
            assert!(!progress.is_due(&options(), Index(9)));
        }
        assert!(progress.accepted(Index(2)));
        assert!(progress.has_room(&options()));
    }

    #[test]
    fn a_probe_is_repeated_only_after_a_later_heartbeat() {
        let mut progress = Progress::new(Index(5));
        progress.heartbeat_sent();
        progress.sent(Index(5), 10, false);
        progress.alive(Index(5));
        assert!(
            !progress.is_due(&options(), Index(5)),
            "the probe is still on its way"
        );
        progress.heartbeat_sent();
        progress.alive(Index(5));
        assert!(progress.is_due(&options(), Index(5)));
    }

    #[test]
    fn stale_refusals_change_nothing() {
        let mut progress = replicating();
        assert!(!progress.rejected(Index(1), Index(0)), "it matches already");
        assert!(
            progress.rejected(Index(4), Index(9)),
            "a hint beyond the refused index"
        );
        assert_eq!(
            (progress.state, progress.next_index),
            (ProgressState::Probe, Index(4))
        );
        assert!(
            !progress.rejected(Index(9), Index(2)),
            "not what was probed"
        );
        assert!(progress.rejected(Index(3), Index(0)));
        assert_eq!(progress.next_index, Index(2), "never below what matches");
    }
}
