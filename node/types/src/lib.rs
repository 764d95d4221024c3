//! The vocabulary of `ShardKV`: identifiers, the shard map in its two halves (key to shard, shard to group), and the
//! small binary codec that what we write to disk is written with.
//!
//! Nothing here does I/O, reads a clock or knows a network. Everything else in the workspace depends
//! on this crate, and it depends on nothing of ours.

mod codec;
mod config;
mod hash;
mod ids;
mod shard_set;

pub use codec::{DecodeError, Reader, Writer};
pub use config::{
    ConfigDelta, ConfigError, MAX_ADDRESS_BYTES, MAX_GROUP_ADDRESSES, MAX_GROUPS, MAX_SHARDS,
    ShardConfig, ShardMove, check_addresses,
};
pub use hash::{hash_key, hashed_part, shard_of};
pub use ids::{ClientId, ClusterId, ConfigNum, Gid, LogTime, NodeId, Sequence, ShardId};
pub use shard_set::{ShardRun, ShardSet};
