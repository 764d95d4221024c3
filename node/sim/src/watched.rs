//! A state machine under observation: passes everything on, and writes down what was applied.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use raft::{EntryId, StoreError};
use replica::{Applying, StateMachine, StateReader, Transaction};

use crate::dice::digest;

/// One applied operation.
#[derive(Clone, Debug)]
pub struct AppliedOperation<R> {
    /// The entry that carried it.
    pub entry: EntryId,
    /// A digest of the operation and of where it was applied.
    pub digest: u64,
    /// The operation itself.
    pub operation: Bytes,
    /// What it was answered with.
    pub response: R,
}

/// What a machine applied, shared with the world.
pub type Journal<R> = Arc<Mutex<Vec<AppliedOperation<R>>>>;

/// Empties a journal.
pub fn drain<R>(journal: &Journal<R>) -> Vec<AppliedOperation<R>> {
    let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *journal)
}

/// A machine that tells what it applies.
#[derive(Debug)]
pub struct Watched<M: StateMachine> {
    inner: M,
    journal: Journal<M::Response>,
}

impl<M: StateMachine> Watched<M> {
    /// Watches `inner`.
    pub fn new(inner: M, journal: Journal<M::Response>) -> Self {
        Self { inner, journal }
    }
}

impl<M: StateMachine<Response: Clone>> StateMachine for Watched<M> {
    type Query = M::Query;
    type Response = M::Response;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        self.inner.reload(state)
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Self::Response, StoreError> {
        let response = self.inner.apply(at, operation.clone(), state)?;
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.push(AppliedOperation {
            entry: at.entry,
            digest: digest(&operation) ^ at.time.0.rotate_left(20) ^ u64::from(at.max_value_bytes),
            operation,
            response: response.clone(),
        });
        Ok(response)
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        self.inner.finish_batch(state)
    }

    fn query(
        &self,
        query: &Self::Query,
        state: &dyn StateReader,
    ) -> Result<Self::Response, StoreError> {
        self.inner.query(query, state)
    }
}
