//! Planned moves: the shards whose target differs from their owner, as far as this group is one of the two.
//!
//! Join, Leave and Move change targets at once. Owners change only by a cut, after the target has copied the shard. Between the two the
//! owner, the *source*, serves the shard and keeps a journal ([`crate::journal`]), and the target, the *destination*, copies it
//! ([`crate::copy`]). Both act only for exactly the planned move that they have accepted.
//!
//! A target may change at any time. Then the destination drops its copy and the source its journal, and nothing else happens. So a move
//! can be called back until the cut.

use bytes::Bytes;
use types::{ConfigNum, DecodeError, Gid, Reader, Writer};

use crate::encoding::known;

/// The version byte of a record.
const VERSION: u8 = 1;

/// The group that the controllers want for a shard, and since which configuration. The number names the target: it changes only
/// when the shard's target does, and is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The group.
    pub to: Gid,
    /// The configuration that made it the target.
    pub since: ConfigNum,
}

/// A move that the accepted configuration plans: the shard's target isn't its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedMove {
    /// The group that serves the shard.
    pub owner: Gid,
    /// The configuration that made it the owner.
    pub owner_since: ConfigNum,
    /// The group that is to serve it.
    pub target: Target,
}

impl PlannedMove {
    /// Encodes the move as a record.
    pub(crate) fn encode(self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION)
            .number(self.owner.0)
            .number(self.owner_since.0)
            .number(self.target.to.0)
            .number(self.target.since.0);
        out.finish()
    }

    /// Decodes the output of [`PlannedMove::encode`].
    pub(crate) fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(record);
        known("record version", input.byte("record version")?, VERSION)?;
        let planned = Self {
            owner: Gid(input.number("owner")?),
            owner_since: ConfigNum(input.number("configuration number")?),
            target: Target {
                to: Gid(input.number("target")?),
                since: ConfigNum(input.number("configuration number")?),
            },
        };
        input.finish()?;
        if planned.owner == planned.target.to {
            return Err(DecodeError::OutOfRange("target"));
        }
        Ok(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_decode_to_what_was_encoded() {
        let planned = PlannedMove {
            owner: Gid(7),
            owner_since: ConfigNum(300),
            target: Target {
                to: Gid(8),
                since: ConfigNum(301),
            },
        };
        let record = planned.encode();
        assert_eq!(PlannedMove::decode(record.clone()), Ok(planned));
        for at in 0..record.len() {
            assert!(PlannedMove::decode(record.slice(..at)).is_err());
        }
        let nowhere = PlannedMove {
            owner: Gid(8),
            ..planned
        };
        assert!(PlannedMove::decode(nowhere.encode()).is_err());
    }
}
