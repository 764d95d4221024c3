//! The log in memory: the first index of each term, the memberships in it, the indexes persisted, committed and handed
//! out for applying, and a cache of the recent entries.
//!
//! The log reads evicted entries back through a [`LogReader`], and only when a message or an apply needs them: no step
//! of the protocol waits for a disk.
//!
//! # Invariants
//!
//! - `base.index <= applying_index <= commit_index <= last_index` and `persisted_index <= last_index`. Entries handed
//!   out for applying are persisted.
//! - `runs` starts after `base`, ascends in index and term, and covers `(base, last_index]`.
//! - The cache is contiguous and ends at `last_index`; it holds all entries that are not persisted.
//! - `memberships` is never empty, ascends, and its first element is committed.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use types::NodeId;

use crate::backlog::Backlog;
use crate::bug::CHECKS_INVARIANTS;
use crate::growth::Growth;
use crate::store::{LogReader, LogState, StoreError};
use crate::{Entry, EntryId, Index, Membership, Payload, SnapshotMeta, Term};

/// The bytes of entries read at a time when a log is opened.
const RECOVERY_PAGE_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct RaftLog {
    base: EntryId,
    last_index: Index,
    persisted_index: Index,
    commit_index: Index,
    applying_index: Index,
    /// The first index of each term, with the term.
    runs: VecDeque<(Index, Term)>,
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    max_cached_bytes: usize,
    /// The memberships, each with the index of its entry; the last one is in force.
    memberships: VecDeque<(Index, Membership)>,
    /// The sizes of the entries that were applied when the log was opened.
    growth: Growth,
    /// The bytes of the entries after `applying_index`.
    backlog: Backlog,
}

impl RaftLog {
    /// Reads the stored log once, to learn its terms and memberships. `applied` is the index that the state machine
    /// holds, so it is committed. An `applied` outside of the log is damage: entries or state were lost.
    pub(crate) fn recover(
        state: &LogState,
        applied: Index,
        (max_cached_bytes, max_backlog_bytes): (usize, u64),
        reader: &dyn LogReader,
    ) -> Result<Self, StoreError> {
        let base = state.base.last;
        if applied < base.index || applied > state.last_index {
            return Err(StoreError::Damaged(format!(
                "the state has come to {applied}, but the log holds ({}, {}]",
                base.index, state.last_index
            )));
        }
        let mut log = Self {
            base,
            last_index: base.index,
            persisted_index: state.last_index,
            commit_index: applied,
            applying_index: applied,
            runs: VecDeque::new(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            max_cached_bytes,
            memberships: VecDeque::from([(base.index, state.base.membership.clone())]),
            growth: Growth::new(base.index),
            backlog: Backlog::new(max_backlog_bytes),
        };
        while log.last_index < state.last_index {
            let page = reader.entries(
                log.last_index.next()..=state.last_index,
                RECOVERY_PAGE_BYTES,
            )?;
            if page.is_empty() {
                return Err(StoreError::Damaged(format!(
                    "log entry {} is missing",
                    log.last_index.next()
                )));
            }
            for entry in page {
                log.check_follows(&entry)?;
                if entry.id.index <= applied {
                    log.growth.count(&entry);
                }
                log.push_unchecked(entry);
                log.evict();
            }
            log.backlog.take(applied);
        }
        log.forget_old_memberships();
        log.check_invariants();
        Ok(log)
    }

    fn check_follows(&self, entry: &Entry) -> Result<(), StoreError> {
        if entry.id.index != self.last_index.next() || entry.id.term < self.last_id().term {
            return Err(StoreError::Damaged(format!(
                "log entry {} follows {}",
                entry.id,
                self.last_id()
            )));
        }
        Ok(())
    }

    /// Returns the indexes up to `applied` at which the log was opened, each with the bytes of entries up to it.
    pub(crate) fn take_growth(&mut self) -> VecDeque<(Index, u64)> {
        std::mem::take(&mut self.growth).into_marks()
    }

    pub(crate) fn base(&self) -> EntryId {
        self.base
    }

    pub(crate) fn last_index(&self) -> Index {
        self.last_index
    }

    pub(crate) fn last_id(&self) -> EntryId {
        EntryId::new(
            self.runs.back().map_or(self.base.term, |(_, term)| *term),
            self.last_index,
        )
    }

    pub(crate) fn persisted_index(&self) -> Index {
        self.persisted_index
    }

    pub(crate) fn commit_index(&self) -> Index {
        self.commit_index
    }

    pub(crate) fn applying_index(&self) -> Index {
        self.applying_index
    }

    /// Returns the term at `index`; `None` below the base and above the end.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index < self.base.index || index > self.last_index {
            return None;
        }
        let after = self.runs.partition_point(|(first, _)| *first <= index);
        match after.checked_sub(1) {
            Some(run) => self.runs.get(run).map(|(_, term)| *term),
            None => Some(self.base.term),
        }
    }

    pub(crate) fn contains(&self, id: EntryId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// Returns the last entry at or before `from.index` whose term is at most `from.term`: the highest position at
    /// which this log can agree with a log that holds `from`. It is not below the base, which is committed and agrees
    /// anyway.
    pub(crate) fn highest_possible_match(&self, from: EntryId) -> EntryId {
        let mut index = from.index.min(self.last_index);
        for (first, term) in self.runs.iter().rev() {
            if index < *first {
                continue;
            }
            if *term <= from.term {
                return EntryId::new(*term, index);
            }
            index = first.prev();
        }
        self.base
    }

    /// Returns the membership in force: the latest in the log, committed or not (thesis §4.1).
    pub(crate) fn membership(&self) -> &Membership {
        static NOBODY: Membership = Membership::nobody();
        self.memberships
            .back()
            .map_or(&NOBODY, |(_, membership)| membership)
    }

    /// Returns true if `node` is a voter of the membership in force, or of an earlier one that a truncation would put
    /// in force again.
    pub(crate) fn may_be_voter(&self, node: NodeId) -> bool {
        let mut possible = self.memberships.iter();
        possible.any(|(_, membership)| membership.is_voter(node))
    }

    /// Returns the index of the entry that carries the membership in force.
    pub(crate) fn membership_index(&self) -> Index {
        self.memberships
            .back()
            .map_or(Index(0), |(index, _)| *index)
    }

    /// Appends one entry after the last.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.push_unchecked(entry);
        self.check_invariants();
    }

    /// Appends one entry without a check of the invariants: during recovery the indexes are ahead of the entries read.
    fn push_unchecked(&mut self, entry: Entry) {
        assert!(
            entry.id.index == self.last_index.next(),
            "entries are contiguous"
        );
        if self.last_id().term != entry.id.term || self.runs.is_empty() {
            self.runs.push_back((entry.id.index, entry.id.term));
        }
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships
                .push_back((entry.id.index, membership.clone()));
        }
        self.last_index = entry.id.index;
        self.backlog.push(&entry);
        self.cache_bytes += entry.size();
        self.cache.push_back(entry);
    }

    /// Drops the entries at and after `from`, because another leader has other entries there (Raft §5.3).
    pub(crate) fn truncate(&mut self, from: Index, keep_memberships: bool) {
        assert!(
            from > self.commit_index,
            "committed entries are never truncated"
        );
        self.last_index = from.prev();
        self.backlog.truncate(from);
        self.persisted_index = self.persisted_index.min(self.last_index);
        while self.runs.back().is_some_and(|(first, _)| *first >= from) {
            self.runs.pop_back();
        }
        while self.memberships.len() > 1
            && !keep_memberships
            && self
                .memberships
                .back()
                .is_some_and(|(index, _)| *index >= from)
        {
            self.memberships.pop_back();
        }
        while let Some(entry) = self.cache.pop_back_if(|entry| entry.id.index >= from) {
            self.cache_bytes -= entry.size();
        }
        self.check_invariants();
    }

    /// Advances the commit index, which never goes back. Returns true if it advanced.
    pub(crate) fn commit_to(&mut self, index: Index) -> bool {
        let index = index.min(self.last_index);
        if index <= self.commit_index {
            return false;
        }
        self.commit_index = index;
        self.forget_old_memberships();
        self.check_invariants();
        true
    }

    fn forget_old_memberships(&mut self) {
        while self
            .memberships
            .get(1)
            .is_some_and(|(index, _)| *index <= self.commit_index)
        {
            self.memberships.pop_front();
        }
    }

    /// Returns the entries that are not persisted yet.
    pub(crate) fn unpersisted(&self) -> Vec<Entry> {
        let count =
            usize::try_from(self.last_index.since(self.persisted_index)).unwrap_or(usize::MAX);
        let start = self.cache.len().saturating_sub(count);
        self.cache.range(start..).cloned().collect()
    }

    /// Records that all entries up to `id` are durable, unless `id` was truncated meanwhile.
    pub(crate) fn persisted_to(&mut self, id: EntryId) {
        if id.index > self.persisted_index && self.contains(id) {
            self.persisted_index = id.index;
            self.evict();
            self.check_invariants();
        }
    }

    /// Returns the next committed and persisted entries to apply, in order, at most about `max_bytes`.
    pub(crate) fn take_committed(
        &mut self,
        max_bytes: usize,
        reader: &dyn LogReader,
    ) -> Result<Vec<Entry>, StoreError> {
        if !self.has_committed() {
            return Ok(Vec::new());
        }
        let entries = self.read(
            self.applying_index.next()..=self.commit_index.min(self.persisted_index),
            max_bytes,
            reader,
        )?;
        if let Some(entry) = entries.last() {
            self.applying_index = entry.id.index;
            self.backlog.take(self.applying_index);
            self.evict();
            self.check_invariants();
        }
        Ok(entries)
    }

    pub(crate) fn has_committed(&self) -> bool {
        self.applying_index < self.commit_index.min(self.persisted_index)
    }

    /// Returns true if the committed entries that wait to be applied are as many as there may be.
    pub(crate) fn has_full_backlog(&self) -> bool {
        self.backlog.is_full(self.commit_index)
    }

    /// As [`has_full_backlog`](Self::has_full_backlog), but entries that are not committed count too.
    pub(crate) fn has_full_tail(&self) -> bool {
        self.backlog.is_full(self.last_index)
    }

    /// Returns entries from the start of `range` on, at least one and at most about `max_bytes`, from the cache, or
    /// from the disk if they were evicted.
    pub(crate) fn read(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
        reader: &dyn LogReader,
    ) -> Result<Vec<Entry>, StoreError> {
        let (start, end) = range.into_inner();
        if start > end {
            return Ok(Vec::new());
        }
        let cached_from = self
            .cache
            .front()
            .map_or(self.last_index.next(), |entry| entry.id.index);
        if start < cached_from {
            let page = reader.entries(start..=end.min(cached_from.prev()), max_bytes)?;
            if page
                .first()
                .is_none_or(|entry| !self.contains(entry.id) || entry.id.index != start)
            {
                return Err(StoreError::Damaged(format!(
                    "log entry {start} is missing or not what was written"
                )));
            }
            return Ok(page);
        }
        let skip = usize::try_from(start.since(cached_from)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.size();
            entry.id.index <= end && (first || bytes <= max_bytes)
        };
        Ok(self
            .cache
            .iter()
            .skip(skip)
            .take_while(fits)
            .cloned()
            .collect())
    }

    /// Drops entries up to `index`, whose effects are durable elsewhere. Returns the new base with the latest committed
    /// membership. That may be of a later entry, which is harmless because a committed entry is never truncated.
    pub(crate) fn compact(&mut self, index: Index) -> Option<SnapshotMeta> {
        let term = self.term_at(index)?;
        // A snapshot may skip entries before they are persisted; the store can't compact those yet.
        if index <= self.base.index || index > self.applying_index.min(self.persisted_index) {
            return None;
        }
        self.base = EntryId::new(term, index);
        while self
            .runs
            .get(1)
            .is_some_and(|(first, _)| *first <= index.next())
        {
            self.runs.pop_front();
        }
        match self.runs.front_mut() {
            Some((first, _)) if index < self.last_index => *first = (*first).max(index.next()),
            _ => self.runs.clear(),
        }
        while let Some(entry) = self.cache.pop_front_if(|entry| entry.id.index <= index) {
            self.cache_bytes -= entry.size();
        }
        self.check_invariants();
        Some(SnapshotMeta {
            last: self.base,
            membership: self
                .memberships
                .front()
                .map(|(_, membership)| membership.clone())
                .unwrap_or_default(),
        })
    }

    /// Replaces the whole log with a snapshot that the state machine already holds durably.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta) {
        self.base = meta.last;
        self.last_index = meta.last.index;
        self.persisted_index = meta.last.index;
        self.commit_index = meta.last.index;
        self.applying_index = meta.last.index;
        self.backlog.truncate(Index(0));
        self.runs.clear();
        self.cache.clear();
        self.cache_bytes = 0;
        self.memberships = VecDeque::from([(meta.last.index, meta.membership.clone())]);
        self.check_invariants();
    }

    /// Commits the entries up to `index` without handing them out: the state machine holds their effects from a
    /// snapshot.
    pub(crate) fn skip_to(&mut self, index: Index) {
        self.commit_to(index);
        self.applying_index = self.applying_index.max(index);
        self.backlog.take(self.applying_index);
        self.check_invariants();
    }

    /// Panics if the log violates the invariants of this module. Does nothing in the product's build. The cost is
    /// linear in the number of terms.
    pub(crate) fn check_invariants(&self) {
        if !CHECKS_INVARIANTS {
            return;
        }
        assert!(
            self.base.index <= self.applying_index
                && self.applying_index <= self.commit_index
                && self.commit_index <= self.last_index
                && self.persisted_index <= self.last_index,
            "base <= applying <= commit <= last and persisted <= last: {self:?}"
        );
        let mut before = (self.base.index, Term(0));
        for (position, run) in self.runs.iter().enumerate() {
            assert!(
                run.0 > before.0 && (position == 0 || run.1 > before.1),
                "runs ascend after the base"
            );
            before = *run;
        }
        let first_run = self.runs.front().map(|(first, _)| *first);
        let first_entry = (self.base.index < self.last_index).then(|| self.base.index.next());
        assert!(first_run == first_entry, "runs cover (base, last]");
        assert!(before.0 <= self.last_index, "no run begins after the end");
        match (self.cache.front(), self.cache.back()) {
            (Some(front), Some(back)) => {
                assert!(
                    back.id.index == self.last_index,
                    "the cache ends at the end"
                );
                let length = back.id.index.since(front.id.index) + 1;
                assert!(length == self.cache.len() as u64, "the cache is contiguous");
                assert!(
                    front.id.index <= self.persisted_index.next(),
                    "what is not persisted is in the cache"
                );
            }
            _ => assert!(
                self.persisted_index == self.last_index,
                "what is not persisted is in the cache"
            ),
        }
        assert!(
            self.memberships
                .front()
                .is_some_and(|(index, _)| *index <= self.commit_index),
            "the first membership is committed"
        );
    }

    fn evict(&mut self) {
        let keep_from = self.persisted_index.min(self.applying_index).next();
        while self.cache_bytes > self.max_cached_bytes {
            match self.cache.pop_front_if(|entry| entry.id.index < keep_from) {
                Some(entry) => self.cache_bytes -= entry.size(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
