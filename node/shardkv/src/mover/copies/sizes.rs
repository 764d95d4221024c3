//! The sizes of shards that are copied here, and the room for them on the group's disks.

use std::collections::BTreeMap;

use types::ShardId;

use super::super::backoff::Backoff;
use super::super::room::Room;
use crate::{Ownership, ShardState};

#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// The sources' estimates of whole shards.
    whole: BTreeMap<ShardId, u64>,
    pub(super) room: Option<Room>,
    /// Shards that don't fit.
    pub(super) full: Backoff,
}

impl Sizes {
    pub(super) fn set(&mut self, shard: ShardId, bytes: u64) {
        self.whole.insert(shard, bytes);
    }

    /// Returns the source's estimate; `None` before the source's first answer.
    pub(super) fn get(&self, shard: ShardId) -> Option<u64> {
        self.whole.get(&shard).copied()
    }

    /// Forgets shards that aren't copied any more.
    pub(super) fn retain(&mut self, ownership: &Ownership) {
        self.whole.retain(|shard, _| {
            let copied = matches!(
                ownership.state(*shard),
                Some(ShardState::Copying { .. } | ShardState::Completing { .. })
            );
            copied || ownership.planned.contains_key(shard)
        });
    }

    /// Returns the reason that a shard doesn't fit, together with what is still to arrive of the copies that have begun; `None` if it
    /// fits, or if its size isn't known yet.
    pub(super) fn lacks_room(&self, ownership: &Ownership, shard: ShardId) -> Option<String> {
        let own = self.get(shard)?;
        let to_come = self
            .whole
            .iter()
            .map(|(other, whole)| match ownership.state(*other) {
                Some(ShardState::Copying { bytes, .. } | ShardState::Completing { bytes, .. }) => {
                    whole.saturating_sub(*bytes)
                }
                _ => 0,
            });
        self.room
            .as_ref()?
            .lacks(to_come.fold(own, u64::saturating_add))
    }

    /// Returns the reason that the next part of a base, of `part` bytes, must wait: the disks have filled up since the copy began. `None`
    /// if what is left of the shard fits.
    pub(super) fn lacks_rest(
        &self,
        ownership: &Ownership,
        shard: ShardId,
        part: u32,
    ) -> Option<String> {
        let arrived = match ownership.state(shard) {
            Some(ShardState::Copying { bytes, .. }) => *bytes,
            _ => 0,
        };
        let rest = self.get(shard).unwrap_or_default().saturating_sub(arrived);
        self.room.as_ref()?.lacks(rest.max(part.into()))
    }
}
