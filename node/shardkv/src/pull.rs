//! The source's half of a hand-off: cuts a fenced shard into chunks, which the destination pulls one after the other.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{StateReader, Table};
use types::{ClientId, ConfigNum, ShardId};

use crate::bug::{Bug, Bugs};
use crate::clocks::read_session_clock;
use crate::ownership::Fence;
use crate::{Chunk, Cursor, Genesis, KvError, MAX_SCAN_BYTES, Next, RowChange, keys, records};

/// The most pairs, and the most session records, of a chunk.
const MAX_CHUNK_PAIRS: usize = 16_384;
const MAX_CHUNK_SESSIONS: usize = 4_096;

/// Answers [`crate::Query::Pull`] from a state as of one commit, without the state machine, so that any thread can do it.
pub fn read_chunk(
    state: &dyn StateReader,
    hand_off: (ShardId, ConfigNum),
    after: &Cursor,
    max_bytes: u32,
) -> Result<Result<Chunk, KvError>, StoreError> {
    match Genesis::load(state)? {
        Some(genesis) => pull(state, &genesis, hand_off, after, max_bytes, Bugs::default()),
        // The node waits for its first snapshot.
        None => Ok(Err(KvError::ShardNotReady { shard: hand_off.0 })),
    }
}

/// Estimates the bytes of a shard, from the same state as its chunks.
pub fn estimate_shard(state: &dyn StateReader, shard: ShardId) -> Result<u64, StoreError> {
    let next = ShardId(shard.0.saturating_add(1));
    let (start, end) = (keys::shard_start(shard), keys::shard_start(next));
    let sessions = state.estimate_bytes(Table::Sessions, &start, &end)?;
    Ok(estimate_data(state, shard)? + sessions)
}

/// Estimates the bytes of a shard's pairs and of its keyspaces' rows.
pub(crate) fn estimate_data(state: &dyn StateReader, shard: ShardId) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for (start, end) in keys::ranges(shard) {
        bytes += state.estimate_bytes(Table::Data, &start, &end)?;
    }
    Ok(bytes)
}

/// Returns the chunk of `shard` that follows `after`, if the shard is fenced here by `config`. Reads the fence from the same
/// state as the chunk: a later commit may clear the shard.
pub(crate) fn pull(
    state: &dyn StateReader,
    genesis: &Genesis,
    (shard, config): (ShardId, ConfigNum),
    after: &Cursor,
    max_bytes: u32,
    bugs: Bugs,
) -> Result<Result<Chunk, KvError>, StoreError> {
    if shard.0 >= genesis.shards {
        let shards = genesis.shards;
        return Ok(Err(KvError::NoShard { shard, shards }));
    }
    let ownership = records::load_shard(state, genesis, shard)?;
    let clock = match (ownership.fence(shard, config), ownership.shards.get(&shard)) {
        (Fence::Here, Some(fenced)) => read_session_clock(state, shard, fenced.since)?,
        (Fence::Past, _) => return Ok(Err(KvError::ShardGone { shard, config })),
        _ => return Ok(Err(KvError::ShardNotReady { shard })),
    };
    let room = max_bytes.clamp(1, MAX_SCAN_BYTES) as usize;
    let mut cutter = Cutter::new(state, shard, room);
    let next = match cutter.cut(after, bugs)? {
        Some(cursor) => Next::Chunk(cursor),
        None => Next::Done {
            clock,
            ttl_ms: genesis.session_ttl_ms,
        },
    };
    Ok(Ok(Chunk {
        shard,
        config,
        after: after.clone(),
        pairs: cutter.pairs,
        sessions: cutter.sessions,
        rows: cutter.rows,
        next,
    }))
}

/// Gathers a chunk: pairs, then session records, then rows of keyspaces, until `room` bytes are used up.
pub(crate) struct Cutter<'a> {
    state: &'a dyn StateReader,
    shard: ShardId,
    room: usize,
    pairs: Vec<(Bytes, Bytes)>,
    sessions: Vec<(ClientId, Bytes)>,
    rows: Vec<(Bytes, Bytes)>,
}

impl<'a> Cutter<'a> {
    pub(crate) fn new(state: &'a dyn StateReader, shard: ShardId, room: usize) -> Self {
        Self {
            state,
            shard,
            room,
            pairs: Vec::new(),
            sessions: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Returns what was gathered as changes of a copy's base.
    pub(crate) fn into_changes(self) -> Vec<RowChange> {
        let pairs = self.pairs.into_iter();
        let pairs = pairs.map(|(key, value)| RowChange::Pair(key, Some(value)));
        let sessions = self.sessions.into_iter();
        let sessions = sessions.map(|(client, record)| RowChange::Session(client, Some(record)));
        let rows = self.rows.into_iter();
        let rows = rows.map(|(key, value)| RowChange::Row(key, Some(value)));
        pairs.chain(sessions).chain(rows).collect()
    }

    /// Returns the cursor at which the next chunk begins; `None` if this chunk is the last.
    pub(crate) fn cut(&mut self, after: &Cursor, bugs: Bugs) -> Result<Option<Cursor>, StoreError> {
        let after_session = match after {
            Cursor::Data(key) => {
                if !self.cut_pairs(key)? {
                    let last = self.pairs.last().map(|(key, _)| key.clone());
                    return Ok(last.map(Cursor::Data));
                }
                None
            }
            Cursor::Sessions(client) => *client,
            Cursor::Rows(key) => return self.cut_rows(key),
        };
        if bugs.has(Bug::SessionsStayBehind) {
            return Ok(None);
        }
        // The bare prefix is no session's key, so the start is excluded like any other.
        let from = match after_session {
            Some(client) => keys::session(self.shard, client),
            None => keys::shard_start(self.shard),
        };
        let from = Bound::Excluded(from.as_ref());
        let end = keys::shard_start(ShardId(self.shard.0 + 1));
        let (page, whole) = self.page(Table::Sessions, (from, &end), MAX_CHUNK_SESSIONS)?;
        for (stored, record) in page {
            let (_, client) = keys::split_session(&stored)
                .ok_or_else(|| StoreError::Damaged("a session's key is malformed".to_owned()))?;
            self.sessions.push((client, record));
        }
        if !whole {
            let last = self.sessions.last().map(|(client, _)| *client);
            return Ok(Some(Cursor::Sessions(last)));
        }
        if bugs.has(Bug::CopyLeavesRowsOut) {
            return Ok(None);
        }
        self.cut_rows(&Bytes::new())
    }

    /// Returns true if the chunk now holds the shard's last pair.
    fn cut_pairs(&mut self, after: &[u8]) -> Result<bool, StoreError> {
        // No user's key is empty, so the start is excluded like any other.
        let from = keys::data(self.shard, after);
        let from = Bound::Excluded(from.as_ref());
        let end = keys::shard_start(ShardId(self.shard.0 + 1));
        let (page, whole) = self.page(Table::Data, (from, &end), MAX_CHUNK_PAIRS)?;
        for (stored, value) in page {
            let (_, key) = keys::split_data(stored)
                .ok_or_else(|| StoreError::Damaged("a key without a shard is stored".to_owned()))?;
            self.pairs.push((key, value));
        }
        Ok(whole)
    }

    /// Adds rows of keyspaces after a key. Returns the cursor after them, unless they are the last.
    fn cut_rows(&mut self, after: &Bytes) -> Result<Option<Cursor>, StoreError> {
        // The chunk has the key that it follows, too.
        self.room = self.room.saturating_sub(after.len()).max(1);
        // No row's key is empty, so the start is excluded like any other.
        let from = keys::row(self.shard, after);
        let end = keys::rows_start(ShardId(self.shard.0 + 1));
        let room = self.room;
        let range = (Bound::Excluded(from.as_ref()), &end);
        let (mut page, whole) = self.page(Table::Data, range, MAX_CHUNK_PAIRS)?;
        let is_first = self.pairs.is_empty() && self.sessions.is_empty();
        drop_oversized(&mut page, room, is_first);
        for (stored, value) in page {
            let (_, key) = keys::split_row(stored).ok_or_else(no_row)?;
            self.rows.push((key, value));
        }
        if whole {
            return Ok(None);
        }
        let last = self.rows.last().map(|(key, _)| Cursor::Rows(key.clone()));
        let sessions_end = || self.sessions.last().map(|(client, _)| *client);
        Ok(Some(
            last.unwrap_or_else(|| Cursor::Sessions(sessions_end())),
        ))
    }

    /// Reads the shard's next pairs and subtracts their bytes from `room`. The flag is true if they are the last.
    fn page(
        &mut self,
        table: Table,
        (from, end): (Bound<&[u8]>, &Bytes),
        limit: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, bool), StoreError> {
        let bounds = (from, Bound::Excluded(end.as_ref()));
        let page = self.state.scan(table, bounds, limit, self.room)?;
        let sizes = page.iter().map(|(key, value)| key.len() + value.len());
        let bytes: usize = sizes.sum();
        let whole = page.len() < limit && bytes < self.room;
        self.room = self.room.saturating_sub(bytes);
        Ok((page, whole))
    }
}

/// Drops the last of the rows if they have more bytes than `room`, so that a row with a very long key makes no chunk still larger. `alone`: one row
/// stays, because the chunk has nothing else.
pub(crate) fn drop_oversized(rows: &mut Vec<(Bytes, Bytes)>, room: usize, alone: bool) {
    let bytes: usize = rows
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > room && (rows.len() > 1 || !alone) {
        rows.pop();
    }
}

pub(crate) fn no_row() -> StoreError {
    StoreError::Damaged("a key among the rows of keyspaces is malformed".to_owned())
}

#[cfg(test)]
mod tests;
