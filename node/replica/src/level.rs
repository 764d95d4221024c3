//! The feature level of a group: what its members write into the log and the state.
//!
//! Each version supports the levels up to [`FEATURE_LEVEL`]. A group begins at level 0. Members tell the leader which level they
//! support. When all of them support a higher level than the group's, voters and learners alike, the leader puts the
//! raise into the log. From there on each replica may write what the new level allows ([`Applying::feature_level`]), in the
//! same places of the log. The level never falls.
//!
//! A member that is older (a new learner, or a node that was downgraded) refuses what it can't read *before* it is in its log or its
//! state. So the node keeps what it has, and goes on with it after an upgrade.
//!
//! [`Applying::feature_level`]: crate::Applying::feature_level

use raft::{Entry, Envelope, Message, Payload, Role, StepError, StoreError};

use crate::bug::Bug;
use crate::entry::Record;
use crate::{Applied, Replica, StateMachine};

/// The highest feature level that this version supports.
///
/// | level | from it on |
/// |---|---|
/// | 1 | a state has a digest, which the members compare ([`DIGEST_LEVEL`](crate::DIGEST_LEVEL)); silent sessions and journals end without writes (the module `upkeep`); no row changes |
/// | 2 | shards may have keyspaces: operations on them, rows of theirs in the state, and steps of moves with such rows; clearing a shard clears them, too |
/// | 3 | keyspaces may have users and roles: changes of them, writes for a user, their rows, and steps of moves with such rows |
pub const FEATURE_LEVEL: u32 = 3;

impl<M: StateMachine> Replica<M> {
    /// Proposes the highest level that all members support, once in a term. If the proposal is lost, so is the term.
    pub(crate) fn raise_level(&mut self) {
        if self.raft.role() != Role::Leader {
            return;
        }
        let common = if self.options.bugs.has(Bug::LevelRaisedTooEarly) {
            Some(self.options.raft.feature_level)
        } else {
            self.raft.common_feature_level()
        };
        let Some(level) = common.filter(|level| *level > self.applied.feature_level) else {
            return;
        };
        let raise = (self.raft.term(), level);
        if self.raised != Some(raise) && self.raft.propose(Record::encode_raise(level)).is_ok() {
            self.raised = Some(raise);
        }
    }

    /// Refuses a message with entries or a snapshot that this version can't read.
    pub(crate) fn check_readable(&self, envelope: &Envelope) -> Result<(), StepError> {
        let supported = self.options.raft.feature_level;
        let from = envelope.from;
        match &envelope.message {
            Message::Append { entries, .. } => entries.iter().try_for_each(|entry| {
                check_entry(entry, supported).map_err(|error| StepError::Unreadable {
                    from,
                    entry: entry.id,
                    what: error.to_string(),
                })
            }),
            Message::SnapshotChunk(chunk) if chunk.feature_level > supported => {
                Err(StepError::Unreadable {
                    from,
                    entry: chunk.meta.last,
                    what: newer(chunk.feature_level, supported),
                })
            }
            _ => Ok(()),
        }
    }
}

fn check_entry(entry: &Entry, supported: u32) -> Result<(), types::DecodeError> {
    match &entry.payload {
        Payload::Command(data) => Record::check_readable(data, supported),
        Payload::Noop | Payload::Membership(_) => Ok(()),
    }
}

/// Refuses a state of a higher level than this version supports.
pub(crate) fn check_state(applied: &Applied, supported: u32) -> Result<(), StoreError> {
    check_level(applied.feature_level, supported)
}

/// Refuses a higher level than this version supports.
pub(crate) fn check_level(level: u32, supported: u32) -> Result<(), StoreError> {
    if level > supported {
        return Err(StoreError::OtherVersion(newer(level, supported)));
    }
    Ok(())
}

fn newer(level: u32, supported: u32) -> String {
    format!("feature level {level}, and this version supports {supported}")
}
