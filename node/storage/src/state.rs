//! The state machine's data on `RocksDB`.
//!
//! `state/<n>/` holds a database (see [`crate::state_db`]). `state/CURRENT` names the one in use, and a rename
//! replaces that file. Each restore has a number of its own, so that it doesn't wait for the removal of the one before.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use raft::{EntryId, SnapshotMeta, StoreError};
use replica::memory::{check_commit, no_restore};
use replica::{
    Applied, Bounds, Cursor, Order, PairReader, SnapshotSource, StateReader, StateStore, Table,
    View, WriteBatch as Changes,
};
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};
use types::NodeId;

use crate::directory::{Directory, sync_dir};
use crate::error::{Latch, OpenError, VerifyError, translate, translate_io};
use crate::flusher::Flusher;
use crate::options::StorageOptions;
use crate::reader::StateReads;
use crate::reclaim::Reclaimer;
use crate::remover::Remover;
use crate::restore::Restore;
use crate::snapshot::RocksSnapshot;
use crate::space::{Disk, Writer};
use crate::state_db::{StateDb, add_applied};
use crate::tables::Tables;
use crate::unflushed::UnflushedBytes;
use crate::view::RocksView;
use crate::{current, engine, state_db, tables};

/// A range with at most this many keys is cleared key by key, which costs later reads less than a range tombstone.
const POINT_DELETES: usize = 128;

/// A durable state. The crate's documentation says what survives which failure.
pub struct RocksState {
    /// The three threads are declared first, so that they stop before the database is dropped.
    reclaimer: Reclaimer,
    flusher: Flusher,
    remover: Remover,
    db: Arc<StateDb>,
    /// The restore that was begun, and the number in the name of its directory.
    restore: Option<(Restore, u64)>,
    /// The number of the next restore. All directories have lesser ones.
    next_number: u64,
    applied: Applied,
    directory: Arc<Directory>,
    node: NodeId,
    disk: Disk,
    options: StorageOptions,
    write_options: WriteOptions,
    latch: Arc<Latch>,
    /// Shared with reads on other threads.
    unflushed: Arc<Mutex<UnflushedBytes>>,
    reads: StateReads,
}

/// Makes the state of a new data directory.
pub(crate) fn create(
    directory: &Arc<Directory>,
    node: NodeId,
    options: &StorageOptions,
) -> Result<(), OpenError> {
    StateDb::create(directory, 1, node, options)
        .and_then(|_| current::write(directory, 1))
        .and_then(|()| sync_dir(directory.path()))
        .map_err(|error| directory.failed("make the state", error))
}

impl RocksState {
    pub(crate) fn open(
        directory: Arc<Directory>,
        node: NodeId,
        disk: Disk,
        options: &StorageOptions,
    ) -> Result<Self, OpenError> {
        let number = current::read(&directory)?;
        let opened = StateDb::open(&directory, number, options);
        let (db, applied) = opened.map_err(|error| match error {
            VerifyError::Version(found) => {
                Directory::other_version(directory.state_dir(), found, state_db::FORMAT)
            }
            VerifyError::Store(error) => directory.state_failed(error),
        })?;
        let maker = db.maker_or(node);
        let maker = maker.map_err(|error| directory.state_failed(error))?;
        if maker != node {
            let dir = directory.path().to_owned();
            return Err(OpenError::ForeignState { dir, maker, node });
        }
        // Only now it is certain that this version knows all that the directory needs.
        current::remove_leftovers(&directory, number).map_err(|error| {
            directory.failed(
                "remove an unfinished restore",
                translate_io("state", &error),
            )
        })?;
        let latch = Arc::new(Latch::default());
        let flusher = Flusher::start(applied.last, Arc::clone(&latch)).map_err(|error| {
            directory.failed("start a thread", translate_io("state-flush", &error))
        })?;
        let reclaimer =
            Reclaimer::start(options.reclaim_after, Arc::clone(&latch)).map_err(|error| {
                directory.failed("start a thread", translate_io("state-reclaim", &error))
            })?;
        let remover = Remover::start().map_err(|error| {
            directory.failed("start a thread", translate_io("state-remove", &error))
        })?;
        let unflushed = Arc::default();
        Ok(Self {
            reads: StateReads::new(&db, Arc::clone(&latch), Arc::clone(&unflushed)),
            reclaimer,
            flusher,
            remover,
            db,
            restore: None,
            next_number: number + 1,
            applied,
            directory,
            node,
            disk,
            options: options.clone(),
            write_options: engine::unlogged(),
            latch,
            unflushed,
        })
    }

    /// Returns a handle that reads the state on any thread.
    pub fn reads(&self) -> StateReads {
        self.reads.clone()
    }

    /// Waits until a flush that was started is done. Tests and an orderly stop use it.
    pub fn wait_flushed(&self) -> Result<(), StoreError> {
        self.flusher.wait()
    }

    /// Waits until the space of all ranges cleared so far is reclaimed, except what a snapshot or a view can still see.
    /// Tests use it.
    pub fn wait_reclaimed(&self) {
        self.reclaimer.wait();
    }

    /// Waits until all restores that were given up, and all states that a restore replaced, are removed, except those that a
    /// snapshot or a view still reads. Tests use it.
    pub fn wait_removed(&self) {
        self.remover.wait();
    }

    fn fail(&self, error: &rocksdb::Error) -> StoreError {
        self.latch.keep(translate(error))
    }

    /// Counts the bytes that a commit put, and hands the ranges that it cleared and that were not empty to the reclaimer.
    fn account(&mut self, changes: &Changes, cleared: &[&(Table, Bytes, Bytes)]) {
        let unflushed = self.unflushed.lock();
        let mut unflushed = unflushed.unwrap_or_else(PoisonError::into_inner);
        for (table, start, end) in cleared {
            unflushed.clear(*table, start, end);
            self.reclaimer.add(&self.db, *table, start, end);
        }
        for ((table, key), change) in &changes.changes {
            if let Some(value) = change {
                unflushed.put(*table, key, value);
            }
        }
    }

    /// Clears a range: key by key if the keys are few, otherwise with one tombstone. Returns true if it had any keys.
    fn clear(
        &self,
        batch: &mut WriteBatch,
        table: Table,
        start: &Bytes,
        end: &Bytes,
    ) -> Result<bool, StoreError> {
        if start >= end {
            return Ok(false);
        }
        let family = self.db.column_family(table)?;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end.as_ref());
        options.fill_cache(false);
        let from = IteratorMode::From(start, Direction::Forward);
        let mut keys = Vec::new();
        for pair in self.db.db().iterator_cf_opt(family, options, from) {
            let (key, _) = pair.map_err(|error| self.fail(&error))?;
            keys.push(key);
            if keys.len() > POINT_DELETES {
                tables::remove_range(&self.db, batch, table, start, end)?;
                return Ok(true);
            }
        }
        for key in &keys {
            tables::remove(&self.db, batch, table, key)?;
        }
        Ok(!keys.is_empty())
    }

    fn tables(&self) -> Tables<'_, DB> {
        Tables {
            source: self.db.db(),
            db: &self.db,
            fills_cache: true,
        }
    }
}

impl PairReader for RocksState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.latch.check()?;
        let found = self.tables().get(table, key);
        found.map_err(|error| self.latch.keep(error))
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.latch.check()?;
        let cursor = self.tables().cursor(table, bounds, order, &self.latch);
        cursor.map_err(|error| self.latch.keep(error))
    }
}

impl StateReader for RocksState {
    fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError> {
        self.latch.check()?;
        let view = RocksView::take(Arc::clone(&self.db), table, start, end)?;
        Ok(View::new(view))
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.latch.check()?;
        let bytes = self.db.estimate_bytes(table, start, end)?;
        let mut unflushed = self
            .unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unflushed.drop_flushed(self.flusher.durable().index);
        Ok(bytes + unflushed.bytes(table, start, end))
    }
}

impl StateStore for RocksState {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn durable(&self) -> EntryId {
        self.flusher.durable()
    }

    fn commit(&mut self, changes: Changes, applied: Applied) -> Result<(), StoreError> {
        self.latch.check()?;
        check_commit(&self.applied, &applied)?;
        let mut batch = WriteBatch::default();
        let mut cleared = Vec::new();
        for range in &changes.cleared {
            if self.clear(&mut batch, range.0, &range.1, &range.2)? {
                cleared.push(range);
            }
        }
        for ((table, key), change) in &changes.changes {
            match change {
                Some(value) => tables::put(&self.db, &mut batch, *table, key, value)?,
                None => tables::remove(&self.db, &mut batch, *table, key)?,
            }
        }
        add_applied(&mut batch, &applied);
        self.disk.check(Writer::State, batch.size_in_bytes())?;
        engine::write(self.db.db(), batch, &self.write_options)
            .map_err(|error| self.latch.keep(error))?;
        self.applied = applied;
        self.account(&changes, &cleared);
        Ok(())
    }

    fn start_flush(&mut self) -> Result<(), StoreError> {
        self.latch.check()?;
        let unflushed = self.unflushed.lock();
        let mut unflushed = unflushed.unwrap_or_else(PoisonError::into_inner);
        unflushed.drop_flushed(self.flusher.durable().index);
        unflushed.start_flush(self.applied.last);
        self.flusher.request(&self.db, self.applied.last);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.start_flush()?;
        self.flusher.wait()
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StoreError> {
        self.latch.check()?;
        let snapshot = RocksSnapshot::take(Arc::clone(&self.db), self.applied.clone())?;
        Ok(Box::new(snapshot))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        self.latch.check()?;
        self.abandon_restore();
        if self.remover.is_busy() {
            let what = "restores that were given up are still being removed";
            return Err(StoreError::Full(what.to_owned()));
        }
        self.disk
            .check(Writer::State, self.options.state_write_buffer_bytes)?;
        // A failed attempt leaves its number to the next one, which removes what is left of it.
        let number = self.next_number;
        let db = StateDb::create(&self.directory, number, self.node, &self.options)
            .map_err(|error| self.latch.keep(error))?;
        self.next_number += 1;
        self.restore = Some((Restore::new(db, meta), number));
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        self.latch.check()?;
        let (restore, _) = self.restore.as_mut().ok_or_else(no_restore)?;
        restore.chunk(chunk, &self.disk)
    }

    fn abandon_restore(&mut self) {
        if let Some((restore, _)) = self.restore.take() {
            self.remover.remove(restore.into_db());
        }
    }

    fn finish_restore(&mut self) -> Result<(), StoreError> {
        self.latch.check()?;
        let (restore, number) = self.restore.take().ok_or_else(no_restore)?;
        let (db, applied) = restore.finish();
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => {
                self.remover.remove(db);
                return Err(error);
            }
        };
        db.mark_current();
        if let Err(error) = current::write(&self.directory, number) {
            // The file may name the new database or the old one, so both are kept, and every later call fails.
            return Err(self.latch.keep(StoreError::Io(error.to_string())));
        }
        let old = std::mem::replace(&mut self.db, db);
        self.reads.replace(&self.db);
        self.flusher.replaced(applied.last);
        self.reclaimer.cancel();
        old.mark_obsolete();
        self.remover.remove(old);
        *self
            .unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = UnflushedBytes::default();
        self.applied = applied;
        Ok(())
    }
}
