//! What a group has to do with which shard.
//!
//! # The life of a shard in a group
//!
//! Each shard walks the configurations on its own: the group accepts configuration N+1 at once, and a shard whose step
//! of an earlier one isn't done keeps the later steps in its queue.
//!
//! | state | here it | is left by | and becomes |
//! |---|---|---|---|
//! | absent | isn't | `Configure` that gives it from nobody | serving |
//! | absent | | `Configure` that gives it from a group | pulling |
//! | pulling | arrives, unseen | the last `Install` of its configuration | serving |
//! | serving | is served | `Configure` that gives it to a group | fenced |
//! | fenced | is kept, unchanged, for the new owner | `Delete` of its configuration | absent |
//!
//! After each change the next step in the shard's queue is taken in the same entry. A step of any other configuration
//! than the one that the state names changes nothing: config numbers are compared exactly. An installed shard whose
//! source hasn't confirmed the delete is *owed* to the source; that is kept beside the state, because the shard may
//! go on moving meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use types::{ClusterId, ConfigNum, Gid, LogTime, ShardId};

use crate::Cursor;

/// A shard's state in a group. A shard that is absent has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// It is served here.
    Serving {
        /// Since this configuration.
        config: ConfigNum,
    },
    /// It is on its way here.
    Pulling {
        /// The configuration that gives it.
        config: ConfigNum,
        /// From whom.
        source: Gid,
        /// What has arrived.
        after: Cursor,
        /// How many bytes of keys, values and records have arrived.
        bytes: u64,
    },
    /// It is kept for its new owner.
    Fenced {
        /// The configuration that takes it.
        config: ConfigNum,
        /// Who gets it.
        to: Gid,
    },
}

/// A step that waits behind the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedStep {
    /// The configuration that asks for it.
    pub config: ConfigNum,
    /// The owner before.
    pub from: Gid,
    /// The owner then. One of the two is this group.
    pub to: Gid,
}

/// A shard of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// How it stands.
    pub state: ShardState,
    /// What waits behind that, oldest first.
    pub queue: VecDeque<QueuedStep>,
    /// The log time at which it came into this state.
    pub since: LogTime,
    /// What its session table's clock is at least (see `replica::session`): as it came with the shard, and raised to the
    /// fencing entry's time when it goes.
    pub clock: LogTime,
}

/// All that a group has to do with shards. Shared and never changed: the machine makes a new one with each step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Which group this is, as [`crate::Step::Begin`] said; [`Gid::NONE`] before.
    pub gid: Gid,
    /// The controllers' incarnation; `None` before the group follows one.
    pub controller: Option<ClusterId>,
    /// The configuration that the group has accepted.
    pub config: ConfigNum,
    /// The shards that aren't absent.
    pub shards: BTreeMap<ShardId, Arc<Shard>>,
    /// Deletes that the source, by its gid, has not confirmed.
    pub owed: BTreeMap<(ShardId, ConfigNum), Gid>,
    /// Where groups are: those of the accepted configuration, and any that a hand-off still needs.
    pub groups: BTreeMap<Gid, Vec<String>>,
    /// Those of `groups` that aren't part of the accepted configuration any more.
    pub left: BTreeSet<Gid>,
}

impl Ownership {
    /// All that configurations up to this one ask of the group is done.
    pub fn settled(&self) -> ConfigNum {
        let steps = self.shards.values().filter_map(|shard| match shard.state {
            ShardState::Serving { .. } => shard.queue.front().map(|step| step.config),
            ShardState::Pulling { config, .. } | ShardState::Fenced { config, .. } => Some(config),
        });
        let owed = self.owed.keys().map(|(_, config)| *config);
        let first = steps.chain(owed).min();
        first.map_or(self.config, |first| ConfigNum(first.0.saturating_sub(1)))
    }
}
