//! Code that judging and carrying out a step share: the verdict, the records that change, and changes of single shards.

use std::collections::BTreeSet;
use std::sync::Arc;

use types::{ConfigNum, Gid, LogTime, ShardId};

use crate::{KvError, Ownership, PlannedMove, Shard, ShardState};

/// The judgement of a step against a group's present ownership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The step is the next one: apply it.
    Due,
    /// The step was applied before, or comes too early: nothing changes.
    Idle,
    /// The step contradicts the group's ownership: nothing changes.
    Refused(KvError),
}

/// The records that a step changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) group: bool,
    pub(crate) shards: BTreeSet<ShardId>,
    pub(crate) pending_deletes: BTreeSet<(ShardId, ConfigNum)>,
    pub(crate) groups: BTreeSet<Gid>,
    pub(crate) planned: BTreeSet<ShardId>,
    /// True if a part of a step arrived, or the parts went.
    pub(crate) parts: bool,
    /// The number of parts that went.
    pub(crate) parts_gone: u32,
    /// Shards whose rows and sessions go.
    pub(crate) cleared: BTreeSet<ShardId>,
    /// Shards that are served from now on although no group handed them over: a group that may have served them was forgotten.
    pub(crate) lost: BTreeSet<ShardId>,
}

impl Ownership {
    /// Sets the move that the accepted configuration plans for a shard; `None` if it plans none that concerns this group. A copy for
    /// another move is dropped.
    pub(crate) fn plan(
        &mut self,
        shard: ShardId,
        planned: Option<PlannedMove>,
        changed: &mut Changed,
    ) {
        let table = Arc::make_mut(&mut self.planned);
        match planned {
            Some(planned) => table.insert(shard, planned),
            None => table.remove(&shard),
        };
        changed.planned.insert(shard);
        if let Some(ShardState::Copying { source, copy, .. }) = self.state(shard)
            && !self.plans_copy(shard, *source, copy.since)
        {
            self.shards.remove(&shard);
            changed.shards.insert(shard);
            changed.cleared.insert(shard);
        }
    }

    /// Records that the source is to delete a shard that was installed here.
    pub(crate) fn owe_delete(
        &mut self,
        shard: ShardId,
        config: ConfigNum,
        source: Gid,
        changed: &mut Changed,
    ) {
        Arc::make_mut(&mut self.pending_deletes).insert((shard, config), source);
        changed.pending_deletes.insert((shard, config));
    }

    pub(crate) fn slot(&self, shard: ShardId) -> Slot {
        let Some(shard) = self.shards.get(&shard) else {
            return Slot::default();
        };
        Slot {
            state: Some(shard.state.clone()),
            since: shard.since,
        }
    }

    /// Puts a shard back that changed.
    pub(crate) fn put(&mut self, shard: ShardId, slot: Slot, changed: &mut Changed) {
        changed.shards.insert(shard);
        if let Some(ShardState::Serving { config }) = slot.state
            && config > self.held
        {
            self.held = config;
            changed.group = true;
        }
        match slot.state {
            None => self.shards.remove(&shard),
            Some(state) => self
                .shards
                .insert(shard, Arc::new(Shard::new(state, slot.since))),
        };
    }
}

/// A shard while it changes.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) state: Option<ShardState>,
    since: LogTime,
}

impl Slot {
    pub(crate) fn change(&mut self, state: ShardState, time: LogTime) {
        self.state = Some(state);
        self.since = time;
    }
}

pub(crate) fn due_if(due: bool) -> Verdict {
    if due { Verdict::Due } else { Verdict::Idle }
}

pub(crate) fn nonsense(why: &str) -> Verdict {
    Verdict::Refused(KvError::Malformed(why.to_owned()))
}
