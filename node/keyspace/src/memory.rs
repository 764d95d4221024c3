//! A store in memory, for tests.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{Bounds, Cursor, EmptyCursor, Listed, Order, PairReader};

use crate::store::Store;
use crate::{Table, keys};

/// Keeps all rows in an ordered map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    rows: BTreeMap<Bytes, Bytes>,
}

impl MemoryStore {
    /// Returns all rows.
    pub fn all(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.rows.iter()
    }

    /// Returns all rows of a table, of all keyspaces.
    pub fn rows(&self, table: Table) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        let is_in = move |key: &Bytes| keys::table_number(key) == Some(table.number());
        self.all().filter(move |(key, _)| is_in(key))
    }
}

/// Passes the rows between two bounds.
struct Walk<'a> {
    rows: &'a BTreeMap<Bytes, Bytes>,
    order: Order,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
}

impl Walk<'_> {
    fn is_empty(&self) -> bool {
        is_reversed((
            self.start.as_ref().map(AsRef::as_ref),
            self.end.as_ref().map(AsRef::as_ref),
        ))
    }
}

impl Cursor for Walk<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut rows = self.rows.range((self.start.clone(), self.end.clone()));
        let row = match self.order {
            Order::Ascending => rows.next(),
            Order::Descending => rows.next_back(),
        };
        let Some((key, value)) = row else {
            return Ok(None);
        };
        match self.order {
            Order::Ascending => self.start = Bound::Excluded(key.clone()),
            Order::Descending => self.end = Bound::Excluded(key.clone()),
        }
        Ok(Some((key.clone(), Listed::Value(value.clone()))))
    }

    /// No reader of this crate seeks.
    fn seek(&mut self, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Io("the store in memory can't seek".to_owned()))
    }

    fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
        EmptyCursor.read(key, listed)
    }
}

/// Returns true if no key lies between the bounds, and `BTreeMap` would panic.
fn is_reversed(bounds: Bounds<'_>) -> bool {
    match bounds {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Excluded(b))
        | (Bound::Excluded(a), Bound::Included(b)) => a >= b,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

impl PairReader for MemoryStore {
    fn get(&self, _: replica::Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.rows.get(key).cloned())
    }

    fn cursor(
        &self,
        _: replica::Table,
        (start, end): Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        Ok(Box::new(Walk {
            rows: &self.rows,
            order,
            start: start.map(Bytes::copy_from_slice),
            end: end.map(Bytes::copy_from_slice),
        }))
    }
}

impl Store for MemoryStore {
    fn put(&mut self, key: Bytes, value: Bytes) {
        self.rows.insert(key, value);
    }

    fn remove(&mut self, key: Bytes) {
        self.rows.remove(&key);
    }
}
