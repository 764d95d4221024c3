//! The transfer of snapshots: a sender for each follower that needs a snapshot, and one receiver.
//!
//! The sender sends a snapshot in numbered chunks with a bounded window. The receiver answers with the number that it needs
//! next, so a lost chunk or a broken connection costs what is lost and not a new start. The receiver stages chunks beside
//! its state and replaces the state once all have arrived.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::{
    EntryId, Envelope, Index, Message, Raft, SnapshotChunk, SnapshotMeta, SnapshotStatus,
    StoreError,
};
use types::NodeId;

use crate::apply::final_error;
use crate::bug::Bug;
use crate::compaction::Compaction;
use crate::sender::{Sender, Verdict};
use crate::{Options, Refusal, Replica, StateMachine, Table, WriteBatch};

/// The number of heartbeat intervals before a follower whose snapshot was overtaken gets another.
const PAUSE_AFTER_OVERTAKEN_HEARTBEATS: u32 = 300;
/// The number of heartbeat intervals before a follower that could not take its snapshot gets another. The pause doubles
/// with each failure in a row.
const PAUSE_AFTER_FAILED_HEARTBEATS: u32 = 10;
/// The longest such pause.
const MOST_PAUSE_AFTER_FAILED_HEARTBEATS: u32 = 320;

/// The wait before a follower gets its next snapshot.
#[derive(Default)]
struct Pause {
    ticks: u32,
    /// The snapshots that the follower could not take, since the last that it took.
    failures: u32,
}

#[derive(Default)]
pub(crate) struct Snapshots {
    wanted: BTreeSet<NodeId>,
    senders: BTreeMap<NodeId, Sender>,
    /// The followers whose snapshot was overtaken or failed.
    pauses: BTreeMap<NodeId, Pause>,
    receiving: Option<Receiving>,
    inbox: VecDeque<Envelope>,
    sent: u64,
    installed: u64,
    overtaken: u64,
}

struct Receiving {
    from: NodeId,
    meta: SnapshotMeta,
    next_number: u64,
}

impl Snapshots {
    /// Records that `node` needs a snapshot, because the entries that it needs are compacted.
    pub(crate) fn want(&mut self, node: NodeId) {
        let pauses = self.pauses.get(&node).is_some_and(|pause| pause.ticks > 0);
        if !self.senders.contains_key(&node) && !pauses {
            self.wanted.insert(node);
        }
    }

    pub(crate) fn receive(&mut self, envelope: Envelope) {
        self.inbox.push_back(envelope);
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.inbox.is_empty()
    }

    pub(crate) fn resend_to(&mut self, node: NodeId) {
        if let Some(sender) = self.senders.get_mut(&node) {
            sender.lose_all();
        }
    }

    pub(crate) fn stop_sending(&mut self) {
        self.senders.clear();
        self.wanted.clear();
        self.pauses.clear();
    }

    pub(crate) fn end_pauses(&mut self) {
        self.pauses.clear();
    }

    /// Lets `node` wait for its next snapshot, because it could not take the last one: its disk may be full.
    fn pause_after_failure(&mut self, node: NodeId, heartbeat_ticks: u32) {
        let pause = self.pauses.entry(node).or_default();
        let doubled = PAUSE_AFTER_FAILED_HEARTBEATS << pause.failures.min(16);
        pause.ticks = heartbeat_ticks * doubled.min(MOST_PAUSE_AFTER_FAILED_HEARTBEATS);
        pause.failures = pause.failures.saturating_add(1);
    }

    /// Returns the last index of each snapshot that is being sent. The follower needs the entries after it next.
    pub(crate) fn sending(&self) -> impl Iterator<Item = Index> {
        self.senders
            .values()
            .map(|sender| sender.source.meta().last.index)
    }

    /// Stops the snapshots that end before `base`: the log no longer has the entries after them.
    pub(crate) fn stop_overtaken(&mut self, base: Index, raft: &mut Raft, heartbeat_ticks: u32) {
        let ends_before = |sender: &Sender| sender.source.meta().last.index < base;
        let overtaken = self.senders.extract_if(.., |_, sender| ends_before(sender));
        for node in overtaken.map(|(node, _)| node).collect::<Vec<_>>() {
            self.overtaken += 1;
            let ticks = heartbeat_ticks * PAUSE_AFTER_OVERTAKEN_HEARTBEATS;
            self.pauses.insert(node, Pause { ticks, failures: 0 });
            raft.handle_snapshot_failed(node);
        }
    }

    /// Returns the numbers of snapshots that were sent, installed here, and overtaken by compaction.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.sent, self.installed, self.overtaken)
    }

    pub(crate) fn tick(&mut self, raft: &mut Raft, options: &Options) {
        self.pauses.retain(|node, pause| {
            pause.ticks = pause.ticks.saturating_sub(1);
            let remembers = pause.failures > 0 && raft.membership().get(*node).is_some();
            pause.ticks > 0 || remembers
        });
        let given_up = self
            .senders
            .extract_if(.., |node, sender| {
                sender.tick(raft.is_active(*node), options) == Verdict::GivenUp
            })
            .map(|(node, _)| node)
            .collect::<Vec<_>>();
        for node in given_up {
            raft.handle_snapshot_failed(node);
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// Handles the snapshot messages that arrived, opens the snapshots that followers need, and sends the chunks for which the
    /// windows have room.
    pub(crate) fn pump_snapshots(&mut self) -> Result<(), StoreError> {
        // The log may have brought what a snapshot was to bring.
        let receiving = self.snapshots.receiving.as_ref();
        if receiving.is_some_and(|it| it.meta.last.index <= self.raft.commit_index()) {
            self.abandon_restore();
        }
        while let Some(envelope) = self.snapshots.inbox.pop_front() {
            // The term may have ended while the message waited here.
            if envelope.term != self.raft.term() {
                continue;
            }
            match envelope.message {
                Message::SnapshotChunk(chunk) => self.take_chunk(envelope.from, &chunk)?,
                Message::SnapshotReply {
                    snapshot,
                    serial,
                    next_chunk,
                    status,
                } => {
                    let from = envelope.from;
                    let expected = self
                        .snapshots
                        .senders
                        .get(&from)
                        .is_some_and(|sender| sender.source.meta().last == snapshot);
                    if expected {
                        self.take_reply(from, snapshot.index, (serial, next_chunk), status);
                    }
                }
                _ => {}
            }
        }
        self.open_wanted()?;
        for (node, sender) in &mut self.snapshots.senders {
            for chunk in sender.fill(self.options.snapshot_window)? {
                self.raft
                    .send_snapshot_message(*node, Message::SnapshotChunk(chunk));
            }
        }
        Ok(())
    }

    fn open_wanted(&mut self) -> Result<(), StoreError> {
        for node in std::mem::take(&mut self.snapshots.wanted) {
            let room = self.snapshots.senders.len() < self.options.max_snapshots;
            // A silent follower would only hold a view of the state open.
            if room && self.raft.is_active(node) && !self.snapshots.senders.contains_key(&node) {
                let source = self.state.snapshot()?;
                let sender = Sender::new(source, self.applied.feature_level);
                self.snapshots.senders.insert(node, sender);
            }
        }
        Ok(())
    }

    /// Handles an answer to `serial` that asks for `next_chunk`, in the snapshot that ends at `last`.
    fn take_reply(
        &mut self,
        from: NodeId,
        last: Index,
        (serial, next_chunk): (u64, u64),
        status: SnapshotStatus,
    ) {
        let Some(sender) = self.snapshots.senders.get_mut(&from) else {
            return;
        };
        let verdict = match status {
            SnapshotStatus::Receiving => sender.answered(serial, next_chunk, &self.options),
            SnapshotStatus::Installed => {
                self.snapshots.sent += 1;
                self.snapshots.pauses.remove(&from);
                self.raft.handle_snapshot_installed(from, last);
                Verdict::GivenUp
            }
            SnapshotStatus::Failed => {
                let heartbeat_ticks = self.options.raft.heartbeat_ticks;
                self.snapshots.pause_after_failure(from, heartbeat_ticks);
                Verdict::GivenUp
            }
        };
        if verdict == Verdict::GivenUp {
            self.snapshots.senders.remove(&from);
            self.raft.handle_snapshot_failed(from);
        }
    }

    /// Answers a chunk that this version can't read, so that the leader doesn't wait for an answer and send it again.
    pub(crate) fn refuse_snapshot(&mut self, envelope: &Envelope) {
        let Message::SnapshotChunk(chunk) = &envelope.message else {
            return;
        };
        // An answer counts only in the leader's term.
        if envelope.term == self.raft.term() && envelope.to == self.raft.node() {
            let reply = Message::SnapshotReply {
                snapshot: chunk.meta.last,
                serial: chunk.serial,
                next_chunk: 0,
                status: SnapshotStatus::Failed,
            };
            self.raft.send_snapshot_message(envelope.from, reply);
        }
    }

    fn take_chunk(&mut self, from: NodeId, chunk: &SnapshotChunk) -> Result<(), StoreError> {
        let (status, next_chunk) = self.stage_chunk(from, chunk)?;
        let reply = Message::SnapshotReply {
            snapshot: chunk.meta.last,
            serial: chunk.serial,
            next_chunk,
            status,
        };
        self.raft.send_snapshot_message(from, reply);
        Ok(())
    }

    /// Stages one chunk. Returns the status of the snapshot and the number of the chunk that is needed next.
    fn stage_chunk(
        &mut self,
        from: NodeId,
        chunk: &SnapshotChunk,
    ) -> Result<(SnapshotStatus, u64), StoreError> {
        if self.raft.commit_index() >= chunk.meta.last.index {
            self.abandon_restore();
            return Ok((SnapshotStatus::Installed, chunk.number + 1));
        }
        let same = |receiving: &Receiving| receiving.from == from && receiving.meta == chunk.meta;
        if !self.snapshots.receiving.as_ref().is_some_and(same) {
            if chunk.number != 0 {
                return Ok((SnapshotStatus::Receiving, 0));
            }
            if let Err(error) = self.state.begin_restore(&chunk.meta) {
                return self.restore_failed(error);
            }
            self.snapshots.receiving = Some(Receiving {
                from,
                meta: chunk.meta.clone(),
                next_number: 0,
            });
        }
        let Some(receiving) = &mut self.snapshots.receiving else {
            return Ok((SnapshotStatus::Failed, 0));
        };
        if chunk.number != receiving.next_number || crc32fast::hash(&chunk.data) != chunk.checksum {
            return Ok((SnapshotStatus::Receiving, receiving.next_number));
        }
        receiving.next_number += 1;
        let next_number = receiving.next_number;
        let staged = if chunk.done {
            self.replace_state(&chunk.meta)
        } else {
            self.state.restore_chunk(&chunk.data)
        };
        match staged {
            Ok(()) if chunk.done => {
                self.adopt_state(&chunk.meta).map_err(final_error)?;
                Ok((SnapshotStatus::Installed, next_number))
            }
            Ok(()) => Ok((SnapshotStatus::Receiving, next_number)),
            Err(error) => self.restore_failed(error),
        }
    }

    /// Drops what was staged. A disk that can't hold two states needs the space, also for the vote of this replica.
    fn abandon_restore(&mut self) {
        self.snapshots.receiving = None;
        self.state.abandon_restore();
    }

    /// Gives up a snapshot that can't be staged. Only a failure of the disk itself stops the replica.
    fn restore_failed(&mut self, error: StoreError) -> Result<(SnapshotStatus, u64), StoreError> {
        self.abandon_restore();
        match error {
            StoreError::Full(_) | StoreError::Damaged(_) | StoreError::OtherVersion(_) => {
                Ok((SnapshotStatus::Failed, 0))
            }
            StoreError::Io(_) | StoreError::Diverged(_) => Err(error),
        }
    }

    /// Replaces the state by the staged snapshot, durably. The mark that is written first distinguishes a crash before the log
    /// starts after the snapshot from a lost log.
    fn replace_state(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        self.snapshots.receiving = None;
        // A log that has the snapshot's last entry is not reset, so nothing would clear the mark. Later the mark would hide
        // that a log was really lost.
        if !self.raft.holds_durably(meta.last) {
            self.log.begin_install(meta.last)?;
        }
        self.state.finish_restore()
    }

    /// Resets the log to start after the snapshot that replaced the state. An error is final: the machine and the log may
    /// belong to the old state, and only a restart reads both anew.
    fn adopt_state(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        if self.options.bugs.has(Bug::SnapshotWithoutSessions) {
            let mut forget = WriteBatch::default();
            forget.clear(
                Table::Sessions,
                Bytes::new(),
                Bytes::from_static(&[0xff; 24]),
            );
            self.state.commit(forget, self.state.applied())?;
        }
        let reset = self.raft.install(meta);
        // The snapshot has all of them.
        self.unapplied.clear();
        self.raft.hold_committed(false);
        self.machine.reload(&*self.state)?;
        self.applied = self.state.applied();
        self.comparing.forget_state();
        if self.options.bugs.has(Bug::SnapshotWithoutDigest)
            && let Some(digest) = &mut self.applied.digest
        {
            digest.value = 0;
        }
        if reset {
            self.compaction = Compaction::new(self.applied.last.index);
        }
        self.snapshots.installed += 1;
        let next = EntryId::new(meta.last.term, meta.last.index.next());
        let leader = self.raft.leader();
        let skipped = self.writes.take_overtaken(next, true);
        for request in skipped
            .into_iter()
            .chain(self.admin.take_skipped(meta.last.index))
        {
            self.finished
                .push((request, Err(Refusal::Unknown { leader })));
        }
        Ok(())
    }
}
