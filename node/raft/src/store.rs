//! What Raft needs of a disk, as traits. `storage` implements them on `RocksDB`; the simulator
//! implements them with faults. One conformance suite holds both to the words written here.

use std::fmt;
use std::ops::RangeInclusive;

use types::NodeId;

use crate::{Entry, EntryId, Index, SnapshotMeta, Term};

/// What an election must not forget (Raft §5.2): written before any reply that depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// Whom it voted for in `term`.
    pub vote: Option<NodeId>,
}

/// What one write makes durable, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Drop the whole log and start after this snapshot, which `state/` already holds durably. Also
    /// clears the mark of [`LogStore::begin_install`]. Comes before `entries`.
    pub reset: Option<SnapshotMeta>,
    /// Contiguous entries to append. Everything at and after the first one's index is dropped first.
    pub entries: Vec<Entry>,
}

/// What a log holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The hard state; the default when none was ever written.
    pub hard_state: HardState,
    /// The log starts after `base.last`; the default when nothing was compacted.
    pub base: SnapshotMeta,
    /// The last entry's index; `base.last.index` when there is no entry.
    pub last_index: Index,
    /// A snapshot whose installation into `state/` had begun and whose `reset` was not written.
    pub installing: Option<EntryId>,
}

/// Why a store failed. All but `Full` are final: the node must stop (an fsync error says nothing about
/// what is on the disk, so trying again would lie).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space left. Nothing was written; it may work when space returns.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The disk refused a read or a write. Latched: every later call fails with it.
    #[error("the disk failed: {0}")]
    Io(String),
    /// The content is damaged, foreign or of an unknown version.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
}

/// Reads entries.
pub trait LogReader {
    /// The entries of `range`, which the caller knows to be stored, up to about `max_bytes` but at least
    /// one. Contiguous from the range's start. A missing entry is [`StoreError::Damaged`].
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError>;
}

/// A durable log.
pub trait LogStore: LogReader {
    /// What the log holds. Called once, after opening, when every stored entry has been verified.
    fn load(&mut self) -> Result<LogState, StoreError>;

    /// Makes `batch` durable, atomically: when it returns `Ok`, all of it survives a power cut; when the
    /// power is cut before that, all of it or nothing is there.
    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError>;

    /// Forgets entries up to `base.last.index`, whose effects `state/` holds durably. Need not be synced:
    /// a compaction that is lost is repeated.
    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError>;

    /// Durably marks that `state/` is about to be replaced by the snapshot that ends at `last`, so that a
    /// crash before the following `reset` isn't taken for a lost log.
    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError>;
}

impl LogBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none() && self.reset.is_none() && self.entries.is_empty()
    }
}

impl fmt::Display for HardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vote {
            Some(node) => write!(f, "{} vote {node}", self.term),
            None => write!(f, "{}", self.term),
        }
    }
}
