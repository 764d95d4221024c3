//! Membership changes and leadership transfers: those that an operator requests, and those that the leader makes by itself
//! when a member returns with an empty disk.
//!
//! A node with a wiped disk returns as a new node at a known address. It asks to be added, and the leader adds it as a
//! learner that *replaces* the old member. The membership records the replacement, so any later leader continues: when the
//! learner has caught up, the leader removes the other members at its address and promotes it to a voter.

use raft::{
    ChangeError, EntryId, Index, MemberKind, MembershipChange, ProposeError, Raft, Role,
    TransferError,
};
use types::NodeId;

use crate::{Answer, Outlet, Refusal, RequestId};

/// The membership changes and transfers that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Admin {
    changes: Vec<Change>,
    transfers: Vec<RequestId>,
}

/// A membership change that waits for its entry to be applied.
#[derive(Debug)]
struct Change {
    request: RequestId,
    entry: EntryId,
    /// True if this entry was committed at its index, and not another leader's.
    committed: bool,
}

impl Admin {
    pub(crate) fn len(&self) -> usize {
        self.changes.len() + self.transfers.len()
    }

    pub(crate) fn change(
        &mut self,
        raft: &mut Raft,
        id: RequestId,
        change: &MembershipChange,
    ) -> Result<(), Refusal> {
        check_live_quorum(raft, change)?;
        let entry = raft.change_membership(change).map_err(refusal)?;
        self.changes.push(Change {
            request: id,
            entry,
            committed: false,
        });
        Ok(())
    }

    pub(crate) fn transfer(
        &mut self,
        raft: &mut Raft,
        id: RequestId,
        target: Option<NodeId>,
    ) -> Result<(), Refusal> {
        raft.transfer_leadership(target)
            .map_err(|error| match error {
                TransferError::NotLeader => Refusal::NotLeader {
                    leader: raft.leader(),
                },
                TransferError::AlreadyLeader => Refusal::BadTransfer("the target leads already"),
                TransferError::NotVoter => {
                    Refusal::BadTransfer("the target is not a voter of this group")
                }
                TransferError::NeedsSnapshot => Refusal::BadTransfer(
                    "the target needs a snapshot first: wait until it has caught up",
                ),
                TransferError::NoCandidate => Refusal::BadTransfer("no other voter answers"),
            })?;
        self.transfers.push(id);
        Ok(())
    }

    /// Handles the request of a node to be added to the group. The leader adds it only if it has the address of a silent
    /// member; only an operator adds a node at an unknown address.
    pub(crate) fn handle_join_request(raft: &mut Raft, node: NodeId, address: &str) {
        if raft.role() != Role::Leader || raft.membership().get(node).is_some() {
            return;
        }
        let here: Vec<(NodeId, &raft::Member)> = raft
            .membership()
            .members()
            .filter(|(_, member)| member.address == address)
            .collect();
        let alive = here
            .iter()
            .any(|(id, _)| *id == raft.node() || raft.is_active(*id));
        // A voter, or a learner that replaces a voter, comes first.
        let rank = |(_, member): &&(NodeId, &raft::Member)| {
            (
                member.kind == MemberKind::Learner,
                member.replaces.is_none(),
            )
        };
        let Some((replaces, _)) = here.iter().min_by_key(rank) else {
            return;
        };
        if !alive {
            let replaces = *replaces;
            // If another change is in progress, the node asks again later.
            let _ = raft.change_membership(&MembershipChange::AddReplacement { node, replaces });
        }
    }

    /// Makes the next step of a replacement, if one is due.
    pub(crate) fn tick(raft: &mut Raft) {
        if raft.role() != Role::Leader {
            return;
        }
        if let Some(change) = next_replacement_step(raft) {
            // Refused while another change is in progress or the learner is behind; the next tick tries again.
            let _ = raft.change_membership(&change);
        }
    }

    /// Notes that the membership entry `entry` is committed.
    pub(crate) fn mark_committed(&mut self, entry: EntryId) {
        for change in &mut self.changes {
            change.committed |= change.entry == entry;
        }
    }

    /// Answers the changes whose index is at most `applied`. With `unchecked`, a bug that the simulator puts back, whatever entry was
    /// committed there.
    pub(crate) fn answer_applied<R>(
        &mut self,
        applied: Index,
        leader: Option<NodeId>,
        unchecked: bool,
        outlet: &mut dyn Outlet<R>,
    ) {
        self.changes.retain(|change| {
            let done = change.entry.index <= applied;
            if done && (change.committed || unchecked) {
                let index = change.entry.index;
                outlet.answer(change.request, Ok(Answer::MembershipChanged(index)));
            } else if done {
                outlet.answer(change.request, Err(Refusal::Unknown { leader }));
            }
            !done
        });
    }

    /// Takes the changes up to `last`, whose entries a snapshot skipped.
    pub(crate) fn take_skipped(&mut self, last: Index) -> Vec<RequestId> {
        let skipped = self
            .changes
            .extract_if(.., |change| change.entry.index <= last);
        skipped.map(|change| change.request).collect()
    }

    /// Answers the transfers if none is in progress any more.
    pub(crate) fn answer_transfers<R>(&mut self, raft: &Raft, outlet: &mut dyn Outlet<R>) {
        if self.transfers.is_empty() || raft.is_transferring() {
            return;
        }
        let result = match raft.leader() {
            Some(leader) if leader != raft.node() => Ok(leader),
            Some(_) => Err(Refusal::BadTransfer(
                "the target did not take over within an election timeout",
            )),
            None => return,
        };
        for id in self.transfers.drain(..) {
            outlet.answer(id, result.clone().map(Answer::LeadershipTransferred));
        }
    }

    /// Answers the changes whose entries are not known to be committed, because this node lost leadership. The other changes
    /// are answered when the entry at their index is applied.
    pub(crate) fn fail_uncommitted<R>(&mut self, raft: &Raft, outlet: &mut dyn Outlet<R>) {
        let (commit, leader) = (raft.commit_index(), raft.leader());
        self.changes.retain(|change| {
            let decided = change.entry.index <= commit;
            if !decided {
                outlet.answer(change.request, Err(Refusal::Unknown { leader }));
            }
            decided
        });
    }

    /// Takes all changes and transfers.
    pub(crate) fn take_all(&mut self) -> Vec<RequestId> {
        self.changes
            .drain(..)
            .map(|change| change.request)
            .chain(self.transfers.drain(..))
            .collect()
    }
}

/// Returns the next change for a learner that replaces a member with a lost disk: first remove the other members at its
/// address, then promote it. In this order, because a voter that is gone only makes the quorum larger.
fn next_replacement_step(raft: &Raft) -> Option<MembershipChange> {
    let membership = raft.membership();
    membership
        .members()
        .filter(|(node, member)| member.kind == MemberKind::Learner && raft.is_caught_up(*node))
        .find_map(|(node, member)| {
            let same_place = |(other, at): &(NodeId, &raft::Member)| {
                *other != node && at.address == member.address
            };
            let takes_a_vote = member.replaces.is_some();
            match membership.members().find(same_place) {
                Some((old, at)) if takes_a_vote || at.kind == MemberKind::Learner => {
                    let gone = old != raft.node() && !raft.is_active(old);
                    gone.then_some(MembershipChange::Remove { node: old })
                }
                None if takes_a_vote => Some(MembershipChange::Promote { node }),
                _ => None,
            }
        })
}

/// Refuses a change after which the voters that answer this leader are no quorum. The group could commit nothing more, not
/// even the change back.
fn check_live_quorum(raft: &Raft, change: &MembershipChange) -> Result<(), Refusal> {
    // Raft refuses what is wrong otherwise, with a better reason.
    let Ok(next) = raft.membership().apply(change) else {
        return Ok(());
    };
    let lives = |node: NodeId| node == raft.node() || raft.has_answered_lately(node);
    let changes_voters = next.voters().ne(raft.membership().voters());
    let forced = matches!(change, MembershipChange::RemoveWithoutLiveQuorum { .. });
    if raft.role() != Role::Leader || forced || !changes_voters || next.has_quorum(lives) {
        return Ok(());
    }
    let live = next.voters().filter(|node| lives(*node)).count();
    Err(Refusal::NoLiveQuorum {
        live,
        quorum: next.quorum(),
    })
}

fn refusal(error: ChangeError) -> Refusal {
    match error {
        ChangeError::Propose(ProposeError::NotLeader { leader }) => Refusal::NotLeader { leader },
        ChangeError::Propose(ProposeError::Transferring) => Refusal::Transferring,
        ChangeError::Propose(ProposeError::Overloaded { limit }) => Refusal::Overloaded {
            what: "bytes of uncommitted entries",
            limit: limit as u64,
        },
        ChangeError::Busy => Refusal::MembershipBusy,
        ChangeError::Membership(error) => Refusal::Membership(error),
        ChangeError::NotCaughtUp { behind } => Refusal::NotCaughtUp { behind },
    }
}
