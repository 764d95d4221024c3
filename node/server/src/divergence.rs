//! Tells the operator in what the members of the group differ, as this leader found: their states, and an option that all should
//! have alike.

use replica::{StateComparison, Status};
use types::NodeId;

use crate::metrics::{ReplicaMetrics, set};

/// The last findings, so that each finding is logged once.
#[derive(Debug, Default)]
pub(crate) struct Divergence {
    known: StateComparison,
    lease_disagreement: Vec<NodeId>,
}

impl Divergence {
    /// Sets the metrics, and logs what is new.
    pub(crate) fn note(&mut self, status: &Status, metrics: &ReplicaMetrics) {
        self.note_states(&status.comparison, metrics);
        self.note_leases(&status.lease_disagreement, metrics);
    }

    fn note_leases(&mut self, voters: &[NodeId], metrics: &ReplicaMetrics) {
        set(&metrics.lease_reads_disagreeing, voters.len() as u64);
        if !voters.is_empty() && self.lease_disagreement.is_empty() {
            tracing::warn!(
                ?voters,
                "these voters have another value of lease_reads than this leader. Reads are right, but how they are served \
                 depends on which node leads: give all nodes of the group the same value"
            );
        }
        if voters != self.lease_disagreement {
            self.lease_disagreement = voters.to_vec();
        }
    }

    fn note_states(&mut self, found: &StateComparison, metrics: &ReplicaMetrics) {
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
        seen.note_states(&found, &metrics);
        assert_eq!(values(&metrics), [2_048, 1, 1]);
        assert_eq!(seen.known, found);
        seen.note_states(&StateComparison::default(), &metrics);
        assert_eq!(values(&metrics), [0; 3]);
        assert_eq!(seen.known, StateComparison::default());
        for voters in [&[NodeId(2), NodeId(3)][..], &[]] {
            seen.note_leases(voters, &metrics);
            let count = metrics.lease_reads_disagreeing.get();
            assert_eq!(count, i64::try_from(voters.len()).unwrap());
        }
    }
}
