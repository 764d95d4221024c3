//! A node's disk: the in-memory stores, with faults.
//!
//! The disk belongs to an address and outlives the process on it. The process sees it through two handles,
//! [`LogHandle`] and [`StateHandle`], and the world sees what went through them: a journal of what became
//! durable, which the invariant checker checks, and the time that it took.
//!
//! A crash may fall *inside* a process's work. [`Disk::arm_crash`] counts down the operations (writes and
//! messages); at zero the operation at hand happens or doesn't, and nothing after it does: every later call
//! fails, and the world takes the process down when its `poll` returns.

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
use replica::{Applied, Keyspace, StateStore, WriteBatch};
use types::Writer;

pub use handles::{LogHandle, StateHandle};

use crate::queue::{MILLI, Micros};
use crate::rng::{SimRng, digest, mix};

/// Something that a process did to its disk, in order.
#[derive(Clone, Debug)]
pub enum DiskEvent {
    /// A hard state was written over another.
    HardState {
        /// What was there.
        before: HardState,
        /// What is there.
        after: HardState,
    },
    /// The log was replaced by a snapshot.
    Reset(SnapshotMeta),
    /// Entries were appended after `prev`.
    Appended {
        /// The entry before them, as far as the log still has it.
        prev: Option<EntryId>,
        /// What was appended.
        entries: Vec<Entry>,
        /// Others were dropped for them.
        truncated: bool,
    },
    /// The state moved on, or was replaced.
    Committed {
        /// To where.
        last: EntryId,
        /// A digest of the whole state with its position.
        digest: u64,
    },
    /// The log was compacted.
    Compacted {
        /// Up to here.
        base: EntryId,
        /// What the state holds durably.
        durable: EntryId,
    },
}

/// How a disk behaves.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// How long a synced write takes, least and most.
    pub sync: (Micros, Micros),
    /// How long a flush of the state takes, least and most.
    pub flush: (Micros, Micros),
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            sync: (100, 800),
            flush: (MILLI, 50 * MILLI),
        }
    }
}

/// A disk. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    log: MemoryLog,
    state: MemoryState,
    options: DiskOptions,
    rng: SimRng,
    /// Sum over all pairs of a digest of the pair: cheap to keep up to date.
    pairs_digest: u64,
    now: Micros,
    elapsed: Micros,
    flush_done: Option<Micros>,
    slow_by: Micros,
    full: bool,
    damaged: bool,
    /// Operations until the power goes, and whether the last one still happens.
    crash_after: Option<(u32, bool)>,
    dead: bool,
    journal: Vec<DiskEvent>,
    writes: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(options: DiskOptions, rng: SimRng) -> Self {
        let mut state = MemoryState::new();
        state.set_deferred_flush(true);
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
                crash_after: None,
                dead: false,
                journal: Vec::new(),
                writes: 0,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held ends the world anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handles for a process.
    pub fn open(&self) -> (LogHandle, StateHandle) {
        (LogHandle(self.clone()), StateHandle(self.clone()))
    }

    /// The process starts to work at `now`: what was flushed until then is durable.
    pub fn begin(&self, now: Micros) {
        let mut inner = self.lock();
        inner.now = now;
        inner.elapsed = 0;
        inner.end_flush();
    }

    /// How long the process's work on the disk took since [`Disk::begin`].
    pub fn elapsed(&self) -> Micros {
        self.lock().elapsed
    }

    /// What was done since the last call.
    pub fn take_journal(&self) -> Vec<DiskEvent> {
        std::mem::take(&mut self.lock().journal)
    }

    /// A message leaves the process: `None` if the power is gone by then, else how long after
    /// [`Disk::begin`].
    pub fn departure(&self) -> Option<Micros> {
        let mut inner = self.lock();
        let alive = inner.step();
        alive.then_some(inner.elapsed)
    }

    /// Has the power go after `operations` more writes and messages.
    pub fn arm_crash(&self, operations: u32) {
        let mut inner = self.lock();
        let last_happens = inner.rng.coin();
        inner.crash_after = Some((operations, last_happens));
    }

    /// The power stays.
    pub fn disarm_crash(&self) {
        self.lock().crash_after = None;
    }

    /// Whether the power went.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Power back, or process killed: what was not durable is gone, as far as the disk likes.
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

    /// Loses everything.
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

    /// A synced record becomes unreadable: the next start must refuse, and reads of it fail before.
    pub fn damage(&self) {
        let mut inner = self.lock();
        inner.damaged = true;
        let stored: Vec<Index> = inner.log.stored().keys().copied().collect();
        // Not the last one: that alone would look like a torn tail to this store, which has no floor.
        let middle = stored.len().saturating_sub(1);
        if middle > 0 {
            let at = inner.rng.index(middle);
            if let Some(index) = stored.get(at) {
                inner.log.damage(*index);
            }
        }
    }

    /// Whether a record is damaged.
    pub fn is_damaged(&self) -> bool {
        self.lock().damaged
    }

    /// Full, or with space again.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Whether it is full.
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Every synced write takes this much longer.
    pub fn set_slow_by(&self, slow_by: Micros) {
        self.lock().slow_by = slow_by;
    }

    /// Whether nothing was ever written to the log.
    pub fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.log.base().last.index == Index(0) && inner.log.stored().is_empty()
    }

    /// Whether the log durably holds `id`, or is compacted beyond it.
    pub fn holds(&self, id: EntryId) -> bool {
        let inner = self.lock();
        let base = inner.log.base().last;
        // What a damaged disk held nobody can tell; it counts as lost, by the rules for losing disks.
        if id.index <= base.index || inner.damaged {
            return true;
        }
        inner
            .log
            .stored()
            .get(&id.index)
            .is_some_and(|entry| entry.id == id)
    }

    /// The entries of the log in `range` as far as it holds them, in order.
    pub fn entries(&self, range: RangeInclusive<Index>) -> Vec<Entry> {
        if range.is_empty() {
            return Vec::new();
        }
        let inner = self.lock();
        let stored = inner.log.stored().range(range);
        stored.map(|(_, entry)| entry.clone()).collect()
    }

    /// The entry at `index`, if the log still has its name.
    pub fn entry_id(&self, index: Index) -> Option<EntryId> {
        let inner = self.lock();
        let base = inner.log.base().last;
        if index == base.index {
            return Some(base);
        }
        inner.log.stored().get(&index).map(|entry| entry.id)
    }

    /// The hard state.
    pub fn hard_state(&self) -> HardState {
        self.lock().log.hard_state()
    }

    /// The log's last index.
    pub fn last_index(&self) -> Index {
        self.lock().log.last_index()
    }

    /// How many memberships the log holds above `index`.
    pub fn memberships_above(&self, index: Index) -> usize {
        let inner = self.lock();
        let above = inner.log.stored().range(index.next()..);
        above
            .filter(|(_, entry)| matches!(entry.payload, Payload::Membership(_)))
            .count()
    }

    /// How many entries and bytes the log holds.
    pub fn log_size(&self) -> (usize, usize) {
        let inner = self.lock();
        let stored = inner.log.stored();
        (stored.len(), stored.values().map(Entry::size).sum())
    }

    /// The membership that the log ends with, the base's included.
    pub fn last_membership(&self) -> Membership {
        self.memberships().pop().unwrap_or_default()
    }

    /// The memberships that the log holds, the base's first.
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

    /// The state's position and a digest of all that it holds.
    pub fn position(&self) -> (EntryId, u64) {
        let inner = self.lock();
        let applied = inner.state.applied();
        (applied.last, inner.state_digest(&applied))
    }

    /// Synced writes so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// All pairs of the state, for comparing two that differ.
    pub fn pairs(&self) -> Vec<((Keyspace, Bytes), Bytes)> {
        let inner = self.lock();
        let pairs = inner.state.pairs().iter();
        pairs
            .map(|(place, value)| (place.clone(), value.clone()))
            .collect()
    }
}

impl Inner {
    /// One operation towards an armed crash. `false` when the power is gone before it.
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

    /// Runs one durable operation: whether it may happen, what it does, and whether its caller hears of it.
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
        // The power may have gone right after: the bytes are there and nobody heard of it.
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
        // A range may be cleared twice, and what is both cleared and changed is taken off below.
        let mut cleared = BTreeMap::new();
        for (space, start, end) in batch.cleared.iter().filter(|(_, a, b)| a < b) {
            let range = (*space, start.clone())..(*space, end.clone());
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

fn pair_digest(place: &(Keyspace, Bytes), value: &[u8]) -> u64 {
    let space = place.0 as u64;
    mix(digest(&place.1).rotate_left(17) ^ digest(value).wrapping_add(space))
}

fn sum(state: &MemoryState) -> u64 {
    let pairs = state.pairs().iter();
    pairs.fold(0, |sum: u64, (place, value)| {
        sum.wrapping_add(pair_digest(place, value))
    })
}
