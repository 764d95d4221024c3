//! The handles through which a process uses its disk.

use std::ops::RangeInclusive;

use bytes::Bytes;
use raft::{
    Entry, EntryId, Index, LogBatch, LogReader, LogState, LogStore, SnapshotMeta, StoreError,
};
use replica::{
    Applied, Bounds, Cursor, Order, PairReader, SnapshotSource, StateReader, StateStore, Table,
    View, WriteBatch,
};

use super::contents::{power, sum};
use super::{Disk, DiskEvent};

/// A process's handle on the log.
#[derive(Debug)]
pub struct LogHandle(pub(super) Disk);

impl LogReader for LogHandle {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.0.lock().log.entries(range, max_bytes)
    }
}

impl LogStore for LogHandle {
    fn load(&mut self) -> Result<LogState, StoreError> {
        let mut inner = self.0.lock();
        if inner.damaged {
            return Err(StoreError::Damaged("simulated bad sector".to_owned()));
        }
        inner.log.load()
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        let cost = inner.options.sync;
        inner.durably(cost, |inner| inner.write(batch))
    }

    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if !inner.step() {
            return Err(power());
        }
        inner.log.compact(base)?;
        let (base, durable) = (inner.log.base().last, inner.state.durable());
        inner.journal.push(DiskEvent::Compacted { base, durable });
        Ok(())
    }

    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        inner.cut_in_install();
        let cost = inner.options.sync;
        inner.durably(cost, |inner| inner.log.begin_install(last))
    }
}

/// A process's handle on the state.
#[derive(Debug)]
pub struct StateHandle(pub(super) Disk);

impl PairReader for StateHandle {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.lock().state.get(table, key)
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        // The cursor lives longer than the lock.
        let inner = self.0.lock();
        Ok(Box::new(inner.state.owned_cursor(table, bounds, order)))
    }
}

impl StateReader for StateHandle {
    fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError> {
        self.0.lock().state.view(table, start, end)
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.0.lock().state.estimate_bytes(table, start, end)
    }
}

impl StateStore for StateHandle {
    fn applied(&self) -> Applied {
        self.0.lock().state.applied()
    }

    fn durable(&self) -> EntryId {
        self.0.lock().state.durable()
    }

    fn commit(&mut self, batch: WriteBatch, applied: Applied) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if inner.full && inner.options.refuses_commits {
            inner.refused_commit = true;
            return Err(StoreError::Full("simulated".to_owned()));
        }
        if !inner.step() {
            return Err(power());
        }
        inner.commit(batch, applied)
    }

    fn start_flush(&mut self) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if !inner.step() {
            return Err(power());
        }
        inner.state.start_flush()?;
        let (least, most) = inner.options.flush;
        let takes = inner.rng.between(least, most);
        // The next flush doesn't delay one in progress.
        let done = inner.now + takes;
        inner.flush_done = Some(inner.flush_done.unwrap_or(done));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        let cost = inner.options.flush;
        inner.durably(cost, |inner| inner.state.flush())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StoreError> {
        self.0.lock().state.snapshot()
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if !inner.step() {
            return Err(power());
        }
        inner.state.begin_restore(meta)
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        if inner.full {
            return Err(StoreError::Full("simulated".to_owned()));
        }
        if !inner.step() {
            return Err(power());
        }
        inner.state.restore_chunk(chunk)
    }

    fn abandon_restore(&mut self) {
        self.0.lock().state.abandon_restore();
    }

    fn finish_restore(&mut self) -> Result<(), StoreError> {
        let mut inner = self.0.lock();
        inner.cut_in_install();
        let cost = inner.options.flush;
        inner.durably(cost, |inner| {
            inner.state.finish_restore()?;
            if inner.forgets_journals {
                inner.forget_journals()?;
            }
            inner.pairs_digest = sum(&inner.state);
            inner.flush_done = None;
            let applied = inner.state.applied();
            let digest = inner.state_digest(&applied);
            let last = applied.last;
            inner.journal.push(DiskEvent::Committed { last, digest });
            Ok(())
        })
    }
}
