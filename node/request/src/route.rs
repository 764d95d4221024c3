//! The shard of a key, and the shard's owner.

use types::{Gid, ShardConfig, ShardId};

/// Returns the shard of a key with this hash.
pub(crate) fn shard(config: &ShardConfig, hash: u64) -> ShardId {
    let shard = hash % u64::from(config.shards().max(1));
    // The remainder of a division by a u32 fits in a u32.
    ShardId(u32::try_from(shard).unwrap_or(0))
}

/// Returns the owner of the shard of a key with this hash; [`Gid::NONE`] if no group owns it.
pub fn owner(config: &ShardConfig, hash: u64) -> Gid {
    config.owner(shard(config, hash))
}
