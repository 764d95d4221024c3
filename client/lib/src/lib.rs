//! The Rust client library of `ShardKV`: a sharded, linearizable key-value store.
//!
//! ```no_run
//! use client::{Client, ClientOptions};
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
//! - **A lost leader is not the caller's trouble.** A call is retried, on whichever node leads, until its
//!   deadline (10 s unless set).
//! - **A write takes effect once**, however often it is retried. When that can't be promised any more, the error
//!   says so ([`Error::maybe_applied`]) and nothing is repeated.
//! - **Everything is bounded**: calls and bytes in flight, unanswered writes of a session, learnt addresses. A
//!   caller beyond a bound waits, up to its deadline.
//!
//! # How a call flows
//!
//! [`Client`] takes a share of the bytes in flight and puts the call into the queue of a *lane*. The lane is one task
//! with one bidirectional stream to the leader; it names each write (`session`), sends all that is queued as one
//! message (`book`), and hands the answers to the callers. The *router* knows the nodes and finds the leader.
//! One table (`verdict`) says what each failure means, and `backoff` how long to wait. With [`Mode::Unary`]
//! each call is a gRPC call of its own instead, under the same rules.
//!
//! ```text
//!  callers ──queue──▶ lane: book + sessions ══ Batch stream ══▶ leader
//!     ▲                 │        ▲
//!     └───one-shot──────┘        └── router: who leads? ── Status ──▶ all nodes
//! ```
//!
//! # What it does not do
//!
//! It keeps no cache, and orders nothing between calls that run at the same time. It speaks no TLS yet. It
//! routes to one group; routing by the shard map has its room in the router.

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
pub use route::{KvService, Leader, NoForward, Router, Slot};
pub use scan::{Pair, Scan, ScanOptions};
pub use shards::{GroupShards, ShardState, ShardStatus};
pub use types::{
    ClusterId, ConfigDelta, ConfigNum, Gid, NodeId, ShardConfig, ShardId, ShardMove, ShardRun,
    ShardSet,
};
