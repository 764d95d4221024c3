//! The journal of a shard that is copied while it is served: the names of all rows that changed since the copy began.
//!
//! # How a copy follows a shard
//!
//! The data of a shard go to its target, the *destination*, while its owner, the *source*, serves it. Every move begins so. All steps of
//! the journal are entries of the source's log ([`JournalStep`]):
//!
//! 1. `Begin` starts a journal. Its id is the index of that entry. From there on, each entry that changes a row of the shard
//!    (a pair, a session, or a row of a keyspace) also *names* the row in the journal's open *generation*.
//! 2. The destination reads *base parts*: the rows in key order, as of any state at or after `Begin`. No common
//!    snapshot is needed, because what changes later is named.
//! 3. `Seal` closes the open generation and opens the next. The destination then reads the *pages* of the closed generation: for
//!    each name the row as it is now, or its absence, as of any state at or after the seal.
//! 4. `Drop` forgets generations that the destination's log has.
//! 5. The configuration that makes the destination the owner fences the shard, and thereby seals the last generation. After its pages the copy
//!    equals the shard.
//!
//! One cursor ([`crate::CopyCursor`]) orders base parts, then generations. A part is taken only at exactly its cursor.
//!
//! # Why the copy equals the shard at the fence
//!
//! Take a row, and its last change before the fence. If the change was applied before or in the entry `Begin`, each base part that
//! covers the row shows it. Otherwise it is named in exactly one generation `g`, in its own entry, hence before the seal of `g`.
//! The pages of `g` come from states at or after that seal, so they show this change, or absence. A later part that has the row, of `g`
//! or of a later generation, comes from a state at or after the same seal, and shows the same. An earlier part is overwritten, because the
//! cursor only moves forward.
//!
//! # Names follow the entry
//!
//! Replicas cut the log into different batches, and write sessions' records once a batch. If a session were named when its record is
//! written, one replica would name it before a seal and another after it. So the entry that changes a session names
//! it, also when the session expires, and also in a shard that the entry doesn't write to. The record itself is written in the
//! same commit at the latest, so a replica that has committed the seal has the record, too.
//!
//! A name is a blind put: whether it is there already is not looked up. A cleared range has one name, and its page says that
//! the range is cleared and then lists its present rows. A row of a keyspace with a very long key is named as such a range: all rows that
//! begin with its key's first bytes.
//!
//! # End and bounds
//!
//! A journal ends by the log alone: when the shard's target changes, when the shard leaves for another group, when a write finds
//! that it was not renewed for [`JOURNAL_TTL_MS`] of log time (each write looks at its own shard's journal and, in turn, at one other), when its names exceed [`MAX_NAMED_BYTES`] (each mention counts), or when the
//! shard is deleted. A fenced shard's journal ends only with the shard. The journal is part of the state and so of each snapshot. After
//! its end the copy is useless: before the cut the destination begins anew, and after it pulls the whole fenced shard.
//!
//! `tests/journal_model.rs`, `tests/copy_model.rs` and `tests/mover/copies.rs` attack both halves and the mover that drives them.

mod codec;
mod read;
mod rows;
mod step;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::{Index, StoreError};
use replica::{StateReader, Table, Transaction};
use types::{ClientId, ConfigNum, DecodeError, LogTime, ShardId};

pub(crate) use read::read;
pub use read::read_part;
pub(crate) use rows::{MAX_NAMED_ROW_BYTES, Name, Rows};
pub(crate) use step::FIRST_KIND;
pub use step::JournalStep;

use crate::bug::{Bug, Bugs};
use crate::change::Changed;
use crate::{CopyId, JournalError, Ownership, ShardState, Target, keys, records};

/// A journal that was not renewed for this long, in milliseconds of log time, ends with the next write that finds it so, or by the leader's upkeep.
pub const JOURNAL_TTL_MS: u64 = 600_000;
/// The most bytes of names that a journal holds. Each mention of a row counts.
pub const MAX_NAMED_BYTES: u64 = 256 << 20;
/// The most journals of a group.
pub const MAX_JOURNALS: usize = 1_024;
/// The most generations that a journal keeps, the open one included.
pub const MAX_GENERATIONS: u64 = 64;

/// The assumed bytes of a name beside the row's key.
const NAME_OVERHEAD_BYTES: u64 = 16;

/// The journal of one shard.
///
/// Invariants: `first <= open`, and `named` has exactly the kept generations, `first` to `open`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// The index of the entry that began it.
    pub id: Index,
    /// The target for whose copy it was begun.
    pub target: Target,
    /// The oldest generation that is kept. Generations count from 1.
    pub first: u64,
    /// The generation that takes names.
    pub open: u64,
    /// The configuration that fenced the shard, which sealed the open generation for good.
    pub fence: Option<ConfigNum>,
    /// The log time at which it was begun or last renewed.
    pub renewed: LogTime,
    /// The bytes of names of each kept generation; each mention of a row counts.
    pub named: BTreeMap<u64, u64>,
}

impl Journal {
    /// Returns true if the generation takes no more names.
    pub fn is_sealed(&self, generation: u64) -> bool {
        generation < self.open || (generation == self.open && self.fence.is_some())
    }

    /// Returns the bytes of all names; each mention counts.
    pub fn named_bytes(&self) -> u64 {
        self.named.values().sum()
    }
}

/// Limits of a journal. Every replica of a group must have the same, or they diverge. The product uses the default; other values are
/// for simulations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalLimits {
    /// A journal ends after this many milliseconds of log time without a renewal.
    pub ttl_ms: u64,
    /// A journal ends when its names have more bytes than this.
    pub named_bytes: u64,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self {
            ttl_ms: JOURNAL_TTL_MS,
            named_bytes: MAX_NAMED_BYTES,
        }
    }
}

/// The journals of a group.
///
/// Invariants, between batches: they are what the records of [`Table::Meta`] say; `dirty` is empty; each journal's
/// shard is served here, or fenced for just its destination; the names of [`Table::Journal`] are those of kept generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journals {
    limits: JournalLimits,
    by_shard: BTreeMap<ShardId, Journal>,
    /// Shards whose journal's record is to be written at the end of the batch.
    dirty: BTreeSet<ShardId>,
    bugs: Bugs,
}

impl Journals {
    /// Reads the records.
    pub(crate) fn load(
        state: &dyn StateReader,
        shards: u32,
        limits: JournalLimits,
        bugs: Bugs,
    ) -> Result<Self, StoreError> {
        let mut loaded = Self {
            limits,
            bugs,
            ..Self::default()
        };
        records::each_with_prefix(state, keys::JOURNALS, |key, record| {
            let shard = known_shard(key, keys::JOURNALS, shards)?;
            let journal = Journal::decode(record).map_err(|error| unreadable(&error))?;
            loaded.by_shard.insert(shard, journal);
            Ok(())
        })?;
        Ok(loaded)
    }

    /// Reads the record of one shard's journal.
    pub(crate) fn load_shard(
        state: &dyn StateReader,
        shard: ShardId,
        bugs: Bugs,
    ) -> Result<Self, StoreError> {
        let mut loaded = Self {
            bugs,
            ..Self::default()
        };
        if let Some(record) = state.get(Table::Meta, &keys::journal_record(shard))? {
            let journal = Journal::decode(record).map_err(|error| unreadable(&error))?;
            loaded.by_shard.insert(shard, journal);
        }
        Ok(loaded)
    }

    /// Returns the journal of a shard.
    pub fn get(&self, shard: ShardId) -> Option<&Journal> {
        self.by_shard.get(&shard)
    }

    /// Iterates over all journals, by shard.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &Journal)> {
        self.by_shard
            .iter()
            .map(|(shard, journal)| (*shard, journal))
    }

    /// Returns the journal of a shard if it has this id.
    pub(crate) fn find(&self, shard: ShardId, id: Index) -> Result<&Journal, JournalError> {
        match self.by_shard.get(&shard) {
            Some(journal) if journal.id == id => Ok(journal),
            Some(journal) if journal.id > id => Err(JournalError::Ended { journal: id }),
            _ => Err(JournalError::Unknown { journal: id }),
        }
    }

    /// Follows the ownership that a step changed: a fence seals the open generation, and a journal ends if its shard goes
    /// elsewhere or is absent. A journal for another target than the accepted one ends, unless the shard is fenced: then its last
    /// generation is yet to be read.
    pub(crate) fn follow(
        &mut self,
        changed: &Changed,
        ownership: &Ownership,
        state: &mut Transaction<'_>,
    ) {
        self.follow_shards(&changed.shards, ownership, state);
        for shard in &changed.planned {
            let target = ownership.target_from_here(*shard);
            let outdated =
                |journal: &Journal| journal.fence.is_none() && Some(journal.target) != target;
            if self.get(*shard).is_some_and(outdated) {
                self.end(*shard, state);
            }
        }
    }

    fn follow_shards(
        &mut self,
        changed: &BTreeSet<ShardId>,
        ownership: &Ownership,
        state: &mut Transaction<'_>,
    ) {
        for shard in changed {
            let now = ownership.state(*shard);
            let fenced = self
                .get(*shard)
                .is_some_and(|journal| journal.fence.is_some());
            if matches!(now, Some(ShardState::Serving { .. })) && !fenced {
                continue;
            }
            let Some(journal) = self.by_shard.get_mut(shard) else {
                continue;
            };
            match now {
                Some(ShardState::Fenced { config, to })
                    if *to == journal.target.to
                        && journal.fence.is_none_or(|fence| fence == *config) =>
                {
                    journal.fence = Some(*config);
                    self.dirty.insert(*shard);
                }
                _ => self.end(*shard, state),
            }
        }
    }

    /// Returns the journal that a copy follows.
    pub(crate) fn of_copy(&self, shard: ShardId, copy: CopyId) -> Result<&Journal, JournalError> {
        let journal = self.find(shard, copy.journal)?;
        if journal.target.since == copy.since {
            Ok(journal)
        } else {
            let journal = copy.journal;
            Err(JournalError::Ended { journal })
        }
    }

    /// Names a change in the open generation of its shard's journal, if there is one.
    fn name(&mut self, shard: ShardId, name: &Name<'_>, state: &mut Transaction<'_>) {
        let Some(journal) = self.by_shard.get_mut(&shard) else {
            return;
        };
        let in_first_batch = || journal.named_bytes() == 0 && self.dirty.contains(&shard);
        let forgets = self.bugs.has(Bug::JournalMissesFirstBatch) && in_first_batch();
        if journal.fence.is_some() || forgets {
            return;
        }
        let name = name.encode();
        let bytes = name.len() as u64 + NAME_OVERHEAD_BYTES;
        let key = keys::journal_name(shard, journal.open, &name);
        *journal.named.entry(journal.open).or_default() += bytes;
        let full = journal.named_bytes() > self.limits.named_bytes;
        self.dirty.insert(shard);
        if full {
            self.end(shard, state);
        } else {
            state.put(Table::Journal, key, Bytes::new());
        }
    }

    /// Names a session at the end of the batch, as [`Bug::JournalNamesSessionsLate`] does.
    pub(crate) fn name_session_late(
        &mut self,
        shard: ShardId,
        client: ClientId,
        state: &mut Transaction<'_>,
    ) {
        self.name(shard, &Name::Session(client), state);
    }

    /// Ends a shard's journal: all names go.
    fn end(&mut self, shard: ShardId, state: &mut Transaction<'_>) {
        if self.by_shard.remove(&shard).is_none() {
            return;
        }
        self.dirty.insert(shard);
        let end = keys::shard_start(ShardId(shard.0 + 1));
        state.clear(Table::Journal, keys::shard_start(shard), end);
    }

    /// Writes the records of the journals that the batch changed. They depend on the log alone, however it is cut into batches.
    pub(crate) fn finish_batch(&mut self, state: &mut Transaction<'_>) {
        for shard in std::mem::take(&mut self.dirty) {
            let key = keys::journal_record(shard);
            match self.by_shard.get(&shard) {
                Some(journal) => state.put(Table::Meta, key, journal.encode()),
                None => state.remove(Table::Meta, key),
            }
        }
    }
}

fn known_shard(key: &[u8], prefix: &[u8], shards: u32) -> Result<ShardId, StoreError> {
    keys::split_prefixed(key, prefix)
        .filter(|shard| shard.0 < shards)
        .ok_or_else(|| damaged("no such shard"))
}

fn damaged(why: &str) -> StoreError {
    StoreError::Damaged(format!("a journal's record: {why}"))
}

fn unreadable(error: &DecodeError) -> StoreError {
    StoreError::unreadable("a journal's record", error)
}
