//! A state machine that records what it applies.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use raft::{EntryId, StoreError};
use replica::{
    Applying, Bounds, Cursor, Order, PairReader, StateMachine, StateReader, Table, Transaction,
    View, WriteBatch,
};
use shardkv::{Ownership, Step};
use types::{ConfigNum, LogTime, ShardConfig};

use crate::keyspace_checker::comparable;
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
    /// The answer, without the pairs that only a replica returns where somebody waits for them.
    pub response: Reply,
    /// The feature level of the group.
    pub level: u32,
    /// The new shard ownership of its replica group, if the operation changed it.
    pub ownership: Option<Arc<Ownership>>,
    /// The configuration that the operation created.
    pub config: Option<Arc<ShardConfig>>,
    /// The rows and ranges that a step of a hand-off wrote although it left the ownership as it was.
    pub idle_writes: usize,
    /// The counted work of applying the operation.
    pub work: u64,
    /// The most work that it may take, by which a leader chooses the operations of an entry.
    pub most_work: u64,
    /// The configuration since which the group served the shard of an operation of a keyspace.
    pub served_since: ConfigNum,
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

    /// Returns the wrapped machine, for what it collects for its process.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.inner
    }
}

impl Recorder {
    /// Applies a step of a hand-off. Returns the number of rows and ranges that it wrote, too.
    fn step(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<(Reply, usize), StoreError> {
        let (response, batch) = {
            let below = Below(state);
            let mut own = Transaction::new(&below);
            let response = self.inner.apply(at, operation, &mut own)?;
            (response, own.into_batch())
        };
        let WriteBatch { cleared, changes } = batch;
        let written = cleared.len() + changes.len();
        for (table, start, end) in cleared {
            state.clear(table, start, end);
        }
        for ((table, key), change) in changes {
            match change {
                Some(value) => state.put(table, key, value),
                None => state.remove(table, key),
            }
        }
        Ok((response, written))
    }
}

fn served_since(owned: Option<&Ownership>, operation: &Bytes) -> ConfigNum {
    // Version and kind come first.
    let inner = operation.slice(2.min(operation.len())..);
    let shard = keyspace::Operation::shard_of(inner);
    let since = owned
        .zip(shard)
        .and_then(|(owned, shard)| owned.served_since(shard));
    since.unwrap_or_default()
}

/// A transaction as the state below another one. State machines only read pairs from it.
struct Below<'a, 'b>(&'a Transaction<'b>);

impl PairReader for Below<'_, '_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get(table, key)
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.0.cursor(table, bounds, order)
    }
}

impl StateReader for Below<'_, '_> {
    fn view(&self, _: Table, _: Bytes, _: Bytes) -> Result<View, StoreError> {
        Err(only_pairs())
    }

    fn estimate_bytes(&self, _: Table, _: &[u8], _: &[u8]) -> Result<u64, StoreError> {
        Err(only_pairs())
    }
}

fn only_pairs() -> StoreError {
    StoreError::Io("a transaction has neither views nor estimates".to_owned())
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

    fn most_work(&self, operation: &Bytes, max_value_bytes: u32) -> u64 {
        self.inner.most_work(operation, max_value_bytes)
    }

    fn answer_bytes(&self, response: &Reply) -> usize {
        self.inner.answer_bytes(response)
    }

    fn min_birth(&self) -> LogTime {
        self.inner.min_birth()
    }

    fn upkeep(&mut self, now: LogTime) -> Option<Bytes> {
        self.inner.upkeep(now)
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Reply, StoreError> {
        let (owned, latest) = (self.inner.ownership(), self.inner.latest());
        let before = state.work();
        let is_step = owned.is_some() && Step::decode(operation.clone()).is_ok();
        let (response, written) = if is_step {
            self.step(at, operation.clone(), state)?
        } else {
            (self.inner.apply(at, operation.clone(), state)?, 0)
        };
        let is_idle = is_step && self.inner.ownership() == owned;
        let same = |a: &Arc<Ownership>| owned.as_ref().is_some_and(|b| Arc::ptr_eq(a, b));
        let ownership = self.inner.ownership().filter(|now| !same(now));
        let num = latest.map(|config| config.num());
        let config = self.inner.latest().filter(|now| Some(now.num()) != num);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.push(AppliedOperation {
            entry: at.entry,
            served_since: served_since(owned.as_deref(), &operation),
            work: state.work() - before,
            most_work: self.inner.most_work(&operation, at.max_value_bytes),
            digest: digest(&operation) ^ at.time.0.rotate_left(20) ^ u64::from(at.max_value_bytes),
            operation,
            response: comparable(response.clone()),
            level: at.feature_level,
            ownership,
            config,
            idle_writes: if is_idle { written } else { 0 },
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
