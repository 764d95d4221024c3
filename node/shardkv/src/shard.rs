//! A shard of a group, and its state. The module [`crate::ownership`] has the table of states.

use types::{ConfigNum, Gid, LogTime};

use crate::{CopyCursor, CopyId, Cursor};

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
        /// The group that has the shard.
        source: Gid,
        /// The cursor up to which the shard has arrived.
        after: Cursor,
        /// Bytes of keys, values and session records that have arrived.
        bytes: u64,
    },
    /// It is copied while another group serves it.
    Copying {
        /// The group that serves it.
        source: Gid,
        /// The copy.
        copy: CopyId,
        /// The cursor up to which the copy has arrived.
        cursor: CopyCursor,
        /// Bytes of keys, values and session records that have arrived.
        bytes: u64,
    },
    /// It was copied, and this group owns it now: the rest of the copy is on its way here.
    Completing {
        /// The configuration that gives it.
        config: ConfigNum,
        /// The group that has the shard.
        source: Gid,
        /// The copy.
        copy: CopyId,
        /// The cursor up to which the copy has arrived.
        cursor: CopyCursor,
        /// Bytes of keys, values and session records that have arrived.
        bytes: u64,
    },
    /// It is kept for its new owner.
    Fenced {
        /// The configuration that takes it.
        config: ConfigNum,
        /// The new owner.
        to: Gid,
    },
}

/// A shard of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The present state.
    pub state: ShardState,
    /// The log time at which it came into this state.
    pub since: LogTime,
}

impl Shard {
    /// Creates a shard that came into `state` at log time `since`.
    pub fn new(state: ShardState, since: LogTime) -> Self {
        Self { state, since }
    }
}

impl ShardState {
    /// Returns the configuration that led to this state: that of a copy made this group the target.
    pub fn config(&self) -> ConfigNum {
        match self {
            Self::Serving { config }
            | Self::Pulling { config, .. }
            | Self::Completing { config, .. }
            | Self::Fenced { config, .. } => *config,
            Self::Copying { copy, .. } => copy.since,
        }
    }
}
