//! A cursor over a table, on an iterator of `RocksDB`.

use bytes::Bytes;
use raft::StoreError;
use replica::{Cursor, Listed, Order, Table};
use rocksdb::{DB, DBRawIteratorWithThreadMode};

use crate::error::{Latch, translate};
use crate::tables::{Source, Tables};

/// A cursor over the pairs of a range. The iterator's options hold the bounds.
pub(crate) struct RocksCursor<'a, S> {
    tables: Tables<'a, S>,
    table: Table,
    pairs: DBRawIteratorWithThreadMode<'a, DB>,
    order: Order,
    place: Place,
    latch: &'a Latch,
}

/// The place of the iterator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It was not moved yet.
    Start,
    /// It is at the pair that comes next.
    Next,
    /// It is at the pair that was returned last.
    Last,
    /// It is behind the last pair.
    End,
}

impl<'a, S> RocksCursor<'a, S> {
    /// Creates a cursor that stands before the first pair.
    pub(crate) fn new(
        tables: Tables<'a, S>,
        table: Table,
        pairs: DBRawIteratorWithThreadMode<'a, DB>,
        order: Order,
        latch: &'a Latch,
    ) -> Self {
        Self {
            tables,
            table,
            pairs,
            order,
            place: Place::Start,
            latch,
        }
    }
}

impl<S: Source> Cursor for RocksCursor<'_, S> {
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
        self.latch.check()?;
        match (self.place, self.order) {
            (Place::Start, Order::Ascending) => self.pairs.seek_to_first(),
            (Place::Start, Order::Descending) => self.pairs.seek_to_last(),
            (Place::Last, Order::Ascending) => self.pairs.next(),
            (Place::Last, Order::Descending) => self.pairs.prev(),
            (Place::Next, _) => {}
            (Place::End, _) => return Ok(None),
        }
        if let Some((key, stored)) = self.pairs.item() {
            self.place = Place::Last;
            let listed = Tables::<S>::listed(self.table, stored);
            return Ok(Some((Bytes::copy_from_slice(key), listed)));
        }
        // An iterator that failed looks like one at its end.
        self.place = Place::End;
        let status = self.pairs.status();
        status.map_err(|error| self.latch.keep(translate(&error)))?;
        Ok(None)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.latch.check()?;
        match self.order {
            Order::Ascending => self.pairs.seek(key),
            Order::Descending => self.pairs.seek_for_prev(key),
        }
        self.place = Place::Next;
        Ok(())
    }

    fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
        self.latch.check()?;
        match listed {
            Listed::Value(value) => Ok(value),
            Listed::Unread(length) => {
                let value = self.tables.long_value(key, length);
                value.map_err(|error| self.latch.keep(error))
            }
        }
    }
}
