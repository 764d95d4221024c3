//! The source's half of a hand-off: cuts a fenced shard into chunks, which the destination pulls one after the other.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{StateReader, Table};
use types::{ClientId, ConfigNum, ShardId};

use crate::bug::{Bug, Bugs};
use crate::clocks::read_session_clock;
use crate::ownership::Fence;
use crate::{Chunk, Cursor, Genesis, KvError, MAX_SCAN_BYTES, Next, keys, records};

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
    let (start, end) = (
        keys::shard_start(shard),
        keys::shard_start(ShardId(shard.0.saturating_add(1))),
    );
    let mut bytes = 0;
    for table in [Table::Data, Table::Sessions] {
        bytes += state.estimate_bytes(table, &start, &end)?;
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
        next,
    }))
}

/// Gathers a chunk: pairs, then session records, until `room` bytes are used up.
pub(crate) struct Cutter<'a> {
    state: &'a dyn StateReader,
    shard: ShardId,
    room: usize,
    pairs: Vec<(Bytes, Bytes)>,
    sessions: Vec<(ClientId, Bytes)>,
}

/// A chunk's pairs and session records.
pub(crate) type Rows = (Vec<(Bytes, Bytes)>, Vec<(ClientId, Bytes)>);

impl<'a> Cutter<'a> {
    pub(crate) fn new(state: &'a dyn StateReader, shard: ShardId, room: usize) -> Self {
        Self {
            state,
            shard,
            room,
            pairs: Vec::new(),
            sessions: Vec::new(),
        }
    }

    /// Returns the rows that were gathered.
    pub(crate) fn into_rows(self) -> Rows {
        (self.pairs, self.sessions)
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
        let (page, whole) = self.page(Table::Sessions, from, MAX_CHUNK_SESSIONS)?;
        for (stored, record) in page {
            let (_, client) = keys::split_session(&stored)
                .ok_or_else(|| StoreError::Damaged("a session's key is malformed".to_owned()))?;
            self.sessions.push((client, record));
        }
        let last = self.sessions.last().map(|(client, _)| *client);
        Ok((!whole).then_some(Cursor::Sessions(last)))
    }

    /// Returns true if the chunk now holds the shard's last pair.
    fn cut_pairs(&mut self, after: &[u8]) -> Result<bool, StoreError> {
        // No user's key is empty, so the start is excluded like any other.
        let from = keys::data(self.shard, after);
        let from = Bound::Excluded(from.as_ref());
        let (page, whole) = self.page(Table::Data, from, MAX_CHUNK_PAIRS)?;
        for (stored, value) in page {
            let (_, key) = keys::split_data(stored)
                .ok_or_else(|| StoreError::Damaged("a key without a shard is stored".to_owned()))?;
            self.pairs.push((key, value));
        }
        Ok(whole)
    }

    /// Reads the shard's next pairs and subtracts their bytes from `room`. The flag is true if they are the last.
    fn page(
        &mut self,
        table: Table,
        from: Bound<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, bool), StoreError> {
        let end = keys::shard_start(ShardId(self.shard.0 + 1));
        let bounds = (from, Bound::Excluded(end.as_ref()));
        let page = self.state.scan(table, bounds, limit, self.room)?;
        let sizes = page.iter().map(|(key, value)| key.len() + value.len());
        let bytes: usize = sizes.sum();
        let whole = page.len() < limit && bytes < self.room;
        self.room = self.room.saturating_sub(bytes);
        Ok((page, whole))
    }
}

#[cfg(test)]
mod tests;
