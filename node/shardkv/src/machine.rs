//! The state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use raft::{Bug, StoreError};
use replica::session::{Admission, SessionRefusal, SessionTable};
use replica::{Applying, Keyspace, StateMachine, StateReader, Transaction};
use types::{ShardId, shard_of};

use crate::codec::Operation;
use crate::execute::execute;
use crate::outcome::Outcome;
use crate::scan::{Range, scan};
use crate::{Genesis, KvError, MAX_KEY_BYTES, Query, Response, keys};

/// The most forgotten sessions that one write removes from one table. More than the one that it may add, so
/// that tables shrink.
const EXPIRED_PER_WRITE: usize = 2;

/// How many records a reload reads at once, and about how many bytes.
const RELOAD_PAGE: (usize, usize) = (4_096, 1 << 20);

/// The sharded key-value store as a [`StateMachine`].
///
/// Invariants, between batches:
/// - `sessions` holds exactly the records of [`Keyspace::Sessions`], and no empty table;
/// - `dirty` is empty.
///
/// If a batch's commit fails, the caches are ahead of the state: nothing may be applied before
/// [`StateMachine::reload`].
#[derive(Debug, Default)]
pub struct ShardKv {
    genesis: Option<Genesis>,
    sessions: BTreeMap<ShardId, SessionTable<Outcome>>,
    dirty: BTreeSet<ShardId>,
    #[cfg(feature = "bugs")]
    bug: Option<Bug>,
}

impl ShardKv {
    /// A machine that knows nothing yet: [`StateMachine::reload`] comes first.
    pub fn new() -> Self {
        Self::default()
    }

    /// A machine with a known bug put back, for the simulator.
    #[cfg(feature = "bugs")]
    pub fn with_bug(bug: Option<Bug>) -> Self {
        Self {
            bug,
            ..Self::default()
        }
    }

    #[cfg(feature = "bugs")]
    fn has_bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self)]
    const fn has_bug(&self, _: Bug) -> bool {
        false
    }

    /// What the group was created with; `None` as long as the state is empty.
    pub fn genesis(&self) -> Option<&Genesis> {
        self.genesis.as_ref()
    }

    /// How many sessions all shards remember, for metrics.
    pub fn session_count(&self) -> usize {
        self.sessions.values().map(SessionTable::len).sum()
    }

    /// A state without a genesis has no log: its replica waits for a snapshot, after which there is one. An
    /// operation that comes all the same would be lost here and kept elsewhere, so it is not refused but
    /// stops the node.
    fn created(&self) -> Result<Genesis, StoreError> {
        self.genesis
            .ok_or_else(|| StoreError::Damaged("the state has no genesis record".to_owned()))
    }

    /// Removes some of what expired from the write's own table, and from one other that each entry visits in
    /// turn, so that a shard without writes forgets too. Which and how many depends on the log alone.
    fn forget_some(&mut self, own: ShardId, at: Applying, genesis: &Genesis) {
        let limits = genesis.session_limits();
        let visited = at.entry.index.0 % u64::from(genesis.shards.max(1));
        let visited = u32::try_from(visited).map_or(own, ShardId);
        for shard in [own, visited] {
            if let Some(table) = self.sessions.get_mut(&shard)
                && table.expire(at.time, &limits, EXPIRED_PER_WRITE) > 0
            {
                self.dirty.insert(shard);
            }
        }
    }
}

impl StateMachine for ShardKv {
    type Query = Query;
    type Response = Response;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        self.sessions.clear();
        self.dirty.clear();
        self.genesis = Genesis::load(state)?;
        let mut after = Bound::Unbounded;
        loop {
            let from = after.as_ref().map(Bytes::as_ref);
            let (limit, max_bytes) = RELOAD_PAGE;
            let bounds = (from, Bound::Unbounded);
            let page = state.scan(Keyspace::Sessions, bounds, limit, max_bytes)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            let last = last.clone();
            for (key, record) in page {
                self.load_session(&key, record)?;
            }
            after = Bound::Excluded(last);
        }
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let genesis = self.created()?;
        let command = match Operation::decode(operation) {
            Ok(Operation::Command(command)) => command,
            Ok(Operation::Step(_)) => {
                let why = "a standalone group keeps its shards".to_owned();
                return Ok(Response::Refused(KvError::Malformed(why)));
            }
            Err(error) => return Ok(Response::Refused(KvError::Malformed(error.to_string()))),
        };
        let key = command.write.key();
        if let Err(error) = check_key(key) {
            return Ok(Response::Refused(error));
        }
        let shard = shard_of(key, genesis.shards);
        self.forget_some(shard, at, &genesis);
        let Some(session) = command.session else {
            return execute(&command.write, shard, at.max_value_bytes, state).map(Response::from);
        };
        self.dirty.insert(shard);
        let doubles = self.has_bug(Bug::RetryAppliedTwice);
        let forgets = self.has_bug(Bug::AbsentSessionIsNew);
        let table = self.sessions.entry(shard).or_default();
        let mut run = || execute(&command.write, shard, at.max_value_bytes, state);
        match table.admit(session, at.time, &genesis.session_limits()) {
            Admission::Execute(permit) => {
                let outcome = run()?;
                table.record(permit, outcome);
                Ok(outcome.into())
            }
            Admission::Replay(_) if doubles => run().map(Response::from),
            Admission::Refuse(SessionRefusal::Expired) if forgets => run().map(Response::from),
            Admission::Replay(outcome) => Ok(outcome.into()),
            Admission::Refuse(refusal) => Ok(Response::Refused(refused(refusal, shard))),
        }
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        for shard in std::mem::take(&mut self.dirty) {
            let Some(table) = self.sessions.get_mut(&shard) else {
                continue;
            };
            for (client, record) in table.drain_dirty() {
                let key = keys::session(shard, client);
                match record {
                    Some(record) => state.put(Keyspace::Sessions, key, record),
                    None => state.remove(Keyspace::Sessions, key),
                }
            }
            if table.is_empty() {
                self.sessions.remove(&shard);
            }
        }
        Ok(())
    }

    fn query(&self, query: &Query, state: &dyn StateReader) -> Result<Response, StoreError> {
        let genesis = self.created()?;
        match query {
            Query::Get { key } => {
                if let Err(error) = check_key(key) {
                    return Ok(Response::Refused(error));
                }
                let stored = keys::data(shard_of(key, genesis.shards), key);
                state.get(Keyspace::Data, &stored).map(Response::Value)
            }
            Query::Scan {
                start,
                end,
                limit,
                max_bytes,
                shards: _,
            } => {
                if let Err(error) = check_bound(start).and_then(|()| check_bound(end)) {
                    return Ok(Response::Refused(error));
                }
                let range = Range { start, end };
                let (pairs, more) = scan(state, genesis.shards, range, *limit, *max_bytes)?;
                Ok(Response::Page { pairs, more })
            }
            Query::Pull { shard, .. }
            | Query::Export { shard, .. }
            | Query::Count { shard, .. } => {
                Ok(Response::Refused(KvError::ShardNotReady { shard: *shard }))
            }
            Query::Sizes { .. } => Ok(Response::Sizes(Vec::new())),
        }
    }
}

impl ShardKv {
    fn load_session(&mut self, key: &[u8], record: Bytes) -> Result<(), StoreError> {
        let shards = self.created()?.shards;
        let (shard, client) = keys::split_session(key)
            .filter(|(shard, _)| shard.0 < shards)
            .ok_or_else(|| StoreError::Damaged("a session's key is malformed".to_owned()))?;
        self.sessions
            .entry(shard)
            .or_default()
            .load(client, record)
            .map_err(|error| {
                StoreError::Damaged(format!(
                    "the record of session {client} in {shard}: {error}"
                ))
            })
    }
}

fn check_key(key: &Bytes) -> Result<(), KvError> {
    check_size(key, 1, MAX_KEY_BYTES)
}

/// A scan's bound may be empty, and the smallest bound after the longest key has one byte more.
fn check_bound(bound: &Bytes) -> Result<(), KvError> {
    check_size(bound, 0, MAX_KEY_BYTES + 1)
}

fn check_size(key: &Bytes, least: usize, most: usize) -> Result<(), KvError> {
    if (least..=most).contains(&key.len()) {
        Ok(())
    } else {
        Err(KvError::KeySize {
            size: key.len() as u64,
            limit: MAX_KEY_BYTES as u64,
        })
    }
}

fn refused(refusal: SessionRefusal, shard: ShardId) -> KvError {
    let full = |what, limit: u32| KvError::SessionLimit {
        what,
        shard,
        limit: limit.into(),
    };
    match refusal {
        SessionRefusal::Expired => KvError::SessionExpired,
        SessionRefusal::FromFuture { ahead_ms } => KvError::SessionFromFuture { ahead_ms },
        SessionRefusal::Stale {
            sequence,
            acked_below,
        } => KvError::StaleSequence {
            sequence,
            acked_below,
        },
        SessionRefusal::BadSequence {
            sequence,
            acked_below,
        } => KvError::BadSequence {
            sequence,
            acked_below,
        },
        SessionRefusal::TooManySessions { limit } => full("the sessions", limit),
        SessionRefusal::TooManyResults { limit } => {
            full("the unacknowledged results of a session", limit)
        }
    }
}
