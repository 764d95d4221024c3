//! Scans in the order of users' keys, over shards that are stored one after another.
//!
//! Keys are stored by shard, so the global order is a merge of one cursor for each shard asked for. A page must know
//! every such shard's next key, so it costs at least a seek for each that isn't empty, whatever its limit;
//! beyond that, cursors read about as much as the page needs. Keys spread evenly over shards, so a cursor's
//! first read is its share of the limit and a little more, and each further read is twice as large, for the
//! shard that got more than its share (a scan over keys with one tag).
//!
//! Memory holds a page's worth of keys and small values over all cursors, and of larger values
//! only the page's own: a cursor lists keys, and reads a larger value when its turn comes. A page of keys only reads no
//! value that its store keeps apart.
//!
//! A page is bounded in the bytes that it reads, not only in those that it returns. It may always read as much again as its
//! first keys cost, so that a scan reads at most about twice what a single page over the whole range would.
//!
//! A probe skips runs of empty shards, so that a small store with very many shards doesn't pay for each of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{Listed, MAX_LISTED_BYTES, StateReader, Table};
use types::{ShardId, ShardSet};

use crate::{MAX_SCAN_BYTES, MAX_SCAN_PAIRS, PageRequest, keys};

/// A page ends when so many bytes were read, if its first keys cost at most half of that.
const MAX_READ_BYTES: usize = 2 * MAX_SCAN_BYTES as usize;

/// A cursor reads at least this many pairs at once, and at least so many bytes.
const LEAST_READ: (usize, usize) = (2, 1_024);

/// Users' keys in `[start, end)`; an empty `end` is no bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range<'a> {
    pub(crate) start: &'a Bytes,
    pub(crate) end: &'a Bytes,
}

impl<'a> Range<'a> {
    pub(crate) fn of(request: &'a PageRequest) -> Self {
        Self {
            start: &request.start,
            end: &request.end,
        }
    }

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

/// Returns the first pairs of a page over these shards. The flag is true if there are more.
pub(crate) fn scan(
    state: &dyn StateReader,
    shards: &ShardSet,
    request: &PageRequest,
) -> Result<(Pairs, bool), StoreError> {
    let range = Range::of(request);
    if !range.end.is_empty() && range.start >= range.end {
        return Ok((Vec::new(), false));
    }
    let mut page = Page {
        state,
        keys_only: request.keys_only,
        limit: request.limit.clamp(1, MAX_SCAN_PAIRS) as usize,
        max_bytes: request.max_bytes.clamp(1, MAX_SCAN_BYTES) as usize,
        read: 0,
    };
    let mut heads = page.open_cursors(shards, range)?;
    let max_read = MAX_READ_BYTES.max(2 * page.read);
    let mut pairs = Vec::with_capacity(page.limit.min(256));
    let mut bytes = 0;
    while pairs.len() < page.limit && bytes < page.max_bytes && page.read < max_read {
        let Some(((key, shard), mut cursor)) = heads.pop_first() else {
            break;
        };
        let value = page.take_value(&mut cursor, &key)?;
        bytes += key.len() + value.len();
        pairs.push((key, value));
        if let Some(next) = page.next_key(&mut cursor)? {
            heads.insert((next, shard), cursor);
        }
    }
    Ok((pairs, !heads.is_empty()))
}

/// Cursors by their next keys.
type Heads = BTreeMap<(Bytes, ShardId), Cursor>;

/// A page that is being read.
struct Page<'a> {
    state: &'a dyn StateReader,
    keys_only: bool,
    limit: usize,
    max_bytes: usize,
    /// The bytes of keys and values that were read so far.
    read: usize,
}

/// One shard's part of a range, which is read in order.
struct Cursor {
    shard: ShardId,
    /// The pairs that were read and not given, without the larger values.
    ahead: VecDeque<(Bytes, Option<Bytes>)>,
    /// The bound from which to continue; `None` when the range is exhausted.
    from: Option<Bound<Bytes>>,
    end: Bytes,
    limit: usize,
    max_bytes: usize,
}

impl Page<'_> {
    fn open_cursors(&mut self, shards: &ShardSet, range: Range<'_>) -> Result<Heads, StoreError> {
        let mut heads = Heads::new();
        let count = usize::try_from(shards.len()).unwrap_or(usize::MAX);
        // Probing pays only where shards are empty: it goes on as long as it skips some.
        let mut sparse = true;
        let mut asked = first_asked_from(shards, ShardId(0));
        while let Some(shard) = asked {
            let mut cursor = self.cursor(shard, count, range);
            let found = self.next_key(&mut cursor)?;
            asked = first_asked_from(shards, ShardId(shard.0 + 1));
            if let Some(key) = found {
                heads.insert((key, shard), cursor);
            } else if let Some(next) = asked
                && sparse
            {
                let Some(found) = self.first_shard_from(next)? else {
                    break;
                };
                sparse = found > next;
                asked = first_asked_from(shards, found);
            }
        }
        Ok(heads)
    }

    /// Creates one of `shards` cursors.
    fn cursor(&self, shard: ShardId, shards: usize, range: Range<'_>) -> Cursor {
        let (least_limit, least_bytes) = LEAST_READ;
        Cursor {
            shard,
            ahead: VecDeque::new(),
            from: Some(Bound::Included(keys::data(shard, range.start))),
            end: range.stored_end(shard),
            limit: self.limit / shards + least_limit,
            max_bytes: self.max_bytes / shards + least_bytes,
        }
    }

    /// Returns the first shard from `shard` on that holds a pair.
    fn first_shard_from(&mut self, shard: ShardId) -> Result<Option<ShardId>, StoreError> {
        let (start, end) = (keys::shard_start(shard), keys::rows_start(ShardId(0)));
        let bounds = (
            Bound::Included(start.as_ref()),
            Bound::Excluded(end.as_ref()),
        );
        let found = self.list(bounds, 1, 1)?;
        match found.into_iter().next() {
            None => Ok(None),
            Some((stored, _)) => split(stored).map(|(shard, _)| Some(shard)),
        }
    }

    /// Returns the user's key of a cursor's next pair without taking the pair.
    fn next_key(&mut self, cursor: &mut Cursor) -> Result<Option<Bytes>, StoreError> {
        if cursor.ahead.is_empty() {
            self.read_on(cursor)?;
        }
        Ok(cursor.ahead.front().map(|(key, _)| key.clone()))
    }

    /// Takes a cursor's next pair, whose key is `key`, and returns its value.
    fn take_value(&mut self, cursor: &mut Cursor, key: &[u8]) -> Result<Bytes, StoreError> {
        let next = cursor.ahead.pop_front();
        if self.keys_only {
            return Ok(Bytes::new());
        }
        if let Some((_, Some(value))) = next {
            return Ok(value);
        }
        let stored = keys::data(cursor.shard, key);
        let value = self.state.get(Table::Data, &stored)?;
        let missing = || StoreError::Damaged("a scanned key has no value".to_owned());
        let value = value.ok_or_else(missing)?;
        self.read += value.len();
        Ok(value)
    }

    fn read_on(&mut self, cursor: &mut Cursor) -> Result<(), StoreError> {
        let Some(from) = cursor.from.take() else {
            return Ok(());
        };
        let bounds = (
            from.as_ref().map(Bytes::as_ref),
            Bound::Excluded(cursor.end.as_ref()),
        );
        let before = self.read;
        let found = self.list(bounds, cursor.limit, cursor.max_bytes)?;
        if found.len() >= cursor.limit || self.read - before >= cursor.max_bytes {
            cursor.from = found.last().map(|(key, _)| Bound::Excluded(key.clone()));
        }
        for (stored, value) in found {
            let (_, key) = split(stored)?;
            let held = match value {
                Listed::Value(value) if value.len() <= MAX_LISTED_BYTES => Some(value),
                Listed::Value(_) | Listed::Unread(_) => None,
            };
            cursor
                .ahead
                .push_back((key, held.filter(|_| !self.keys_only)));
        }
        cursor.limit = (cursor.limit * 2).min(MAX_SCAN_PAIRS as usize);
        cursor.max_bytes = (cursor.max_bytes * 2).min(MAX_SCAN_BYTES as usize);
        Ok(())
    }

    fn list(
        &mut self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Listed)>, StoreError> {
        let found = self.state.list(Table::Data, bounds, limit, max_bytes)?;
        let read = found.iter().map(|(key, value)| key.len() + value.read());
        self.read += read.sum::<usize>();
        Ok(found)
    }
}

/// Returns the first of `shards` that isn't before `shard`.
fn first_asked_from(shards: &ShardSet, shard: ShardId) -> Option<ShardId> {
    let runs = shards.runs();
    let run = runs.get(runs.partition_point(|run| run.end() <= shard))?;
    Some(run.first.max(shard))
}

fn split(stored: Bytes) -> Result<(ShardId, Bytes), StoreError> {
    keys::split_data(stored)
        .ok_or_else(|| StoreError::Damaged("a key without a shard is stored".to_owned()))
}
