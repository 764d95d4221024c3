//! A group's view of shards: the state of each shard, the planned moves, and deletes that sources have not confirmed.
//!
//! # The life of a shard in a group
//!
//! | state | the shard here | is left by | and becomes |
//! |---|---|---|---|
//! | absent | isn't | `Configure` that gives it from nobody | serving |
//! | absent | | `Configure` that gives it from a group | pulling |
//! | absent | | `Copy(Start)` of a planned move | copying |
//! | copying | arrives, unseen, while the source serves it | `Configure` that gives it from the source | completing |
//! | copying | | `Copy(Drop)` of this copy, or another plan | absent |
//! | copying, completing, pulling | | `Configure` that gives it from nobody, since its source was forgotten | serving, and empty |
//! | completing | the rest arrives, unseen | the part that ends the copy | serving |
//! | completing | | `Copy(Restart)`: the copy is useless | pulling |
//! | pulling | arrives, unseen | the last `Install` of its configuration | serving |
//! | serving | is served | `Configure` that gives it to a group | fenced |
//! | serving | | `Configure` that gives it from nobody, since a group was forgotten | serving, since then |
//! | fenced | is kept, unchanged, for the new owner | `Delete` of its configuration | absent |
//! | fenced | | `Configure` that gives it from nobody, since the new owner was forgotten | serving |
//! | fenced | | `Configure` without the new owner | absent |
//! | serving | | `Configure` without this group | fenced |
//! | copying, completing, pulling | | `Configure` without this group | absent |
//! | any | | `Configure` with another incarnation of this group | absent |
//!
//! The state names the configuration that led to it. A step of any other configuration changes nothing: config numbers are compared
//! exactly. An installed shard whose source hasn't confirmed the delete has a *pending delete*, which is kept beside the state.
//!
//! # Steps that aren't due
//!
//! Steps come twice, late and out of turn, because a mover repeats what it hasn't seen happen and leaders change. Of a
//! step that isn't the next one exactly, nothing is taken:
//!
//! | step | is due when | otherwise |
//! |---|---|---|
//! | `Configure` | it follows just the accepted configuration | nothing; refused if it is another controller's, or contradicts what the group has |
//! | `ConfigurePart` | it is just the next part of a step that follows the accepted configuration, or its first part | nothing |
//! | `Install` | the shard is pulling for just this configuration and has arrived just up to where the chunk starts | nothing |
//! | `Delete` | the shard is fenced by just this configuration | nothing if it was before; refused as not ready if the fence is yet to come |
//! | `Deleted` | the delete is pending | nothing |
//! | `Copy(Start)` | the shard is absent, and the accepted configuration plans just this move | nothing |
//! | `Copy(Take)` | the copy is just the part's and has arrived just up to where the part starts; a part that ends it: completing | nothing |
//! | `Copy(Drop)` | copying, and the copy is just this one | nothing |
//! | `Copy(Restart)` | completing, and configuration and copy are just these | nothing |
//!
//! A fence is yet to come if the configuration isn't accepted here, or if the shard's state is of that configuration or an earlier
//! one. Otherwise the group is past the fence for good, because configurations only rise.
//!
//! # Invariants
//!
//! - No configuration of a state, a plan or a pending delete is beyond `config`.
//! - `groups` are those of the accepted configuration. Each group that a hand-off needs is one of them, because the controllers keep a
//!   group until it is drained, or else give what it had to others. A pending delete of a group that is gone is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{ClusterId, ConfigNum, Gid, Group, LogTime, ShardId};

use crate::{ConfigureParts, KvError, PlannedMove, Shard, ShardMap, ShardState, Target};

/// A group's view of all shards. Shared and immutable: each step makes a new value, which copies little (see [`ShardMap`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// This group's gid, set by the first [`crate::Configure`]; [`Gid::NONE`] before.
    pub gid: Gid,
    /// The controllers' incarnation; `None` before the group follows one.
    pub controller: Option<ClusterId>,
    /// The configuration that the group has accepted.
    pub config: ConfigNum,
    /// The shards that aren't absent.
    pub shards: ShardMap,
    /// The shards whose target differs from their owner in the accepted configuration, where this group is one of the two. Behind a
    /// pointer because there may be many, and few steps change them.
    pub planned: Arc<BTreeMap<ShardId, PlannedMove>>,
    /// Deletes that the source, by its gid, has not confirmed. Behind a pointer because there may be many while a source is down, and most
    /// steps don't change them.
    pub pending_deletes: Arc<BTreeMap<(ShardId, ConfigNum), Gid>>,
    /// The latest configuration by which a shard became served here. It stays when the shard goes. The controllers know by it that a group
    /// without data has lost some.
    pub held: ConfigNum,
    /// This group as the configurations had it last, if the accepted one doesn't have it: it was drained or forgotten. Its gid may be that of
    /// another group of other nodes since.
    pub former: Option<Group>,
    /// The parts that have arrived of a [`crate::Configure`] which is too large for one entry.
    pub parts: Option<Arc<ConfigureParts>>,
    /// The groups of the accepted configuration, leaving ones included. Behind a pointer because there may be thousands, and few
    /// steps change them.
    pub groups: Arc<BTreeMap<Gid, Group>>,
}

/// A group's progress with respect to one fence of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// The fence is yet to come.
    Ahead,
    /// The shard is fenced by this configuration now.
    Here,
    /// The group is past it: the shard was deleted, or never was here.
    Past,
}

impl Ownership {
    /// Creates the ownership of a standalone group, which serves all shards for ever.
    pub(crate) fn standalone(shards: u32) -> Self {
        let shard = Arc::new(Shard::new(
            ShardState::Serving {
                config: ConfigNum(0),
            },
            LogTime(0),
        ));
        let all = (0..shards).map(|number| (ShardId(number), Arc::clone(&shard)));
        Self {
            shards: all.collect(),
            ..Self::default()
        }
    }

    /// Returns the addresses of a group's nodes; `None` if the accepted configuration doesn't have the group.
    pub fn addresses(&self, gid: Gid) -> Option<Vec<String>> {
        self.groups.get(&gid).map(|group| group.addresses.clone())
    }

    /// Returns this group as the configurations had it last, and the one that the accepted configuration has under its gid, if
    /// they have no node in common. Then this group was drained or forgotten, and takes no part.
    pub fn replaced(&self) -> Option<(&Group, &Group)> {
        let former = self.former.as_ref()?;
        Some((former, self.groups.get(&self.gid)?))
    }

    /// Returns the state of a shard; `None` if it is absent.
    pub fn state(&self, shard: ShardId) -> Option<&ShardState> {
        self.shards.get(&shard).map(|shard| &shard.state)
    }

    /// Returns `Ok` if the shard is served here, otherwise the refusal of a request for it.
    pub fn check_served(&self, shard: ShardId) -> Result<(), KvError> {
        match self.state(shard) {
            Some(ShardState::Serving { .. }) => Ok(()),
            Some(ShardState::Pulling { .. } | ShardState::Completing { .. }) => {
                Err(KvError::ShardNotReady { shard })
            }
            Some(ShardState::Copying { .. } | ShardState::Fenced { .. }) | None => {
                Err(self.wrong_group(shard))
            }
        }
    }

    /// Returns the configuration since which the shard is served here; `None` if it isn't.
    pub fn served_since(&self, shard: ShardId) -> Option<ConfigNum> {
        match self.state(shard) {
            Some(ShardState::Serving { config }) => Some(*config),
            _ => None,
        }
    }

    /// Returns the latest configuration up to which the group has completed every hand-off. Cheap for any number of shards.
    pub fn settled(&self) -> ConfigNum {
        let deletes = self.pending_deletes.keys().map(|(_, config)| *config).min();
        let first = self.shards.unfinished().into_iter().chain(deletes).min();
        first.map_or(self.config, |first| ConfigNum(first.0.saturating_sub(1)))
    }

    /// Returns the target of a shard that is to go from here.
    pub fn target_from_here(&self, shard: ShardId) -> Option<Target> {
        let planned = self.planned.get(&shard)?;
        (planned.owner == self.gid).then_some(planned.target)
    }

    /// Returns true if the accepted configuration plans that the shard comes here from `source`, for exactly the target since `since`.
    pub(crate) fn plans_copy(&self, shard: ShardId, source: Gid, since: ConfigNum) -> bool {
        let to = self.gid;
        self.planned.get(&shard).is_some_and(|planned| {
            planned.owner == source && planned.target == Target { to, since }
        })
    }

    pub(crate) fn wrong_group(&self, shard: ShardId) -> KvError {
        KvError::WrongGroup {
            shard,
            config: self.config,
        }
    }

    /// Returns the group's progress with respect to the fence of `shard` by `config`.
    pub(crate) fn fence(&self, shard: ShardId, config: ConfigNum) -> Fence {
        if config > self.config {
            return Fence::Ahead;
        }
        let Some(shard) = self.shards.get(&shard) else {
            return Fence::Past;
        };
        if matches!(shard.state, ShardState::Fenced { config: of, .. } if of == config) {
            return Fence::Here;
        }
        // A copy begins where the shard is absent.
        if matches!(shard.state, ShardState::Copying { .. }) {
            return Fence::Past;
        }
        if shard.state.config() <= config {
            Fence::Ahead
        } else {
            Fence::Past
        }
    }

    /// Returns true if the group has accepted the configuration of the shard's state. The steps of any other shard would never complete.
    pub(crate) fn knows(&self, shard: &Shard) -> bool {
        self.controller.is_some() && shard.state.config() <= self.config
    }

    /// Panics if an invariant is broken, in debug builds and in the simulator. Of the shards it checks those that changed.
    pub(crate) fn check_invariants(&self, changed: &BTreeSet<ShardId>) {
        if !cfg!(any(debug_assertions, feature = "bugs")) {
            return;
        }
        for shard in changed.iter().filter_map(|shard| self.shards.get(shard)) {
            assert!(self.knows(shard), "of a configuration to come: {shard:?}");
        }
        let known = |(_, config): &(ShardId, ConfigNum)| *config <= self.config;
        assert!(self.pending_deletes.keys().all(known), "a delete too early");
        let listed = |gid| self.groups.contains_key(gid);
        assert!(
            self.pending_deletes.values().all(listed),
            "a delete of a group that is gone"
        );
    }
}
