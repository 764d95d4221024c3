//! What members tell the leader with their answers to heartbeats, beside that they are alive.

use types::NodeId;

use crate::{Comparison, Raft, Role, StateDigest};

impl Raft {
    /// Returns the highest feature level that all members support, learners included, if this node leads and all of them
    /// told it their levels.
    pub fn common_feature_level(&self) -> Option<u32> {
        if self.role != Role::Leader {
            return None;
        }
        self.progress
            .values()
            .try_fold(self.options.feature_level, |lowest, follower| {
                Some(lowest.min(follower.feature_level?))
            })
    }

    /// Sets the comparison of states that the heartbeats of this leader carry.
    pub fn set_comparison(&mut self, comparison: Option<Comparison>) {
        self.comparison = comparison;
    }

    /// Sets the digest with which this member answers heartbeats.
    pub fn set_digest(&mut self, digest: Option<StateDigest>) {
        self.digest = digest;
    }

    /// Returns the latest digest that each follower told this leader; nothing on other nodes.
    pub fn digests(&self) -> impl Iterator<Item = (NodeId, StateDigest)> {
        self.progress
            .iter()
            .filter_map(|(node, progress)| Some((*node, progress.digest?)))
    }

    /// Returns the voters that told this leader another value of [`Options::lease_reads`](crate::Options) than its own.
    pub fn lease_disagreement(&self) -> Vec<NodeId> {
        let own = self.options.lease_reads;
        let disagrees = |node: &NodeId| {
            let told = self.progress.get(node).and_then(|it| it.lease);
            told.is_some_and(|told| told.lease_reads != own)
        };
        self.log.membership().voters().filter(disagrees).collect()
    }
}
