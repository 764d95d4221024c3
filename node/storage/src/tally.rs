//! About how many bytes of a range are not in a file yet.
//!
//! `RocksDB` estimates what a range takes in files; its estimate of memory is not in the bindings. So the bytes of puts are
//! summed up by the first bytes of their keys, and forgotten when a flush that covers them is done. `RocksDB` also flushes
//! by itself, which nobody tells: until the next flush that we know of those bytes count twice.

use std::collections::BTreeMap;
use std::mem;

use raft::{EntryId, Index};
use replica::Table;

/// Ranges begin and end where these bytes of a key change: whoever divides a table puts a number of 32 bits first.
const PREFIX_BYTES: usize = 4;

type Prefix = [u8; PREFIX_BYTES];
type Sums = BTreeMap<(Table, Prefix), u64>;

/// Bytes of keys and values that were put and, as far as we know, not flushed.
///
/// Invariant: it has at most two sums for each prefix that is in use.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Since the last flush began.
    recent: Sums,
    /// The sums that the running flush covers, and its last commit.
    flushing: Option<(EntryId, Sums)>,
}

/// The first bytes of a key; a shorter one counts as if zeros followed.
fn prefix(key: &[u8]) -> Prefix {
    let mut prefix = Prefix::default();
    for (to, from) in prefix.iter_mut().zip(key) {
        *to = *from;
    }
    prefix
}

impl Tally {
    /// A pair was put.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let bytes = (key.len() + value.len()) as u64;
        *self.recent.entry((table, prefix(key))).or_default() += bytes;
    }

    /// A range was cleared.
    pub(crate) fn cleared(&mut self, table: Table, start: &[u8], end: &[u8]) {
        let inside =
            |of: &(Table, Prefix)| of.0 == table && of.1 >= prefix(start) && of.1 < prefix(end);
        self.recent.retain(|of, _| !inside(of));
        if let Some((_, sums)) = &mut self.flushing {
            sums.retain(|of, _| !inside(of));
        }
    }

    /// A flush of all commits up to `upto` was asked for.
    pub(crate) fn flushing(&mut self, upto: EntryId) {
        let mut sums = mem::take(&mut self.recent);
        if let Some((_, before)) = self.flushing.take() {
            for (of, bytes) in before {
                *sums.entry(of).or_default() += bytes;
            }
        }
        self.flushing = Some((upto, sums));
    }

    /// All commits up to `durable` are in files.
    pub(crate) fn durable(&mut self, durable: Index) {
        if matches!(&self.flushing, Some((upto, _)) if upto.index <= durable) {
            self.flushing = None;
        }
    }

    /// The bytes of `[start, end)`, give or take what shares the first bytes of either.
    pub(crate) fn bytes(&self, table: Table, start: &[u8], end: &[u8]) -> u64 {
        let inside = |sums: &Sums| -> u64 {
            let from = sums.range((table, prefix(start))..);
            // The end's own prefix counts only if the end lies within it.
            let within = |of: &(Table, Prefix)| {
                of.0 == table
                    && (of.1 < prefix(end) || end.len() > PREFIX_BYTES && of.1 == prefix(end))
            };
            from.take_while(|(of, _)| within(of))
                .map(|(_, bytes)| bytes)
                .sum()
        };
        let flushing = self.flushing.as_ref().map_or(0, |(_, sums)| inside(sums));
        inside(&self.recent) + flushing
    }
}

#[cfg(test)]
mod tests {
    use raft::Term;

    use super::*;

    fn upto(index: u64) -> EntryId {
        EntryId::new(Term(1), Index(index))
    }

    fn bytes(tally: &Tally, shard: u32) -> u64 {
        tally.bytes(
            Table::Data,
            &shard.to_be_bytes(),
            &(shard + 1).to_be_bytes(),
        )
    }

    fn put(tally: &mut Tally, shard: u32) {
        let key = [&shard.to_be_bytes()[..], b"123456"].concat();
        tally.put(Table::Data, &key, &[0; 90]);
    }

    #[test]
    fn what_is_not_flushed_is_counted() {
        let mut tally = Tally::default();
        put(&mut tally, 3);
        put(&mut tally, 3);
        put(&mut tally, 4);
        assert_eq!([2, 3, 4].map(|shard| bytes(&tally, shard)), [0, 200, 100]);
        assert_eq!(tally.bytes(Table::Sessions, &[0; 4], &[9; 4]), 0);
        assert_eq!(tally.bytes(Table::Data, &[0; 4], &[9; 4]), 300);
        assert_eq!(tally.bytes(Table::Data, &[0; 4], &[0, 0, 0, 4, 1]), 300);
        tally.flushing(upto(5));
        put(&mut tally, 4);
        tally.durable(Index(4));
        assert_eq!([3, 4].map(|shard| bytes(&tally, shard)), [200, 200]);
        tally.flushing(upto(7));
        tally.durable(Index(5));
        assert_eq!(bytes(&tally, 3), 200, "a later flush took it over");
        put(&mut tally, 3);
        tally.durable(Index(7));
        assert_eq!([3, 4].map(|shard| bytes(&tally, shard)), [100, 0]);
    }

    #[test]
    fn what_is_cleared_is_not_counted() {
        let mut tally = Tally::default();
        for shard in [1, 2, 3] {
            put(&mut tally, shard);
        }
        tally.flushing(upto(1));
        for shard in [1, 2, 3] {
            put(&mut tally, shard);
        }
        tally.cleared(Table::Data, &2u32.to_be_bytes(), &3u32.to_be_bytes());
        tally.cleared(Table::Sessions, &[0; 4], &[9; 4]);
        assert_eq!([1, 2, 3].map(|shard| bytes(&tally, shard)), [200, 0, 200]);
    }
}
