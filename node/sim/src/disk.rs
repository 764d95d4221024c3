//! A node's disk: the in-memory stores, with faults.
//!
//! The disk belongs to an address and outlives the processes that run there. A process uses the disk through two
//! handles, [`LogHandle`] and [`StateHandle`]. The world reads a journal of all that became durable, which the
//! invariant checker checks, and the time that the operations took.
//!
//! A crash can fall *inside* a process's step. [`Disk::arm_crash`] counts down the operations (writes and
//! messages). At zero the current operation happens or doesn't, and every later call fails. The world takes the
//! process down when its `poll` returns.

mod contents;
mod handles;

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft::{
    Entry, EntryId, HardState, Index, LogState, LogStore as _, Membership, Payload, SnapshotMeta,
};
use replica::memory::{MemoryLog, MemoryState};
use replica::{StateStore, Table};
use shardkv::{SessionClock, read_session_clock};
use types::{LogTime, ShardId};

use contents::sum;
pub use handles::{LogHandle, StateHandle};

use crate::queue::{MILLI, Micros};
use crate::rng::SimRng;

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
    /// The share, of a million, of installs of a snapshot at whose writes the power is cut.
    pub cuts_in_installs: u32,
    /// True if a full disk refuses also what the state commits.
    pub refuses_commits: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            sync: (100, 800),
            flush: (MILLI, 50 * MILLI),
            chunk_bytes: None,
            cuts_in_installs: 0,
            refuses_commits: false,
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
    /// True once a process has begun a step. Before, the group's first membership is written.
    begun: bool,
    /// True if the disk refused a commit of the state, so that the process must stop.
    refused_commit: bool,
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
                begun: false,
                refused_commit: false,
                damaged: false,
                forgets_journals: false,
                crash_after: None,
                dead: false,
                journal: Vec::new(),
                writes: 0,
            })),
        }
    }

    /// Returns an empty disk of the same kind.
    #[must_use]
    pub fn another(&self) -> Self {
        let inner = self.lock();
        let other = Self::new(inner.options.clone(), inner.rng.clone());
        other.lock().forgets_journals = inner.forgets_journals;
        other
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
        inner.begun = true;
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

    /// Ends all faults: nothing cuts the power any more, and the disk is fast and has space.
    pub fn end_faults(&self) {
        let mut inner = self.lock();
        inner.crash_after = None;
        inner.options.cuts_in_installs = 0;
        inner.full = false;
        inner.slow_by = 0;
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
        inner.refused_commit = false;
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
        // The end of the log as often as all the rest.
        let tail = inner.rng.coin().then(|| stored.len().saturating_sub(1));
        let at = tail.unwrap_or_else(|| inner.rng.index(stored.len()));
        if let Some(index) = stored.get(at) {
            inner.log.damage(*index);
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

    /// Returns true if the disk refused a commit of the state since the process started.
    pub fn refused_commit(&self) -> bool {
        self.lock().refused_commit
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

    /// Returns true if not even a vote or the beginning of an install was ever written to the log.
    pub fn is_untouched(&self) -> bool {
        let loaded = self.lock().log.load();
        loaded.is_ok_and(|loaded| loaded == LogState::default())
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

    /// Returns the session clock of a shard at a log time, by the state.
    pub fn session_clock(&self, shard: ShardId, at: LogTime) -> SessionClock {
        read_session_clock(&self.lock().state, shard, at).unwrap_or_default()
    }

    /// Returns the number of pairs of a table.
    pub fn count(&self, table: Table) -> usize {
        let inner = self.lock();
        let pairs = inner.state.pairs();
        let from = pairs.range((table, Bytes::new())..);
        from.take_while(|((other, _), _)| *other == table).count()
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
