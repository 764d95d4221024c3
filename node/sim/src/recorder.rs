//! A state machine that records what it applies.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use raft::{EntryId, StoreError};
use replica::{Applying, StateMachine, StateReader, Transaction};
use shardkv::Ownership;
use types::ShardConfig;

use crate::machine::{Machine, Question, Reply};
use crate::rng::digest;

/// One applied operation.
#[derive(Clone, Debug)]
pub struct AppliedOperation {
    /// The entry that carried it.
    pub entry: EntryId,
    /// A digest of the operation and of where it was applied.
    pub digest: u64,
    /// The operation itself.
    pub operation: Bytes,
    /// The answer.
    pub response: Reply,
    /// The new shard ownership of its replica group, if the operation changed it.
    pub ownership: Option<Arc<Ownership>>,
    /// The configuration that the operation created.
    pub config: Option<Arc<ShardConfig>>,
}

/// The operations that a machine applied, shared with the world.
pub type Journal = Arc<Mutex<Vec<AppliedOperation>>>;

/// Empties a journal and returns its operations.
pub fn drain(journal: &Journal) -> Vec<AppliedOperation> {
    let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *journal)
}

/// A state machine that passes all calls on and records each applied operation.
#[derive(Debug)]
pub struct Recorder {
    inner: Machine,
    journal: Journal,
}

impl Recorder {
    /// Wraps `inner`.
    pub fn new(inner: Machine, journal: Journal) -> Self {
        Self { inner, journal }
    }

    /// Returns the wrapped machine.
    pub fn machine(&self) -> &Machine {
        &self.inner
    }
}

impl StateMachine for Recorder {
    type Query = Question;
    type Response = Reply;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        self.inner.reload(state)
    }

    fn refuse_early(&self, operation: &Bytes) -> Option<Reply> {
        self.inner.refuse_early(operation)
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Reply, StoreError> {
        let (owned, latest) = (self.inner.ownership(), self.inner.latest());
        let response = self.inner.apply(at, operation.clone(), state)?;
        let same = |a: &Arc<Ownership>| owned.as_ref().is_some_and(|b| Arc::ptr_eq(a, b));
        let ownership = self.inner.ownership().filter(|now| !same(now));
        let num = latest.map(|config| config.num());
        let config = self.inner.latest().filter(|now| Some(now.num()) != num);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.push(AppliedOperation {
            entry: at.entry,
            digest: digest(&operation) ^ at.time.0.rotate_left(20) ^ u64::from(at.max_value_bytes),
            operation,
            response: response.clone(),
            ownership,
            config,
        });
        Ok(response)
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        self.inner.finish_batch(state)
    }

    fn query(&self, query: &Question, state: &dyn StateReader) -> Result<Reply, StoreError> {
        self.inner.query(query, state)
    }
}
