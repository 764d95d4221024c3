//! The public surface of `ShardKV`: the generated `shardkv.v1` types and services, the few
//! conversions that every user of them needs, and the generated types and services of etcd's API ([`etcd`]).
//!
//! No other crate compiles protobuf. Wire types stop at the edge: only the server and the client
//! library use them.

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

pub mod etcd;

mod client_id;
mod config;
mod cut;
mod error;
pub mod errors;
mod refusal;

pub use client_id::{decode_client_id, encode_client_id};
pub use config::{
    config_from_wire, config_to_wire, delta_from_wire, delta_to_wire, shards_from_wire,
    shards_to_wire,
};
pub use cut::{cut_from_wire, cut_to_wire};
pub use error::{ERROR_METADATA_KEY, error_detail, error_status};
pub use refusal::{refused, refused_status};

/// Forbids a node to forward the call. Forwarded calls carry it, and clients that route by themselves set it.
pub const NO_FORWARD_METADATA_KEY: &str = "shardkv-no-forward";

/// The group that a call of the `Kv` service is meant for, in decimal digits. A node of another group refuses it with
/// `WrongGroup`, even if it owns the key. Optional: without it, any group at the address answers.
pub const GID_METADATA_KEY: &str = "shardkv-gid";

/// The cluster that a call of the `Kv` service is meant for, as in `WatchResponse.cluster_id`, in 16 hexadecimal digits.
/// A node of another cluster refuses it with `WrongCluster`. It matters because addresses are reused, and both clusters
/// have a group 1. Optional as [`GID_METADATA_KEY`].
pub const CLUSTER_METADATA_KEY: &str = "shardkv-cluster";

/// The encoded file descriptors of `shardkv.v1`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
