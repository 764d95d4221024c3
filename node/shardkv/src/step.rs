//! The steps by which shards move, as operations of a group's log.
//!
//! Clients' writes and these steps share one log, so a step has a place among the writes: what was acknowledged
//! before a fence is in what moves, and what comes after is refused.

use bytes::Bytes;
use types::{ClientId, ConfigNum, LogTime, ShardId};

use crate::{Configure, CopyStep, Cursor};

/// An operation by which shards move. The group's leader proposes it for its [`crate::mover::Mover`]. Each step is idempotent: a
/// step that arrives twice, late or out of turn changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A later configuration. It is the fence of the shards that go: from this entry on they aren't served here.
    Configure(Configure),
    /// The next chunk of a shard that is being pulled. The last chunk completes the installation: data and sessions become
    /// visible at once, and the shard is served.
    Install(Chunk),
    /// The new owner has installed the shard, so the source deletes it.
    Delete {
        /// The shard.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
    /// The source has confirmed the delete, so the new owner owes it nothing any more.
    Deleted {
        /// The shard.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
    /// A step of the copy of a shard that another group still serves, or served until the cut.
    Copy(CopyStep),
}

impl Step {
    /// Returns true if a nearly full disk accepts the step: all but those that begin or store what comes from other groups, so that
    /// a group can give shards away to free space.
    pub fn frees_space(&self) -> bool {
        !matches!(
            self,
            Self::Install(_) | Self::Copy(CopyStep::Start { .. } | CopyStep::Take(_))
        )
    }
}

/// A piece of a shard in transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The shard.
    pub shard: ShardId,
    /// The configuration that moves it.
    pub config: ConfigNum,
    /// The cursor up to which the shard must have arrived before.
    pub after: Cursor,
    /// Users' keys and values, in key order.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Sessions' records, in order of the clients.
    pub sessions: Vec<(ClientId, Bytes)>,
    /// The cursor after this chunk, or the end of the transfer.
    pub next: Next,
}

/// The continuation after a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next chunk begins after this cursor.
    Chunk(Cursor),
    /// This chunk was the last.
    Done {
        /// The session table's clock at the fence (see `replica::session`).
        clock: LogTime,
        /// The source's time to live of sessions, in milliseconds. A new owner with a longer time to live must not take a
        /// session for new that the source has forgotten.
        ttl_ms: u64,
    },
}
