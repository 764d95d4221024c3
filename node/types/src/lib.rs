//! The vocabulary of `ShardKV`: identifiers, the shard map's first half (key to shard), and the
//! small binary codec that what we write to disk is written with.
//!
//! Nothing here does I/O, reads a clock or knows a network. Everything else in the workspace depends
//! on this crate, and it depends on nothing of ours.

mod codec;
mod hash;
mod ids;

pub use codec::{DecodeError, Reader, Writer};
pub use hash::{hash_key, hashed_part, shard_of};
pub use ids::{ClientId, ClusterId, Gid, LogTime, NodeId, Sequence, ShardId};
