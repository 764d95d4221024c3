//! Who belongs: one change at a time, in force when it is appended (thesis §4.1 to §4.3).

use types::NodeId;

use crate::bug::Bug;
use crate::progress::Progress;
use crate::replication::ProposeError;
use crate::{
    EntryId, Index, MembershipChange, MembershipError, Message, Payload, ProgressState, Raft, Role,
};

/// A learner this close to the commit index may become a voter, in entries.
const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// Why a membership change was refused. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It can't be proposed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The one before is not committed yet, or nothing of this leader's term is: changes that overlap could make
    /// disjoint quorums.
    #[error("another change is not committed yet")]
    Busy,
    /// It makes no sense for the membership in force.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The learner would be a voter that can't vote for anything new yet.
    #[error("the learner is {behind} entries behind")]
    NotCaughtUp {
        /// Entries that it lacks.
        behind: u64,
    },
}

impl Raft {
    /// Proposes one change of the membership.
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

    /// Brings the leader's view of the others in line with the membership in force.
    fn adopt_membership(&mut self) {
        let next = self.log.last_index();
        let others = self.others();
        self.progress.retain(|node, _| others.contains(node));
        for node in others {
            self.progress
                .entry(node)
                .or_insert_with(|| Progress::new(next));
        }
        // A smaller quorum may be reached already; nobody may be left whose answer would show it.
        self.advance_commit();
        self.confirm_reads();
    }

    /// This leader is no voter any more: it names the best successor and steps down.
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

    /// Whether this node leads and has committed an entry of its term: then it knows what is committed.
    pub(crate) fn knows_commit(&self) -> bool {
        self.role == Role::Leader && self.leading.first_index <= self.log.commit_index()
    }
}
