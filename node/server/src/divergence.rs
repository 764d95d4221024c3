//! Tells the operator what the leader's comparisons of its members' states found.

use replica::StateComparison;

use crate::metrics::{ReplicaMetrics, set};

/// What was found last, so that each finding is logged once.
#[derive(Debug, Default)]
pub(crate) struct Divergence {
    known: StateComparison,
}

impl Divergence {
    /// Sets the metrics, and logs what is new.
    pub(crate) fn note(&mut self, found: &StateComparison, metrics: &ReplicaMetrics) {
        set(&metrics.states_agreed_index, found.agreed.0);
        set(&metrics.states_differing, found.differing.len() as u64);
        metrics.states_undecided.set(found.undecided.into());
        for node in found.differing.difference(&self.known.differing) {
            tracing::error!(
                %node, agreed = %found.agreed,
                "the state of this member differs from that of a quorum: it stops with exit code 13. Keep a copy of its \
                 data directory, and replace it"
            );
        }
        if found.undecided && !self.known.undecided {
            tracing::error!(
                "the states of members differ, and no quorum of the voters agrees, so nobody knows which are right: no member \
                 stops. Keep the volumes of all members, and report this"
            );
        }
        if *found != self.known {
            self.known.clone_from(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use raft::Index;
    use types::NodeId;

    use super::*;

    #[test]
    fn findings_come_and_go() {
        let mut seen = Divergence::default();
        let metrics = ReplicaMetrics::default();
        let found = StateComparison {
            agreed: Index(2_048),
            differing: BTreeSet::from([NodeId(3)]),
            undecided: true,
        };
        let values = |metrics: &ReplicaMetrics| {
            [
                metrics.states_agreed_index.get(),
                metrics.states_differing.get(),
                metrics.states_undecided.get(),
            ]
        };
        seen.note(&found, &metrics);
        assert_eq!(values(&metrics), [2_048, 1, 1]);
        assert_eq!(seen.known, found);
        seen.note(&StateComparison::default(), &metrics);
        assert_eq!(values(&metrics), [0; 3]);
        assert_eq!(seen.known, StateComparison::default());
    }
}
