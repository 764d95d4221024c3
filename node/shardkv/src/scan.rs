//! Scans in the order of users' keys, over shards that are stored one after another.
//!
//! Keys are stored by shard, so the global order is a merge of one cursor for each shard asked for. A page must know
//! every such shard's next key, so it costs at least a seek for each that isn't empty, whatever its limit;
//! beyond that, cursors read about as much as the page needs. Keys spread evenly over shards, so a cursor's
//! first read is its share of the limit and a little more, and each further read is twice as large, for the
//! shard that got more than its share (a scan over keys with one tag).
//!
//! Memory holds a page's worth of keys and small values over all cursors, and of larger values
//! only the page's own (a cursor notes that there is one, and reads it when its turn comes).
//!
//! A probe skips runs of empty shards, so that a small store with very many shards doesn't pay for each of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{StateReader, Table};
use types::{ShardId, ShardSet};

use crate::{MAX_SCAN_BYTES, MAX_SCAN_PAIRS, keys};

/// Larger values aren't held by cursors.
const MAX_HELD_VALUE_BYTES: usize = 4_096;

/// A cursor reads at least this many pairs at once, and at least so many bytes.
const LEAST_READ: (usize, usize) = (2, 1_024);

/// Users' keys in `[start, end)`; an empty `end` is no bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range<'a> {
    pub(crate) start: &'a Bytes,
    pub(crate) end: &'a Bytes,
}

impl Range<'_> {
    /// Returns the end of the range among the stored keys of a shard.
    pub(crate) fn stored_end(&self, shard: ShardId) -> Bytes {
        if self.end.is_empty() {
            keys::shard_start(ShardId(shard.0 + 1))
        } else {
            keys::data(shard, self.end)
        }
    }
}

type Pairs = Vec<(Bytes, Bytes)>;

/// Returns the first pairs of `range` over these shards. The flag is true if there are more.
pub(crate) fn scan(
    state: &dyn StateReader,
    shards: &ShardSet,
    range: Range<'_>,
    limit: u32,
    max_bytes: u32,
) -> Result<(Pairs, bool), StoreError> {
    if !range.end.is_empty() && range.start >= range.end {
        return Ok((Vec::new(), false));
    }
    let limit = limit.clamp(1, MAX_SCAN_PAIRS) as usize;
    let max_bytes = max_bytes.clamp(1, MAX_SCAN_BYTES) as usize;
    let mut heads = open_cursors(state, shards, range, limit, max_bytes)?;
    let mut pairs = Vec::with_capacity(limit.min(256));
    let mut bytes = 0;
    while pairs.len() < limit && bytes < max_bytes {
        let Some(((key, shard), mut cursor)) = heads.pop_first() else {
            break;
        };
        let value = cursor.take_value(state, &key)?;
        bytes += key.len() + value.len();
        pairs.push((key, value));
        if let Some(next) = cursor.next_key(state)? {
            heads.insert((next, shard), cursor);
        }
    }
    Ok((pairs, !heads.is_empty()))
}

/// Cursors by their next keys.
type Heads = BTreeMap<(Bytes, ShardId), Cursor>;

fn open_cursors(
    state: &dyn StateReader,
    shards: &ShardSet,
    range: Range<'_>,
    limit: usize,
    max_bytes: usize,
) -> Result<Heads, StoreError> {
    let mut heads = Heads::new();
    let count = usize::try_from(shards.len()).unwrap_or(usize::MAX);
    // Probing pays only where shards are empty: it goes on as long as it skips some.
    let mut sparse = true;
    let mut asked = first_asked_from(shards, ShardId(0));
    while let Some(shard) = asked {
        let mut cursor = Cursor::new(shard, count, range, limit, max_bytes);
        let found = cursor.next_key(state)?;
        asked = first_asked_from(shards, ShardId(shard.0 + 1));
        if let Some(key) = found {
            heads.insert((key, shard), cursor);
        } else if let Some(next) = asked
            && sparse
        {
            let Some(found) = first_shard_from(state, next)? else {
                break;
            };
            sparse = found > next;
            asked = first_asked_from(shards, found);
        }
    }
    Ok(heads)
}

/// Returns the first of `shards` that isn't before `shard`.
fn first_asked_from(shards: &ShardSet, shard: ShardId) -> Option<ShardId> {
    let runs = shards.runs();
    let run = runs.get(runs.partition_point(|run| run.end() <= shard))?;
    Some(run.first.max(shard))
}

/// Returns the first shard from `shard` on that holds a pair.
fn first_shard_from(
    state: &dyn StateReader,
    shard: ShardId,
) -> Result<Option<ShardId>, StoreError> {
    let start = keys::shard_start(shard);
    let bounds = (Bound::Included(start.as_ref()), Bound::Unbounded);
    let found = state.scan(Table::Data, bounds, 1, 1)?;
    match found.into_iter().next() {
        None => Ok(None),
        Some((stored, _)) => split(stored).map(|(shard, _)| Some(shard)),
    }
}

/// Reads one shard's part of a range, in order.
struct Cursor {
    shard: ShardId,
    /// The pairs that were read and not given, without the larger values.
    read: VecDeque<(Bytes, Option<Bytes>)>,
    /// The bound from which to continue; `None` when the range is exhausted.
    from: Option<Bound<Bytes>>,
    end: Bytes,
    limit: usize,
    max_bytes: usize,
}

impl Cursor {
    /// Creates one of `shards` cursors of a page.
    fn new(
        shard: ShardId,
        shards: usize,
        range: Range<'_>,
        limit: usize,
        max_bytes: usize,
    ) -> Self {
        let (least_limit, least_bytes) = LEAST_READ;
        Self {
            shard,
            read: VecDeque::new(),
            from: Some(Bound::Included(keys::data(shard, range.start))),
            end: range.stored_end(shard),
            limit: limit / shards + least_limit,
            max_bytes: max_bytes / shards + least_bytes,
        }
    }

    /// Returns the user's key of the next pair without taking the pair.
    fn next_key(&mut self, state: &dyn StateReader) -> Result<Option<Bytes>, StoreError> {
        if self.read.is_empty() {
            self.read_on(state)?;
        }
        Ok(self.read.front().map(|(key, _)| key.clone()))
    }

    /// Takes the next pair, whose key is `key`, and returns its value.
    fn take_value(&mut self, state: &dyn StateReader, key: &[u8]) -> Result<Bytes, StoreError> {
        if let Some((_, Some(value))) = self.read.pop_front() {
            return Ok(value);
        }
        state
            .get(Table::Data, &keys::data(self.shard, key))?
            .ok_or_else(|| StoreError::Damaged("a scanned key has no value".to_owned()))
    }

    fn read_on(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        let Some(from) = self.from.take() else {
            return Ok(());
        };
        let bounds = (
            from.as_ref().map(Bytes::as_ref),
            Bound::Excluded(self.end.as_ref()),
        );
        let page = state.scan(Table::Data, bounds, self.limit, self.max_bytes)?;
        let bytes: usize = page
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if page.len() >= self.limit || bytes >= self.max_bytes {
            self.from = page.last().map(|(key, _)| Bound::Excluded(key.clone()));
        }
        for (stored, value) in page {
            let (_, key) = split(stored)?;
            let held = (value.len() <= MAX_HELD_VALUE_BYTES).then_some(value);
            self.read.push_back((key, held));
        }
        self.limit = (self.limit * 2).min(MAX_SCAN_PAIRS as usize);
        self.max_bytes = (self.max_bytes * 2).min(MAX_SCAN_BYTES as usize);
        Ok(())
    }
}

fn split(stored: Bytes) -> Result<(ShardId, Bytes), StoreError> {
    keys::split_data(stored)
        .ok_or_else(|| StoreError::Damaged("a key without a shard is stored".to_owned()))
}
