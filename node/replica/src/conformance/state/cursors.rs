//! Cursors in both orders, over a state and over a transaction.

use std::ops::Bound;

use bytes::Bytes;

use super::walks::random_batch;
use super::{Content, Harness, applied, numbered};
use crate::conformance::Random;
use crate::memory::MemoryState;
use crate::{Order, PairReader, StateStore, Table, Transaction, WriteBatch};

/// The number of keys in use.
const KEYS: u64 = 60;

/// Random commits, transactions and cursors, in step with sorted pairs.
pub fn cursors_agree_with_the_model<H: Harness>(harness: &mut H, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random(seed);
        let mut state = harness.create();
        let mut model = MemoryState::new();
        for index in 1..=25 {
            let batch = random_batch(&mut random);
            state.commit(batch.clone(), applied(index)).unwrap();
            model.commit(batch, applied(index)).unwrap();
            if random.below(4) == 0 {
                state.flush().unwrap();
            }
            check(&state, model.pairs(), &mut random);

            let mut transaction = Transaction::new(&state);
            let mut changed = model.clone();
            for _ in 0..random.below(3) {
                let batch = random_batch(&mut random);
                write(&mut transaction, &batch);
                changed.commit(batch, applied(index)).unwrap();
                check(&transaction, changed.pairs(), &mut random);
            }
        }
    }
}

/// Writes a batch to a transaction.
fn write(transaction: &mut Transaction<'_>, batch: &WriteBatch) {
    for (table, start, end) in &batch.cleared {
        transaction.clear(*table, start.clone(), end.clone());
    }
    for ((table, key), change) in &batch.changes {
        match change {
            Some(value) => transaction.put(*table, key.clone(), value.clone()),
            None => transaction.remove(*table, key.clone()),
        }
    }
}

/// Moves some cursors at random, and compares what they return with the pairs that `reader` should have.
fn check(reader: &dyn PairReader, pairs: &Content, random: &mut Random) {
    for _ in 0..4 {
        let table = Table::ALL[usize::try_from(random.below(4)).unwrap()];
        let (start, end) = (random_bound(random), random_bound(random));
        let order = if random.below(2) == 0 {
            Order::Ascending
        } else {
            Order::Descending
        };
        let bounds = (
            start.as_ref().map(Bytes::as_ref),
            end.as_ref().map(Bytes::as_ref),
        );
        let mut expected: Vec<(&Bytes, &Bytes)> = pairs
            .iter()
            .filter(|((of, key), _)| *of == table && begins(&start, key) && ends(&end, key))
            .map(|((_, key), value)| (key, value))
            .collect();
        if order == Order::Descending {
            expected.reverse();
        }
        let mut cursor = reader.cursor(table, bounds, order).unwrap();
        let mut next = 0;
        for _ in 0..12 {
            if random.below(3) == 0 {
                let key = random_key(random);
                cursor.seek(&key).unwrap();
                next = expected.partition_point(|(it, _)| match order {
                    Order::Ascending => **it < key,
                    Order::Descending => **it > key,
                });
            }
            for _ in 0..random.below(8) {
                let found = cursor.next().unwrap();
                let found = found.map(|(key, listed)| {
                    let length = listed.length();
                    let value = cursor.read(&key, listed).unwrap();
                    assert_eq!(value.len(), length, "{table:?} {key:?}");
                    (key, value)
                });
                let found = found.as_ref().map(|(key, value)| (key, value));
                let due = expected.get(next).copied();
                assert_eq!(found, due, "{table:?} {start:?} {end:?} {order:?}");
                next = expected.len().min(next + 1);
            }
        }
    }
}

fn begins(start: &Bound<Bytes>, key: &Bytes) -> bool {
    match start {
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
        Bound::Unbounded => true,
    }
}

fn ends(end: &Bound<Bytes>, key: &Bytes) -> bool {
    match end {
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
        Bound::Unbounded => true,
    }
}

/// Returns a key in use, one between two of these, or one beyond all.
fn random_key(random: &mut Random) -> Bytes {
    let key = numbered(random.below(KEYS + 2));
    match random.below(4) {
        0 => [key.as_ref(), b"x"].concat().into(),
        1 if random.below(4) == 0 => Bytes::new(),
        _ => key,
    }
}

fn random_bound(random: &mut Random) -> Bound<Bytes> {
    match random.below(4) {
        0 => Bound::Unbounded,
        1 => Bound::Excluded(random_key(random)),
        _ => Bound::Included(random_key(random)),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use raft::StoreError;

    use super::*;
    use crate::{Bounds, Cursor, Listed};

    /// A mistake of a cursor.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        IncludesItsEnd,
        IgnoresItsStart,
        SeeksPastTheKey,
        SeeksOnlyOnward,
        BeginsAgainAfterItsEnd,
        ReturnsTheOtherOrder,
    }

    struct Faulty<'a>(&'a MemoryState, Fault);

    struct FaultyCursor<'a> {
        cursor: Box<dyn Cursor + 'a>,
        fault: Fault,
        order: Order,
        last: Option<Bytes>,
    }

    impl PairReader for Faulty<'_> {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get(table, key)
        }

        fn cursor(
            &self,
            table: Table,
            (mut start, mut end): Bounds<'_>,
            mut order: Order,
        ) -> Result<Box<dyn Cursor + '_>, StoreError> {
            match (self.1, start, end) {
                (Fault::IncludesItsEnd, _, Bound::Excluded(key)) => end = Bound::Included(key),
                (Fault::IgnoresItsStart, ..) => start = Bound::Unbounded,
                (Fault::ReturnsTheOtherOrder, ..) => order = Order::Ascending,
                _ => {}
            }
            Ok(Box::new(FaultyCursor {
                cursor: self.0.cursor(table, (start, end), order)?,
                fault: self.1,
                order,
                last: None,
            }))
        }
    }

    impl Cursor for FaultyCursor<'_> {
        fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
            let found = self.cursor.next()?;
            match &found {
                Some((key, _)) => self.last = Some(key.clone()),
                None if self.fault == Fault::BeginsAgainAfterItsEnd => self.cursor.seek(&[])?,
                None => {}
            }
            Ok(found)
        }

        fn seek(&mut self, key: &[u8]) -> Result<(), StoreError> {
            let back = |last: &Bytes| match self.order {
                Order::Ascending => key <= last.as_ref(),
                Order::Descending => key >= last.as_ref(),
            };
            if self.fault == Fault::SeeksOnlyOnward && self.last.as_ref().is_some_and(back) {
                return Ok(());
            }
            self.cursor.seek(key)?;
            if self.fault == Fault::SeeksPastTheKey {
                self.cursor.next()?;
            }
            Ok(())
        }

        fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
            self.cursor.read(key, listed)
        }
    }

    fn state(random: &mut Random) -> MemoryState {
        let mut state = MemoryState::new();
        for index in 1..20 {
            state.commit(random_batch(random), applied(index)).unwrap();
        }
        state
    }

    /// Returns true if some seed finds a difference between `reader` and `pairs`.
    fn differs(reader: &dyn PairReader, pairs: &Content) -> bool {
        let check = |seed| {
            let mut random = Random(seed);
            catch_unwind(AssertUnwindSafe(|| check(reader, pairs, &mut random)))
        };
        (0..50).any(|seed| check(seed).is_err())
    }

    #[test]
    fn the_check_finds_each_fault_of_a_cursor() {
        let state = state(&mut Random(1));
        assert!(!differs(&state, state.pairs()));
        for fault in [
            Fault::IncludesItsEnd,
            Fault::IgnoresItsStart,
            Fault::SeeksPastTheKey,
            Fault::SeeksOnlyOnward,
            Fault::BeginsAgainAfterItsEnd,
            Fault::ReturnsTheOtherOrder,
        ] {
            assert!(differs(&Faulty(&state, fault), state.pairs()), "{fault:?}");
        }
    }

    #[test]
    fn the_check_finds_a_cursor_that_misses_changes_of_a_batch() {
        let mut random = Random(2);
        let state = state(&mut random);
        let mut whole = WriteBatch::default();
        for table in Table::ALL {
            whole.clear(table, numbered(10), numbered(30));
            for n in (0..KEYS).step_by(5) {
                whole.put(table, numbered(n), numbered(n + 1_000_000));
                whole.remove(table, numbered(n + 1));
            }
        }
        let mut changed = state.clone();
        changed.commit(whole.clone(), applied(20)).unwrap();
        let differs = |seen: &WriteBatch| {
            let mut transaction = Transaction::new(&state);
            write(&mut transaction, seen);
            differs(&transaction, changed.pairs())
        };
        assert!(!differs(&whole));
        let uncleared = WriteBatch {
            cleared: Vec::new(),
            ..whole.clone()
        };
        let mut unremoved = whole.clone();
        unremoved.changes.retain(|_, change| change.is_some());
        let mut unwritten = whole.clone();
        unwritten.changes.retain(|_, change| change.is_none());
        assert!(differs(&uncleared), "ranges that were cleared");
        assert!(differs(&unremoved), "keys that were removed");
        assert!(differs(&unwritten), "values that were written");
    }
}
