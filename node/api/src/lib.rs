//! The public surface of `ShardKV`: the generated `shardkv.v1` types and services, and the few
//! conversions that every user of them needs.
//!
//! This is the one home of protobuf. Wire types stop at the edge: nothing below the server and the
//! client library knows them.

/// The generated package `shardkv.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::indexing_slicing
)]
pub mod v1 {
    tonic::include_proto!("shardkv.v1");
}

mod client_id;
mod config;
mod error;
pub mod errors;
mod refusal;

pub use client_id::{decode_client_id, encode_client_id};
pub use config::{
    config_from_wire, config_to_wire, delta_from_wire, delta_to_wire, shards_from_wire,
    shards_to_wire,
};
pub use error::{ERROR_METADATA_KEY, error_detail, error_status};
pub use refusal::{refused, refused_status};

/// A call with this metadata is never forwarded to another node: forwarded calls have it, and clients that route by
/// themselves set it.
pub const NO_FORWARD_METADATA_KEY: &str = "shardkv-no-forward";

/// The group that a call of the `Kv` service is meant for, in decimal digits. A node of another group refuses it with
/// `WrongGroup`, whatever it owns. Optional: who sends none takes what the address leads to.
pub const GID_METADATA_KEY: &str = "shardkv-gid";

/// The cluster that a call of the `Kv` service is meant for, as `WatchResponse.cluster_id` tells it, in 16 hexadecimal
/// digits. A node of another cluster refuses it with `WrongCluster`: addresses are used again, and both clusters have a
/// group 1. Optional as [`GID_METADATA_KEY`].
pub const CLUSTER_METADATA_KEY: &str = "shardkv-cluster";

/// The encoded file descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
