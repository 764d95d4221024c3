//! The steps by which shards move, as operations of a group's log.
//!
//! Clients' writes and these steps share one log, so a step has a place among the writes: what was acknowledged
//! before a fence is in what moves, and what comes after is refused. An encoded step is version, kind and its fields.

use bytes::Bytes;
use types::{ConfigNum, DecodeError, Reader, ShardId, Writer};

use crate::encoding::{self, known};
use crate::{AUTH_LEVEL, Chunk, Configure, ConfigurePart, CopyStep, KEYSPACE_LEVEL, copy};

const CONFIGURE: u8 = 6;
const INSTALL: u8 = 7;
const DELETE: u8 = 8;
const DELETED: u8 = 9;
const CONFIGURE_PART: u8 = 10;

/// An operation by which shards move. The group's leader proposes it for its [`crate::mover::Mover`]. Each step is idempotent: a
/// step that arrives twice, late or out of turn changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A later configuration. It is the fence of the shards that go: from this entry on they aren't served here.
    Configure(Configure),
    /// A part of such a step that is too large for one entry. The last part carries the step out.
    ConfigurePart(ConfigurePart),
    /// The next chunk of a shard that is being pulled. The last chunk completes the installation: data and sessions become
    /// visible at once, and the shard is served.
    Install(Chunk),
    /// The new owner has installed the shard, so the source deletes it.
    Delete {
        /// The shard.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
    /// The source has confirmed the delete, so the new owner owes it nothing any more.
    Deleted {
        /// The shard.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
    /// A step of the copy of a shard that another group still serves, or served until the cut.
    Copy(CopyStep),
}

impl Step {
    /// Returns true if a nearly full disk accepts the step: all but those that begin or store what comes from other groups, so that
    /// a group can give shards away to free space.
    pub fn frees_space(&self) -> bool {
        !matches!(
            self,
            Self::Install(_) | Self::Copy(CopyStep::Start { .. } | CopyStep::Take(_))
        )
    }

    /// Returns the feature level that a group needs for the rows of keyspaces that the step has or follows; `None` without such rows.
    pub(crate) fn needed_level(&self) -> Option<u32> {
        let (has_rows, has_auth) = match self {
            Self::Install(chunk) => (chunk.has_rows(), chunk.has_auth()),
            Self::Copy(CopyStep::Take(part)) => (part.has_rows(), part.has_auth()),
            _ => return None,
        };
        if has_auth {
            return Some(AUTH_LEVEL);
        }
        has_rows.then_some(KEYSPACE_LEVEL)
    }

    /// Encodes the step for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            Self::Configure(step) => step.encode(begin_step(&mut out, CONFIGURE)),
            Self::ConfigurePart(part) => part.encode(begin_step(&mut out, CONFIGURE_PART)),
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
            CONFIGURE_PART => Self::ConfigurePart(ConfigurePart::decode(&mut input)?),
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

fn begin_step(out: &mut Writer, kind: u8) -> &mut Writer {
    out.byte(encoding::VERSION).byte(kind)
}
