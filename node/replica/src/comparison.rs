//! The comparison of the members' states, which finds a replica whose state differs.
//!
//! The leader picks the latest of its checkpoints and asks for it with its heartbeats. Members answer with their digests of
//! just this checkpoint, if they have it. If a quorum of the voters has the same digest, the heartbeats name it, and a
//! member that has another one stops with [`StoreError::Diverged`], the leader too. Each member judges by its own digest, so an
//! answer that comes late, from before a snapshot was installed, convicts nobody. If no quorum agrees, nobody knows which
//! states are right: nobody stops, and [`StateComparison`] tells the operator.
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
    /// The comparison that this leader makes now: its own digest, and the ticks since it began.
    asked: Option<(StateDigest, u32)>,
    pub(crate) result: StateComparison,
    /// The error that stops this replica.
    pub(crate) diverged: Option<StoreError>,
}

impl Comparing {
    /// Forgets the digests of a state that a snapshot replaced.
    pub(crate) fn forget_state(&mut self) {
        self.checkpoints.clear();
        self.asked = None;
    }

    /// Stops this replica if its own digest isn't the one that a quorum has.
    fn judge(&mut self, own: StateDigest, agreed: u64) {
        if own.value != agreed && self.diverged.is_none() {
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
        if let (Some(own), Some(agreed)) = (own, comparison.agreed)
            && self.raft.leader() == Some(from)
        {
            self.comparing.judge(own, agreed);
        }
    }

    /// Makes the comparisons of a leader.
    pub(crate) fn compare_states(&mut self) {
        if self.raft.role() != Role::Leader {
            self.comparing.asked = None;
            self.comparing.result = StateComparison::default();
            self.raft.set_comparison(None);
            return;
        }
        let heartbeat_ticks = self.options.raft.heartbeat_ticks;
        let Some((own, ticks)) = &mut self.comparing.asked else {
            self.begin_comparison();
            return;
        };
        *ticks = ticks.saturating_add(1);
        let (own, heartbeats) = (*own, *ticks / heartbeat_ticks.max(1));
        let answers = self.answers(own);
        let agreed = self.evaluate(own, &answers, heartbeats);
        let awaited = |node: NodeId| self.raft.is_active(node) && !answers.contains_key(&node);
        let waits = self
            .raft
            .membership()
            .members()
            .any(|(node, _)| awaited(node));
        let done = agreed && !waits;
        if heartbeats >= MOST_HEARTBEATS || done && heartbeats >= LEAST_HEARTBEATS {
            self.begin_comparison();
        }
    }

    fn begin_comparison(&mut self) {
        let before = self.comparing.asked.map(|(own, _)| own);
        let Some(latest) = self.comparing.checkpoints.last() else {
            return;
        };
        if before == Some(latest) {
            return;
        }
        self.comparing.asked = Some((latest, 0));
        self.raft.set_comparison(Some(Comparison {
            since: latest.since,
            index: latest.index,
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

    /// Draws the conclusions from the answers. Returns true if a quorum agrees.
    fn evaluate(
        &mut self,
        own: StateDigest,
        answers: &BTreeMap<NodeId, u64>,
        heartbeats: u32,
    ) -> bool {
        let membership = self.raft.membership();
        let has_quorum =
            |value: &u64| membership.has_quorum(|node| answers.get(&node) == Some(value));
        let possible = |value: u64| {
            membership.has_quorum(|node| answers.get(&node).is_none_or(|it| *it == value))
        };
        let values: BTreeSet<u64> = answers.values().copied().collect();
        let agreed = values.iter().copied().find(has_quorum);
        let open = values.iter().any(|value| possible(*value)) && heartbeats < MOST_HEARTBEATS;
        let result = &mut self.comparing.result;
        let Some(agreed) = agreed else {
            result.undecided |= values.len() > 1 && !open;
            return false;
        };
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
        self.raft.set_comparison(Some(Comparison {
            since: own.since,
            index: own.index,
            agreed: Some(agreed),
        }));
        self.comparing.judge(own, agreed);
        true
    }
}
