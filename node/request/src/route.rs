//! The owner of a key's shard.

use types::{Gid, ShardConfig, ShardId};

/// Returns the owner of the shard of a key with this hash; [`Gid::NONE`] if no group owns it.
pub fn owner(config: &ShardConfig, hash: u64) -> Gid {
    let shard = hash % u64::from(config.shards().max(1));
    // The remainder of a division by a u32 fits in a u32.
    config.owner(ShardId(u32::try_from(shard).unwrap_or(0)))
}
