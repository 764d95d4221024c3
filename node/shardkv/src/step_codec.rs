//! The encoding of steps, and of chunks by themselves, because those travel between groups.
//!
//! A step is version, kind and its fields. A chunk begins with a version of its own and ends with a checksum over all
//! before it. A chunk is read from one group's disk and crosses two networks into another group's log, where a flipped
//! bit would be replicated faithfully.

use bytes::Bytes;
use types::{ClientId, ConfigNum, DecodeError, LogTime, Reader, ShardId, Writer};

use crate::cursor::{decode_cursor, encode_cursor};
use crate::encoding::{self, checked, known, with_checksum};
use crate::{Chunk, Configure, CopyStep, Next, Step, copy};

const CONFIGURE: u8 = 6;
const INSTALL: u8 = 7;
const DELETE: u8 = 8;
const DELETED: u8 = 9;

const CHUNK_VERSION: u8 = 1;

/// Upper bounds of a chunk's bytes beside its pairs and records, and of each of those beside its contents.
const OVERHEAD_BYTES: usize = 96;
const PAIR_OVERHEAD_BYTES: usize = 8;
const SESSION_OVERHEAD_BYTES: usize = 24;

impl Step {
    /// Encodes the step for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            Self::Configure(step) => step.encode(begin_step(&mut out, CONFIGURE)),
            Self::Install(chunk) => {
                let chunk = chunk.encode();
                out = Writer::with_capacity(2 + chunk.len());
                begin_step(&mut out, INSTALL).raw(&chunk);
            }
            Self::Delete { shard, config } => {
                begin_step(&mut out, DELETE)
                    .number(shard.0.into())
                    .number(config.0);
            }
            Self::Deleted { shard, config } => {
                begin_step(&mut out, DELETED)
                    .number(shard.0.into())
                    .number(config.0);
            }
            Self::Copy(step) => return step.encode(),
        }
        out.finish()
    }

    /// Decodes the output of [`Step::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        if input.get(1).is_some_and(|kind| *kind >= copy::FIRST_KIND) {
            return CopyStep::decode(input).map(Self::Copy);
        }
        let mut input = Reader::new(input);
        known(
            "operation version",
            input.byte("operation version")?,
            encoding::VERSION,
        )?;
        let step = match input.byte("operation kind")? {
            CONFIGURE => Self::Configure(Configure::decode(&mut input)?),
            INSTALL => return Chunk::decode(input.rest()).map(Self::Install),
            DELETE => Self::Delete {
                shard: ShardId(input.number_u32("shard")?),
                config: ConfigNum(input.number("configuration number")?),
            },
            DELETED => Self::Deleted {
                shard: ShardId(input.number_u32("shard")?),
                config: ConfigNum(input.number("configuration number")?),
            },
            value => {
                return Err(DecodeError::Unknown {
                    what: "operation kind",
                    value: value.into(),
                });
            }
        };
        input.finish()?;
        Ok(step)
    }
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
                out.byte(1).number(clock.0).number(*ttl_ms);
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
                clock: LogTime(input.number("clock")?),
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

fn begin_step(out: &mut Writer, kind: u8) -> &mut Writer {
    out.byte(encoding::VERSION).byte(kind)
}
