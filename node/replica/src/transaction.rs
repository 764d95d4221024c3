//! The changes of a batch over the state below them.

use bytes::Bytes;
use raft::{EntryId, StoreError};

use crate::Digest;
use crate::cursor::Listed;
use crate::cursor::{Bounds, Cursor, Order, PairReader, Rest};
use crate::store::{StateReader, WriteBatch};
use crate::table::Table;
use crate::work::Work;

/// The state under a batch of changes: reads see what the batch wrote before.
pub struct Transaction<'a> {
    below: &'a dyn StateReader,
    batch: WriteBatch,
    /// The digest that the changes continue, while entries are applied to a state that has one.
    digest: Option<Digest>,
    work: Work,
}

impl<'a> Transaction<'a> {
    /// Creates an empty transaction over `below`.
    pub fn new(below: &'a dyn StateReader) -> Self {
        Self {
            below,
            batch: WriteBatch::default(),
            digest: None,
            work: Work::default(),
        }
    }

    /// Returns the work that was done through this transaction: what it read and wrote.
    pub fn work(&self) -> u64 {
        self.work.done()
    }

    /// Counts work that passes by the transaction.
    pub(crate) fn add_work(&self, work: u64) {
        self.work.add(work);
    }

    /// Returns the value of a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = match self.batch.get(table, key) {
            Some(change) => change,
            None => self.below.get(table, key)?,
        };
        self.work.lookup(value.as_ref().map_or(0, Bytes::len));
        Ok(value)
    }

    /// Sets a key.
    pub fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        if let Some(digest) = &mut self.digest {
            digest.put(table, &key, &value);
        }
        self.work.write(key.len() + value.len());
        self.batch.put(table, key, value);
    }

    /// Removes a key.
    pub fn remove(&mut self, table: Table, key: Bytes) {
        if let Some(digest) = &mut self.digest {
            digest.remove(table, &key);
        }
        self.work.write(key.len());
        self.batch.remove(table, key);
    }

    /// Removes all keys in `[start, end)`.
    pub fn clear(&mut self, table: Table, start: Bytes, end: Bytes) {
        if let Some(digest) = &mut self.digest {
            digest.clear(table, &start, &end);
        }
        self.work.write(start.len() + end.len());
        self.batch.clear(table, start, end);
    }

    /// Sets the digest that later changes continue; `None` if they are no part of one.
    pub fn set_digest(&mut self, digest: Option<Digest>) {
        self.digest = digest;
    }

    /// Ends the changes of an entry. Returns the digest after it, if the changes are part of one.
    pub fn end_entry(&mut self, entry: EntryId) -> Option<Digest> {
        if let Some(digest) = &mut self.digest {
            digest.end_entry(entry);
        }
        self.digest
    }

    /// Returns the changes.
    pub fn into_batch(self) -> WriteBatch {
        self.batch
    }
}

impl PairReader for Transaction<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Transaction::get(self, table, key)
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.work.lookup(0);
        let changes = Rest::new(table, bounds, order);
        Ok(Box::new(MergedCursor {
            change: changes.first(&self.batch.changes),
            below: self.below.cursor(table, bounds, order)?,
            batch: &self.batch,
            table,
            order,
            changes,
            ahead: None,
            work: &self.work,
        }))
    }
}

/// A cursor over the pairs below a batch and the batch's changes. It passes both in step, and reads ahead at most one pair of
/// each.
struct MergedCursor<'a> {
    batch: &'a WriteBatch,
    table: Table,
    order: Order,
    /// The batch's changes that weren't passed.
    changes: Rest,
    /// The first of these changes.
    change: Option<(&'a Bytes, &'a Option<Bytes>)>,
    below: Box<dyn Cursor + 'a>,
    /// The first pair below that wasn't passed; `None` if it wasn't read.
    ahead: Option<(Bytes, Listed)>,
    work: &'a Work,
}

impl MergedCursor<'_> {
    /// Reads the next pair below that the batch did not clear, unless it was read.
    fn read_ahead(&mut self) -> Result<(), StoreError> {
        while self.ahead.is_none() {
            let Some((key, listed)) = self.below.next()? else {
                return Ok(());
            };
            self.work.step(key.len() + listed.read());
            match self.batch.clear_of(self.table, &key) {
                Some((start, end)) => match self.order {
                    // One jump over the range, however many pairs it has.
                    Order::Ascending => self.below.seek(end)?,
                    // Only the start itself can come again.
                    Order::Descending if key != *start => self.below.seek(start)?,
                    Order::Descending => {}
                },
                None => self.ahead = Some((key, listed)),
            }
        }
        Ok(())
    }

    /// Returns true if the cursor passes `a` before `b`.
    fn is_before(&self, a: &Bytes, b: &Bytes) -> bool {
        match self.order {
            Order::Ascending => a < b,
            Order::Descending => a > b,
        }
    }
}

impl Cursor for MergedCursor<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
        loop {
            self.read_ahead()?;
            let Some((key, change)) = self.change else {
                return Ok(self.ahead.take());
            };
            if let Some((below, _)) = &self.ahead {
                if self.is_before(below, key) {
                    return Ok(self.ahead.take());
                }
                if below == key {
                    self.ahead = None;
                }
            }
            self.work.step(key.len());
            self.changes.pass(key);
            self.change = self.changes.first(&self.batch.changes);
            if let Some(value) = change {
                return Ok(Some((key.clone(), Listed::Value(value.clone()))));
            }
        }
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.work.lookup(0);
        self.ahead = None;
        self.changes.seek(key);
        self.change = self.changes.first(&self.batch.changes);
        self.below.seek(key)
    }

    fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
        // What the batch wrote is never unread.
        let unread = matches!(listed, Listed::Unread(_));
        let value = self.below.read(key, listed)?;
        if unread {
            self.work.lookup(value.len());
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::Bound;

    use super::*;
    use crate::memory::MemoryState;
    use crate::{Applied, StateStore, View};

    /// A state that counts the pairs that its cursors return.
    struct Counted {
        state: MemoryState,
        pairs: Cell<usize>,
    }

    struct CountedCursor<'a>(Box<dyn Cursor + 'a>, &'a Cell<usize>);

    impl PairReader for Counted {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.state.get(table, key)
        }

        fn cursor(
            &self,
            table: Table,
            bounds: Bounds<'_>,
            order: Order,
        ) -> Result<Box<dyn Cursor + '_>, StoreError> {
            let cursor = self.state.cursor(table, bounds, order)?;
            Ok(Box::new(CountedCursor(cursor, &self.pairs)))
        }
    }

    impl StateReader for Counted {
        fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError> {
            self.state.view(table, start, end)
        }

        fn estimate_bytes(
            &self,
            table: Table,
            start: &[u8],
            end: &[u8],
        ) -> Result<u64, StoreError> {
            self.state.estimate_bytes(table, start, end)
        }
    }

    impl Cursor for CountedCursor<'_> {
        fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
            let found = self.0.next()?;
            self.1.set(self.1.get() + usize::from(found.is_some()));
            Ok(found)
        }

        fn seek(&mut self, key: &[u8]) -> Result<(), StoreError> {
            self.0.seek(key)
        }

        fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
            self.0.read(key, listed)
        }
    }

    fn key(n: usize) -> Bytes {
        format!("{n:05}").into()
    }

    /// A cursor costs no more than what it returns, however large the range and what the batch cleared.
    #[test]
    fn a_cursor_jumps_over_a_cleared_range_and_reads_one_pair_ahead() {
        let mut state = MemoryState::new();
        let mut batch = WriteBatch::default();
        for n in 0..10_000 {
            batch.put(Table::Data, key(n), Bytes::new());
        }
        state.commit(batch, Applied::default()).unwrap();
        let state = Counted {
            state,
            pairs: Cell::new(0),
        };
        let mut transaction = Transaction::new(&state);
        transaction.clear(Table::Data, key(2), key(9_998));
        transaction.put(Table::Data, key(5_000), Bytes::new());
        let whole = (Bound::Unbounded, Bound::Unbounded);
        let keys = |order| {
            let mut cursor = transaction.cursor(Table::Data, whole, order).unwrap();
            let mut keys = Vec::new();
            while let Some((key, _)) = cursor.next().unwrap() {
                keys.push(key);
            }
            keys
        };
        let mut expected = [0, 1, 5_000, 9_998, 9_999].map(key);
        assert_eq!(keys(Order::Ascending), expected);
        expected.reverse();
        assert_eq!(keys(Order::Descending), expected);
        // Of the cleared pairs, the first or the last ones.
        assert!(state.pairs.get() <= 11, "{} pairs", state.pairs.get());
    }
}
