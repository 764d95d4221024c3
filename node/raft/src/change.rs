//! Membership changes of a leader: one at a time, in force when appended (thesis §4.1 to §4.3).

use types::NodeId;

use crate::bug::Bug;
use crate::progress::Progress;
use crate::replication::ProposeError;
use crate::{
    EntryId, Index, MembershipChange, MembershipError, Message, Payload, ProgressState, Raft, Role,
};

/// The most entries that a learner may be behind the commit index and become a voter.
const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// The reason for refusing a membership change. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node can't propose now.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The previous change, or the first entry of this leader's term, is not committed yet: overlapping changes could
    /// make disjoint quorums.
    #[error("another change is not committed yet")]
    Busy,
    /// The change contradicts the membership in force.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The learner lacks too many entries: as a voter it could not acknowledge new ones yet.
    #[error("the learner is {behind} entries behind")]
    NotCaughtUp {
        /// The committed entries that the learner lacks.
        behind: u64,
    },
}

impl Raft {
    /// Proposes one membership change.
    pub fn change_membership(&mut self, change: &MembershipChange) -> Result<EntryId, ChangeError> {
        self.check_may_propose()?;
        let commit = self.log.commit_index();
        let overlaps = self.log.membership_index() > commit || self.leading.first_index > commit;
        if overlaps && !self.bug(Bug::TwoChangesAtOnce) {
            return Err(ChangeError::Busy);
        }
        let membership = self.log.membership().apply(change)?;
        if let MembershipChange::Promote { node } = change {
            self.check_caught_up(*node)?;
        }
        let id = self.append_own(Payload::Membership(membership));
        self.adopt_membership();
        self.check_invariants();
        Ok(id)
    }

    pub(crate) fn check_caught_up(&self, node: NodeId) -> Result<(), ChangeError> {
        let (match_index, state) = self
            .progress
            .get(&node)
            .map_or((Index(0), ProgressState::Probe), |p| {
                (p.match_index, p.state)
            });
        let behind = self.log.commit_index().since(match_index);
        if state != ProgressState::Replicate || behind > CAUGHT_UP_ENTRIES {
            return Err(ChangeError::NotCaughtUp { behind });
        }
        Ok(())
    }

    /// Tracks exactly the other members of the membership in force.
    fn adopt_membership(&mut self) {
        let next = self.log.last_index();
        let others = self.others();
        self.progress.retain(|node, _| others.contains(node));
        for node in others {
            self.progress
                .entry(node)
                .or_insert_with(|| Progress::new(next));
        }
        // A smaller quorum may be reached already, and perhaps no member is left whose answer would trigger the check.
        self.advance_commit();
        self.confirm_reads();
    }

    /// Steps down because this leader is no voter any more, and tells the voter with the longest log to campaign.
    pub(crate) fn hand_over_before_leaving(&mut self) {
        let successor = self
            .log
            .membership()
            .voters()
            .filter_map(|node| self.progress.get(&node).map(|p| (p.match_index, node)))
            .max();
        if let Some((_, node)) = successor {
            self.send(node, Message::TimeoutNow);
        }
        self.become_follower(self.term(), None);
    }

    /// Returns true if this node leads and has committed an entry of its term: then its commit index is current.
    pub(crate) fn knows_commit(&self) -> bool {
        self.role == Role::Leader && self.leading.first_index <= self.log.commit_index()
    }
}
