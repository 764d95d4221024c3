//! The encoding of steps, and of chunks and cursors by themselves, because those travel between groups.
//!
//! A step is version, kind and its fields. A chunk begins with a version of its own and ends with a checksum over all
//! before it. A chunk is read from one group's disk and crosses two networks into another group's log, where a flipped
//! bit would be replicated faithfully.

use std::collections::BTreeMap;

use bytes::Bytes;
use types::{
    ClientId, ClusterId, ConfigDelta, ConfigNum, DecodeError, Gid, LogTime, MAX_GROUPS, Reader,
    ShardId, Writer, check_addresses, decode_addresses, encode_addresses,
};

use crate::encoding::{self, checked, known, with_checksum};
use crate::{Chunk, CopyStep, Cursor, Next, Step, copy};

const BEGIN: u8 = 5;
const CONFIGURE: u8 = 6;
const INSTALL: u8 = 7;
const DELETE: u8 = 8;
const DELETED: u8 = 9;

const CHUNK_VERSION: u8 = 1;
const CURSOR_VERSION: u8 = 1;

/// Upper bounds of a chunk's bytes beside its pairs and records, and of each of those beside its contents.
const OVERHEAD_BYTES: usize = 96;
const PAIR_OVERHEAD_BYTES: usize = 8;
const SESSION_OVERHEAD_BYTES: usize = 24;

impl Step {
    /// Encodes the step for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            Self::Begin {
                gid,
                controller,
                num,
                groups,
            } => {
                begin_step(&mut out, BEGIN)
                    .number(gid.0)
                    .number(controller.0)
                    .number(num.0);
                encode_groups(&mut out, groups);
            }
            Self::Configure { controller, delta } => {
                begin_step(&mut out, CONFIGURE)
                    .number(controller.0)
                    .bytes(&delta.encode());
            }
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
            BEGIN => Self::Begin {
                gid: Gid(input.number("gid")?),
                controller: ClusterId(input.number("controller")?),
                num: ConfigNum(input.number("configuration number")?),
                groups: decode_groups(&mut input)?,
            },
            CONFIGURE => Self::Configure {
                controller: ClusterId(input.number("controller")?),
                delta: ConfigDelta::decode(input.bytes("configuration delta")?)?,
            },
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
            encode_client(&mut out, *client);
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
            sessions.push((decode_client(&mut input)?, input.bytes("session")?));
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

impl Cursor {
    /// Encodes the cursor.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(CURSOR_VERSION);
        encode_cursor(&mut out, self);
        out.finish()
    }

    /// Decodes the output of [`Cursor::encode`]. An empty input is the start.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        if input.is_empty() {
            return Ok(Self::default());
        }
        let mut input = Reader::new(input);
        known(
            "cursor version",
            input.byte("cursor version")?,
            CURSOR_VERSION,
        )?;
        let cursor = decode_cursor(&mut input)?;
        input.finish()?;
        Ok(cursor)
    }
}

fn begin_step(out: &mut Writer, kind: u8) -> &mut Writer {
    out.byte(encoding::VERSION).byte(kind)
}

pub(crate) fn encode_cursor(out: &mut Writer, cursor: &Cursor) {
    match cursor {
        Cursor::Data(key) => out.byte(0).bytes(key),
        Cursor::Sessions(None) => out.byte(1),
        Cursor::Sessions(Some(client)) => encode_client(out.byte(2), *client),
    };
}

pub(crate) fn decode_cursor(input: &mut Reader) -> Result<Cursor, DecodeError> {
    Ok(match input.byte("cursor")? {
        0 => Cursor::Data(input.bytes("cursor")?),
        1 => Cursor::Sessions(None),
        2 => Cursor::Sessions(Some(decode_client(input)?)),
        value => {
            return Err(DecodeError::Unknown {
                what: "cursor",
                value: value.into(),
            });
        }
    })
}

pub(crate) fn encode_client(out: &mut Writer, client: ClientId) -> &mut Writer {
    out.number(client.birth.0).number(client.nonce)
}

pub(crate) fn decode_client(input: &mut Reader) -> Result<ClientId, DecodeError> {
    Ok(ClientId {
        birth: LogTime(input.number("session birth")?),
        nonce: input.number("session nonce")?,
    })
}

fn encode_groups(out: &mut Writer, groups: &BTreeMap<Gid, Vec<String>>) {
    out.number(groups.len() as u64);
    for (gid, addresses) in groups {
        encode_addresses(out.number(gid.0), addresses);
    }
}

fn decode_groups(input: &mut Reader) -> Result<BTreeMap<Gid, Vec<String>>, DecodeError> {
    let count = input.count("groups")?;
    if count > MAX_GROUPS {
        return Err(DecodeError::OutOfRange("groups"));
    }
    let mut groups = BTreeMap::new();
    for _ in 0..count {
        let gid = Gid(input.number("gid")?);
        let before = groups.insert(gid, decode_valid_addresses(input)?);
        if gid == Gid::NONE || before.is_some() {
            return Err(DecodeError::OutOfRange("gid"));
        }
    }
    Ok(groups)
}

/// Reads a group's addresses, and refuses invalid ones.
pub(crate) fn decode_valid_addresses(input: &mut Reader) -> Result<Vec<String>, DecodeError> {
    let addresses = decode_addresses(input)?;
    check_addresses(&addresses).map_err(|_| DecodeError::OutOfRange("addresses"))?;
    Ok(addresses)
}
