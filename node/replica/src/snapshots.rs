//! The transfer of snapshots: a sender for each follower that needs a snapshot, and one receiver.
//!
//! The sender sends a snapshot in numbered chunks with a bounded window. The receiver answers with the number that it needs
//! next, so a lost chunk or a broken connection costs a resend of the window and not a new start. The receiver stages
//! chunks beside its state and replaces the state once all have arrived.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::{
    EntryId, Envelope, Index, Message, Raft, SnapshotChunk, SnapshotMeta, SnapshotStatus,
    StoreError,
};
use types::NodeId;

use crate::bug::Bug;
use crate::{Refusal, Replica, SnapshotSource, StateMachine, Table, WriteBatch};

/// The number of heartbeat intervals without an answer after which a sender sends its window again.
const RESEND_AFTER_HEARTBEATS: u32 = 2;
/// The number of heartbeat intervals without an answer after which a sender gives up and drops its view of the state.
const GIVE_UP_AFTER_HEARTBEATS: u32 = 100;

#[derive(Default)]
pub(crate) struct Snapshots {
    wanted: BTreeSet<NodeId>,
    senders: BTreeMap<NodeId, Sender>,
    receiving: Option<Receiving>,
    inbox: VecDeque<Envelope>,
    sent: u64,
    installed: u64,
}

struct Sender {
    source: Box<dyn SnapshotSource>,
    /// The unanswered chunks, oldest first.
    window: VecDeque<SnapshotChunk>,
    next_number: u64,
    exhausted: bool,
    silent_ticks: u32,
    resend: bool,
}

struct Receiving {
    from: NodeId,
    meta: SnapshotMeta,
    next_number: u64,
}

impl Snapshots {
    /// Records that `node` needs a snapshot, because the entries that it needs are compacted.
    pub(crate) fn want(&mut self, node: NodeId) {
        if !self.senders.contains_key(&node) {
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
            sender.resend = true;
        }
    }

    pub(crate) fn stop_sending(&mut self) {
        self.senders.clear();
        self.wanted.clear();
    }

    /// Returns the last index of the oldest snapshot that is being sent. The log keeps the entries after it, because the
    /// follower needs them next.
    pub(crate) fn oldest_sent(&self) -> Index {
        self.senders
            .values()
            .map(|sender| sender.source.meta().last.index)
            .min()
            .unwrap_or(Index(u64::MAX))
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.sent, self.installed)
    }

    pub(crate) fn tick(&mut self, raft: &mut Raft, heartbeat_ticks: u32) {
        for sender in self.senders.values_mut() {
            sender.silent_ticks += 1;
            sender.resend |= sender.silent_ticks % (heartbeat_ticks * RESEND_AFTER_HEARTBEATS) == 0;
        }
        let given_up =
            |sender: &Sender| sender.silent_ticks > heartbeat_ticks * GIVE_UP_AFTER_HEARTBEATS;
        let lost: Vec<NodeId> = self
            .senders
            .iter()
            .filter(|(_, sender)| given_up(sender))
            .map(|(node, _)| *node)
            .collect();
        for node in lost {
            self.senders.remove(&node);
            raft.handle_snapshot_failed(node);
        }
    }
}

impl Sender {
    fn new(source: Box<dyn SnapshotSource>) -> Self {
        Self {
            source,
            window: VecDeque::new(),
            next_number: 0,
            exhausted: false,
            silent_ticks: 0,
            resend: false,
        }
    }

    /// Reads chunks until the window is full. Returns the chunks to send.
    fn fill(&mut self, window: usize) -> Result<Vec<SnapshotChunk>, StoreError> {
        let mut out: Vec<SnapshotChunk> = Vec::new();
        if std::mem::take(&mut self.resend) {
            out.extend(self.window.iter().cloned());
        }
        while self.window.len() < window && !self.exhausted {
            let data = self.source.next_chunk()?;
            self.exhausted = data.is_none();
            let data = data.unwrap_or_else(Bytes::new);
            let chunk = SnapshotChunk {
                meta: self.source.meta().clone(),
                number: self.next_number,
                done: self.exhausted,
                checksum: crc32fast::hash(&data),
                data,
            };
            self.next_number += 1;
            self.window.push_back(chunk.clone());
            out.push(chunk);
        }
        Ok(out)
    }

    /// Records that the receiver has all chunks before `next`. Returns false if the receiver must start over, because it lost
    /// its chunks. An answer that arrives after a later answer changes nothing.
    fn acknowledged(&mut self, next: u64) -> bool {
        self.silent_ticks = 0;
        while self
            .window
            .pop_front_if(|chunk| chunk.number < next)
            .is_some()
        {}
        let lost = next == 0 && self.window.front().is_some_and(|chunk| chunk.number > 0);
        !lost && next <= self.next_number
    }
}

impl<M: StateMachine> Replica<M> {
    /// Handles the snapshot messages that arrived, opens the snapshots that followers need, and sends the chunks for which the
    /// windows have room.
    pub(crate) fn pump_snapshots(&mut self) -> Result<(), StoreError> {
        while let Some(envelope) = self.snapshots.inbox.pop_front() {
            // The term may have ended while the message waited here.
            if envelope.term != self.raft.term() {
                continue;
            }
            match envelope.message {
                Message::SnapshotChunk(chunk) => self.take_chunk(envelope.from, &chunk)?,
                Message::SnapshotReply {
                    snapshot,
                    next_chunk,
                    status,
                } => self.take_reply(envelope.from, snapshot, next_chunk, status),
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
                self.snapshots.senders.insert(node, Sender::new(source));
            }
        }
        Ok(())
    }

    fn take_reply(
        &mut self,
        from: NodeId,
        snapshot: EntryId,
        next_chunk: u64,
        status: SnapshotStatus,
    ) {
        let Some(sender) = self.snapshots.senders.get_mut(&from) else {
            return;
        };
        if sender.source.meta().last != snapshot {
            return;
        }
        let goes_on = match status {
            SnapshotStatus::Receiving => sender.acknowledged(next_chunk),
            SnapshotStatus::Installed => {
                self.snapshots.sent += 1;
                self.raft.handle_snapshot_installed(from, snapshot.index);
                false
            }
            SnapshotStatus::Failed => false,
        };
        if !goes_on {
            self.snapshots.senders.remove(&from);
            self.raft.handle_snapshot_failed(from);
        }
    }

    fn take_chunk(&mut self, from: NodeId, chunk: &SnapshotChunk) -> Result<(), StoreError> {
        let (status, next_chunk) = self.stage_chunk(from, chunk)?;
        let reply = Message::SnapshotReply {
            snapshot: chunk.meta.last,
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
            self.snapshots.receiving = None;
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
            self.install(&chunk.meta)
        } else {
            self.state.restore_chunk(&chunk.data)
        };
        match staged {
            Ok(()) if chunk.done => Ok((SnapshotStatus::Installed, next_number)),
            Ok(()) => Ok((SnapshotStatus::Receiving, next_number)),
            Err(error) => self.restore_failed(error),
        }
    }

    /// Gives up a snapshot that can't be staged. Only a failure of the disk itself stops the replica.
    fn restore_failed(&mut self, error: StoreError) -> Result<(SnapshotStatus, u64), StoreError> {
        self.snapshots.receiving = None;
        match error {
            StoreError::Full(_) | StoreError::Damaged(_) => Ok((SnapshotStatus::Failed, 0)),
            StoreError::Io(_) => Err(error),
        }
    }

    /// Replaces the state by the staged snapshot, durably, and then resets the log to start after it. The mark that is written
    /// first distinguishes a crash between the two from a lost log.
    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        self.snapshots.receiving = None;
        // A log that has the snapshot's last entry is not reset, so nothing would clear the mark. Later the mark would hide
        // that a log was really lost.
        if !self.raft.holds_durably(meta.last) {
            self.log.begin_install(meta.last)?;
        }
        self.state.finish_restore()?;
        if self.options.bugs.has(Bug::SnapshotWithoutSessions) {
            let mut forget = WriteBatch::default();
            forget.clear(
                Table::Sessions,
                Bytes::new(),
                Bytes::from_static(&[0xff; 24]),
            );
            self.state.commit(forget, self.state.applied())?;
        }
        self.raft.install(meta);
        self.machine.reload(&*self.state)?;
        self.applied = self.state.applied();
        self.compaction = crate::compaction::Compaction::new(self.applied.last.index);
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
