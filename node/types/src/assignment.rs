//! A shard's row in a configuration, and the reasons against a row.

use crate::{ConfigNum, DecodeError, Gid, Reader, Writer};

/// A shard's row in a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The group that serves the shard; [`Gid::NONE`] before the first group joins.
    pub owner: Gid,
    /// The configuration that made it the owner.
    pub owner_since: ConfigNum,
    /// The owner before; [`Gid::NONE`] if `owner` is the first, or if nobody else has anything of the shard any more because a group
    /// was forgotten.
    pub previous: Gid,
    /// The group that is to serve the shard: it is the owner, or becomes the owner by a cut.
    pub target: Gid,
    /// The configuration that made it the target.
    pub target_since: ConfigNum,
}

/// The reason why a shard can't have its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    /// Only one of owner and target is there, or neither is, but numbers are.
    #[error("it has an owner or a target, but not both")]
    HalfAssigned,
    /// The owner is not one of the groups.
    #[error("its owner {0} is no group")]
    UnknownOwner(Gid),
    /// The target is not one of the groups, or is leaving.
    #[error("its target {0} takes no shards")]
    BadTarget(Gid),
    /// The owner isn't the shard's target.
    #[error("its owner {0} is not its target")]
    NotTheTarget(Gid),
    /// A number is that of a later configuration, or a target is older than the owner that it is to follow.
    #[error("its numbers are out of order")]
    Numbers,
    /// The owner before is the owner.
    #[error("its owner {0} is the owner before, too")]
    SameOwner(Gid),
}

impl Assignment {
    /// Returns true if the shard is to get another owner.
    pub fn is_moving(&self) -> bool {
        self.target != self.owner
    }

    /// Encodes the row as a part of a record.
    pub fn encode(&self, out: &mut Writer) {
        out.number(self.owner.0)
            .number(self.owner_since.0)
            .number(self.previous.0)
            .number(self.target.0)
            .number(self.target_since.0);
    }

    /// Decodes the output of [`Assignment::encode`].
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: Gid(input.number("owner")?),
            owner_since: ConfigNum(input.number("owner since")?),
            previous: Gid(input.number("owner before")?),
            target: Gid(input.number("target")?),
            target_since: ConfigNum(input.number("target since")?),
        })
    }
}
