//! A store in memory, for tests.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;

use crate::store::{Bounds, Cursor, Order, Reader, Store, Table};

/// Keeps all rows in ordered maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    rows: BTreeMap<(Table, Bytes), Bytes>,
}

impl MemoryStore {
    /// Returns all rows of a table.
    pub fn rows(&self, table: Table) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.rows
            .iter()
            .filter(move |((of, _), _)| *of == table)
            .map(|((_, key), value)| (key, value))
    }
}

struct Rows(VecDeque<(Bytes, Bytes)>);

impl Cursor for Rows {
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        Ok(self.0.pop_front())
    }
}

struct Walk<I>(I);

impl<'a, I: Iterator<Item = (&'a (Table, Bytes), &'a Bytes)>> Cursor for Walk<I> {
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let row = self.0.next();
        Ok(row.map(|((_, key), value)| (key.clone(), value.clone())))
    }
}

/// Returns true if no key lies between the bounds, and `BTreeMap` would panic.
fn reversed(bounds: Bounds<'_>) -> bool {
    match bounds {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Excluded(b))
        | (Bound::Excluded(a), Bound::Included(b)) => a >= b,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

/// The first table after `table`, as the end of its keys.
fn after(table: Table) -> Bound<(Table, Bytes)> {
    let next = Table::ALL.into_iter().find(|other| *other > table);
    next.map_or(Bound::Unbounded, |next| {
        Bound::Excluded((next, Bytes::new()))
    })
}

impl Reader for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let key = (table, Bytes::copy_from_slice(key));
        Ok(self.rows.get(&key).cloned())
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        if reversed(bounds) {
            return Ok(Box::new(Rows(VecDeque::new())));
        }
        let key = |key: &[u8]| (table, Bytes::copy_from_slice(key));
        let start = match bounds.0 {
            Bound::Included(start) => Bound::Included(key(start)),
            Bound::Excluded(start) => Bound::Excluded(key(start)),
            Bound::Unbounded => Bound::Included((table, Bytes::new())),
        };
        let end = match bounds.1 {
            Bound::Included(end) => Bound::Included(key(end)),
            Bound::Excluded(end) => Bound::Excluded(key(end)),
            Bound::Unbounded => after(table),
        };
        let rows = self.rows.range((start, end));
        Ok(match order {
            Order::Ascending => Box::new(Walk(rows)),
            Order::Descending => Box::new(Walk(rows.rev())),
        })
    }
}

impl Store for MemoryStore {
    fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.rows.insert((table, key), value);
    }

    fn remove(&mut self, table: Table, key: Bytes) {
        self.rows.remove(&(table, key));
    }
}
