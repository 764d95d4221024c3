//! Estimates the bytes of a range that are not in a file yet.
//!
//! `RocksDB` estimates the bytes of a range in its files; its estimate for memory is missing in the Rust bindings. So the
//! bytes of puts are summed by the first bytes of their keys, and dropped when a flush that covers them is done. `RocksDB`
//! also flushes by itself, which this module does not see: until the next flush of ours those bytes count twice.

use std::collections::BTreeMap;
use std::mem;

use raft::{EntryId, Index};
use replica::Table;

/// The length of the prefix by which puts are summed. The estimate is exact for ranges that begin and end at a prefix, as
/// the ranges of shards do: their keys begin with the shard's number of 32 bits.
const PREFIX_BYTES: usize = 4;

type Prefix = [u8; PREFIX_BYTES];
type Sums = BTreeMap<(Table, Prefix), u64>;

/// Bytes of keys and values that were put and, as far as the store knows, not flushed.
///
/// Invariant: it has at most two sums for each prefix in use.
#[derive(Debug, Default)]
pub(crate) struct UnflushedBytes {
    /// The sums since the last flush began.
    recent: Sums,
    /// The sums that the running flush covers, and its last commit.
    flushing: Option<(EntryId, Sums)>,
}

/// Returns the first bytes of a key. A shorter key is padded with zeros.
fn prefix(key: &[u8]) -> Prefix {
    let mut prefix = Prefix::default();
    for (to, from) in prefix.iter_mut().zip(key) {
        *to = *from;
    }
    prefix
}

impl UnflushedBytes {
    /// Adds a pair that was put.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let bytes = (key.len() + value.len()) as u64;
        *self.recent.entry((table, prefix(key))).or_default() += bytes;
    }

    /// Drops the bytes of a range that was cleared.
    pub(crate) fn clear(&mut self, table: Table, start: &[u8], end: &[u8]) {
        let inside =
            |of: &(Table, Prefix)| of.0 == table && of.1 >= prefix(start) && of.1 < prefix(end);
        self.recent.retain(|of, _| !inside(of));
        if let Some((_, sums)) = &mut self.flushing {
            sums.retain(|of, _| !inside(of));
        }
    }

    /// Moves all sums to the flush that was requested for all commits up to `last`.
    pub(crate) fn start_flush(&mut self, last: EntryId) {
        let mut sums = mem::take(&mut self.recent);
        if let Some((_, before)) = self.flushing.take() {
            for (of, bytes) in before {
                *sums.entry(of).or_default() += bytes;
            }
        }
        self.flushing = Some((last, sums));
    }

    /// Drops the sums of a flush that is done. All commits up to `durable` are in files.
    pub(crate) fn drop_flushed(&mut self, durable: Index) {
        if matches!(&self.flushing, Some((last, _)) if last.index <= durable) {
            self.flushing = None;
        }
    }

    /// Returns the bytes of `[start, end)`. Keys outside that share the first bytes of `start` or `end` may be included.
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

    fn commit(index: u64) -> EntryId {
        EntryId::new(Term(1), Index(index))
    }

    fn bytes(unflushed: &UnflushedBytes, shard: u32) -> u64 {
        unflushed.bytes(
            Table::Data,
            &shard.to_be_bytes(),
            &(shard + 1).to_be_bytes(),
        )
    }

    fn put(unflushed: &mut UnflushedBytes, shard: u32) {
        let key = [&shard.to_be_bytes()[..], b"123456"].concat();
        unflushed.put(Table::Data, &key, &[0; 90]);
    }

    #[test]
    fn unflushed_puts_are_counted() {
        let mut unflushed = UnflushedBytes::default();
        put(&mut unflushed, 3);
        put(&mut unflushed, 3);
        put(&mut unflushed, 4);
        assert_eq!(
            [2, 3, 4].map(|shard| bytes(&unflushed, shard)),
            [0, 200, 100]
        );
        assert_eq!(unflushed.bytes(Table::Sessions, &[0; 4], &[9; 4]), 0);
        assert_eq!(unflushed.bytes(Table::Data, &[0; 4], &[9; 4]), 300);
        assert_eq!(unflushed.bytes(Table::Data, &[0; 4], &[0, 0, 0, 4, 1]), 300);
        unflushed.start_flush(commit(5));
        put(&mut unflushed, 4);
        unflushed.drop_flushed(Index(4));
        assert_eq!([3, 4].map(|shard| bytes(&unflushed, shard)), [200, 200]);
        unflushed.start_flush(commit(7));
        unflushed.drop_flushed(Index(5));
        assert_eq!(bytes(&unflushed, 3), 200, "the later flush covers it too");
        put(&mut unflushed, 3);
        unflushed.drop_flushed(Index(7));
        assert_eq!([3, 4].map(|shard| bytes(&unflushed, shard)), [100, 0]);
    }

    #[test]
    fn cleared_puts_are_not_counted() {
        let mut unflushed = UnflushedBytes::default();
        for shard in [1, 2, 3] {
            put(&mut unflushed, shard);
        }
        unflushed.start_flush(commit(1));
        for shard in [1, 2, 3] {
            put(&mut unflushed, shard);
        }
        unflushed.clear(Table::Data, &2u32.to_be_bytes(), &3u32.to_be_bytes());
        unflushed.clear(Table::Sessions, &[0; 4], &[9; 4]);
        assert_eq!(
            [1, 2, 3].map(|shard| bytes(&unflushed, shard)),
            [200, 0, 200]
        );
    }
}
