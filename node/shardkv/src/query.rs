//! Answers to queries, from the state as of the last commit.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{GroupKind, StateReader, Table};
use types::{ShardId, ShardSet, shard_of};

use crate::bug::{Bug, Bugs};
use crate::pull::{estimate_data, pull};
use crate::scan::{Range, scan};
use crate::{
    Genesis, KvError, MAX_KEY_BYTES, MAX_SCAN_BYTES, MAX_SCAN_PAIRS, Ownership, PageRequest, Query,
    Response, ShardState, journal, keys, records,
};

/// The inputs from which a query is answered.
pub(crate) struct Asked<'a> {
    pub(crate) state: &'a dyn StateReader,
    pub(crate) ownership: &'a Ownership,
    pub(crate) genesis: &'a Genesis,
    pub(crate) bugs: Bugs,
}

/// Returns the user's key of a pair in the view that [`Query::Export`] gives, sharing its memory. Stored keys begin with
/// four bytes of their shard, which this function removes.
pub fn user_key(stored: Bytes) -> Bytes {
    keys::split_data(stored).map_or_else(Bytes::new, |(_, key)| key)
}

/// Answers [`Query::Page`] from a state as of one commit, without the state machine, so that any thread can do it. The records
/// of the shards are read from the same state as the pairs: a later commit may fence a shard and clear it.
pub fn read_page(
    state: &dyn StateReader,
    request: &PageRequest,
) -> Result<Result<Response, KvError>, StoreError> {
    page(state, request, Bugs::default())
}

/// As [`read_page`], with a known bug put back, for the simulator.
#[cfg(feature = "bugs")]
pub fn read_page_with_bug(
    state: &dyn StateReader,
    request: &PageRequest,
    bug: Option<Bug>,
) -> Result<Result<Response, KvError>, StoreError> {
    page(state, request, Bugs::new(bug))
}

fn page(
    state: &dyn StateReader,
    request: &PageRequest,
    bugs: Bugs,
) -> Result<Result<Response, KvError>, StoreError> {
    let genesis = created(state)?;
    if let (true, Some(shards)) = (bugs.has(Bug::PageUnchecked), &request.shards) {
        let (pairs, more) = scan(state, shards, request)?;
        return Ok(Ok(Response::Page { pairs, more }));
    }
    let ownership = records::load_shards(state, &genesis, request.shards.as_ref())?;
    let asked = Asked {
        state,
        ownership: &ownership,
        genesis: &genesis,
        bugs,
    };
    asked.scan(request)
}

/// Answers [`Query::Count`] from a state as of one commit, as [`read_page`] answers a scan.
pub fn read_count(
    state: &dyn StateReader,
    shard: ShardId,
    after: &Bytes,
) -> Result<Result<Response, KvError>, StoreError> {
    let genesis = created(state)?;
    let asked = Asked {
        state,
        ownership: &records::load_shard(state, &genesis, shard)?,
        genesis: &genesis,
        bugs: Bugs::default(),
    };
    asked.count(shard, after)
}

pub(crate) fn created(state: &dyn StateReader) -> Result<Genesis, StoreError> {
    let damaged = || StoreError::Damaged("the state has no genesis record".to_owned());
    Genesis::load(state)?.ok_or_else(damaged)
}

impl Asked<'_> {
    pub(crate) fn answer(&self, query: &Query) -> Result<Response, StoreError> {
        let answer = match query {
            Query::Get { key } => self.get(key),
            Query::Page(request) => self.scan(request),
            Query::Confirm => Ok(Ok(Response::Confirmed)),
            Query::Pull {
                shard,
                config,
                after,
                max_bytes,
            } => {
                if self.serves_no_pulls() {
                    return Ok(Response::Refused(KvError::ShardNotReady { shard: *shard }));
                }
                let hand_off = (*shard, *config);
                let (state, genesis, bugs) = (self.state, self.genesis, self.bugs);
                let chunk = pull(state, genesis, hand_off, after, *max_bytes, bugs)?;
                Ok(chunk.map(|chunk| Response::Chunk(Box::new(chunk))))
            }
            Query::Copy(request) => {
                if self.serves_no_pulls() {
                    let shard = request.shard;
                    return Ok(Response::Refused(KvError::ShardNotReady { shard }));
                }
                let part = journal::read(self.state, self.genesis, request, self.bugs)?;
                Ok(part.map(|part| Response::Part(Box::new(part))))
            }
            Query::Export { shard, start, end } => self.export(*shard, Range { start, end }),
            Query::Count { shard, after } => self.count(*shard, after),
            Query::Sizes { shards } => self.sizes(shards),
        }?;
        Ok(answer.unwrap_or_else(Response::Refused))
    }

    /// Puts back [`Bug::PullingGroupServesNoPulls`].
    fn serves_no_pulls(&self) -> bool {
        let pulls = |state: &ShardState| {
            matches!(
                state,
                ShardState::Pulling { .. }
                    | ShardState::Copying { .. }
                    | ShardState::Completing { .. }
            )
        };
        let mut shards = self.ownership.shards.values();
        self.bugs.has(Bug::PullingGroupServesNoPulls) && shards.any(|shard| pulls(&shard.state))
    }

    fn get(&self, key: &Bytes) -> Result<Result<Response, KvError>, StoreError> {
        let shard = shard_of(key, self.genesis.shards);
        if let Err(error) = check_key(key).and_then(|()| self.check_read(shard)) {
            return Ok(Err(error));
        }
        let value = self.state.get(Table::Data, &keys::data(shard, key))?;
        Ok(Ok(Response::Value(value)))
    }

    fn scan(&self, request: &PageRequest) -> Result<Result<Response, KvError>, StoreError> {
        let range = Range::of(request);
        let checked = check_bounds(range).and_then(|()| match &request.shards {
            Some(shards) => shards
                .shards()
                .try_for_each(|shard| self.check_read(shard))
                .map(|()| shards.clone()),
            None => Ok(self.served()),
        });
        let shards = match checked {
            Ok(shards) => shards,
            Err(error) => return Ok(Err(error)),
        };
        let (pairs, more) = scan(self.state, &shards, request)?;
        Ok(Ok(Response::Page { pairs, more }))
    }

    fn export(
        &self,
        shard: ShardId,
        range: Range<'_>,
    ) -> Result<Result<Response, KvError>, StoreError> {
        if let Err(error) = check_bounds(range).and_then(|()| self.check_read(shard)) {
            return Ok(Err(error));
        }
        let start = keys::data(shard, range.start);
        let end = range.stored_end(shard);
        // Crossed bounds are an empty range, not an error.
        let end = end.max(start.clone());
        let view = self.state.view(Table::Data, start, end)?;
        Ok(Ok(Response::View(view)))
    }

    fn count(
        &self,
        shard: ShardId,
        after: &Bytes,
    ) -> Result<Result<Response, KvError>, StoreError> {
        let present = self.check_shard(shard).and_then(|()| {
            let state = self.ownership.state(shard);
            let state = state.filter(|state| !matches!(state, ShardState::Copying { .. }));
            state.ok_or_else(|| self.ownership.wrong_group(shard))
        });
        if let Err(error) = check_bound(after).and_then(|()| present.map(|_| ())) {
            return Ok(Err(error));
        }
        // No user's key is empty, so the start is excluded like any other.
        let from = keys::data(shard, after);
        let end = keys::shard_start(ShardId(shard.0 + 1));
        let bounds = (
            Bound::Excluded(from.as_ref()),
            Bound::Excluded(end.as_ref()),
        );
        let (limit, max_bytes) = (MAX_SCAN_PAIRS as usize, MAX_SCAN_BYTES as usize);
        let page = self.state.list(Table::Data, bounds, limit, max_bytes)?;
        let read = page.iter().map(|(key, value)| key.len() + value.read());
        let more = page.len() >= limit || read.sum::<usize>() >= max_bytes;
        let bytes = page.iter().map(|(key, value)| key.len() + value.length());
        let bytes: usize = bytes.sum();
        let prefixes = page.len() * from.len().saturating_sub(after.len());
        let last = page.last().map(|(key, _)| user_key(key.clone()));
        Ok(Ok(Response::Count {
            keys: page.len() as u64,
            bytes: bytes.saturating_sub(prefixes) as u64,
            next: last.filter(|_| more),
        }))
    }

    fn sizes(&self, shards: &ShardSet) -> Result<Result<Response, KvError>, StoreError> {
        let mut sizes = Vec::new();
        for shard in shards.shards() {
            if let Err(error) = self.check_shard(shard) {
                return Ok(Err(error));
            }
            sizes.push(estimate_data(self.state, shard)?);
        }
        Ok(Ok(Response::Sizes(sizes)))
    }

    fn served(&self) -> ShardSet {
        if self.genesis.kind == GroupKind::Standalone {
            return ShardSet::all(self.genesis.shards);
        }
        let shards = self.ownership.shards.keys().copied();
        shards
            .filter(|shard| self.check_read(*shard).is_ok())
            .collect()
    }

    fn check_read(&self, shard: ShardId) -> Result<(), KvError> {
        self.check_shard(shard)?;
        if self.genesis.kind == GroupKind::Standalone {
            return Ok(());
        }
        let early_or_late = match self.ownership.state(shard) {
            Some(ShardState::Fenced { .. }) => self.bugs.has(Bug::FencedShardServesReads),
            Some(ShardState::Pulling { .. }) => self.bugs.has(Bug::ServedBeforeInstalled),
            _ => false,
        };
        if early_or_late {
            return Ok(());
        }
        self.ownership.check_served(shard)
    }

    fn check_shard(&self, shard: ShardId) -> Result<(), KvError> {
        let shards = self.genesis.shards;
        if shard.0 < shards {
            Ok(())
        } else {
            Err(KvError::NoShard { shard, shards })
        }
    }
}

pub(crate) fn check_key(key: &Bytes) -> Result<(), KvError> {
    check_size(key, 1, MAX_KEY_BYTES)
}

fn check_bounds(range: Range<'_>) -> Result<(), KvError> {
    check_bound(range.start).and_then(|()| check_bound(range.end))
}

/// A scan's bound may be empty, and the smallest bound after the longest key has one byte more.
pub(crate) fn check_bound(bound: &Bytes) -> Result<(), KvError> {
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
