//! Chunks of a fenced shard in transfer, and their encoding.
//!
//! An encoded chunk begins with a version of its own and ends with a checksum over all before it. A chunk is read from one group's disk and
//! crosses two networks into another group's log, where a flipped bit would be replicated faithfully.

use bytes::Bytes;
use types::{ClientId, ConfigNum, DecodeError, Reader, ShardId, Writer};

use crate::cursor::{decode_cursor, encode_cursor};
use crate::encoding::{checked, known, with_checksum};
use crate::{Cursor, SessionClock};

const CHUNK_VERSION: u8 = 2;

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
        out.byte(CHUNK_VERSION)
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
        match &self.next {
            Next::Chunk(cursor) => {
                out.byte(0);
                encode_cursor(&mut out, cursor);
            }
            Next::Done { clock, ttl_ms } => {
                clock.encode(out.byte(1));
                out.number(*ttl_ms);
            }
        }
        with_checksum(&out.finish())
    }

    /// Decodes the output of [`Chunk::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(checked(input)?);
        known("chunk version", input.byte("chunk version")?, CHUNK_VERSION)?;
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
        let next = if input.flag("end of the shard")? {
            Next::Done {
                clock: SessionClock::decode(&mut input)?,
                ttl_ms: input.number("time to live")?,
            }
        } else {
            Next::Chunk(decode_cursor(&mut input)?)
        };
        input.finish()?;
        Ok(Self {
            shard,
            config,
            after,
            pairs,
            sessions,
            next,
        })
    }

    /// Returns the bytes of keys, values and session records.
    pub fn content_bytes(&self) -> u64 {
        let pairs = self
            .pairs
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let sessions = self.sessions.iter().map(|(_, record)| record.len());
        (pairs.sum::<usize>() + sessions.sum::<usize>()) as u64
    }

    fn encoded_bytes_at_most(&self) -> usize {
        let content = usize::try_from(self.content_bytes()).unwrap_or(0);
        let overhead = self.pairs.len() * PAIR_OVERHEAD_BYTES
            + self.sessions.len() * SESSION_OVERHEAD_BYTES
            + OVERHEAD_BYTES;
        content + overhead
    }
}
