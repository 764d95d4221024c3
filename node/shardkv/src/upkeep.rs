//! The operation that forgets what nobody uses any more: sessions that are silent, and journals that no destination renews.
//!
//! Each write forgets a little ([`crate::ShardKv`]), and a group without writes would keep everything. So the leader looks for what is
//! expired, some shards at a time, and puts the shards into its log ([`replica::StateMachine::upkeep`]). What is forgotten depends on that entry
//! alone: on its shards, its log time, and the state before it. It doesn't matter which shards the leader chose.

use bytes::Bytes;
use types::{DecodeError, Reader, ShardId, Writer};

use crate::MAX_JOURNALS;
use crate::encoding::{VERSION, known};

/// The kind byte of the operation.
pub(crate) const EXPIRE: u8 = 5;
/// The most tables that one search visits. With one search in a second, 100,000 tables take less than two minutes.
pub(crate) const MAX_VISITED: usize = 1_024;
/// The most sessions that one operation forgets.
pub(crate) const MAX_FORGOTTEN: usize = 1_024;
/// The most shards of an operation.
const MAX_SHARDS: usize = MAX_VISITED + MAX_JOURNALS;

/// Forgets the expired sessions and journals of shards, as far as these are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expire {
    /// The shards.
    pub shards: Vec<ShardId>,
}

impl Expire {
    /// Encodes the operation for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(8 + 4 * self.shards.len());
        out.byte(VERSION).byte(EXPIRE);
        out.number(self.shards.len() as u64);
        for shard in &self.shards {
            out.number(shard.0.into());
        }
        out.finish()
    }

    /// Decodes the output of [`Expire::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("operation version")?;
        known("operation version", version, VERSION)?;
        let kind = input.byte("operation kind")?;
        if kind != EXPIRE {
            return Err(DecodeError::Unknown {
                what: "operation kind",
                value: kind.into(),
            });
        }
        let count = input.count("shards")?;
        if count > MAX_SHARDS {
            return Err(DecodeError::OutOfRange("shards"));
        }
        let shards = (0..count).map(|_| input.number_u32("shard").map(ShardId));
        let shards = shards.collect::<Result<_, _>>()?;
        input.finish()?;
        Ok(Self { shards })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(shards: usize) -> Expire {
        let shards = (0..shards).map(|it| ShardId(u32::try_from(it).unwrap_or(0) * 1_000));
        Expire {
            shards: shards.collect(),
        }
    }

    #[test]
    fn operations_decode_to_what_was_encoded() {
        for shards in [0, 1, 3, MAX_SHARDS] {
            let operation = of(shards);
            assert_eq!(Expire::decode(operation.encode()), Ok(operation));
        }
        let record = of(3).encode();
        for length in 0..record.len() {
            assert!(Expire::decode(record.slice(..length)).is_err());
        }
        let beyond = Expire::decode(of(MAX_SHARDS + 1).encode());
        assert_eq!(beyond, Err(DecodeError::OutOfRange("shards")));
    }
}
