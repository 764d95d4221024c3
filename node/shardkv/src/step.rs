//! The steps by which shards move, as operations of a group's log.
//!
//! Clients' writes and these steps share one log, so a step has a place among the writes: what was acknowledged
//! before a fence is in what moves, and what comes after is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use types::{ClientId, ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardId};

/// What a group's log holds beside clients' writes. Proposed by the group's leader, for its [`crate::Mover`]. Each is
/// idempotent: one that comes twice, late or out of turn changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The group follows this controller from configuration `num` on, in which it owns nothing. Also one that follows it
    /// already, has nothing, and is further behind than the controllers remember.
    Begin {
        /// Which group this is: from here on the group knows which moves concern it.
        gid: Gid,
        /// The controllers' incarnation. Later steps of another are refused.
        controller: ClusterId,
        /// The configuration.
        num: ConfigNum,
        /// The groups of that configuration.
        groups: BTreeMap<Gid, Vec<String>>,
    },
    /// The next configuration. It is the fence of the shards that go: from this entry on they aren't served here.
    Configure {
        /// The controllers' incarnation.
        controller: ClusterId,
        /// What is new in it.
        delta: ConfigDelta,
    },
    /// The next part of a shard that comes. With the last part it is installed: data and sessions become visible at
    /// once, and it is served.
    Install(Chunk),
    /// The new owner has installed the shard: the source deletes it.
    Delete {
        /// Which.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
    /// The source has confirmed the delete: the new owner owes it nothing any more.
    Deleted {
        /// Which.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
    },
}

impl Step {
    /// Whether a nearly full disk takes it: all but the parts of shards, so that a group can give shards away to free space.
    pub fn frees_space(&self) -> bool {
        !matches!(self, Self::Install(_))
    }
}

/// Where a shard's transfer is. Ordered as things are sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cursor {
    /// All users' keys up to this one have arrived; the empty key is the start.
    Data(Bytes),
    /// All data has arrived, and the sessions up to this one; `None` before the first.
    Sessions(Option<ClientId>),
}

/// A part of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which shard.
    pub shard: ShardId,
    /// The configuration that moves it.
    pub config: ConfigNum,
    /// What must have arrived before.
    pub after: Cursor,
    /// Users' keys and values, in key order.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Sessions' records, in order of the clients.
    pub sessions: Vec<(ClientId, Bytes)>,
    /// Where the transfer is with this part, or that it is complete.
    pub next: Next,
}

/// What follows a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next chunk is the one after this.
    Chunk(Cursor),
    /// Nothing: this was the last.
    Done {
        /// The session table's clock at the fence (see `replica::session`).
        clock: LogTime,
        /// How long the source remembers sessions, in milliseconds: a new owner that would remember them for longer
        /// must not take one for new that the source has forgotten.
        ttl_ms: u64,
    },
}

impl Default for Cursor {
    fn default() -> Self {
        Self::Data(Bytes::new())
    }
}
