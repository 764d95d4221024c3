//! The destination's half of a hand-off: checks a chunk before it is installed.

use bytes::Bytes;
use replica::session::SessionTable;
use types::{ClientId, DecodeError, ShardId, shard_of};

use crate::keys::MAX_ROW_KEY_BYTES;
use crate::outcome::Outcome;
use crate::{Chunk, Cursor, MAX_KEY_BYTES, Next};

/// The reason why a chunk is refused. The source made a mistake, so a retry brings the same chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a chunk of {0} has a key that isn't the shard's, is empty or is too long")]
    WrongKey(ShardId),
    #[error("a chunk of {0} is out of order")]
    OutOfOrder(ShardId),
    #[error("a chunk of {shard} has a bad record of session {client}: {error}")]
    BadSession {
        shard: ShardId,
        client: ClientId,
        error: DecodeError,
    },
    #[error("a chunk of {0} has a row of a keyspace whose key is empty or too long")]
    WrongRow(ShardId),
    #[error("a chunk of {0} doesn't end at the cursor that it names as the next")]
    WrongEnd(ShardId),
}

/// Refuses a chunk that no source would have cut. Chunks come from another group, and once installed they are
/// indistinguishable from what clients wrote.
pub(crate) fn check_chunk(chunk: &Chunk, shards: u32) -> Result<(), ChunkError> {
    let Chunk { shard, after, .. } = chunk;
    let mut last = after.clone();
    for (key, _) in &chunk.pairs {
        if key.is_empty() || key.len() > MAX_KEY_BYTES || shard_of(key, shards) != *shard {
            return Err(ChunkError::WrongKey(*shard));
        }
        let cursor = Cursor::Data(key.clone());
        if cursor <= last {
            return Err(ChunkError::OutOfOrder(*shard));
        }
        last = cursor;
    }
    if !chunk.sessions.is_empty() && last < Cursor::Sessions(None) {
        last = Cursor::Sessions(None);
    }
    let mut table = SessionTable::<Outcome>::default();
    for (client, record) in &chunk.sessions {
        let cursor = Cursor::Sessions(Some(*client));
        if cursor <= last {
            return Err(ChunkError::OutOfOrder(*shard));
        }
        last = cursor;
        if let Err(error) = table.load(*client, record.clone()) {
            let (shard, client) = (*shard, *client);
            return Err(ChunkError::BadSession {
                shard,
                client,
                error,
            });
        }
    }
    if !chunk.rows.is_empty() && last < Cursor::Rows(Bytes::new()) {
        last = Cursor::Rows(Bytes::new());
    }
    for (key, _) in &chunk.rows {
        check_row_key(key, *shard)?;
        let cursor = Cursor::Rows(key.clone());
        if cursor <= last {
            return Err(ChunkError::OutOfOrder(*shard));
        }
        last = cursor;
    }
    let Next::Chunk(next) = &chunk.next else {
        return Ok(());
    };
    let data_ends = *next == Cursor::Sessions(None) && last < *next;
    if next > after && (*next == last || data_ends) {
        Ok(())
    } else {
        Err(ChunkError::WrongEnd(*shard))
    }
}

/// Checks the key of a row of a keyspace, after the shard.
pub(crate) fn check_row_key(key: &[u8], shard: ShardId) -> Result<(), ChunkError> {
    let right = (1..=MAX_ROW_KEY_BYTES).contains(&key.len());
    right.then_some(()).ok_or(ChunkError::WrongRow(shard))
}
