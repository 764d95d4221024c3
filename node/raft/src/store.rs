//! The traits of Raft's durable log. `storage` implements them on `RocksDB`; the simulator
//! implements them with faults. One conformance suite checks both against the contracts written here.

use std::fmt;
use std::ops::RangeInclusive;

use types::{DecodeError, NodeId};

use crate::{Entry, EntryId, Index, SnapshotMeta, Term};

/// The durable state of elections (Raft §5.2), written before any message that depends on it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// The candidate that this node voted for in `term`.
    pub vote: Option<NodeId>,
}

/// The content of one write, which is durable as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Drops the whole log, which then starts after this snapshot; `state/` already holds it durably. Also
    /// clears the mark of [`LogStore::begin_install`]. Takes effect before `entries`.
    pub reset: Option<SnapshotMeta>,
    /// Contiguous entries to append. The store first drops its entries at and after the index of the first.
    pub entries: Vec<Entry>,
}

/// The content of a log when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The hard state; the default if none was ever written.
    pub hard_state: HardState,
    /// The base: the log starts after `base.last`. The default if nothing was compacted.
    pub base: SnapshotMeta,
    /// The last entry's index; `base.last.index` if there is no entry.
    pub last_index: Index,
    /// The snapshot whose installation into `state/` began and whose `reset` was not written.
    pub installing: Option<EntryId>,
}

/// A store's error. All but `Full` are final and the node must stop: after an fsync error the content of the
/// disk is unknown, and a retry that succeeds would prove nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space is left. Nothing was written; a retry may succeed when space is free again.
    #[error("the disk is full: {0}")]
    Full(String),
    /// A read or write failed. Latched: every later call fails with this error.
    #[error("the disk failed: {0}")]
    Io(String),
    /// The content is damaged or foreign.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// Another version of the program wrote the content. Nothing is damaged, and this version must not go on.
    #[error("another version of the program wrote the data: {0}")]
    OtherVersion(String),
    /// The state differs from that of a quorum of the group, so it is wrong. A replica finds it, and no store does.
    #[error("the state differs from the group's: {0}")]
    Diverged(String),
}

impl StoreError {
    /// Returns the error of the stored record `what` that can't be decoded. A record of another version isn't damaged.
    pub fn unreadable(what: impl fmt::Display, error: &DecodeError) -> Self {
        let text = format!("{what}: {error}");
        match error {
            DecodeError::Version { .. } => Self::OtherVersion(text),
            _ => Self::Damaged(text),
        }
    }
}

/// Reads entries.
pub trait LogReader {
    /// Returns the entries of `range`, which the caller knows to be stored, up to about `max_bytes` but at least
    /// one. They are contiguous from the range's start. A missing entry is [`StoreError::Damaged`].
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError>;
}

/// A durable log.
pub trait LogStore: LogReader {
    /// Returns the content of the log. The driver calls it once, after opening, when the store has verified every
    /// entry.
    fn load(&mut self) -> Result<LogState, StoreError>;

    /// Makes `batch` durable atomically: once `write` returns `Ok`, all of the batch survives a power cut; after a
    /// power cut before that, the disk holds all of it or none of it.
    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError>;

    /// Drops entries up to `base.last.index`, whose effects `state/` holds durably. The store need not sync it:
    /// a lost compaction is repeated.
    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError>;

    /// Durably marks that the snapshot that ends at `last` is about to replace `state/`, so that a crash before the
    /// following `reset` isn't mistaken for a lost log.
    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError>;
}

impl LogBatch {
    /// Returns true if there is nothing to write.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_is_not_damaged() {
        let what = "version";
        let other = DecodeError::Version {
            what,
            found: 4,
            known: 3,
        };
        for (error, is_damaged) in [
            (other, false),
            (DecodeError::Truncated(what), true),
            (DecodeError::Unknown { what, value: 0 }, true),
            (DecodeError::OutOfRange(what), true),
            (DecodeError::Trailing(1), true),
        ] {
            let found = StoreError::unreadable("the record", &error);
            let text = format!("the record: {error}");
            let expected = if is_damaged {
                StoreError::Damaged(text)
            } else {
                StoreError::OtherVersion(text)
            };
            assert_eq!(found, expected);
        }
    }
}
