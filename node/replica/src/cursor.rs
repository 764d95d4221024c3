//! Reads of single pairs and of pairs in key order, without copying a range.
//!
//! [`PairReader`] is what a state machine needs to read: a key's value, and a [`Cursor`] over a range. A state has it, and so
//! has a [`Transaction`](crate::Transaction), whose cursor sees what the batch wrote. So the same code reads for an operation
//! and for a query.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;

use crate::table::Table;

/// The two bounds of a range of keys.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The order in which a cursor passes keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the least key to the greatest.
    Ascending,
    /// From the greatest key to the least.
    Descending,
}

/// Only longer values may be left out of a list.
pub const MAX_LISTED_BYTES: usize = 4_096;

/// The value of a listed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The value.
    Value(Bytes),
    /// The length of a value that was not read.
    Unread(usize),
}

impl Listed {
    /// Returns the length of the value.
    pub fn length(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Unread(length) => *length,
        }
    }

    /// Returns the number of bytes of the value that were read.
    pub fn read(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Unread(_) => 0,
        }
    }
}

/// Reads pairs by key and in key order.
pub trait PairReader {
    /// Returns the value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Returns a cursor over the pairs between two bounds as of now: later changes don't alter what it returns. It stands before
    /// the first pair. Bounds that cross have no pairs.
    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError>;
}

/// Reads the pairs of a range one by one. It holds one pair at a time, whatever the size of the range.
pub trait Cursor {
    /// Returns the next pair in the cursor's order; `None` after the last. A store may leave long values unread, as in a list
    /// ([`StateReader::list`](crate::StateReader::list)).
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError>;

    /// Moves the cursor, forward or back, so that the next pair is the first one in the cursor's order that isn't before
    /// `key`: an ascending cursor returns the least key that is at least `key`, a descending one the greatest key that is at
    /// most `key`. The bounds still hold.
    fn seek(&mut self, key: &[u8]) -> Result<(), StoreError>;

    /// Returns the value of a pair that this cursor returned.
    fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError>;
}

/// The cursor of a range without pairs.
#[derive(Clone, Copy, Debug)]
pub struct EmptyCursor;

impl Cursor for EmptyCursor {
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
        Ok(None)
    }

    fn seek(&mut self, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn read(&self, _: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
        match listed {
            Listed::Value(value) => Ok(value),
            Listed::Unread(_) => Err(missing()),
        }
    }
}

/// Returns the error of a long value that isn't where its pair says.
pub(crate) fn missing() -> StoreError {
    StoreError::Damaged("a long value is missing".to_owned())
}

type OwnedBounds = (Bound<Bytes>, Bound<Bytes>);

/// The part of a range that a cursor over a map hasn't passed.
///
/// Invariant: `left` lies within `bounds`.
#[derive(Debug)]
pub(crate) struct Rest {
    table: Table,
    order: Order,
    bounds: OwnedBounds,
    left: OwnedBounds,
}

impl Rest {
    /// Creates the whole range.
    pub(crate) fn new(table: Table, (start, end): Bounds<'_>, order: Order) -> Self {
        let bounds = (
            start.map(Bytes::copy_from_slice),
            end.map(Bytes::copy_from_slice),
        );
        Self {
            table,
            order,
            left: bounds.clone(),
            bounds,
        }
    }

    /// Returns the first pair that is left, in the cursor's order.
    pub(crate) fn first<'m, V>(
        &self,
        map: &'m BTreeMap<(Table, Bytes), V>,
    ) -> Option<(&'m Bytes, &'m V)> {
        // Only one bound goes to `range`: it panics on bounds that cross.
        let found = match self.order {
            Order::Ascending => {
                let from = match &self.left.0 {
                    Bound::Included(key) => Bound::Included((self.table, key.clone())),
                    Bound::Excluded(key) => Bound::Excluded((self.table, key.clone())),
                    Bound::Unbounded => Bound::Included((self.table, Bytes::new())),
                };
                map.range((from, Bound::Unbounded)).next()
            }
            Order::Descending => {
                let to = match &self.left.1 {
                    Bound::Included(key) => Bound::Included((self.table, key.clone())),
                    Bound::Excluded(key) => Bound::Excluded((self.table, key.clone())),
                    Bound::Unbounded => end_of(self.table),
                };
                map.range((Bound::Unbounded, to)).next_back()
            }
        };
        let ((table, key), value) = found?;
        let inside =
            *table == self.table && is_after(&self.left.0, key) && is_before(&self.left.1, key);
        inside.then_some((key, value))
    }

    /// Leaves `key` and all that is before it behind.
    pub(crate) fn pass(&mut self, key: &Bytes) {
        match self.order {
            Order::Ascending => self.left.0 = Bound::Excluded(key.clone()),
            Order::Descending => self.left.1 = Bound::Excluded(key.clone()),
        }
    }

    /// As [`Cursor::seek`].
    pub(crate) fn seek(&mut self, key: &[u8]) {
        let at = Bound::Included(Bytes::copy_from_slice(key));
        let (start, end) = self.bounds.clone();
        self.left = match self.order {
            Order::Ascending if is_after(&start, key) => (at, end),
            Order::Descending if is_before(&end, key) => (start, at),
            Order::Ascending | Order::Descending => (start, end),
        };
    }
}

/// Returns the bound after all keys of a table.
fn end_of(table: Table) -> Bound<(Table, Bytes)> {
    let next = Table::ALL.into_iter().find(|other| *other > table);
    next.map_or(Bound::Unbounded, |next| {
        Bound::Excluded((next, Bytes::new()))
    })
}

/// Returns true if a range that begins with `start` may contain `key`.
fn is_after(start: &Bound<Bytes>, key: &[u8]) -> bool {
    match start {
        Bound::Included(start) => key >= start.as_ref(),
        Bound::Excluded(start) => key > start.as_ref(),
        Bound::Unbounded => true,
    }
}

/// Returns true if a range that ends with `end` may contain `key`.
fn is_before(end: &Bound<Bytes>, key: &[u8]) -> bool {
    match end {
        Bound::Included(end) => key <= end.as_ref(),
        Bound::Excluded(end) => key < end.as_ref(),
        Bound::Unbounded => true,
    }
}
