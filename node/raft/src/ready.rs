//! The work that Raft hands to its driver, and the token that only a finished write yields.
//!
//! Messages that promise something about the disk (a vote, an acknowledgement of entries) are held inside
//! [`Persist`]. The only way to get them out is [`Persist::write`], which hands the batch to a store and returns a
//! [`Persisted`] token when the store has made it durable. So sending too early does not compile.

use types::NodeId;

use crate::store::{LogBatch, LogStore, StoreError};
use crate::{Entry, EntryId, Envelope, HardState, Index};

/// The work after a batch of inputs. In this order: send `messages`, write `persist`, apply `committed`.
#[derive(Debug, Default)]
pub struct Ready {
    /// Messages to send at once, before any write: a leader sends while its own disk writes.
    pub messages: Vec<Envelope>,
    /// The write to make durable, with the messages that wait for it.
    pub persist: Option<Box<Persist>>,
    /// Committed entries to apply, in order. They are durable here.
    pub committed: Vec<Entry>,
    /// Reads that may be answered, of a leader.
    pub reads: Vec<ReadGrant>,
    /// Reads that may be answered, of a follower ([`crate::Raft::ask_read_index`]).
    pub follower_reads: Vec<ReadGrant>,
    /// Followers that need a snapshot and get no entries until they have it.
    pub snapshots_wanted: Vec<NodeId>,
}

/// Permission to answer all reads with a ticket of at most `ticket` when `index` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadGrant {
    /// The highest granted ticket of [`crate::Raft::read_index`] or [`crate::Raft::ask_read_index`], whose tickets are apart.
    pub ticket: ReadTicket,
    /// The index that must be applied first.
    pub index: Index,
}

/// The number of a leader's read round, or of a follower's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadTicket(pub u64);

/// A write that must be durable before its messages are sent.
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
    /// Returns the batch to write.
    pub fn batch(&self) -> &LogBatch {
        &self.batch
    }

    /// Makes the batch durable. On an error it returns the write, which the driver may retry after
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

    /// Takes the messages before the batch is durable. Test-only, to put the bug "acknowledge before fsync" back.
    #[cfg(feature = "bugs")]
    pub fn steal_messages(&mut self) -> Vec<Envelope> {
        std::mem::take(&mut self.held)
    }
}
