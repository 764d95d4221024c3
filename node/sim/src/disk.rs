//! A node's disk: the in-memory stores, with faults.
//!
//! The disk belongs to an address and outlives the processes that run there. A process uses the disk through two
//! handles, [`LogHandle`] and [`StateHandle`]. The world reads a journal of all that became durable, which the
//! invariant checker checks, and the time that the operations took.
//!
//! A crash can fall *inside* a process's step. [`Disk::arm_crash`] counts down the operations (writes and
//! messages). At zero the current operation happens or doesn't, and every later call fails. The world takes the
//! process down when its `poll` returns.

mod handles;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft::{
    Entry, EntryId, HardState, Index, LogBatch, LogStore, Membership, Payload, SnapshotMeta,
    StoreError,
};
use replica::memory::{MemoryLog, MemoryState};
use replica::{Applied, StateStore, Table, WriteBatch};
use types::Writer;

pub use handles::{LogHandle, StateHandle};

use crate::queue::{MILLI, Micros};
use crate::rng::{SimRng, digest, mix};

/// One change that a process made to its disk.
#[derive(Clone, Debug)]
pub enum DiskEvent {
    /// A hard state was written over another.
    HardState {
        /// The old hard state.
        before: HardState,
        /// The new hard state.
        after: HardState,
    },
    /// The log was replaced by a snapshot.
    Reset(SnapshotMeta),
    /// Entries were appended after `prev`.
    Appended {
        /// The entry before them, if the log still has it.
        prev: Option<EntryId>,
        /// The appended entries.
        entries: Vec<Entry>,
        /// True if the append truncated conflicting entries.
        truncated: bool,
    },
    /// The state advanced, or was replaced by a snapshot.
    Committed {
        /// The last applied entry.
        last: EntryId,
        /// A digest of the whole state and its position.
        digest: u64,
    },
    /// The log was compacted.
    Compacted {
        /// The new base: the last entry that the log no longer holds.
        base: EntryId,
        /// The last entry that the state holds durably.
        durable: EntryId,
    },
}

/// The latencies of a disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The shortest and the longest time of a synced write.
    pub sync: (Micros, Micros),
    /// The shortest and the longest time of a flush of the state.
    pub flush: (Micros, Micros),
    /// The approximate size of a snapshot's chunk, or `None` for the product's.
    pub chunk_bytes: Option<usize>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            sync: (100, 800),
            flush: (MILLI, 50 * MILLI),
            chunk_bytes: None,
        }
    }
}

/// A disk. Clones share the same contents.
#[derive(Clone, Debug)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "the flags are independent faults, and any of them may be on"
)]
struct Inner {
    log: MemoryLog,
    state: MemoryState,
    options: DiskOptions,
    rng: SimRng,
    /// The sum of the digests of all pairs, which is cheap to keep up to date.
    pairs_digest: u64,
    now: Micros,
    elapsed: Micros,
    flush_done: Option<Micros>,
    slow_by: Micros,
    full: bool,
    damaged: bool,
    /// True if a restored snapshot lacks the names of journals.
    forgets_journals: bool,
    /// The operations until the power cut, and true if the last of them still happens.
    crash_after: Option<(u32, bool)>,
    dead: bool,
    journal: Vec<DiskEvent>,
    writes: u64,
}

impl Disk {
    /// Creates an empty disk.
    pub fn new(options: DiskOptions, rng: SimRng) -> Self {
        let mut state = MemoryState::new();
        state.set_deferred_flush(true);
        state.set_chunk_bytes(options.chunk_bytes);
        Self {
            inner: Arc::new(Mutex::new(Inner {
                log: MemoryLog::new(),
                state,
                options,
                rng,
                pairs_digest: 0,
                now: 0,
                elapsed: 0,
                flush_done: None,
                slow_by: 0,
                full: false,
                damaged: false,
                forgets_journals: false,
                crash_after: None,
                dead: false,
                journal: Vec::new(),
                writes: 0,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held ends the world anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the handles for a process.
    pub fn open(&self) -> (LogHandle, StateHandle) {
        (LogHandle(self.clone()), StateHandle(self.clone()))
    }

    /// Begins a step of the process at `now`. A flush that ended until then becomes durable.
    pub fn begin(&self, now: Micros) {
        let mut inner = self.lock();
        inner.now = now;
        inner.elapsed = 0;
        inner.end_flush();
    }

    /// Returns the time that the disk's operations took since [`Disk::begin`].
    pub fn elapsed(&self) -> Micros {
        self.lock().elapsed
    }

    /// Returns the changes since the last call.
    pub fn take_journal(&self) -> Vec<DiskEvent> {
        std::mem::take(&mut self.lock().journal)
    }

    /// Counts a message that leaves the process. Returns its delay after [`Disk::begin`], or `None` if the power is cut
    /// by then.
    pub fn departure(&self) -> Option<Micros> {
        let mut inner = self.lock();
        let alive = inner.step();
        alive.then_some(inner.elapsed)
    }

    /// Cuts the power after `operations` more writes and messages.
    pub fn arm_crash(&self, operations: u32) {
        let mut inner = self.lock();
        let last_happens = inner.rng.coin();
        inner.crash_after = Some((operations, last_happens));
    }

    /// Cancels an armed power cut.
    pub fn disarm_crash(&self) {
        self.lock().crash_after = None;
    }

    /// Returns true after an armed power cut happened.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Restarts the disk after a power cut or the end of its process. Drops all that wasn't durable, except for a part
    /// drawn at random that reached the disk in time.
    pub fn crash(&self, now: Micros) {
        let mut inner = self.lock();
        inner.now = now;
        inner.end_flush();
        let undo = inner.rng.coin();
        let unflushed = inner.state.unflushed();
        let extra = if inner.rng.coin() {
            0
        } else {
            inner.rng.index(unflushed + 1)
        };
        inner.log = std::mem::take(&mut inner.log).crash(undo);
        inner.state = std::mem::take(&mut inner.state).crash(extra);
        inner.pairs_digest = sum(&inner.state);
        inner.flush_done = None;
        inner.crash_after = None;
        inner.dead = false;
        inner.journal.clear();
    }

    /// Replaces the contents by an empty disk.
    pub fn wipe(&self) {
        let mut inner = self.lock();
        inner.log = MemoryLog::new();
        inner.state = MemoryState::new();
        inner.state.set_deferred_flush(true);
        inner.pairs_digest = 0;
        inner.flush_done = None;
        inner.damaged = false;
        inner.full = false;
        inner.crash_after = None;
        inner.dead = false;
        inner.journal.clear();
    }

    /// Makes a synced record unreadable. Reads of it fail, and the next start must refuse the disk.
    pub fn damage(&self) {
        let mut inner = self.lock();
        inner.damaged = true;
        let stored: Vec<Index> = inner.log.stored().keys().copied().collect();
        // The last record is spared, because this store has no durable-index floor and would take it for a torn tail.
        let middle = stored.len().saturating_sub(1);
        if middle > 0 {
            let at = inner.rng.index(middle);
            if let Some(index) = stored.get(at) {
                inner.log.damage(*index);
            }
        }
    }

    /// Makes restored snapshots lack the names of journals, as [`shardkv::Bug::SnapshotWithoutJournal`] has it.
    pub fn restore_without_journals(&self) {
        self.lock().forgets_journals = true;
    }

    /// Returns true if a record is damaged.
    pub fn is_damaged(&self) -> bool {
        self.lock().damaged
    }

    /// Fills the disk, or gives it space again.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Returns true if the disk is full.
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Sets the extra time of each synced write.
    pub fn set_slow_by(&self, slow_by: Micros) {
        self.lock().slow_by = slow_by;
    }

    /// Returns true if nothing was ever written to the log.
    pub fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.log.base().last.index == Index(0) && inner.log.stored().is_empty()
    }

    /// Returns true if the log durably holds `id`, or is compacted beyond it.
    pub fn holds(&self, id: EntryId) -> bool {
        let inner = self.lock();
        let base = inner.log.base().last;
        // The former contents of a damaged disk are unknown. The rules for lost disks cover it.
        if id.index <= base.index || inner.damaged {
            return true;
        }
        inner
            .log
            .stored()
            .get(&id.index)
            .is_some_and(|entry| entry.id == id)
    }

    /// Returns the entries in `range` that the log holds, in order.
    pub fn entries(&self, range: RangeInclusive<Index>) -> Vec<Entry> {
        if range.is_empty() {
            return Vec::new();
        }
        let inner = self.lock();
        let stored = inner.log.stored().range(range);
        stored.map(|(_, entry)| entry.clone()).collect()
    }

    /// Returns the id of the entry at `index`, if the log still has it.
    pub fn entry_id(&self, index: Index) -> Option<EntryId> {
        let inner = self.lock();
        let base = inner.log.base().last;
        if index == base.index {
            return Some(base);
        }
        inner.log.stored().get(&index).map(|entry| entry.id)
    }

    /// Returns the hard state.
    pub fn hard_state(&self) -> HardState {
        self.lock().log.hard_state()
    }

    /// Returns the log's last index.
    pub fn last_index(&self) -> Index {
        self.lock().log.last_index()
    }

    /// Returns the number of memberships in the log above `index`.
    pub fn memberships_above(&self, index: Index) -> usize {
        let inner = self.lock();
        let above = inner.log.stored().range(index.next()..);
        above
            .filter(|(_, entry)| matches!(entry.payload, Payload::Membership(_)))
            .count()
    }

    /// Returns the number of entries in the log, and their bytes.
    pub fn log_size(&self) -> (usize, usize) {
        let inner = self.lock();
        let stored = inner.log.stored();
        (stored.len(), stored.values().map(Entry::size).sum())
    }

    /// Returns the last membership in the log, or that of the base.
    pub fn last_membership(&self) -> Membership {
        self.memberships().pop().unwrap_or_default()
    }

    /// Returns all memberships in the log, beginning with that of the base.
    pub fn memberships(&self) -> Vec<Membership> {
        let inner = self.lock();
        let logged = inner.log.stored().values();
        let logged = logged.filter_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some(membership.clone()),
            _ => None,
        });
        let base = inner.log.base().membership.clone();
        std::iter::once(base).chain(logged).collect()
    }

    /// Returns the last applied entry of the state, and a digest of its contents.
    pub fn position(&self) -> (EntryId, u64) {
        let inner = self.lock();
        let applied = inner.state.applied();
        (applied.last, inner.state_digest(&applied))
    }

    /// Returns the number of synced writes so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Returns all pairs of the state.
    pub fn pairs(&self) -> Vec<((Table, Bytes), Bytes)> {
        let inner = self.lock();
        let pairs = inner.state.pairs().iter();
        pairs
            .map(|(place, value)| (place.clone(), value.clone()))
            .collect()
    }
}

impl Inner {
    /// Counts one operation towards an armed crash. Returns false if the power is cut before it.
    fn step(&mut self) -> bool {
        if self.dead {
            return false;
        }
        match &mut self.crash_after {
            None => true,
            Some((0, last_happens)) => {
                self.dead = true;
                *last_happens
            }
            Some((left, _)) => {
                *left -= 1;
                true
            }
        }
    }

    fn end_flush(&mut self) {
        if self.flush_done.is_some_and(|done| done <= self.now) {
            self.flush_done = None;
            self.state.complete_flush();
        }
    }

    /// Runs one durable operation, unless the power is cut or the disk is full. Fails also if the power is cut right
    /// after it.
    fn durably<R>(
        &mut self,
        cost: (Micros, Micros),
        act: impl FnOnce(&mut Self) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        if self.dead {
            return Err(power());
        }
        if self.full {
            return Err(StoreError::Full("simulated".to_owned()));
        }
        self.elapsed += self.rng.between(cost.0, cost.1) + self.slow_by;
        self.writes += 1;
        if !self.step() {
            return Err(power());
        }
        let done = act(self)?;
        // After a power cut right after the write the bytes are on the disk, but the process never learns it.
        if self.dead { Err(power()) } else { Ok(done) }
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        let before = self.log.hard_state();
        let last = self.log.last_index();
        self.log.write(batch)?;
        if let Some(after) = batch.hard_state {
            self.journal.push(DiskEvent::HardState { before, after });
        }
        if let Some(meta) = &batch.reset {
            self.journal.push(DiskEvent::Reset(meta.clone()));
        }
        if let Some(first) = batch.entries.first() {
            let prev = first.id.index.prev();
            let base = self.log.base().last;
            let prev = if prev == base.index {
                Some(base)
            } else {
                self.log.stored().get(&prev).map(|entry| entry.id)
            };
            self.journal.push(DiskEvent::Appended {
                prev,
                entries: batch.entries.clone(),
                truncated: first.id.index <= last,
            });
        }
        Ok(())
    }

    fn commit(&mut self, batch: WriteBatch, applied: Applied) -> Result<(), StoreError> {
        let mut digest = self.pairs_digest;
        let pairs = self.state.pairs();
        // Ranges may overlap. A pair that is both cleared and changed is subtracted below.
        let mut cleared = BTreeMap::new();
        for (table, start, end) in batch.cleared.iter().filter(|(_, a, b)| a < b) {
            let range = (*table, start.clone())..(*table, end.clone());
            cleared.extend(pairs.range(range));
        }
        for (place, value) in cleared {
            if !batch.changes.contains_key(place) {
                digest = digest.wrapping_sub(pair_digest(place, value));
            }
        }
        for (place, change) in &batch.changes {
            if let Some(old) = pairs.get(place) {
                digest = digest.wrapping_sub(pair_digest(place, old));
            }
            if let Some(new) = change {
                digest = digest.wrapping_add(pair_digest(place, new));
            }
        }
        let last = applied.last;
        let position = applied.clone();
        self.state.commit(batch, applied)?;
        self.pairs_digest = digest;
        let digest = self.state_digest(&position);
        self.journal.push(DiskEvent::Committed { last, digest });
        Ok(())
    }

    /// Removes the names of journals from the state.
    fn forget_journals(&mut self) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let (start, end) = (Bytes::new(), Bytes::from_static(&[0xff; 8]));
        batch.clear(Table::Journal, start, end);
        self.state.commit(batch, self.state.applied())?;
        self.state.flush()
    }

    fn state_digest(&self, applied: &Applied) -> u64 {
        let mut out = Writer::with_capacity(128);
        out.number(applied.last.term.0)
            .number(applied.last.index.0)
            .number(applied.time.0);
        applied.membership.encode(&mut out);
        mix(self.pairs_digest ^ digest(&out.finish()))
    }
}

fn power() -> StoreError {
    StoreError::Io("simulated power cut".to_owned())
}

fn pair_digest(place: &(Table, Bytes), value: &[u8]) -> u64 {
    let table = place.0 as u64;
    mix(digest(&place.1).rotate_left(17) ^ digest(value).wrapping_add(table))
}

fn sum(state: &MemoryState) -> u64 {
    let pairs = state.pairs().iter();
    pairs.fold(0, |sum: u64, (place, value)| {
        sum.wrapping_add(pair_digest(place, value))
    })
}
