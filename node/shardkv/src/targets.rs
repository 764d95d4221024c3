//! Planned moves: the shards whose target differs from their owner, as far as this group is one of the two.
//!
//! Join, Leave and Move change targets at once. Owners change only by a cut, after the target has copied the shard. Between the two the
//! owner, the *source*, serves the shard and keeps a journal ([`crate::journal`]), and the target, the *destination*, copies it
//! ([`crate::copy`]). Both act only for exactly the planned move that they have accepted.
//!
//! A target may change at any time. Then the destination drops its copy and the source its journal, and nothing else happens. So a move
//! can be called back until the cut.

use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use replica::StateReader;
use types::{ConfigNum, DecodeError, Gid, Reader, ShardId, Writer};

use crate::encoding::known;
use crate::transition::Changed;
use crate::{Genesis, Ownership, ShardState, keys, records};

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
    fn decode(record: Bytes) -> Result<Self, DecodeError> {
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

impl Ownership {
    /// Returns the target of a shard that is to go from here.
    pub fn target_from_here(&self, shard: ShardId) -> Option<Target> {
        let planned = self.planned.get(&shard)?;
        (planned.owner == self.gid).then_some(planned.target)
    }

    /// Sets the move that the accepted configuration plans for a shard; `None` if it plans none that concerns this group. A copy for
    /// another move is dropped.
    pub(crate) fn plan(
        &mut self,
        shard: ShardId,
        planned: Option<PlannedMove>,
        changed: &mut Changed,
    ) {
        let table = Arc::make_mut(&mut self.planned);
        match planned {
            Some(planned) => table.insert(shard, planned),
            None => table.remove(&shard),
        };
        changed.planned.insert(shard);
        if let Some(ShardState::Copying { source, copy, .. }) = self.state(shard)
            && !self.plans_copy(shard, *source, copy.since)
        {
            self.shards.remove(&shard);
            changed.shards.insert(shard);
            changed.cleared.insert(shard);
        }
    }

    /// Returns true if the accepted configuration plans that the shard comes here from `source`, for exactly the target since `since`.
    pub(crate) fn plans_copy(&self, shard: ShardId, source: Gid, since: ConfigNum) -> bool {
        let to = self.gid;
        self.planned.get(&shard).is_some_and(|planned| {
            planned.owner == source && planned.target == Target { to, since }
        })
    }
}

/// Reads the planned moves from their records.
pub(crate) fn load(
    ownership: &mut Ownership,
    state: &dyn StateReader,
    genesis: &Genesis,
) -> Result<(), StoreError> {
    let damaged = |why: &dyn std::fmt::Display| {
        StoreError::Damaged(format!("a planned move's record: {why}"))
    };
    let table = Arc::make_mut(&mut ownership.planned);
    records::each_with_prefix(state, keys::TARGETS, |key, record| {
        let shard = keys::split_prefixed(key, keys::TARGETS)
            .filter(|shard| shard.0 < genesis.shards)
            .ok_or_else(|| damaged(&"no such shard"))?;
        let planned = PlannedMove::decode(record).map_err(|error| damaged(&error))?;
        table.insert(shard, planned);
        Ok(())
    })
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
