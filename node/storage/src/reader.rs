//! Reads of the state as of one commit, on any thread, while commits go on.
//!
//! The replica's thread owns the store. A [`StateReads`] handle lets other threads read beside it: each read takes a
//! `RocksDB` snapshot, so that all that it sees is of one commit.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use raft::StoreError;
use replica::{Bounds, Cursor, Order, PairReader, StateReader, Table, View};
use rocksdb::Snapshot;

use crate::error::Latch;
use crate::state_db::StateDb;
use crate::tables::Tables;
use crate::unflushed::UnflushedBytes;

/// A cloneable handle for reads of the state on any thread. It doesn't keep the state open.
#[derive(Clone)]
pub struct StateReads {
    /// The database in use, which a restore replaces.
    current: Arc<Mutex<Weak<StateDb>>>,
    latch: Arc<Latch>,
    unflushed: Arc<Mutex<UnflushedBytes>>,
}

impl StateReads {
    pub(crate) fn new(
        db: &Arc<StateDb>,
        latch: Arc<Latch>,
        unflushed: Arc<Mutex<UnflushedBytes>>,
    ) -> Self {
        Self {
            current: Arc::new(Mutex::new(Arc::downgrade(db))),
            latch,
            unflushed,
        }
    }

    /// Makes later reads read another database.
    pub(crate) fn replace(&self, db: &Arc<StateDb>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(db);
    }

    /// Calls `read` with the state as of the last commit. Later commits don't change what it sees. It can't take views.
    ///
    /// While `read` runs, everything that it can see stays on the disk. So the caller bounds the number of reads and their
    /// duration.
    pub fn read<T>(
        &self,
        read: impl FnOnce(&dyn StateReader) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let db = current.upgrade();
        drop(current);
        let db = db.ok_or_else(|| StoreError::Io("the state is closed".to_owned()))?;
        read(&Moment {
            snapshot: db.db().snapshot(),
            db: &db,
            latch: &self.latch,
            unflushed: &self.unflushed,
        })
    }
}

/// The state as of one commit.
struct Moment<'a> {
    snapshot: Snapshot<'a>,
    db: &'a StateDb,
    latch: &'a Latch,
    unflushed: &'a Mutex<UnflushedBytes>,
}

impl<'a> Moment<'a> {
    fn tables(&self) -> Tables<'_, Snapshot<'a>> {
        Tables {
            source: &self.snapshot,
            db: self.db,
            // Whole shards are read once. They must not evict the blocks that other reads use.
            fills_cache: false,
        }
    }
}

impl PairReader for Moment<'_> {
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
        let cursor = self.tables().cursor(table, bounds, order, self.latch);
        cursor.map_err(|error| self.latch.keep(error))
    }
}

impl StateReader for Moment<'_> {
    fn view(&self, _: Table, _: Bytes, _: Bytes) -> Result<View, StoreError> {
        Err(StoreError::Io(
            "a read beside the replica's thread takes no views".to_owned(),
        ))
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.latch.check()?;
        let bytes = self.db.estimate_bytes(table, start, end)?;
        let unflushed = self.unflushed.lock();
        let unflushed = unflushed.unwrap_or_else(PoisonError::into_inner);
        Ok(bytes + unflushed.bytes(table, start, end))
    }
}
