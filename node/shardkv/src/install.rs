//! The destination's half of a hand-off: checks a chunk before it is installed.

use replica::session::SessionTable;
use types::shard_of;

use crate::outcome::Outcome;
use crate::{Chunk, Cursor, MAX_KEY_BYTES, Next};

/// Refuses a chunk that no source would have cut. Chunks come from another group, and once installed they are
/// indistinguishable from what clients wrote.
pub(crate) fn check_chunk(chunk: &Chunk, shards: u32) -> Result<(), String> {
    let Chunk { shard, after, .. } = chunk;
    let broken = |what: &str| Err(format!("a part of {shard} {what}"));
    let mut last = after.clone();
    for (key, _) in &chunk.pairs {
        if key.is_empty() || key.len() > MAX_KEY_BYTES || shard_of(key, shards) != *shard {
            return broken("has a key that isn't the shard's");
        }
        let cursor = Cursor::Data(key.clone());
        if cursor <= last {
            return broken("is out of order");
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
            return broken("is out of order");
        }
        last = cursor;
        if let Err(error) = table.load(*client, record.clone()) {
            return broken(&format!("has a bad record of session {client}: {error}"));
        }
    }
    let Next::Chunk(next) = &chunk.next else {
        return Ok(());
    };
    let data_ends = *next == Cursor::Sessions(None) && last < *next;
    if next > after && (*next == last || data_ends) {
        Ok(())
    } else {
        broken("doesn't go on where it ends")
    }
}
