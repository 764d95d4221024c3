//! The digest of a state: replicas compare what each applied entry wrote.
//!
//! Each replica keeps a *chain*: the digest after an entry is computed from the digest before it, the entry's id, and the
//! changes that the entry writes, in their order. It is part of [`Applied`](crate::Applied), so it is stored in the same batch as the changes,
//! and travels with a snapshot. Equal chains mean equal writes since the chain began. A chain begins at the entry that raises
//! the feature level to [`DIGEST_LEVEL`] or above, and anew at each later raise. So all replicas begin at the same entry, and a version
//! whose machine writes other changes, or the same in another order, must bring a new level.
//!
//! # Why equal logs give equal chains
//!
//! - The chain covers what [`StateMachine::apply`](crate::StateMachine::apply) writes, entry by entry, before the store coalesces it. So it doesn't
//!   matter how a replica cuts the log into batches.
//! - It doesn't cover what [`StateMachine::finish_batch`](crate::StateMachine::finish_batch) writes: these records depend on where a batch ends.
//! - Nothing else writes through a [`Transaction`](crate::Transaction): no time, id, option or statistics of the process.
//! - A replica that restarts applies entries again to an older state, which has the older chain.
//! - An install of a snapshot replaces state and chain together, and forgets all digests of the state before.
//!
//! # Strength
//!
//! Keys and values enter as their lengths and CRC-32; the chain itself has 64 bits, and each step is a bijection of the chain before.
//! So equal states never differ in their digests; different states have the same digest with a probability of about one in four billions.

use std::collections::VecDeque;

use raft::{EntryId, Index, StateDigest};

use crate::Table;

/// The feature level from which on states have digests.
pub const DIGEST_LEVEL: u32 = 1;

/// The most checkpoints that a replica remembers.
const MOST_CHECKPOINTS: usize = 64;

/// An odd factor, so that the multiplication is a bijection: the golden ratio in 64 bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The digest of a state: a chain over the changes of all entries after `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The entry at which the chain begins.
    pub since: Index,
    /// The value after the last applied entry.
    pub value: u64,
}

/// The kinds of changes, as the chain distinguishes them.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Entry = 1,
    Put = 2,
    Remove = 3,
    Clear = 4,
}

impl Digest {
    /// Begins a chain after an entry.
    pub fn begin(since: Index) -> Self {
        Self { since, value: 0 }
    }

    pub(crate) fn at(self, index: Index) -> StateDigest {
        StateDigest {
            since: self.since,
            index,
            value: self.value,
        }
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.change(Kind::Put, table, key);
        self.bytes(value);
    }

    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) {
        self.change(Kind::Remove, table, key);
    }

    pub(crate) fn clear(&mut self, table: Table, start: &[u8], end: &[u8]) {
        self.change(Kind::Clear, table, start);
        self.bytes(end);
    }

    /// Ends the changes of an entry.
    pub(crate) fn end_entry(&mut self, entry: EntryId) {
        self.word(Kind::Entry as u64);
        self.word(entry.term.0);
        self.word(entry.index.0);
    }

    fn change(&mut self, kind: Kind, table: Table, key: &[u8]) {
        self.word(u64::from(table.tag()) << 8 | kind as u64);
        self.bytes(key);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        self.word(length << 32 | u64::from(crc32fast::hash(bytes)));
    }

    fn word(&mut self, word: u64) {
        let mixed = (self.value ^ word).wrapping_add(1).wrapping_mul(FACTOR);
        self.value = mixed ^ (mixed >> 32);
    }
}

/// The digests that a replica remembers: those of its last checkpoints. Which entries are checkpoints depends on the log alone.
///
/// Invariant: they ascend by index, and belong to the state that is in force.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints(VecDeque<StateDigest>);

impl Checkpoints {
    pub(crate) fn add(&mut self, digest: StateDigest) {
        if self.0.len() >= MOST_CHECKPOINTS {
            self.0.pop_front();
        }
        self.0.push_back(digest);
    }

    pub(crate) fn last(&self) -> Option<StateDigest> {
        self.0.back().copied()
    }

    /// Returns the digest of the chain that begins at `since` after the entry `index`.
    pub(crate) fn find(&self, since: Index, index: Index) -> Option<StateDigest> {
        let found = self.0.iter().rev().find(|it| it.index == index);
        found.copied().filter(|it| it.since == since)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test should panic")]
mod tests {
    use raft::Term;

    use super::*;

    type Change = fn(&mut Digest);

    #[test]
    fn each_difference_between_changes_shows() {
        let changes: [Change; 10] = [
            |_| (),
            |chain| chain.put(Table::Data, b"k", b"v"),
            |chain| chain.put(Table::Data, b"k", b"w"),
            |chain| chain.put(Table::Data, b"kv", b""),
            |chain| chain.put(Table::Data, b"", b"kv"),
            |chain| chain.put(Table::Meta, b"k", b"v"),
            |chain| chain.remove(Table::Data, b"k"),
            |chain| chain.clear(Table::Data, b"k", b"v"),
            |chain| {
                chain.put(Table::Data, b"k", b"v");
                chain.remove(Table::Data, b"k");
            },
            |chain| {
                chain.remove(Table::Data, b"k");
                chain.put(Table::Data, b"k", b"v");
            },
        ];
        let entry = |index| EntryId::new(Term(2), Index(index));
        let mut values = Vec::new();
        for before in changes {
            for after in changes {
                let mut chain = Digest::begin(Index(0));
                before(&mut chain);
                chain.end_entry(entry(5));
                after(&mut chain);
                chain.end_entry(entry(6));
                values.push(chain.value);
            }
        }
        let count = values.len();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), count);
    }

    /// A difference stays until the chain ends, whatever equal entries follow.
    #[test]
    fn a_difference_stays() {
        let mut chains = [Digest::begin(Index(0)), Digest::begin(Index(0))];
        chains[0].put(Table::Data, b"k", b"v");
        for index in 0..100_000 {
            for chain in &mut chains {
                chain.put(Table::Data, b"same", b"same");
                chain.end_entry(EntryId::new(Term(1), Index(index)));
            }
            assert_ne!(chains[0], chains[1]);
        }
    }

    #[test]
    fn a_digest_is_part_of_the_format() {
        let mut chain = Digest::begin(Index(0));
        chain.put(Table::Data, b"key", b"value");
        chain.remove(Table::Sessions, b"key");
        chain.clear(Table::Journal, b"a", b"b");
        chain.end_entry(EntryId::new(Term(3), Index(7)));
        // Members of a group compare digests, so another value needs another feature level.
        assert_eq!(format!("{:016x}", chain.value), "482d2f387003c866");
    }

    #[test]
    fn the_last_checkpoints_are_remembered() {
        let mut checkpoints = Checkpoints::default();
        for index in 1..=100 {
            let value = index * 7;
            checkpoints.add(
                Digest {
                    since: Index(1),
                    value,
                }
                .at(Index(index)),
            );
        }
        assert_eq!(checkpoints.0.len(), MOST_CHECKPOINTS);
        assert_eq!(checkpoints.last().unwrap().value, 700);
        assert_eq!(checkpoints.find(Index(1), Index(50)).unwrap().value, 350);
        assert_eq!(checkpoints.find(Index(2), Index(50)), None, "another chain");
        assert_eq!(checkpoints.find(Index(1), Index(30)), None, "forgotten");
        checkpoints.clear();
        assert_eq!(checkpoints.last(), None);
    }
}
