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
//! # What it promises
//!
//! - **A lost leader is not the caller's trouble, nor is a shard that moves.** A call is retried, on whichever node leads
//!   the group that owns its key then, until its deadline (10 s unless set).
//! - **A write takes effect once**, however often it is retried, and wherever. When that can't be promised any more, the
//!   error says so ([`Error::maybe_applied`]) and nothing is repeated.
//! - **What stalls stalls nothing else.** A group without a leader holds up no call for another group, and a shard on its
//!   way none for the other shards of its group.
//! - **Everything is bounded**: calls and bytes in flight, unanswered writes of a session, sessions, learnt addresses,
//!   connections. A caller beyond a bound waits, up to its deadline. What is kept for a group goes when the group does.
//!
//! # How a call flows
//!
//! [`Client`] hashes the key to its shard and looks up the shard's owner in the cached configuration. At the owner's
//! *gate* (`gates`) it takes a share of the bytes in flight, and puts the call into the queue of a *lane*. The lane is one
//! task with one bidirectional stream to the leader of one group; it names each write (`session`), sends all that is
//! queued as one message (`lane/book`), and hands the answers to the callers. The router (`route`) keeps the configuration
//! current by a watch, and finds each group's leader. One table (`verdict`) says what each failure means, and `backoff` how
//! long to wait. With [`Mode::Unary`] each call is a gRPC call of its own instead, under the same rules.
//!
//! ```text
//!             gate of g1 ──queue──▶ lane: book + sessions ══ Batch stream ══▶ leader of g1
//!  callers ──┤                       │ ▲  a shard moved: the call goes over, with its name
//!     ▲      └ gate of g2 ──queue──▶ lane: book + sessions ══ Batch stream ══▶ leader of g2
//!     └────────────one-shot──────────┘ ▲
//!                                      └── router: who owns? ── Watch ──▶ any node
//!                                                  who leads? ── Status ─▶ all nodes of the group
//! ```
//!
//! # When a shard moves
//!
//! | the node says | nothing was done | the call |
//! |---|---|---|
//! | `WrongGroup{n}`, n is news | certain | waits until configuration n is known (the watch brings it, or the node that said so is asked), and goes to the new owner |
//! | `WrongGroup{n}`, n is not | certain | goes there again after a pause: the owner hasn't heard of it yet |
//! | `ShardNotReady` | certain | goes there again when the node said |
//! | nothing, the connection broke | in doubt | goes to whoever owns the shard then, under its name |
//!
//! A write keeps its session and sequence for as long as an attempt may have taken effect, so that the new owner, which got
//! the session's results with the shard, recognises it. A write that was refused for certain, each time, gives its name
//! back: it would hold up the session that it is from (see `session`).
//!
//! # Ranges, cuts, batches
//!
//! [`Client::scan`] reads from all groups at once and merges in key order; [`Client::export`] gives a consistent cut of each
//! shard; [`Client::get_many`] and [`Client::put_many`] send keys to their groups at the same time. [`Client::controller`]
//! changes the configuration, and [`Client::admin`] asks one node.
//!
//! # What it does not do
//!
//! It caches no values, and orders nothing between calls that run at the same time; nothing is atomic over several keys. It
//! speaks no TLS yet. Its calls are never forwarded by nodes: it knows where they belong, and wants to hear when it doesn't.
//! (Changes and queries of the configuration are: a client needn't know the controllers' addresses.)

mod admin;
mod backoff;
mod call;
mod client;
mod controller;
mod error;
mod export;
mod gates;
mod lane;
mod many;
mod options;
mod pages;
mod route;
mod scan;
mod session;
mod shards;
mod unary;
mod verdict;

pub use admin::{Admin, GroupKind, MemberStatus, MembershipChange, NodeStatus, Role};
pub use client::Client;
pub use controller::{
    ConfigChange, ConfigEvent, ConfigView, ConfigWatch, Controller, GroupProgress,
};
pub use error::{ConnectError, Error};
pub use export::{Export, ExportEvent, ExportOptions};
pub use options::{ClientOptions, Mode};
pub use scan::{Pair, Scan, ScanOptions};
pub use shards::{GroupShards, ShardState, ShardStatus};
pub use types::{
    ClusterId, ConfigDelta, ConfigNum, Gid, NodeId, ShardConfig, ShardId, ShardMove, ShardRun,
    ShardSet,
};
