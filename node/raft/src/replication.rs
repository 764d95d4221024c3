//! Log replication: proposals, appends, acknowledgements, commit (Raft §5.3, §5.4).

use bytes::Bytes;
use types::NodeId;

use crate::bug::Bug;
use crate::store::{LogReader, StoreError};
use crate::{
    Entry, EntryId, Index, Message, Payload, ProgressState, Raft, Role, SnapshotMeta, StepError,
};

/// The reason for refusing a proposal. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node doesn't lead.
    #[error("this node doesn't lead")]
    NotLeader {
        /// The leader, if this node knows it.
        leader: Option<NodeId>,
    },
    /// The leader is transferring leadership.
    #[error("leadership is being transferred")]
    Transferring,
    /// Too many bytes of entries wait for a quorum.
    #[error("{limit} bytes of entries wait for a quorum")]
    Overloaded {
        /// The limit in bytes.
        limit: usize,
    },
}

impl Raft {
    /// Appends a command to the log. It takes effect when it is committed, which a change of leader may prevent.
    pub fn propose(&mut self, command: Bytes) -> Result<EntryId, ProposeError> {
        self.check_may_propose()?;
        let size = command.len();
        let limit = self.options.max_uncommitted_bytes;
        // The first command always passes; otherwise a command larger than the limit never would.
        if self.leading.uncommitted_bytes > 0 && self.leading.uncommitted_bytes + size > limit {
            return Err(ProposeError::Overloaded { limit });
        }
        let id = self.append_own(Payload::Command(command));
        self.check_invariants();
        Ok(id)
    }

    pub(crate) fn check_may_propose(&self) -> Result<(), ProposeError> {
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader {
                leader: self.leader,
            });
        }
        if self.leading.transfer.is_some() {
            return Err(ProposeError::Transferring);
        }
        Ok(())
    }

    pub(crate) fn append_own(&mut self, payload: Payload) -> EntryId {
        let entry = Entry::new(self.term(), self.log.last_index().next(), payload);
        let (id, size) = (entry.id, entry.size());
        self.log.push(entry);
        self.leading.uncommitted.push_back((id.index, size));
        self.leading.uncommitted_bytes += size;
        id
    }

    // The follower's side.

    pub(crate) fn handle_append(
        &mut self,
        from: NodeId,
        prev: EntryId,
        entries: Vec<Entry>,
        commit: Index,
    ) -> Result<(), StepError> {
        self.check_history(from, prev, &entries)?;
        self.follow(from)?;
        self.leader_commit = self.leader_commit.max(Some(commit));
        let committed = self.log.commit_index();
        if prev.index < committed {
            // All entries up to the commit index agree, so the leader may continue from there.
            self.send(
                from,
                Message::AppendAccepted {
                    match_index: committed,
                },
            );
            return Ok(());
        }
        if !self.log.contains(prev) {
            let hint = self.log.highest_possible_match(prev);
            self.send(
                from,
                Message::AppendRejected {
                    refused: prev.index,
                    hint,
                },
            );
            return Ok(());
        }
        let match_index = entries.last().map_or(prev.index, |entry| entry.id.index);
        if match_index > self.log.last_index() && self.has_full_backlog() {
            // As if the message was lost: the leader sends the entries again, one append in each heartbeat interval.
            self.log.commit_to(commit.min(prev.index));
            return Ok(());
        }
        self.splice(entries);
        let matched = if self.bug(Bug::CommitBeyondMatch) {
            commit
        } else {
            commit.min(match_index)
        };
        self.log.commit_to(matched);
        self.send(from, Message::AppendAccepted { match_index });
        Ok(())
    }

    /// Returns true if this follower must apply entries before it takes more. Those that are not committed don't count: the entry that
    /// commits them may be the next one.
    fn has_full_backlog(&self) -> bool {
        if self.bug(Bug::BacklogCountsUncommitted) {
            return self.log.has_full_tail();
        }
        self.log.has_full_backlog()
    }

    /// Refuses an append that contradicts a committed entry. Every later leader's log holds all entries committed here
    /// (Raft §5.4), so the sender of such an append is not a legitimate leader.
    fn check_history(
        &self,
        from: NodeId,
        prev: EntryId,
        entries: &[Entry],
    ) -> Result<(), StepError> {
        std::iter::once(prev)
            .chain(entries.iter().map(|entry| entry.id))
            .take_while(|id| id.index <= self.log.commit_index())
            .try_for_each(|id| self.check_committed(from, id))
    }

    /// Refuses the claim of `from` that `id` is committed or precedes the leader's entries, if another entry is committed
    /// at its index.
    pub(crate) fn check_committed(&self, from: NodeId, id: EntryId) -> Result<(), StepError> {
        if id.index > self.log.commit_index() {
            return Ok(());
        }
        match self.log.term_at(id.index) {
            Some(term) if term != id.term => Err(StepError::ContradictsCommitted {
                from,
                committed: EntryId::new(term, id.index),
            }),
            _ => Ok(()),
        }
    }

    /// Drops entries that conflict and appends the new ones. Equal entries stay: an old append must not truncate the
    /// entries of a newer one.
    fn splice(&mut self, entries: Vec<Entry>) {
        let known = entries
            .iter()
            .take_while(|entry| self.log.contains(entry.id))
            .count();
        let Some(first) = entries.get(known).map(|entry| entry.id.index) else {
            return;
        };
        if first <= self.log.last_index() {
            let keep_memberships = self.options.bugs.has(Bug::TruncatedMembershipKept);
            self.log.truncate(first, keep_memberships);
        }
        entries
            .into_iter()
            .skip(known)
            .for_each(|entry| self.log.push(entry));
    }

    pub(crate) fn handle_heartbeat(
        &mut self,
        from: NodeId,
        commit: Index,
        read_round: u64,
        (lease, answers_reads): (bool, bool),
        quiet: bool,
    ) -> Result<(), StepError> {
        self.follow(from)?;
        self.election.leader_has_lease = lease;
        self.follower_reads.note_leader(answers_reads);
        self.log.commit_to(commit);
        if quiet {
            return Ok(());
        }
        let feature_level = self.options.feature_level;
        self.send(
            from,
            Message::HeartbeatReply {
                read_round,
                feature_level,
                lease: self.options.lease_promise(),
                digest: self.digest,
            },
        );
        Ok(())
    }

    /// Starts the log after the snapshot `meta`, which the state machine holds durably. Returns false, and keeps the
    /// entries, if the commit index or the log covers the snapshot already.
    pub fn install(&mut self, meta: &SnapshotMeta) -> bool {
        let reset = self.reset_to(meta);
        self.check_invariants();
        reset
    }

    fn reset_to(&mut self, meta: &SnapshotMeta) -> bool {
        if meta.last.index <= self.log.commit_index() {
            return false;
        }
        if self.log.contains(meta.last)
            || self.bug(Bug::SnapshotKeepsConflictingLog) && meta.last.index < self.log.last_index()
        {
            self.log.skip_to(meta.last.index);
            return false;
        }
        self.log.reset(meta);
        self.outbox.reset = Some(meta.clone());
        if let Some(leader) = self.leader.filter(|leader| *leader != self.node) {
            self.send(
                leader,
                Message::AppendAccepted {
                    match_index: meta.last.index,
                },
            );
        }
        true
    }

    // The leader's side.

    pub(crate) fn handle_accepted(
        &mut self,
        from: NodeId,
        match_index: Index,
    ) -> Result<(), StepError> {
        if self.role != Role::Leader {
            return Ok(());
        }
        if match_index > self.log.last_index() {
            return Err(StepError::Malformed {
                from,
                what: "acknowledges entries that were never sent",
            });
        }
        let first_kept = self.log.base().index;
        let Some(progress) = self.progress.get_mut(&from) else {
            return Ok(());
        };
        progress.hear();
        if progress.state == ProgressState::Snapshot {
            if match_index < first_kept {
                return Ok(());
            }
            progress.switch_to(ProgressState::Probe);
        }
        // A commit may have finished the transfer already.
        if progress.accepted(match_index) && !self.advance_commit() {
            self.finish_transfer(from);
        }
        Ok(())
    }

    pub(crate) fn handle_rejected(&mut self, from: NodeId, refused: Index, hint: EntryId) {
        let candidate = self.log.highest_possible_match(hint).index;
        if let Some(progress) = self.progress.get_mut(&from) {
            progress.hear();
            progress.rejected(refused, candidate);
        }
    }

    pub(crate) fn handle_heartbeat_reply(&mut self, from: NodeId, read_round: u64) {
        let last = self.log.last_index();
        let read_round = if self.bug(Bug::OldAnswerConfirmsRead) {
            self.reads.round()
        } else {
            read_round
        };
        let Some(progress) = self.progress.get_mut(&from) else {
            return;
        };
        progress.alive(last);
        progress.read_round = progress.read_round.max(read_round);
        self.confirm_reads();
    }

    /// Commits the entries that a quorum holds, if the last of them is of this term: an entry of an earlier term that a
    /// quorum holds may still be overwritten (Raft §5.4.2, figure 8). Returns true if the commit index advanced.
    pub(crate) fn advance_commit(&mut self) -> bool {
        let membership = self.log.membership();
        let held = |node: NodeId| {
            if node == self.node {
                self.log.persisted_index()
            } else {
                self.progress.get(&node).map_or(Index(0), |p| p.match_index)
            }
        };
        let mut indexes: Vec<Index> = membership.voters().map(held).collect();
        indexes.sort_unstable();
        let Some(index) = indexes
            .len()
            .checked_sub(membership.quorum())
            .and_then(|at| indexes.get(at).copied())
        else {
            return false;
        };
        let own_term =
            self.log.term_at(index) == Some(self.term()) || self.bug(Bug::CommitOldTermByCounting);
        let news = own_term && self.log.commit_to(index);
        if news {
            self.after_commit();
        }
        news
    }

    fn after_commit(&mut self) {
        let commit = self.log.commit_index();
        while let Some((_, size)) = self
            .leading
            .uncommitted
            .pop_front_if(|(index, _)| *index <= commit)
        {
            self.leading.uncommitted_bytes -= size;
        }
        if let Some((target, _)) = self.leading.transfer {
            self.finish_transfer(target);
        }
        // A leader that removed itself leads until the removal is committed (thesis §4.2.2).
        let removed =
            !self.log.membership().is_voter(self.node) && self.log.membership_index() <= commit;
        if removed {
            self.hand_over_before_leaving();
        }
    }

    /// Sends the appends that are due to `node`, at most a window of them.
    pub(crate) fn send_appends(
        &mut self,
        node: NodeId,
        reader: &dyn LogReader,
    ) -> Result<(), StoreError> {
        loop {
            let (base, last, commit) = (
                self.log.base(),
                self.log.last_index(),
                self.log.commit_index(),
            );
            let Some(progress) = self.progress.get_mut(&node) else {
                return Ok(());
            };
            if !progress.is_due(&self.options, last) {
                return Ok(());
            }
            let prev = progress.next_index.prev();
            let Some(term) = self.log.term_at(prev) else {
                debug_assert!(prev < base.index);
                progress.switch_to(ProgressState::Snapshot);
                return Ok(());
            };
            let max_bytes = self.options.max_append_bytes;
            let entries = if progress.has_room(&self.options) {
                self.log
                    .read(progress.next_index..=last, max_bytes, reader)?
            } else {
                Vec::new()
            };
            let bytes = entries.iter().map(Entry::size).sum();
            let sent_to = entries.last().map_or(prev, |entry| entry.id.index);
            progress.sent(sent_to, bytes, entries.is_empty());
            progress.commit_told(commit.min(sent_to));
            self.send(
                node,
                Message::Append {
                    prev: EntryId::new(term, prev),
                    entries,
                    commit,
                },
            );
        }
    }

    /// Records that a follower in `Snapshot` durably installed a snapshot up to `index`, so that the leader sends entries
    /// again. The snapshot has only committed entries, so the follower matches up to there.
    pub fn handle_snapshot_installed(&mut self, node: NodeId, index: Index) {
        if let Some(progress) = self
            .progress
            .get_mut(&node)
            .filter(|p| p.state == ProgressState::Snapshot)
        {
            progress.switch_to(ProgressState::Probe);
            progress.match_index = progress.match_index.max(index);
            progress.next_index = progress.match_index.next();
            progress.nudge = true;
        }
        self.check_invariants();
    }

    /// Records that a snapshot to `node` failed, so that the leader probes again for the entries that `node` needs.
    pub fn handle_snapshot_failed(&mut self, node: NodeId) {
        if let Some(progress) = self
            .progress
            .get_mut(&node)
            .filter(|p| p.state == ProgressState::Snapshot)
        {
            progress.switch_to(ProgressState::Probe);
            progress.next_index = progress.match_index.next();
        }
        self.check_invariants();
    }
}
