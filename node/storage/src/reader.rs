//! Reads of the state as of one commit, on any thread, while commits go on.
//!
//! The replica's thread owns the store. A [`StateReads`] handle lets other threads read beside it: each read takes a
//! `RocksDB` snapshot, so that all that it sees is of one commit.

use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use raft::StoreError;
use replica::{StateReader, Table, View};
use rocksdb::{DB, DBIteratorWithThreadMode, Direction, IteratorMode, ReadOptions, Snapshot};

use crate::error::{Latch, translate};
use crate::state_db::StateDb;
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

impl StateReader for Moment<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.latch.check()?;
        let family = self.db.column_family(table)?;
        let found = self.snapshot.get_pinned_cf(family, key);
        let value = found.map_err(|error| self.latch.keep(translate(&error)))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.latch.check()?;
        let Some(mut range) = ScanRange::new(bounds).filter(|_| limit > 0) else {
            return Ok(Vec::new());
        };
        // Whole shards are read once. They must not evict the blocks that other reads use.
        range.options.fill_cache(false);
        let family = self.db.column_family(table)?;
        let from = IteratorMode::From(&range.start, Direction::Forward);
        let pairs = self.snapshot.iterator_cf_opt(family, range.options, from);
        take(pairs, limit, max_bytes).map_err(|error| self.latch.keep(translate(&error)))
    }

    fn view(&self, _: Table, _: Bytes, _: Bytes) -> Result<View, StoreError> {
        Err(StoreError::Io(
            "a read beside the replica's thread takes no views".to_owned(),
        ))
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.latch.check()?;
        let family = self.db.column_family(table)?;
        let ranges = [rocksdb::Range::new(start, end)];
        let sizes = self.db.db().get_approximate_sizes_cf(family, &ranges);
        let unflushed = self.unflushed.lock();
        let unflushed = unflushed.unwrap_or_else(PoisonError::into_inner);
        Ok(sizes.first().copied().unwrap_or(0) + unflushed.bytes(table, start, end))
    }
}

/// The range of a scan, as `RocksDB` takes it.
pub(crate) struct ScanRange {
    pub(crate) start: Vec<u8>,
    pub(crate) options: ReadOptions,
}

impl ScanRange {
    /// Returns `None` if the range is empty.
    pub(crate) fn new(bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Option<Self> {
        // The smallest key after `key` is `key` with a zero byte.
        let after = |key: &[u8]| [key, &[0]].concat();
        let start = match bounds.0 {
            Bound::Included(key) => key.to_vec(),
            Bound::Excluded(key) => after(key),
            Bound::Unbounded => Vec::new(),
        };
        let end = match bounds.1 {
            Bound::Included(key) => Some(after(key)),
            Bound::Excluded(key) => Some(key.to_vec()),
            Bound::Unbounded => None,
        };
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            if end <= start {
                return None;
            }
            options.set_iterate_upper_bound(end);
        }
        Some(Self { start, options })
    }
}

/// Returns the first pairs of an iterator: at most `limit`, ending with the pair that reaches `max_bytes`.
pub(crate) fn take(
    pairs: DBIteratorWithThreadMode<'_, DB>,
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<(Bytes, Bytes)>, rocksdb::Error> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for pair in pairs {
        let (key, value) = pair?;
        bytes += key.len() + value.len();
        found.push((Bytes::from(key), Bytes::from(value)));
        if found.len() >= limit || bytes >= max_bytes {
            break;
        }
    }
    Ok(found)
}
