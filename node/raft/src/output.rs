//! The outputs of a member: messages, the write that some of them wait for, and entries to apply.
//!
//! These messages wait for the disk:
//!
//! - While the term or the vote is not durable, all messages: a node that forgot its term must not have spoken in it
//!   (Raft §5.2).
//! - Acknowledgements of entries, until the entries are durable (Raft §5.3).
//! - No other message. In particular, a leader's appends leave while its own disk writes (thesis §10.2.1).

use types::NodeId;

use crate::bug::Bug;
use crate::progress::Progress;
use crate::ready::{Persist, Persisted, Ready};
use crate::store::{LogBatch, LogReader, StoreError};
use crate::{Envelope, Index, Message, ProgressState, Raft, Role, SnapshotMeta, SnapshotStatus};

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    messages: Vec<Envelope>,
    /// The snapshot after which the stored log must start, until it is in a write.
    pub(crate) reset: Option<SnapshotMeta>,
    /// True while a write is handed out and not reported durable.
    writing: bool,
    /// True while the driver takes no committed entries.
    holds_committed: bool,
}

impl Raft {
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        let envelope = Envelope {
            from: self.node,
            to,
            term: self.term(),
            message,
        };
        self.outbox.messages.push(envelope);
    }

    /// Returns true if [`poll_ready`](Self::poll_ready) would return any work.
    pub fn needs_poll(&self) -> bool {
        self.outbox.messages.iter().any(|m| self.may_leave(m))
            || (!self.outbox.writing && self.has_unwritten())
            || (!self.outbox.holds_committed && self.log.has_committed())
            || self.reads.has_grants()
            || self.read_round_due()
            || self.follower_reads.has_grants()
            || self.question_due()
            || (self.role == Role::Leader && self.has_leader_work())
    }

    /// Hands out no committed entries while `hold` is true, because the driver still applies those that it has. Everything
    /// else goes on.
    pub fn hold_committed(&mut self, hold: bool) {
        self.outbox.holds_committed = hold;
    }

    fn has_unwritten(&self) -> bool {
        self.hard_state != self.durable_hard_state
            || self.outbox.reset.is_some()
            || self.log.persisted_index() < self.log.last_index()
    }

    fn has_leader_work(&self) -> bool {
        let (commit, last) = (self.log.commit_index(), self.log.last_index());
        let is_due = |progress: &Progress| {
            progress.is_due(&self.options, last) || progress.owes_commit(commit, last)
        };
        self.leading.heartbeat_due || self.progress.values().any(is_due)
    }

    /// Returns all work that is due now. Reads evicted entries from `reader`, for followers that are behind and for
    /// applying; an error of `reader` is final for this node.
    pub fn poll_ready(&mut self, reader: &dyn LogReader) -> Result<Ready, StoreError> {
        if self.role == Role::Leader {
            self.write_leader_messages(reader)?;
            self.check_invariants();
        }
        self.send_question();
        let committed = if self.outbox.holds_committed {
            Vec::new()
        } else {
            self.log
                .take_committed(self.options.max_apply_bytes, reader)?
        };
        let mut ready = Ready {
            committed,
            reads: self.reads.take_grants(),
            follower_reads: self.follower_reads.take_grants(),
            ..Ready::default()
        };
        let wants = |(node, state): (NodeId, ProgressState)| {
            (state == ProgressState::Snapshot).then_some(node)
        };
        ready.snapshots_wanted = self
            .progress()
            .map(|(node, _, state)| (node, state))
            .filter_map(wants)
            .collect();
        let mut held = Vec::new();
        let forgetful = self.bug(Bug::VoteNotDurable);
        for envelope in std::mem::take(&mut self.outbox.messages) {
            if self.may_leave(&envelope) {
                ready.messages.push(envelope);
            } else {
                held.push(envelope);
            }
        }
        if self.outbox.writing || !self.has_unwritten() {
            self.outbox.messages = held;
            return Ok(ready);
        }
        let mut persist = self.write_out(held);
        if forgetful {
            persist.batch.hard_state = None;
            if persist.batch.is_empty() {
                ready.messages.append(&mut persist.held);
                self.durable_hard_state = self.hard_state;
                return Ok(ready);
            }
        }
        self.outbox.writing = true;
        ready.persist = Some(Box::new(persist));
        Ok(ready)
    }

    /// Returns true if the state that `envelope` promises is durable.
    fn may_leave(&self, envelope: &Envelope) -> bool {
        let hard_state_durable =
            self.hard_state == self.durable_hard_state || self.bug(Bug::VoteNotDurable);
        hard_state_durable && self.entries_durable(&envelope.message)
    }

    fn entries_durable(&self, message: &Message) -> bool {
        match message {
            Message::AppendAccepted { match_index } => {
                let durable = *match_index <= self.log.persisted_index()
                    && self.outbox.reset.is_none()
                    && !self.outbox.writing;
                durable || self.bug(Bug::AckBeforeFsync)
            }
            // The log may cover the snapshot with entries that are known to be committed and not durable yet. The leader
            // never sends them again.
            Message::SnapshotReply {
                status: SnapshotStatus::Installed,
                snapshot,
                ..
            } => {
                snapshot.index <= self.log.persisted_index()
                    && self.outbox.reset.is_none()
                    && !self.outbox.writing
            }
            _ => true,
        }
    }

    fn write_out(&mut self, held: Vec<Envelope>) -> Persist {
        let hard_state = (self.hard_state != self.durable_hard_state).then_some(self.hard_state);
        let batch = LogBatch {
            hard_state,
            reset: self.outbox.reset.take(),
            entries: self.log.unpersisted(),
        };
        Persist {
            batch,
            hard_state: self.hard_state,
            last: self.log.last_id(),
            held,
        }
    }

    fn write_leader_messages(&mut self, reader: &dyn LogReader) -> Result<(), StoreError> {
        // With a lease each heartbeat is a round of its own, so that its answers renew the lease.
        if self.read_round_due()
            || (self.leading.heartbeat_due && self.serves_by_lease() && self.knows_commit())
        {
            self.leading.heartbeat_due |= self.start_read_round();
        }
        for node in self.progress.keys().copied().collect::<Vec<_>>() {
            if self.leading.heartbeat_due {
                self.send_heartbeat(node, false);
            }
            self.send_appends(node, reader)?;
            if self.owes_commit(node) {
                self.send_heartbeat(node, true);
            }
        }
        self.leading.heartbeat_due = false;
        Ok(())
    }

    /// Returns true if `node` holds the whole log and was not told yet that all of it is committed.
    fn owes_commit(&self, node: NodeId) -> bool {
        let (commit, last) = (self.log.commit_index(), self.log.last_index());
        let progress = self.progress.get(&node);
        progress.is_some_and(|progress| progress.owes_commit(commit, last))
    }

    fn send_heartbeat(&mut self, node: NodeId, quiet: bool) {
        let match_index = self.progress.get_mut(&node).map_or(Index(0), |progress| {
            if !quiet {
                progress.heartbeat_sent();
            }
            progress.match_index
        });
        // Not above the match index: the follower's log may hold other entries there.
        let commit = if self.bug(Bug::CommitBeyondMatch) {
            self.log.commit_index()
        } else {
            self.log.commit_index().min(match_index)
        };
        let message = Message::Heartbeat {
            commit,
            read_round: self.reads.round(),
            lease: self.serves_by_lease(),
            quiet,
            comparison: self.comparison,
            answers_reads: true,
        };
        if let Some(progress) = self.progress.get_mut(&node) {
            progress.commit_told(commit);
        }
        self.send(node, message);
    }

    /// Records that a write is durable and returns the messages that waited for it, for sending at once.
    pub fn handle_persisted(&mut self, done: Persisted) -> Vec<Envelope> {
        self.outbox.writing = false;
        self.durable_hard_state = done.hard_state;
        self.log.persisted_to(done.last);
        if self.role == Role::Leader {
            self.advance_commit();
        }
        self.check_invariants();
        // Messages of an earlier term are of no use any more.
        let term = self.term();
        done.held
            .into_iter()
            .filter(|envelope| envelope.term == term)
            .collect()
    }
}
