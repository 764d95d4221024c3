//! What a state machine is to the log under it.

use bytes::Bytes;
use raft::{EntryId, StoreError};
use types::LogTime;

use crate::store::{StateReader, Table, WriteBatch};

/// A deterministic state machine: the same operations in the same order give the same state and the same
/// responses on every replica, whatever the machine's options, clock or version.
///
/// It keeps its data in the [`StateReader`] it is given and only caches beside it.
pub trait StateMachine: Send {
    /// A question that changes nothing.
    type Query: Send;
    /// What operations and questions are answered with. Refusals are values of it: `Err` is for the disk.
    type Response: Send;

    /// Rebuilds all caches: after a start and after a snapshot was installed.
    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError>;

    /// The refusal that an operation can be given before it is proposed, going by what was applied here. Only for what
    /// may be refused at any time, because other attempts of it are judged anew: it keeps out of the log what would only
    /// be refused there. Most machines have none.
    fn refuse_early(&self, _operation: &Bytes) -> Option<Self::Response> {
        None
    }

    /// Applies one operation. A malformed one is answered with a refusal and changes nothing.
    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Self::Response, StoreError>;

    /// Called once after the operations of a batch, before it is committed: writes down what `apply` kept
    /// in caches, so that many operations of one session cost one record.
    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError>;

    /// Answers a question from the state as of the last commit.
    fn query(
        &self,
        query: &Self::Query,
        state: &dyn StateReader,
    ) -> Result<Self::Response, StoreError>;
}

/// Where and when an operation is applied: the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applying {
    /// The entry that carries it.
    pub entry: EntryId,
    /// The log time that the leader stamped.
    pub time: LogTime,
    /// The largest value that the leader's options allow, stamped into the log, so that replicas with
    /// other options decide alike.
    pub max_value_bytes: u32,
}

/// The state under a batch of changes: reads see what the batch wrote before.
pub struct Transaction<'a> {
    below: &'a dyn StateReader,
    batch: WriteBatch,
}

impl<'a> Transaction<'a> {
    /// Nothing written yet, over `below`.
    pub fn new(below: &'a dyn StateReader) -> Self {
        Self {
            below,
            batch: WriteBatch::default(),
        }
    }

    /// The value of a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.batch.get(table, key) {
            Some(change) => Ok(change),
            None => self.below.get(table, key),
        }
    }

    /// Sets a key.
    pub fn put(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.batch.put(table, key, value);
    }

    /// Removes a key.
    pub fn remove(&mut self, table: Table, key: Bytes) {
        self.batch.remove(table, key);
    }

    /// Removes all keys in `[start, end)`.
    pub fn clear(&mut self, table: Table, start: Bytes, end: Bytes) {
        self.batch.clear(table, start, end);
    }

    /// What was written.
    pub fn into_batch(self) -> WriteBatch {
        self.batch
    }
}
