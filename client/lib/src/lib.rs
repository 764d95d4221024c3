//! The Rust client library of `ShardKV`: a sharded, linearizable key-value store.
//!
//! ```no_run
//! use shardkv_client::{Client, ClientOptions};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let options = ClientOptions::new(["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"]);
//!     let client = Client::connect(options).await?;
//!     client.put("name", "value").await?;
//!     println!("{:?}", client.get("name").await?);
//!     Ok(())
//! }
//! ```
//!
//! # Guarantees
//!
//! - **The client hides lost leaders and moving shards.** It retries a call, at the node that leads the owner of its key at that
//!   time, until the call's deadline (10 s by default).
//! - **A write takes effect once**, however often it is retried, and at whichever group. If the client can't guarantee that any
//!   more, the error says so ([`Error::maybe_applied`]), and nothing is repeated.
//! - **A stall stays local.** A group without a leader holds up no call for another group, and a shard that is being moved holds up
//!   no call for other shards of its group.
//! - **Everything is bounded**: calls and bytes in flight, unanswered writes of a session, sessions, learnt addresses,
//!   connections. A caller beyond a bound waits, up to its deadline. The state of a group is dropped when the group leaves.
//!
//! # The way of a call
//!
//! [`Client`] hashes the key to its shard and looks up the shard's owner in the cached configuration. In the *group pool* (`pool`)
//! it takes a share of the owner's bytes in flight, and puts the call into the queue of a *batch stream* (`stream`). A batch stream
//! is one task with one bidirectional gRPC stream to the leader of one group. It names each write with a session and a sequence,
//! sends all queued calls as one message, and hands the answers to the callers. The router (`route`) keeps the configuration
//! current by a watch, and finds each group's leader.
//!
//! The rules are those of the crate `request`, a sans-IO engine that this library drives: pending calls, sequences, the meaning of
//! each failure, back-off, guesses who leads. The nodes' forwarding and the simulator's clients drive the same engine. With
//! [`Mode::Unary`] each call is a gRPC call of its own instead, under the same rules.
//!
//! ```text
//!             pool: g1 ──queue──▶ stream: pending calls, sequences ══ Batch stream ══▶ leader of g1
//!  callers ──┤                       │ ▲  a shard moved: the call is passed on, with its name
//!     ▲      └ pool: g2 ──queue──▶ stream: pending calls, sequences ══ Batch stream ══▶ leader of g2
//!     └────────────one-shot──────────┘ ▲
//!                                      └── router: owner of a key? ─── Watch ──▶ any node
//!                                                  leader of a group? ─ Status ─▶ all nodes of the group
//! ```
//!
//! # When a shard moves
//!
//! | answer of the node | effect | the call |
//! |---|---|---|
//! | `WrongGroup{n}`, n is not known yet | certainly none | waits until configuration n is known (the watch brings it, or the node that has it is asked), and goes to the new owner |
//! | `WrongGroup{n}`, n is known | certainly none | waits: the owner hasn't learnt it yet |
//! | `ShardNotReady` | certainly none | waits, at least for the pause that the node asks for |
//! | none, the connection broke | in doubt | goes to the owner of the shard at that time, under its name |
//!
//! Of the calls of a batch stream that wait for a shard, one asks the group again, with pauses. The others go on when it is served.
//!
//! A write keeps its session and sequence for as long as an attempt may have taken effect. The new owner, which got the session's
//! results with the shard, then recognises it. A write that was certainly refused each time gives its name back, because it
//! would hold up the session that the name is from.
//!
//! # Ranges, cuts, batches
//!
//! [`Client::scan`] reads from all groups at once and merges in key order. [`Client::export`] gives a consistent cut of each shard.
//! [`Client::get_many`] and [`Client::put_many`] send keys to their groups at the same time. [`Client::controller`] changes the
//! configuration, [`Client::admin`] asks one node, and [`Client::keyspaces`] creates and lists keyspaces.
//!
//! # TLS
//!
//! With [`ClientOptions::tls`] all connections have TLS 1.3, without it none has. The client never falls back to a plain connection.
//!
//! # Limits
//!
//! The client caches no values, and orders nothing between calls that run at the same time. Nothing is atomic over several keys.
//! Nodes never forward the client's calls for keys: the client routes by itself, and a node that is not
//! the right one refuses. (Nodes do forward changes and queries of the configuration, so a client needs no controller's address.)

mod admin;
mod call;
mod client;
mod clock;
mod controller;
mod credentials;
mod error;
mod export;
mod failure;
mod keyspaces;
mod many;
mod options;
mod pages;
mod pool;
mod route;
mod scan;
mod shards;
mod stream;
mod unary;

pub use admin::{Admin, GroupKind, MemberStatus, MembershipChange, NodeStatus, Role};
pub use client::Client;
pub use controller::{
    ConfigChange, ConfigEvent, ConfigView, ConfigWatch, Controller, DrainedGroup, Forgotten,
    GroupProgress, ShardList,
};
pub use credentials::TlsOptions;
pub use error::{ConnectError, Error, InvalidOption};
pub use export::{Export, ExportEvent, ExportOptions};
pub use keyspaces::{AutoCompaction, Keyspace, KeyspaceOptions, KeyspacePage, Keyspaces};
pub use options::{ClientOptions, Mode};
pub use scan::{Pair, Scan, ScanOptions};
pub use shards::{GroupShards, ShardState, ShardStatus};
pub use types::{
    Assignment, ClusterId, ConfigDelta, ConfigNum, Gid, Group, Incarnation, NodeId, ShardConfig,
    ShardId, ShardMove, ShardRun, ShardSet,
};
