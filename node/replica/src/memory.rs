//! Stores in memory with the crash behaviour of a disk: for the simulator and for tests.
//!
//! They are deterministic and never fail by themselves; the simulator wraps them to inject faults. The effect of a crash
//! is explicit:
//!
//! - [`MemoryLog`] is durable at the end of every successful [`LogStore::write`] and
//!   [`LogStore::begin_install`]. A compaction is durable with the next write; a crash before may or may
//!   not undo it ([`MemoryLog::crash`]).
//! - [`MemoryState`] keeps its durable image and the commits since then. A flush moves commits into the
//!   image. A crash keeps the image and any number of the oldest commits after it, as a disk that flushes by
//!   itself would ([`MemoryState::crash`]).
//!
//! A clone of either is an independent copy of the disk *and* of the changes that are not durable yet.

mod cursor;

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use raft::{
    Entry, EntryId, HardState, Index, LogBatch, LogReader, LogState, LogStore, SnapshotMeta,
    StoreError,
};

use self::cursor::MemoryCursor;
use crate::chunk::{ChunkDecoder, ChunkEncoder};
use crate::{
    Applied, Bounds, Cursor, Order, PageSource, PairReader, SNAPSHOT_CHUNK_BYTES, SnapshotSource,
    StateReader, StateStore, Table, View, WriteBatch,
};

/// A log in memory.
///
/// # Invariants
///
/// - The entries are contiguous and start right after `base`, unless a test damaged them.
/// - `uncompacted` holds the entries that the last unsynced compaction dropped, and nothing was written since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryLog {
    hard_state: HardState,
    base: SnapshotMeta,
    entries: BTreeMap<Index, Entry>,
    installing: Option<EntryId>,
    uncompacted: Option<(SnapshotMeta, BTreeMap<Index, Entry>)>,
}

impl MemoryLog {
    /// Creates an empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the log after a crash. With `undo_compaction`, a compaction that no write followed is lost.
    #[must_use]
    pub fn crash(mut self, undo_compaction: bool) -> Self {
        if let Some((base, mut dropped)) = self.uncompacted.take()
            && undo_compaction
        {
            self.base = base;
            self.entries.append(&mut dropped);
        }
        self
    }

    /// Returns the entries by index.
    pub fn stored(&self) -> &BTreeMap<Index, Entry> {
        &self.entries
    }

    /// Returns the hard state.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Returns the base: the last compacted entry with the membership.
    pub fn base(&self) -> &SnapshotMeta {
        &self.base
    }

    /// Returns the index of the last entry, or of the base if the log is empty.
    pub fn last_index(&self) -> Index {
        self.entries
            .keys()
            .next_back()
            .copied()
            .unwrap_or(self.base.last.index)
    }

    /// Loses an entry, as a bad sector would. Reading it fails with [`StoreError::Damaged`], as does opening a log in whose
    /// middle it was. Returns true if the log held the entry.
    pub fn damage(&mut self, index: Index) -> bool {
        self.entries.remove(&index).is_some()
    }

    fn check(&self, batch: &LogBatch) -> Result<(), StoreError> {
        let (base, last) = match &batch.reset {
            Some(meta) => (meta.last.index, meta.last.index),
            None => (self.base.last.index, self.last_index()),
        };
        check_append(base, last, &batch.entries)
    }
}

/// Refuses entries that would leave a gap, overlap compacted entries, or are not contiguous. The log starts after `base`
/// and ends at `last`. Every store's `write` calls this.
pub fn check_append(base: Index, last: Index, entries: &[Entry]) -> Result<(), StoreError> {
    let Some(first) = entries.first() else {
        return Ok(());
    };
    let first = first.id.index;
    if first <= base || first > last.next() {
        return Err(StoreError::Damaged(format!(
            "entries from {first} can't follow a log of ({base}, {last}]"
        )));
    }
    let mut due = first;
    for entry in entries {
        if entry.id.index != due {
            return Err(StoreError::Damaged(format!(
                "entry {} came where index {due} was due",
                entry.id
            )));
        }
        due = due.next();
    }
    Ok(())
}

/// Refuses a compaction to an entry that lies after the log's end, or that the log holds with another term. Every store's
/// `compact` calls this; `stored` is the log's entry at that index.
pub fn check_compact(base: EntryId, stored: Option<EntryId>) -> Result<(), StoreError> {
    if stored == Some(base) {
        return Ok(());
    }
    let found = stored.map_or_else(|| "no entry".to_owned(), |id| format!("entry {id}"));
    Err(StoreError::Damaged(format!(
        "the log can't be compacted to {base}: it holds {found} there"
    )))
}

impl LogReader for MemoryLog {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut due = *range.start();
        while due <= *range.end() && (found.is_empty() || bytes < max_bytes) {
            let Some(entry) = self.entries.get(&due) else {
                return Err(StoreError::Damaged(format!("log entry {due} is missing")));
            };
            bytes += entry.size();
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(entry.clone());
            due = due.next();
        }
        Ok(found)
    }
}

impl LogStore for MemoryLog {
    fn load(&mut self) -> Result<LogState, StoreError> {
        let mut due = self.base.last.index.next();
        for index in self.entries.keys() {
            if *index != due {
                return Err(StoreError::Damaged(format!("log entry {due} is missing")));
            }
            due = due.next();
        }
        Ok(LogState {
            hard_state: self.hard_state,
            base: self.base.clone(),
            last_index: self.last_index(),
            installing: self.installing,
        })
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        self.check(batch)?;
        self.uncompacted = None;
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(meta) = &batch.reset {
            self.entries.clear();
            self.base = meta.clone();
            self.installing = None;
        }
        if let Some(first) = batch.entries.first() {
            // The whole conflicting suffix is dropped, even if fewer entries replace it (Raft §5.3).
            self.entries.split_off(&first.id.index);
        }
        for entry in &batch.entries {
            self.entries.insert(entry.id.index, entry.clone());
        }
        Ok(())
    }

    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        let to = base.last.index;
        if to <= self.base.last.index {
            return Ok(());
        }
        check_compact(base.last, self.entries.get(&to).map(|entry| entry.id))?;
        let kept = self.entries.split_off(&to.next());
        let mut dropped = std::mem::replace(&mut self.entries, kept);
        let old = std::mem::replace(&mut self.base, base.clone());
        match &mut self.uncompacted {
            Some((_, before)) => before.append(&mut dropped),
            none => *none = Some((old, dropped)),
        }
        Ok(())
    }

    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.uncompacted = None;
        self.installing = Some(last);
        Ok(())
    }
}

type Pairs = BTreeMap<(Table, Bytes), Bytes>;

/// A state in memory.
///
/// # Invariants
///
/// - `pairs` is `durable` with all of `unflushed` applied in order.
/// - `flushing` is at most the number of `unflushed` commits.
#[derive(Debug, Default)]
pub struct MemoryState {
    /// The pairs as of the last commit, shared with snapshots: a commit copies them only while a snapshot exists.
    pairs: Arc<Pairs>,
    applied: Applied,
    durable: Image,
    unflushed: VecDeque<(WriteBatch, Applied)>,
    /// The number of unflushed commits that the flush in progress will make durable.
    flushing: usize,
    deferred: bool,
    staging: Option<Staging>,
    /// The approximate size of a snapshot's chunk, or `None` for that of every store.
    chunk_bytes: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Image {
    pairs: Pairs,
    applied: Applied,
}

#[derive(Debug)]
struct Staging {
    decoder: ChunkDecoder,
    pairs: Pairs,
    broken: Option<StoreError>,
}

impl Clone for MemoryState {
    /// Copies the state without a restore in progress, which belongs to the store that began it.
    fn clone(&self) -> Self {
        Self {
            pairs: Arc::clone(&self.pairs),
            applied: self.applied.clone(),
            durable: self.durable.clone(),
            unflushed: self.unflushed.clone(),
            flushing: self.flushing,
            deferred: self.deferred,
            staging: None,
            chunk_bytes: self.chunk_bytes,
        }
    }
}

impl MemoryState {
    /// Creates an empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Defers flushes, so that [`StateStore::start_flush`] only begins one and [`MemoryState::complete_flush`] ends it. By
    /// default a flush is complete when `start_flush` returns.
    pub fn set_deferred_flush(&mut self, deferred: bool) {
        self.deferred = deferred;
    }

    /// Sets the approximate size of a snapshot's chunk.
    pub fn set_chunk_bytes(&mut self, chunk_bytes: Option<usize>) {
        self.chunk_bytes = chunk_bytes;
    }

    /// Ends the flush in progress: the commits before its start are durable.
    pub fn complete_flush(&mut self) {
        let commits = std::mem::take(&mut self.flushing);
        self.make_durable(commits);
    }

    /// Returns true if a flush has begun and not ended.
    pub fn is_flushing(&self) -> bool {
        self.flushing > 0
    }

    /// Returns the number of commits that are not durable.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// Returns the state after a crash: the durable image and at most `extra` of the oldest commits after it, which the disk
    /// may have written by itself.
    #[must_use]
    pub fn crash(mut self, extra: usize) -> Self {
        self.make_durable(extra);
        Self {
            pairs: Arc::new(self.durable.pairs.clone()),
            applied: self.durable.applied.clone(),
            durable: self.durable,
            deferred: self.deferred,
            chunk_bytes: self.chunk_bytes,
            ..Self::default()
        }
    }

    /// Returns all pairs as of the last commit, for comparing replicas.
    pub fn pairs(&self) -> &BTreeMap<(Table, Bytes), Bytes> {
        &self.pairs
    }

    /// As [`PairReader::cursor`]. The cursor doesn't borrow the state.
    pub fn owned_cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> impl Cursor + use<> {
        MemoryCursor::new(Arc::clone(&self.pairs), table, bounds, order)
    }

    fn make_durable(&mut self, commits: usize) {
        for _ in 0..commits {
            let Some((batch, applied)) = self.unflushed.pop_front() else {
                break;
            };
            apply(&mut self.durable.pairs, &batch);
            self.durable.applied = applied;
        }
        self.flushing = self.flushing.min(self.unflushed.len());
    }
}

fn apply(pairs: &mut Pairs, batch: &WriteBatch) {
    for (table, start, end) in &batch.cleared {
        if start < end {
            let range = (*table, start.clone())..(*table, end.clone());
            let doomed: Vec<_> = pairs.range(range).map(|(key, _)| key.clone()).collect();
            for key in doomed {
                pairs.remove(&key);
            }
        }
    }
    for (key, change) in &batch.changes {
        match change {
            Some(value) => pairs.insert(key.clone(), value.clone()),
            None => pairs.remove(key),
        };
    }
}

impl PairReader for MemoryState {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let place = (table, Bytes::copy_from_slice(key));
        Ok(self.pairs.get(&place).cloned())
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        Ok(Box::new(self.owned_cursor(table, bounds, order)))
    }
}

impl StateReader for MemoryState {
    fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError> {
        let inside = |key: &Bytes| start <= *key && *key < end;
        let pairs = self.pairs.range((table, start.clone())..);
        let pairs = pairs.take_while(|((of, key), _)| *of == table && inside(key));
        let pairs = pairs.map(|((_, key), value)| (key.clone(), value.clone()));
        Ok(View::new(CopiedPairs(pairs.collect())))
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let pairs = self.scan(table, bounds, usize::MAX, usize::MAX)?;
        let size = |(key, value): &(Bytes, Bytes)| key.len() + value.len();
        Ok(pairs.iter().map(size).sum::<usize>() as u64)
    }
}

/// The pairs of a range at the moment of the copy, which is cheap because the pairs share their memory.
struct CopiedPairs(VecDeque<(Bytes, Bytes)>);

/// The number of pairs in a page of a view.
const VIEW_PAGE_PAIRS: usize = 64;

impl PageSource for CopiedPairs {
    fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, StoreError> {
        let count = VIEW_PAGE_PAIRS.min(self.0.len());
        Ok((count > 0).then(|| self.0.drain(..count).collect()))
    }
}

impl StateStore for MemoryState {
    fn applied(&self) -> Applied {
        self.applied.clone()
    }

    fn durable(&self) -> EntryId {
        self.durable.applied.last
    }

    fn commit(&mut self, batch: WriteBatch, applied: Applied) -> Result<(), StoreError> {
        check_commit(&self.applied, &applied)?;
        apply(Arc::make_mut(&mut self.pairs), &batch);
        self.applied = applied.clone();
        self.unflushed.push_back((batch, applied));
        Ok(())
    }

    fn start_flush(&mut self) -> Result<(), StoreError> {
        self.flushing = self.unflushed.len();
        if !self.deferred {
            self.complete_flush();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.flushing = 0;
        self.make_durable(self.unflushed.len());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StoreError> {
        Ok(Box::new(MemorySnapshot {
            pairs: Arc::clone(&self.pairs),
            meta: self.applied.meta(),
            encoder: Some(
                ChunkEncoder::new(self.applied.clone())
                    .with_chunk_bytes(self.chunk_bytes.unwrap_or(SNAPSHOT_CHUNK_BYTES)),
            ),
            after: None,
        }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        self.staging = Some(Staging {
            decoder: ChunkDecoder::new(meta.clone()),
            pairs: Pairs::new(),
            broken: None,
        });
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let Some(staging) = &mut self.staging else {
            return Err(no_restore());
        };
        if let Some(error) = &staging.broken {
            return Err(error.clone());
        }
        match staging.decoder.chunk(chunk) {
            Ok(pairs) => {
                let pairs = pairs.into_iter();
                staging
                    .pairs
                    .extend(pairs.map(|(table, key, value)| ((table, key), value)));
                Ok(())
            }
            Err(error) => {
                staging.broken = Some(error.clone());
                Err(error)
            }
        }
    }

    fn abandon_restore(&mut self) {
        self.staging = None;
    }

    fn finish_restore(&mut self) -> Result<(), StoreError> {
        let Some(staging) = self.staging.take() else {
            return Err(no_restore());
        };
        if let Some(error) = staging.broken {
            return Err(error);
        }
        let applied = staging.decoder.finish()?;
        self.durable = Image {
            pairs: staging.pairs.clone(),
            applied: applied.clone(),
        };
        self.pairs = Arc::new(staging.pairs);
        self.applied = applied;
        self.unflushed.clear();
        self.flushing = 0;
        Ok(())
    }
}

/// Refuses a commit that would move the state's position back: its effect is in the state already. Every store's `commit`
/// calls this.
pub fn check_commit(current: &Applied, next: &Applied) -> Result<(), StoreError> {
    if next.last.index < current.last.index || next.time < current.time {
        return Err(StoreError::Damaged(format!(
            "a commit at {} can't follow the state at {}",
            next.last, current.last
        )));
    }
    Ok(())
}

/// Returns the error of every store for a chunk without a [`StateStore::begin_restore`].
pub fn no_restore() -> StoreError {
    StoreError::Damaged("no restore was begun".to_owned())
}

struct MemorySnapshot {
    pairs: Arc<Pairs>,
    meta: SnapshotMeta,
    /// `None` after the last chunk.
    encoder: Option<ChunkEncoder>,
    after: Option<(Table, Bytes)>,
}

impl SnapshotSource for MemorySnapshot {
    fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(None);
        };
        let from = self.after.take().map_or(Bound::Unbounded, Bound::Excluded);
        for (place, value) in self.pairs.range((from, Bound::Unbounded)) {
            if let Some(chunk) = encoder.pair(place.0, &place.1, value) {
                self.after = Some(place.clone());
                return Ok(Some(chunk));
            }
        }
        Ok(self.encoder.take().map(ChunkEncoder::finish))
    }
}
