//! Compaction of the log: after it has grown by a threshold, below the index that the state holds durably, and far enough
//! from the log's end that a follower that was away for a moment needs no snapshot.

use std::collections::VecDeque;

use raft::{Entry, Index, StoreError};

use crate::bug::Bug;
use crate::{Replica, StateMachine};

/// The number of marks per threshold. The replica cuts the log at a mark.
const MARKS: u64 = 8;
/// The approximate most marks, however much of the log is kept.
const MOST_MARKS: u64 = 1_024;

/// The growth of the log: for some indexes, the bytes of all entries up to each.
#[derive(Debug)]
pub(crate) struct Compaction {
    marks: VecDeque<(Index, u64)>,
    /// Bytes of the log's entries up to the last applied one, and of those that were cut before.
    bytes: u64,
    /// The value of `bytes` when the last flush of the state was started.
    flushed: u64,
}

impl Compaction {
    /// Begins with a log that has no applied entry after `applied`.
    pub(crate) fn new(applied: Index) -> Self {
        Self::opened(VecDeque::new(), applied)
    }

    /// Begins with the growth of a log that was opened. Everything up to `applied` is in a durable state.
    pub(crate) fn opened(mut marks: VecDeque<(Index, u64)>, applied: Index) -> Self {
        let bytes = marks.back().map_or(0, |(_, bytes)| *bytes);
        if marks.is_empty() {
            marks.push_back((applied, 0));
        }
        Self {
            marks,
            bytes,
            flushed: bytes,
        }
    }

    /// Counts an entry that is being applied.
    pub(crate) fn count(&mut self, entry: &Entry) {
        self.bytes += entry.size() as u64;
        self.marks.push_back((entry.id.index, self.bytes));
    }

    /// Drops marks that are closer together than needed.
    fn thin(&mut self, threshold: u64) {
        let counted = self
            .marks
            .front()
            .map_or(0, |(_, first)| self.bytes - first);
        let apart = (threshold / MARKS).max(counted / MOST_MARKS).max(1);
        while self.marks.len() > 2 {
            let (Some((_, before)), Some((_, last))) =
                (self.marks.get(self.marks.len() - 3), self.marks.back())
            else {
                return;
            };
            if last - before >= apart {
                return;
            }
            let middle = self.marks.len() - 2;
            self.marks.remove(middle);
        }
    }

    /// Returns the index up to which the log may be cut so that about half a threshold of bytes stays.
    fn target(&self, threshold: u64) -> Index {
        let enough = |(_, bytes): &&(Index, u64)| self.bytes - bytes >= threshold / 2;
        self.marks
            .iter()
            .take_while(enough)
            .last()
            .map_or(Index(0), |(index, _)| *index)
    }

    /// Returns about how many bytes of entries come after `index`, or a little more.
    fn bytes_after(&self, index: Index) -> u64 {
        let after = self.marks.partition_point(|(at, _)| *at <= index);
        let mark = self.marks.get(after.saturating_sub(1));
        mark.map_or(0, |(_, bytes)| self.bytes - bytes)
    }

    fn forget_before(&mut self, index: Index) {
        while self.marks.get(1).is_some_and(|(next, _)| *next <= index) {
            self.marks.pop_front();
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// Starts a flush of the state when the log has grown by the threshold, and cuts the log below the durable index.
    pub(crate) fn compact(&mut self) -> Result<(), StoreError> {
        let threshold = self.options.compact_after_bytes;
        self.compaction.thin(threshold);
        if self.compaction.bytes - self.compaction.flushed >= threshold {
            self.compaction.flushed = self.compaction.bytes;
            self.state.start_flush()?;
        }
        let mut durable = self.state.durable().index;
        if self.options.bugs.has(Bug::CompactAboveDurable) {
            durable = self.applied.last.index;
        }
        let target = self.compaction.target(threshold).min(durable);
        self.kept_log.bytes = 0;
        if target <= self.raft.compacted().index {
            return Ok(());
        }
        let target = self.keep_for_followers(target);
        if target <= self.raft.compacted().index {
            return Ok(());
        }
        if let Some(base) = self.raft.compact(target) {
            self.compaction.forget_before(target);
            self.log.compact(&base)?;
            let heartbeat_ticks = self.options.raft.heartbeat_ticks;
            self.snapshots
                .stop_overtaken(base.last.index, &mut self.raft, heartbeat_ticks);
        }
        Ok(())
    }

    /// Returns `target`, or the lower index after which the log is kept for followers that are behind.
    fn keep_for_followers(&mut self, target: Index) -> Index {
        let threshold = self.options.compact_after_bytes;
        let limit = if self.disk_low {
            threshold
        } else {
            threshold.max(self.options.max_kept_log_bytes)
        };
        let heartbeat_ticks = self.options.raft.heartbeat_ticks;
        let behind = self
            .kept_log
            .wanted(&self.raft, heartbeat_ticks)
            .filter(|_| !self.options.bugs.has(Bug::LogCutUnderFollowers));
        let lowest = self
            .snapshots
            .sending()
            .chain(behind)
            .filter(|index| *index < target && self.compaction.bytes_after(*index) <= limit)
            .min();
        let kept = lowest.unwrap_or(target);
        self.kept_log.bytes =
            self.compaction.bytes_after(kept) - self.compaction.bytes_after(target);
        kept
    }
}
