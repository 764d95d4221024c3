//! The encoding of steps of copies.

use bytes::Bytes;
use types::{ConfigNum, DecodeError, Gid, Reader, ShardId, Writer};

use super::CopyStep;
use crate::encoding::{self, known};
use crate::{CopyId, Part};

/// The least kind byte of these steps.
pub(crate) const FIRST_KIND: u8 = START;

const START: u8 = 64;
const TAKE: u8 = 65;
const DROP: u8 = 66;
const RESTART: u8 = 67;

impl CopyStep {
    /// Encodes the step for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(encoding::VERSION);
        match self {
            Self::Start {
                shard,
                source,
                copy,
            } => {
                out.byte(START).number(shard.0.into()).number(source.0);
                copy.encode(&mut out);
            }
            Self::Take(part) => {
                let part = part.encode();
                out = Writer::with_capacity(2 + part.len());
                out.byte(encoding::VERSION).byte(TAKE).raw(&part);
            }
            Self::Drop { shard, copy } => {
                out.byte(DROP).number(shard.0.into());
                copy.encode(&mut out);
            }
            Self::Restart {
                shard,
                config,
                copy,
            } => {
                out.byte(RESTART).number(shard.0.into()).number(config.0);
                copy.encode(&mut out);
            }
        }
        out.finish()
    }

    /// Decodes the output of [`CopyStep::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("operation version")?;
        known("operation version", version, encoding::VERSION)?;
        let kind = input.byte("operation kind")?;
        if kind == TAKE {
            return Part::decode(input.rest()).map(Self::Take);
        }
        let shard = ShardId(input.number_u32("shard")?);
        let step = match kind {
            START => Self::Start {
                shard,
                source: Gid(input.number("source")?),
                copy: CopyId::decode(&mut input)?,
            },
            DROP => Self::Drop {
                shard,
                copy: CopyId::decode(&mut input)?,
            },
            RESTART => Self::Restart {
                shard,
                config: ConfigNum(input.number("configuration number")?),
                copy: CopyId::decode(&mut input)?,
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

#[cfg(test)]
mod tests {
    use raft::Index;
    use types::LogTime;

    use super::*;
    use crate::SessionClock;
    use crate::{CopyCursor, PartNext, RowChange, Step};

    #[test]
    fn steps_decode_to_what_was_encoded() {
        let shard = ShardId(300);
        let config = ConfigNum(9);
        let copy = CopyId {
            since: ConfigNum(301),
            journal: Index(70_000),
        };
        let part = Part {
            shard,
            copy,
            after: CopyCursor::default(),
            changes: vec![RowChange::Pair(Bytes::from_static(b"k"), None)],
            next: PartNext::Done {
                clock: SessionClock {
                    horizon: LogTime(3),
                    time: LogTime(4),
                },
                ttl_ms: 5,
            },
        };
        let source = Gid(7);
        for step in [
            CopyStep::Start {
                shard,
                source,
                copy,
            },
            CopyStep::Take(part),
            CopyStep::Drop { shard, copy },
            CopyStep::Restart {
                shard,
                config,
                copy,
            },
        ] {
            let encoded = step.encode();
            assert_eq!(CopyStep::decode(encoded.clone()), Ok(step.clone()));
            assert_eq!(Step::decode(encoded.clone()), Ok(Step::Copy(step)));
            for at in 0..encoded.len() {
                assert!(Step::decode(encoded.slice(..at)).is_err());
            }
        }
    }
}
