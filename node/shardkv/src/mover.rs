//! What a group's leader does so that shards move.
//!
//! Pure: a driver (the server, or the simulator) shows it how things stand, carries out the actions that it asks for,
//! and tells how they went. It keeps nothing that must survive: all that matters is in the group's log, and a new leader's
//! mover goes on from there.

use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};

use crate::{Chunk, Cursor, Ownership, Step};

/// How a mover behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoverOptions {
    /// The most shards that are pulled at the same time.
    pub max_concurrent_pulls: u32,
    /// The most bytes that all pulls together bring in a second; 0 for no limit.
    pub max_bytes_per_second: u64,
    /// About how many bytes of a shard travel and are proposed at once.
    pub chunk_bytes: u32,
    /// The shortest pause before something that failed is tried again; it doubles with each failure.
    pub min_retry_ms: u32,
    /// The longest.
    pub max_retry_ms: u32,
}

impl Default for MoverOptions {
    fn default() -> Self {
        Self {
            max_concurrent_pulls: 4,
            max_bytes_per_second: 64 << 20,
            chunk_bytes: 512 << 10,
            min_retry_ms: 10,
            max_retry_ms: 1_000,
        }
    }
}

/// The mover's name for an action; the driver gives it back with the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub u64);

/// What a driver shall do. Each ends with one [`Outcome`], a failure at the latest after the driver's own timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the controllers what follows a configuration. Ends when there is something, or after a while without.
    FetchConfigs {
        /// What the group has.
        after: ConfigNum,
    },
    /// Ask the source for the next part of a shard. Any of its nodes that has applied the fence has it.
    Pull {
        /// Which.
        shard: ShardId,
        /// The configuration that moves it.
        config: ConfigNum,
        /// Who has it.
        source: Gid,
        /// Where the source's nodes are.
        addresses: Vec<String>,
        /// What has arrived.
        after: Cursor,
        /// About how much to send.
        max_bytes: u32,
    },
    /// Tell the source's leader to delete a shard that is installed here.
    Delete {
        /// Which.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
        /// Who shall delete it.
        source: Gid,
        /// Where the source's nodes are.
        addresses: Vec<String>,
    },
    /// Put a step into the own group's log. Ends when it was applied here, or can't be.
    Propose(Step),
    /// Tell the controllers how far the group is.
    Report {
        /// As [`Ownership::settled`] has it.
        settled: ConfigNum,
    },
}

/// How an action went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `FetchConfigs`: what the controllers told. Nothing new is no failure.
    Configs {
        /// The controllers' incarnation.
        controller: ClusterId,
        /// How many shards the cluster has.
        shards: u32,
        /// The oldest configuration that is kept, when what follows the group's is not.
        full: Option<ShardConfig>,
        /// What follows.
        deltas: Vec<ConfigDelta>,
    },
    /// `Pull`: the part.
    Pulled(Chunk),
    /// `Delete`: the source has deleted it, now or before. `Propose`: applied. `Report`: taken.
    Done,
    /// It didn't work, for this reason (for people), and is tried again after a pause.
    Failed(String),
}

/// The next thing to do for each shard that isn't settled. See the module's documentation.
#[derive(Debug)]
pub struct Mover {
    options: MoverOptions,
    gid: Gid,
    // The tables of what is under way and what waits are yet to come.
}

impl Mover {
    /// A mover of group `gid`, with nothing under way.
    pub fn new(gid: Gid, options: MoverOptions) -> Self {
        Self { options, gid }
    }

    /// What to do now. `now_ms` is any clock that doesn't run backwards. `ownership` is the group's as of the last
    /// applied entry, and `None` while this replica doesn't lead: then all that was under way is forgotten, and outcomes
    /// that come late are ignored.
    pub fn poll(&mut self, now_ms: u64, ownership: Option<&Ownership>) -> Vec<(ActionId, Action)> {
        let _ = (now_ms, ownership, self.options, self.gid);
        Vec::new()
    }

    /// How an action went.
    pub fn ended(&mut self, now_ms: u64, id: ActionId, outcome: Outcome) {
        let _ = (now_ms, id, outcome);
    }

    /// When [`Mover::poll`] has something to do without news, if ever.
    pub fn next_due(&self) -> Option<u64> {
        None
    }

    /// Why a shard's hand-off makes no progress, for people; `None` if it does, or has none.
    pub fn waits_for(&self, shard: ShardId) -> Option<&str> {
        let _ = shard;
        None
    }

    /// What makes it impossible for the group to follow the controllers: another controller, another number of shards, or
    /// shards given to a group that lost them. The node refuses to go on.
    pub fn fatal(&self) -> Option<&str> {
        None
    }
}
