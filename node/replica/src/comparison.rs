//! The comparison of the members' states, which finds a replica whose state differs.
//!
//! The leader picks the latest of its checkpoints and asks for it with its heartbeats. Members answer with their digests of
//! just this checkpoint, if they have it. If a quorum of the voters has the same digest, the heartbeats name it, and a
//! member that has another one stops with [`StoreError::Diverged`], the leader too. Each member judges by its own digest, so an
//! answer that comes late, from before a snapshot was installed, convicts nobody. If no quorum agrees, nobody knows which
//! states are right: nobody stops, and [`StateComparison`] tells the operator.
//!
//! A fault in the leader's memory must not stop its followers. So the leader concludes anew at each tick, from the members' answers
//! and its own checkpoint, and a member stops only if it gets the same verdict again after a heartbeat interval, without another
//! one in between.
//!
//! A chain keeps each difference, so a comparison that is missed costs only time: the next one finds it.

use std::collections::{BTreeMap, BTreeSet};

use raft::{Comparison, Envelope, Index, Message, Role, StateDigest, StoreError};
use types::NodeId;

use crate::digest::Checkpoints;
use crate::{Replica, StateMachine};

/// The shortest time between two comparisons, in heartbeat intervals. A lost heartbeat doesn't matter within it.
const LEAST_HEARTBEATS: u32 = 10;
/// The time after which a leader no longer waits for members that don't answer.
const MOST_HEARTBEATS: u32 = 100;

/// The result of the leader's comparisons of its members' states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateComparison {
    /// The last entry up to which a quorum of the voters had the same digest.
    pub agreed: Index,
    /// The members whose digest differed from the quorum's when they answered last.
    pub differing: BTreeSet<NodeId>,
    /// True if the last comparison found different states, and no quorum that agrees.
    pub undecided: bool,
}

/// The comparisons of a replica.
#[derive(Debug, Default)]
pub(crate) struct Comparing {
    pub(crate) checkpoints: Checkpoints,
    /// The comparison that this leader makes now.
    asked: Option<Asked>,
    /// The last verdict, if it was against this replica, and the ticks since it came first.
    suspicion: Option<(Comparison, u32)>,
    pub(crate) result: StateComparison,
    /// The error that stops this replica.
    pub(crate) diverged: Option<StoreError>,
}

/// A comparison that a leader makes: the checkpoint, and the ticks since the comparison began.
#[derive(Clone, Copy, Debug)]
struct Asked {
    since: Index,
    index: Index,
    ticks: u32,
}

impl Comparing {
    /// Forgets the digests of a state that a snapshot replaced.
    pub(crate) fn forget_state(&mut self) {
        self.checkpoints.clear();
        self.asked = None;
        self.suspicion = None;
    }

    fn tick(&mut self) {
        if let Some((_, ticks)) = &mut self.suspicion {
            *ticks = ticks.saturating_add(1);
        }
    }

    /// Stops this replica if its own digest isn't the one that a quorum has, and if the same was found a heartbeat interval ago.
    fn judge(&mut self, own: StateDigest, verdict: Comparison, heartbeat_ticks: u32) {
        let Some(agreed) = verdict.agreed.filter(|agreed| *agreed != own.value) else {
            self.suspicion = None;
            return;
        };
        let since = self.suspicion.filter(|(before, _)| *before == verdict);
        let (_, ticks) = *self.suspicion.insert(since.unwrap_or((verdict, 0)));
        if ticks >= heartbeat_ticks.max(1) && self.diverged.is_none() {
            self.diverged = Some(StoreError::Diverged(format!(
                "after the entries {} to {} the digest of what was applied is {:016x} here, and {agreed:016x} on a quorum \
                 of the voters",
                own.since.next(),
                own.index,
                own.value
            )));
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// Prepares the answer to a heartbeat: this replica's digest for the leader's comparison.
    pub(crate) fn answer_comparison(&mut self, envelope: &Envelope) -> Option<Comparison> {
        let Message::Heartbeat { comparison, .. } = &envelope.message else {
            return None;
        };
        let checkpoints = &self.comparing.checkpoints;
        let own = comparison.and_then(|it| checkpoints.find(it.since, it.index));
        self.raft.set_digest(own);
        *comparison
    }

    /// Takes the result of a comparison from the leader's heartbeat.
    pub(crate) fn take_comparison(&mut self, from: NodeId, comparison: Comparison) {
        let own = self
            .comparing
            .checkpoints
            .find(comparison.since, comparison.index);
        if let Some(own) = own
            && self.raft.leader() == Some(from)
        {
            let heartbeat_ticks = self.options.raft.heartbeat_ticks;
            self.comparing.judge(own, comparison, heartbeat_ticks);
        }
    }

    /// Makes the comparisons of a leader. It runs at each tick.
    pub(crate) fn compare_states(&mut self) {
        self.comparing.tick();
        if self.raft.role() != Role::Leader {
            self.comparing.asked = None;
            self.comparing.result = StateComparison::default();
            self.raft.set_comparison(None);
            return;
        }
        let heartbeat_ticks = self.options.raft.heartbeat_ticks;
        let Some(asked) = &mut self.comparing.asked else {
            self.begin_comparison();
            return;
        };
        asked.ticks = asked.ticks.saturating_add(1);
        let Asked {
            since,
            index,
            ticks,
        } = *asked;
        let Some(own) = self.comparing.checkpoints.find(since, index) else {
            self.begin_comparison();
            return;
        };
        let heartbeats = ticks / heartbeat_ticks.max(1);
        let answers = self.answers(own);
        let agreed = self.evaluate(own, &answers, heartbeats);
        // A member that differs needs time to hear the verdict twice. Then it stops.
        let awaited =
            |node: NodeId| self.raft.is_active(node) && answers.get(&node) != agreed.as_ref();
        let waits = self
            .raft
            .membership()
            .members()
            .any(|(node, _)| awaited(node));
        let done = agreed.is_some() && !waits;
        if heartbeats >= MOST_HEARTBEATS || done && heartbeats >= LEAST_HEARTBEATS {
            self.begin_comparison();
        }
    }

    fn begin_comparison(&mut self) {
        let before = self.comparing.asked.map(|it| (it.since, it.index));
        let Some(StateDigest { since, index, .. }) = self.comparing.checkpoints.last() else {
            return;
        };
        if before == Some((since, index)) {
            return;
        }
        self.comparing.asked = Some(Asked {
            since,
            index,
            ticks: 0,
        });
        self.raft.set_comparison(Some(Comparison {
            since,
            index,
            agreed: None,
        }));
    }

    /// Returns the digests that members have at the checkpoint of `own`.
    fn answers(&self, own: StateDigest) -> BTreeMap<NodeId, u64> {
        let same = |it: &StateDigest| (it.since, it.index) == (own.since, own.index);
        let followers = self.raft.digests().filter(|(_, digest)| same(digest));
        followers
            .map(|(node, digest)| (node, digest.value))
            .chain([(self.raft.node(), own.value)])
            .collect()
    }

    /// Draws the conclusions from the answers. Returns the digest that a quorum has, if there is one.
    fn evaluate(
        &mut self,
        own: StateDigest,
        answers: &BTreeMap<NodeId, u64>,
        heartbeats: u32,
    ) -> Option<u64> {
        let membership = self.raft.membership();
        let has_quorum =
            |value: &u64| membership.has_quorum(|node| answers.get(&node) == Some(value));
        let possible = |value: u64| {
            membership.has_quorum(|node| answers.get(&node).is_none_or(|it| *it == value))
        };
        let values: BTreeSet<u64> = answers.values().copied().collect();
        let agreed = values.iter().copied().find(has_quorum);
        let open = values.iter().any(|value| possible(*value)) && heartbeats < MOST_HEARTBEATS;
        let verdict = Comparison {
            since: own.since,
            index: own.index,
            agreed,
        };
        let result = &mut self.comparing.result;
        if let Some(agreed) = agreed {
            result.undecided = false;
            result.agreed = own.index;
            for (node, value) in answers {
                if *value == agreed {
                    result.differing.remove(node);
                } else {
                    result.differing.insert(*node);
                }
            }
            let is_member = |node: &NodeId| membership.get(*node).is_some();
            result.differing.retain(is_member);
        } else {
            result.undecided |= values.len() > 1 && !open;
        }
        self.raft.set_comparison(Some(verdict));
        let heartbeat_ticks = self.options.raft.heartbeat_ticks;
        self.comparing.judge(own, verdict, heartbeat_ticks);
        agreed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT_TICKS: u32 = 3;

    /// Lets ticks pass, then gives a verdict to a replica with the digest 5. Returns true if it stops the replica.
    fn judge(comparing: &mut Comparing, ticks: u32, index: u64, agreed: Option<u64>) -> bool {
        let (since, index) = (Index(1), Index(index));
        for _ in 0..ticks {
            comparing.tick();
        }
        let own = StateDigest {
            since,
            index,
            value: 5,
        };
        let verdict = Comparison {
            since,
            index,
            agreed,
        };
        comparing.judge(own, verdict, HEARTBEAT_TICKS);
        comparing.diverged.is_some()
    }

    #[test]
    fn a_verdict_counts_once_it_is_given_again_after_a_heartbeat_interval() {
        let mut comparing = Comparing::default();
        assert!(!judge(&mut comparing, 0, 9, Some(7)));
        assert!(!judge(&mut comparing, 0, 9, Some(7)));
        assert!(!judge(&mut comparing, HEARTBEAT_TICKS - 1, 9, Some(7)));
        assert!(judge(&mut comparing, 1, 9, Some(7)));
    }

    #[test]
    fn another_verdict_in_between_takes_the_first_back() {
        for (index, agreed) in [(9, Some(5)), (9, None), (9, Some(6)), (8, Some(7))] {
            let mut comparing = Comparing::default();
            assert!(!judge(&mut comparing, 0, 9, Some(7)));
            assert!(!judge(&mut comparing, HEARTBEAT_TICKS, index, agreed));
            assert!(!judge(&mut comparing, 0, 9, Some(7)));
            assert!(judge(&mut comparing, HEARTBEAT_TICKS, 9, Some(7)));
        }
        let mut comparing = Comparing::default();
        assert!(!judge(&mut comparing, 0, 9, Some(7)));
        comparing.forget_state();
        assert!(!judge(&mut comparing, HEARTBEAT_TICKS, 9, Some(7)));
    }
}
