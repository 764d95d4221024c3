//! Chunks of a fenced shard in transfer, and their encoding.
//!
//! An encoded chunk begins with a version of its own and ends with a checksum over all before it. A chunk is read from one group's disk and
//! crosses two networks into another group's log, where a flipped bit would be replicated faithfully.
//!
//! A chunk with rows of keyspaces has a version of its own, which older versions refuse; so has one with users or roles. Others are encoded as ever, so that groups of
//! different versions can move shards without keyspaces.

use bytes::Bytes;
use types::{ClientId, ConfigNum, DecodeError, Reader, ShardId, Writer};

use crate::cursor::{decode_cursor, encode_cursor};
use crate::encoding::{checked, known, with_checksum};
use crate::{Cursor, SessionClock};

const CHUNK_VERSION: u8 = 2;
/// The version of a chunk with rows, or after some.
const ROWS_VERSION: u8 = 3;

/// The version of a chunk with users or roles of a keyspace, or the record of one that has some.
const AUTH_VERSION: u8 = 4;

/// The kinds of continuations.
const CURSOR: u8 = 0;
const DONE: u8 = 1;
/// The cursor at the chunk's last row, whose key may be long.
const AT_LAST_ROW: u8 = 2;

/// Upper bounds of a chunk's bytes beside its pairs and records, and of each of those beside its contents.
const OVERHEAD_BYTES: usize = 96;
const PAIR_OVERHEAD_BYTES: usize = 8;
const SESSION_OVERHEAD_BYTES: usize = 24;

/// A piece of a shard in transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The shard.
    pub shard: ShardId,
    /// The configuration that moves it.
    pub config: ConfigNum,
    /// The cursor up to which the shard must have arrived before.
    pub after: Cursor,
    /// Users' keys and values, in key order.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Sessions' records, in order of the clients.
    pub sessions: Vec<(ClientId, Bytes)>,
    /// Rows of keyspaces, with their keys after the shard, in key order. They follow the sessions.
    pub rows: Vec<(Bytes, Bytes)>,
    /// The cursor after this chunk, or the end of the transfer.
    pub next: Next,
}

/// The continuation after a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next chunk begins after this cursor.
    Chunk(Cursor),
    /// This chunk was the last.
    Done {
        /// The session table's clock at the fence.
        clock: SessionClock,
        /// The source's time to live of sessions, in milliseconds. A session whose silence was too long for the source must not
        /// come to life again at a destination with a longer one.
        ttl_ms: u64,
    },
}

impl Chunk {
    /// Encodes the chunk, with its checksum.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(self.encoded_bytes_at_most());
        let has_rows = self.has_rows();
        out.byte(match (self.has_auth(), has_rows) {
            (true, _) => AUTH_VERSION,
            (false, true) => ROWS_VERSION,
            (false, false) => CHUNK_VERSION,
        })
        .number(self.shard.0.into())
        .number(self.config.0);
        encode_cursor(&mut out, &self.after);
        out.number(self.pairs.len() as u64);
        for (key, value) in &self.pairs {
            out.bytes(key).bytes(value);
        }
        out.number(self.sessions.len() as u64);
        for (client, record) in &self.sessions {
            client.encode(&mut out);
            out.bytes(record);
        }
        if has_rows {
            out.number(self.rows.len() as u64);
            for (key, value) in &self.rows {
                out.bytes(key).bytes(value);
            }
        }
        match &self.next {
            Next::Chunk(cursor) if last_row(&self.rows).as_ref() == Some(cursor) => {
                out.byte(AT_LAST_ROW);
            }
            Next::Chunk(cursor) => {
                out.byte(CURSOR);
                encode_cursor(&mut out, cursor);
            }
            Next::Done { clock, ttl_ms } => {
                clock.encode(out.byte(DONE));
                out.number(*ttl_ms);
            }
        }
        with_checksum(&out.finish())
    }

    /// Decodes the output of [`Chunk::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(checked(input)?);
        let has_rows = match input.byte("chunk version")? {
            ROWS_VERSION | AUTH_VERSION => true,
            version => {
                known("chunk version", version, CHUNK_VERSION)?;
                false
            }
        };
        let shard = ShardId(input.number_u32("shard")?);
        let config = ConfigNum(input.number("configuration number")?);
        let after = decode_cursor(&mut input)?;
        // A count is at most the input's length, but so many pairs would take far more memory than the input. So the lists
        // grow with the pairs that are really present.
        let mut pairs = Vec::new();
        for _ in 0..input.count("pairs")? {
            pairs.push((input.bytes("key")?, input.bytes("value")?));
        }
        let mut sessions = Vec::new();
        for _ in 0..input.count("sessions")? {
            sessions.push((ClientId::decode(&mut input)?, input.bytes("session")?));
        }
        let mut rows = Vec::new();
        let count = if has_rows { input.count("rows")? } else { 0 };
        for _ in 0..count {
            rows.push((input.bytes("row")?, input.bytes("value")?));
        }
        let next = decode_next(&mut input, &rows)?;
        input.finish()?;
        Ok(Self {
            shard,
            config,
            after,
            pairs,
            sessions,
            rows,
            next,
        })
    }

    /// Returns true if the chunk has rows of keyspaces, or follows some.
    pub(crate) fn has_rows(&self) -> bool {
        let next = matches!(self.next, Next::Chunk(Cursor::Rows(_)));
        next || !self.rows.is_empty() || matches!(self.after, Cursor::Rows(_))
    }

    /// Returns true if the chunk has rows that only members from [`crate::AUTH_LEVEL`] on can read.
    pub(crate) fn has_auth(&self) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|(key, value)| keyspace::is_auth_row(key, Some(value)))
    }

    /// Returns the bytes of keys, values and session records.
    pub fn content_bytes(&self) -> u64 {
        let pairs = self.pairs.iter().chain(&self.rows);
        let pairs = pairs.map(|(key, value)| key.len() + value.len());
        let sessions = self.sessions.iter().map(|(_, record)| record.len());
        (pairs.sum::<usize>() + sessions.sum::<usize>()) as u64
    }

    fn encoded_bytes_at_most(&self) -> usize {
        let content = usize::try_from(self.content_bytes()).unwrap_or(0);
        let overhead = (self.pairs.len() + self.rows.len()) * PAIR_OVERHEAD_BYTES
            + self.sessions.len() * SESSION_OVERHEAD_BYTES
            + OVERHEAD_BYTES;
        content + overhead
    }
}

/// Returns the cursor at the last of these rows.
fn last_row(rows: &[(Bytes, Bytes)]) -> Option<Cursor> {
    rows.last().map(|(key, _)| Cursor::Rows(key.clone()))
}

fn decode_next(input: &mut Reader, rows: &[(Bytes, Bytes)]) -> Result<Next, DecodeError> {
    Ok(match input.byte("end of the shard")? {
        CURSOR => Next::Chunk(decode_cursor(input)?),
        DONE => Next::Done {
            clock: SessionClock::decode(input)?,
            ttl_ms: input.number("time to live")?,
        },
        AT_LAST_ROW => {
            let last = last_row(rows).ok_or(DecodeError::OutOfRange("end of the shard"))?;
            Next::Chunk(last)
        }
        value => {
            return Err(DecodeError::Unknown {
                what: "end of the shard",
                value: value.into(),
            });
        }
    })
}
