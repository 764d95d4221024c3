//! The vocabulary of `ShardKV`: identifiers, the shard map, and the binary codec of the log and the disk.
//!
//! The crate does no I/O, reads no clock and knows no network. All other crates of the workspace depend on it; it
//! depends on none of them.
//!
//! # From a key to a replica group
//!
//! The mapping has two steps. The first is a public, fixed hash from a key to its shard, which a client in any language
//! can compute ([`shard_of`]). The second is a [`ShardConfig`], which maps each shard to its replica group; the
//! controllers number and change it. A `{tag}` in a key limits the hash to the tag, so that related keys share a shard:
//!
//! ```
//! use types::{hash_key, hashed_part, shard_of};
//!
//! assert_eq!(hash_key(b"foobar"), 0x8594_4171_72ad_2699);
//!
//! assert_eq!(hashed_part(b"user:{42}:name"), b"42");
//! assert_eq!(shard_of(b"user:{42}:name", 256), shard_of(b"user:{42}:mail", 256));
//!
//! // The number of shards is fixed when a cluster is created; another number is another map.
//! assert!(shard_of(b"foobar", 10).0 < 10);
//! ```
//!
//! # The codec
//!
//! [`Writer`] and [`Reader`] encode and decode the records on disk and in the log. Decoding damaged input is an error,
//! never a panic, and allocates no more than the input's length:
//!
//! ```
//! use types::{DecodeError, Reader, Writer};
//!
//! let mut out = Writer::default();
//! out.byte(1).number(300).bytes(b"value");
//! let record = out.finish();
//!
//! let mut input = Reader::new(record.clone());
//! assert_eq!(input.byte("version")?, 1);
//! assert_eq!(input.number("count")?, 300);
//! assert_eq!(input.bytes("value")?, b"value"[..]);
//! input.finish()?;
//!
//! let mut damaged = Reader::new(record.slice(..5));
//! damaged.byte("version")?;
//! damaged.number("count")?;
//! assert_eq!(damaged.bytes("value"), Err(DecodeError::Truncated("value")));
//! # Ok::<(), DecodeError>(())
//! ```

mod addresses;
mod assignment;
mod codec;
mod config;
mod config_delta;
mod cut;
mod group;
mod hash;
mod ids;
mod shard_set;

pub use addresses::{
    BadAddresses, MAX_ADDRESS_BYTES, MAX_GROUP_ADDRESSES, check_addresses, decode_addresses,
    encode_addresses,
};
pub use assignment::{Assignment, BadRow};
pub use codec::{DecodeError, Reader, Writer, known_version};
pub use config::{ConfigError, MAX_GROUPS, MAX_SHARDS, ShardConfig};
pub use config_delta::{ConfigDelta, ShardMove};
pub use cut::{Cut, MAX_CUTS};
pub use group::Group;
pub use hash::{hash_key, hashed_part, shard_of};
pub use ids::{
    ClientId, ClusterId, ConfigNum, Gid, Incarnation, JournalId, LogTime, NodeId, Sequence, ShardId,
};
pub use shard_set::{ShardRun, ShardSet};
