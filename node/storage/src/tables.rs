//! Reads of the state's tables, in the database or in a snapshot of it, and the place of long values.
//!
//! A `RocksDB` iterator reads the value of every key that it passes. So the long values of [`Table::Data`] are kept in a column
//! family of their own, `values`, under the same keys, and the table has a *mark* in their place. Then a list of keys reads no long
//! value, whatever its length.
//!
//! # Invariants, as of each commit
//!
//! - A key of `values` has a mark in the table, of the same length.
//! - What looks like a mark is one: a value that begins like a mark is kept apart, however short it is.
//!
//! A state of an older version has long values in the table itself. They are read there, until they are written again.

use std::ops::Bound;

use bytes::{Buf as _, Bytes};
use raft::StoreError;
use replica::{Listed, MAX_LISTED_BYTES, Table};
use rocksdb::{
    ColumnFamily, DB, DBIteratorWithThreadMode, DBPinnableSlice, Direction, IteratorMode,
    ReadOptions, Snapshot, WriteBatch,
};

use crate::error::translate;
use crate::state_db::StateDb;

/// The first bytes of a mark, drawn at random. The length of the value follows (u64, big-endian).
const MARK: [u8; 16] = [
    0x9c, 0x1e, 0xd3, 0x57, 0x40, 0xb8, 0xf2, 0x6b, 0x08, 0xa5, 0xc9, 0x31, 0x7e, 0x14, 0xed, 0x82,
];
const MARK_BYTES: usize = MARK.len() + 8;

/// Returns true if the value is kept apart from its key.
fn is_apart(table: Table, value: &[u8]) -> bool {
    table == Table::Data && (value.len() > MAX_LISTED_BYTES || value.starts_with(&MARK))
}

/// Returns the length of the value that a mark stands for; `None` if `stored` is the value itself.
fn marked(table: Table, stored: &[u8]) -> Option<usize> {
    if table != Table::Data || stored.len() != MARK_BYTES {
        return None;
    }
    let mut length = stored.strip_prefix(&MARK)?;
    usize::try_from(length.try_get_u64().ok()?).ok()
}

/// Adds a put to a batch.
pub(crate) fn put(
    db: &StateDb,
    batch: &mut WriteBatch,
    table: Table,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    let family = db.column_family(table)?;
    if !is_apart(table, value) {
        batch.put_cf(family, key, value);
        return remove_value(db, batch, table, key);
    }
    let mark = [&MARK[..], &(value.len() as u64).to_be_bytes()].concat();
    batch.put_cf(family, key, mark);
    batch.put_cf(db.values()?, key, value);
    db.set_has_values();
    Ok(())
}

/// Adds the removal of a key to a batch.
pub(crate) fn remove(
    db: &StateDb,
    batch: &mut WriteBatch,
    table: Table,
    key: &[u8],
) -> Result<(), StoreError> {
    batch.delete_cf(db.column_family(table)?, key);
    remove_value(db, batch, table, key)
}

/// Adds the removal of all keys of a range to a batch.
pub(crate) fn remove_range(
    db: &StateDb,
    batch: &mut WriteBatch,
    table: Table,
    start: &[u8],
    end: &[u8],
) -> Result<(), StoreError> {
    batch.delete_range_cf(db.column_family(table)?, start, end);
    if table == Table::Data && db.has_values() {
        batch.delete_range_cf(db.values()?, start, end);
    }
    Ok(())
}

/// Removes the long value that a key may have. Most stores have none, and of the others a filter tells most keys.
fn remove_value(
    db: &StateDb,
    batch: &mut WriteBatch,
    table: Table,
    key: &[u8],
) -> Result<(), StoreError> {
    if table == Table::Data && db.has_values() && db.db().key_may_exist_cf(db.values()?, key) {
        batch.delete_cf(db.values()?, key);
    }
    Ok(())
}

/// A database, or a snapshot of one.
pub(crate) trait Source {
    /// Returns the value of a key.
    fn value(
        &self,
        family: &ColumnFamily,
        key: &[u8],
        options: ReadOptions,
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>;

    /// Returns the pairs from a key on.
    fn pairs(
        &self,
        family: &ColumnFamily,
        options: ReadOptions,
        from: IteratorMode<'_>,
    ) -> DBIteratorWithThreadMode<'_, DB>;
}

impl Source for DB {
    fn value(
        &self,
        family: &ColumnFamily,
        key: &[u8],
        options: ReadOptions,
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        self.get_pinned_cf_opt(family, key, &options)
    }

    fn pairs(
        &self,
        family: &ColumnFamily,
        options: ReadOptions,
        from: IteratorMode<'_>,
    ) -> DBIteratorWithThreadMode<'_, DB> {
        self.iterator_cf_opt(family, options, from)
    }
}

impl Source for Snapshot<'_> {
    fn value(
        &self,
        family: &ColumnFamily,
        key: &[u8],
        options: ReadOptions,
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        self.get_pinned_cf_opt(family, key, options)
    }

    fn pairs(
        &self,
        family: &ColumnFamily,
        options: ReadOptions,
        from: IteratorMode<'_>,
    ) -> DBIteratorWithThreadMode<'_, DB> {
        self.iterator_cf_opt(family, options, from)
    }
}

/// Reads the tables from a source.
pub(crate) struct Tables<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) db: &'a StateDb,
    /// False if the blocks that are read must not evict those that other reads use.
    pub(crate) fills_cache: bool,
}

impl<S: Source> Tables<'_, S> {
    /// Returns the value of a key.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let family = self.db.column_family(table)?;
        let found = self.source.value(family, key, ReadOptions::default());
        match found.map_err(|error| translate(&error))? {
            Some(stored) => match marked(table, &stored) {
                Some(length) => self.long_value(key, length).map(Some),
                None => Ok(Some(Bytes::copy_from_slice(&stored))),
            },
            None => Ok(None),
        }
    }

    /// Returns the value of a stored pair.
    pub(crate) fn value(
        &self,
        table: Table,
        key: &[u8],
        stored: Box<[u8]>,
    ) -> Result<Bytes, StoreError> {
        match marked(table, &stored) {
            Some(length) => self.long_value(key, length),
            None => Ok(stored.into()),
        }
    }

    fn long_value(&self, key: &[u8], length: usize) -> Result<Bytes, StoreError> {
        let mut options = ReadOptions::default();
        options.fill_cache(self.fills_cache);
        let found = self.source.value(self.db.values()?, key, options);
        let value = found.map_err(|error| translate(&error))?;
        let value = value.filter(|value| value.len() == length).ok_or_else(|| {
            let text = format!("a value of {length} bytes is missing or has another length");
            StoreError::Damaged(text)
        })?;
        Ok(Bytes::copy_from_slice(&value))
    }

    /// Returns the first pairs between two bounds: at most `limit`, ending with the pair that reaches `max_bytes`.
    pub(crate) fn scan(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let value = |key: &[u8], stored| self.value(table, key, stored);
        self.first(table, bounds, (limit, max_bytes), value, Bytes::len)
    }

    /// As [`Self::scan`], without the long values.
    pub(crate) fn list(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Listed)>, StoreError> {
        let value = |_: &[u8], stored: Box<[u8]>| {
            Ok(match marked(table, &stored) {
                Some(length) => Listed::Unread(length),
                None => Listed::Value(stored.into()),
            })
        };
        self.first(table, bounds, (limit, max_bytes), value, Listed::read)
    }

    fn first<V>(
        &self,
        table: Table,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        (limit, max_bytes): (usize, usize),
        value: impl Fn(&[u8], Box<[u8]>) -> Result<V, StoreError>,
        size: impl Fn(&V) -> usize,
    ) -> Result<Vec<(Bytes, V)>, StoreError> {
        let Some((start, mut options)) = range(bounds).filter(|_| limit > 0) else {
            return Ok(Vec::new());
        };
        options.fill_cache(self.fills_cache);
        let family = self.db.column_family(table)?;
        let from = IteratorMode::From(&start, Direction::Forward);
        let mut found = Vec::new();
        let mut bytes = 0;
        for pair in self.source.pairs(family, options, from) {
            let (key, stored) = pair.map_err(|error| translate(&error))?;
            let value = value(&key, stored)?;
            bytes += key.len() + size(&value);
            found.push((Bytes::from(key), value));
            if found.len() >= limit || bytes >= max_bytes {
                break;
            }
        }
        Ok(found)
    }
}

/// Returns the first key of a range, and the options that end reads of it; `None` if it is empty.
fn range(bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Option<(Vec<u8>, ReadOptions)> {
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
    Some((start, options))
}
