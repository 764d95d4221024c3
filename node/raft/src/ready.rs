//! What Raft wants done, and the token that only a finished write yields.
//!
//! Messages that promise something about the disk (a vote, an acknowledgement of entries) are held inside
//! [`Persist`]. The only way to get them out is [`Persist::write`], which hands the batch to a store and gives a
//! [`Persisted`] token back when the store has made it durable. So sending too early does not compile.

use types::NodeId;

use crate::store::{LogBatch, LogStore, StoreError};
use crate::{Entry, EntryId, Envelope, HardState, Index};

/// What is to be done after a batch of steps. In this order: send `messages`, write `persist`, apply `committed`.
#[derive(Debug, Default)]
pub struct Ready {
    /// May leave at once, before anything is written: a leader sends while its own disk writes.
    pub messages: Vec<Envelope>,
    /// What must be made durable, with the messages that wait for it.
    pub persist: Option<Box<Persist>>,
    /// Committed entries to apply, in order. They are durable here.
    pub committed: Vec<Entry>,
    /// Read rounds that a quorum confirmed.
    pub reads: Vec<ReadGrant>,
    /// Followers that need a snapshot and get no entries until they have one.
    pub snapshots_wanted: Vec<NodeId>,
}

/// All reads with a ticket of at most `ticket` may be answered when `index` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadGrant {
    /// As [`crate::Raft::read_index`] gave it.
    pub ticket: ReadTicket,
    /// What must be applied first.
    pub index: Index,
}

/// Names a read round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTicket(pub u64);

/// A write that must be durable before its messages may leave.
#[derive(Debug)]
pub struct Persist {
    pub(crate) batch: LogBatch,
    pub(crate) hard_state: HardState,
    pub(crate) last: EntryId,
    pub(crate) held: Vec<Envelope>,
}

/// Proof that a [`Persist`] is durable. [`crate::Raft::handle_persisted`] takes it and releases the messages.
#[derive(Debug)]
pub struct Persisted {
    pub(crate) hard_state: HardState,
    pub(crate) last: EntryId,
    pub(crate) held: Vec<Envelope>,
}

impl Persist {
    /// What will be written.
    pub fn batch(&self) -> &LogBatch {
        &self.batch
    }

    /// Makes it durable. On an error the write comes back, so that it can be tried again after
    /// [`StoreError::Full`]; every other error is final.
    pub fn write(
        self: Box<Self>,
        store: &mut dyn LogStore,
    ) -> Result<Persisted, (Box<Self>, StoreError)> {
        match store.write(&self.batch) {
            Ok(()) => Ok(Persisted {
                hard_state: self.hard_state,
                last: self.last,
                held: self.held,
            }),
            Err(error) => Err((self, error)),
        }
    }

    /// Test-only: pretends that it is durable, to put "acknowledge before fsync" back.
    #[cfg(feature = "bugs")]
    pub fn steal_messages(&mut self) -> Vec<Envelope> {
        std::mem::take(&mut self.held)
    }
}
