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
use replica::{Bounds, Cursor, EmptyCursor, Listed, MAX_LISTED_BYTES, Order, Table};
use rocksdb::{
    ColumnFamily, DB, DBPinnableSlice, DBRawIteratorWithThreadMode, ReadOptions, Snapshot,
    WriteBatch,
};

use crate::cursor::RocksCursor;
use crate::error::{Latch, translate};
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

    /// Returns an iterator over the pairs of a column family.
    fn pairs(
        &self,
        family: &ColumnFamily,
        options: ReadOptions,
    ) -> DBRawIteratorWithThreadMode<'_, DB>;
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
    ) -> DBRawIteratorWithThreadMode<'_, DB> {
        self.raw_iterator_cf_opt(family, options)
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
    ) -> DBRawIteratorWithThreadMode<'_, DB> {
        self.raw_iterator_cf_opt(family, options)
    }
}

/// Reads the tables from a source.
pub(crate) struct Tables<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) db: &'a StateDb,
    /// False if the blocks that are read must not evict those that other reads use.
    pub(crate) fills_cache: bool,
}

impl<S> Clone for Tables<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Tables<'_, S> {}

impl<'a, S: Source> Tables<'a, S> {
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

    /// Returns the value of a stored pair, or the length of one that is kept apart.
    pub(crate) fn listed(table: Table, stored: &[u8]) -> Listed {
        match marked(table, stored) {
            Some(length) => Listed::Unread(length),
            None => Listed::Value(Bytes::copy_from_slice(stored)),
        }
    }

    /// Returns a value that is kept apart from its key.
    pub(crate) fn long_value(&self, key: &[u8], length: usize) -> Result<Bytes, StoreError> {
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

    /// Returns a cursor over the pairs between two bounds.
    pub(crate) fn cursor(
        self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
        latch: &'a Latch,
    ) -> Result<Box<dyn Cursor + 'a>, StoreError> {
        let Some(mut options) = range(bounds) else {
            return Ok(Box::new(EmptyCursor));
        };
        options.fill_cache(self.fills_cache);
        let family = self.db.column_family(table)?;
        let pairs = self.source.pairs(family, options);
        Ok(Box::new(RocksCursor::new(self, table, pairs, order, latch)))
    }
}

/// Returns the options that keep an iterator in a range; `None` if the range is empty.
fn range(bounds: Bounds<'_>) -> Option<ReadOptions> {
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
    if end.as_ref().is_some_and(|end| *end <= start) {
        return None;
    }
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    if let Some(end) = end {
        options.set_iterate_upper_bound(end);
    }
    Some(options)
}
