//! When the log is cut: after it has grown by a threshold, below what the state holds durably, and not so close to
//! its end that a follower that was away for a moment would need a snapshot.

use std::collections::VecDeque;

use raft::{Entry, Index, StoreError};

use crate::bug::Bug;
use crate::{Replica, StateMachine};

/// Marks kept per threshold: the log is cut at a mark.
const MARKS: u64 = 8;

/// How the log grew: the bytes of all entries up to some of them.
#[derive(Debug)]
pub(crate) struct Compaction {
    marks: VecDeque<(Index, u64)>,
    /// Bytes of entries applied since the start.
    bytes: u64,
    /// `bytes` when the state was last asked to become durable.
    flushed: u64,
}

impl Compaction {
    pub(crate) fn new(applied: Index) -> Self {
        Self {
            marks: VecDeque::from([(applied, 0)]),
            bytes: 0,
            flushed: 0,
        }
    }

    /// An entry is being applied.
    pub(crate) fn count(&mut self, entry: &Entry) {
        self.bytes += entry.size() as u64;
        self.marks.push_back((entry.id.index, self.bytes));
    }

    /// Forgets marks that are so close together that one will do.
    fn thin(&mut self, threshold: u64) {
        let apart = (threshold / MARKS).max(1);
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

    /// The index up to which the log may go so that about half a threshold of it stays.
    fn target(&self, threshold: u64) -> Index {
        let enough = |(_, bytes): &&(Index, u64)| self.bytes - bytes >= threshold / 2;
        self.marks
            .iter()
            .take_while(enough)
            .last()
            .map_or(Index(0), |(index, _)| *index)
    }

    fn forget_before(&mut self, index: Index) {
        while self.marks.get(1).is_some_and(|(next, _)| *next <= index) {
            self.marks.pop_front();
        }
    }
}

impl<M: StateMachine> Replica<M> {
    /// Asks for durability when the log has grown, and cuts what is durable.
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
        // A follower that receives a snapshot goes on with the entries right after it: cutting them would make it
        // need another one, again and again.
        let target = self
            .compaction
            .target(threshold)
            .min(durable)
            .min(self.snapshots.oldest_sent());
        if target <= self.raft.compacted().index {
            return Ok(());
        }
        if let Some(base) = self.raft.compact(target) {
            self.compaction.forget_before(target);
            self.log.compact(&base)?;
        }
        Ok(())
    }
}
