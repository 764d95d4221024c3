//! Steps change a group's [`Ownership`]: the tables of the module `ownership`, as code.
//!
//! [`Ownership::judge`] alone decides whether a step is due. [`Ownership::take`] carries out a due step and returns the
//! records that changed. Neither touches keys, values or sessions: the machine does that.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use types::{ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardId};

use crate::bug::{Bug, Bugs};
use crate::install::check_chunk;
use crate::ownership::Fence;
use crate::{
    Chunk, Cursor, Genesis, KvError, Next, Ownership, QueuedStep, Shard, ShardState, Step,
};

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
    /// Shards whose rows and sessions go.
    pub(crate) cleared: BTreeSet<ShardId>,
}

impl Ownership {
    /// Judges `step` by the tables of the module `ownership`.
    pub(crate) fn judge(&self, step: &Step, genesis: &Genesis, bugs: Bugs) -> Verdict {
        match step {
            Step::Begin { gid, .. } if *gid == Gid::NONE => nonsense("gid 0 is no replica group"),
            Step::Begin {
                gid,
                controller,
                num,
                ..
            } => due_if(self.can_begin(*gid, *controller, *num)),
            Step::Configure { controller, delta } => match self.controller {
                None => Verdict::Idle,
                Some(own) if own != *controller => nonsense(&format!(
                    "the group follows controller {own}, not {controller}"
                )),
                Some(_) if delta.num != self.config.next() => Verdict::Idle,
                Some(_) => self.judge_delta(delta, genesis),
            },
            Step::Install(chunk) => self.judge_install(chunk, genesis, bugs),
            Step::Delete { shard, config } => match self.fence(*shard, *config) {
                Fence::Here => Verdict::Due,
                Fence::Past if bugs.has(Bug::ConfigNumAtLeast) => due_if(matches!(
                    self.state(*shard),
                    Some(ShardState::Fenced { .. })
                )),
                Fence::Past => Verdict::Idle,
                Fence::Ahead => Verdict::Refused(KvError::ShardNotReady { shard: *shard }),
            },
            Step::Deleted { shard, config } => {
                due_if(self.pending_deletes.contains_key(&(*shard, *config)))
            }
            Step::Copy(step) => self.judge_copy(step, genesis, bugs),
        }
    }

    /// Carries out a step that is due, in an entry of log time `time`.
    pub(crate) fn take(
        &mut self,
        step: &Step,
        time: LogTime,
        genesis: &Genesis,
        bugs: Bugs,
    ) -> Changed {
        let mut changed = Changed::default();
        match step {
            Step::Begin {
                gid,
                controller,
                num,
                groups,
            } => {
                self.gid = *gid;
                self.controller = Some(*controller);
                self.config = *num;
                changed.groups.extend(self.groups.keys());
                changed.groups.extend(groups.keys());
                self.groups = Arc::new(groups.clone());
                self.left.clear();
                // They are of an older configuration.
                changed.planned.extend(self.planned.keys());
                self.planned = Arc::default();
                changed.group = true;
            }
            Step::Configure { delta, .. } => self.configure(delta, time, bugs, &mut changed),
            Step::Install(chunk) => self.install(chunk, time, genesis, bugs, &mut changed),
            Step::Delete { shard, .. } => {
                let mut slot = self.slot(*shard);
                slot.state = None;
                slot.clock = LogTime(0);
                changed.cleared.insert(*shard);
                self.settle(*shard, slot, time, &mut changed);
            }
            Step::Deleted { shard, config } => {
                let delete = (*shard, *config);
                changed.pending_deletes.insert(delete);
                if let Some(source) = self.pending_deletes.remove(&delete) {
                    self.prune([source].into(), &mut changed);
                }
            }
            Step::Copy(step) => self.take_copy(step, time, genesis, bugs, &mut changed),
        }
        self.check_invariants(&changed.shards);
        changed
    }

    /// Returns true if the group may begin at configuration `num`. A group that holds no shard and owes no delete takes part in
    /// no hand-off, so the controllers may have dropped the configurations between its own and `num`.
    fn can_begin(&self, gid: Gid, controller: ClusterId, num: ConfigNum) -> bool {
        let has_nothing = self.shards.is_empty() && self.pending_deletes.is_empty();
        let same = self.controller == Some(controller) && self.gid == gid;
        self.controller.is_none() || (same && has_nothing && num > self.config)
    }

    /// Refuses a configuration that gives the group a shard that it has, or takes one that it lacks. Such a configuration
    /// belongs to another history, and to accept any part of it would be a guess.
    fn judge_delta(&self, delta: &ConfigDelta, genesis: &Genesis) -> Verdict {
        for step in &delta.moves {
            if step.run.end().0 > genesis.shards {
                return nonsense(&format!(
                    "configuration {} has more than this group's {} shards",
                    delta.num, genesis.shards
                ));
            }
            let goes = step.from == self.gid;
            if !goes && step.to != self.gid {
                continue;
            }
            let mut shards = step.run.shards();
            if let Some(shard) = shards.find(|shard| self.ends_here(*shard) != goes) {
                let verb = if goes { "takes" } else { "gives" };
                return nonsense(&format!(
                    "configuration {} {verb} {shard} against what this group knows of it",
                    delta.num
                ));
            }
        }
        Verdict::Due
    }

    /// Returns true if this group owns the shard once all steps in its queue are done.
    fn ends_here(&self, shard: ShardId) -> bool {
        let Some(shard) = self.shards.get(&shard) else {
            return false;
        };
        match shard.queue.back() {
            Some(step) => step.to == self.gid,
            None => !matches!(
                shard.state,
                ShardState::Fenced { .. } | ShardState::Copying { .. }
            ),
        }
    }

    fn judge_install(&self, chunk: &Chunk, genesis: &Genesis, bugs: Bugs) -> Verdict {
        let due = match self.state(chunk.shard) {
            Some(ShardState::Pulling { config, after, .. }) => {
                let same = *config == chunk.config
                    || (bugs.has(Bug::ConfigNumAtLeast) && *config >= chunk.config);
                let again = bugs.has(Bug::ChunkInstalledTwice) && *config == chunk.config;
                (same && *after == chunk.after) || again
            }
            Some(ShardState::Serving { config }) => {
                bugs.has(Bug::ChunkInstalledTwice) && *config == chunk.config
            }
            _ => false,
        };
        if !due {
            return Verdict::Idle;
        }
        match check_chunk(chunk, genesis.shards) {
            Ok(()) => Verdict::Due,
            Err(error) => nonsense(&error.to_string()),
        }
    }

    fn configure(&mut self, delta: &ConfigDelta, time: LogTime, bugs: Bugs, changed: &mut Changed) {
        self.config = delta.num;
        changed.group = true;
        let mut left = BTreeSet::new();
        for (gid, group) in &delta.groups {
            changed.groups.insert(*gid);
            if let Some(group) = group {
                Arc::make_mut(&mut self.groups).insert(*gid, group.addresses.clone());
                self.left.remove(gid);
            } else if self.groups.contains_key(gid) {
                self.left.insert(*gid);
                left.insert(*gid);
            }
        }
        for step in &delta.moves {
            if step.from != self.gid && step.to != self.gid {
                continue;
            }
            for shard in step.run.shards() {
                let mut slot = self.slot(shard);
                if bugs.has(Bug::QueueKeepsNewestOnly) {
                    slot.queue.clear();
                }
                slot.queue.push_back(QueuedStep {
                    config: delta.num,
                    from: step.from,
                    to: step.to,
                });
                self.settle(shard, slot, time, changed);
            }
        }
        self.prune(left, changed);
    }

    fn install(
        &mut self,
        chunk: &Chunk,
        time: LogTime,
        genesis: &Genesis,
        bugs: Bugs,
        changed: &mut Changed,
    ) {
        let mut slot = self.slot(chunk.shard);
        let Some(ShardState::Pulling {
            config,
            source,
            after,
            bytes,
        }) = &mut slot.state
        else {
            return;
        };
        if *after != chunk.after {
            return;
        }
        *bytes += chunk.content_bytes();
        match &chunk.next {
            Next::Chunk(cursor) => after.clone_from(cursor),
            Next::Done { clock, ttl_ms } => {
                let (config, source) = (*config, *source);
                if !bugs.has(Bug::SessionClockStaysBehind) {
                    slot.clock = clock_here(*clock, *ttl_ms, genesis.session_ttl_ms);
                }
                slot.change(ShardState::Serving { config }, time);
                self.owe_delete(chunk.shard, config, source, changed);
            }
        }
        self.settle(chunk.shard, slot, time, changed);
    }

    /// Records that the source is to delete a shard that was installed here.
    pub(crate) fn owe_delete(
        &mut self,
        shard: ShardId,
        config: ConfigNum,
        source: Gid,
        changed: &mut Changed,
    ) {
        self.pending_deletes.insert((shard, config), source);
        changed.pending_deletes.insert((shard, config));
    }

    pub(crate) fn slot(&self, shard: ShardId) -> Slot {
        let Some(shard) = self.shards.get(&shard) else {
            return Slot::default();
        };
        Slot {
            state: Some(shard.state.clone()),
            queue: shard.queue.clone(),
            since: shard.since,
            clock: shard.clock,
        }
    }

    /// Applies the queued steps that fit the state, and puts the shard back.
    pub(crate) fn settle(
        &mut self,
        shard: ShardId,
        mut slot: Slot,
        time: LogTime,
        changed: &mut Changed,
    ) {
        while let Some(step) = slot.queue.front()
            && let Some(next) = self.state_after(slot.state.as_ref(), *step)
        {
            slot.queue.pop_front();
            // The copy is of another source.
            if matches!(slot.state, Some(ShardState::Copying { .. }))
                && matches!(next, ShardState::Pulling { .. })
            {
                changed.cleared.insert(shard);
            }
            if matches!(next, ShardState::Fenced { .. }) {
                slot.clock = slot.clock.max(time);
            }
            slot.change(next, time);
        }
        changed.shards.insert(shard);
        match slot.state {
            None => self.shards.remove(&shard),
            Some(state) => self.shards.insert(
                shard,
                Arc::new(Shard {
                    state,
                    queue: slot.queue,
                    since: slot.since,
                    clock: slot.clock,
                }),
            ),
        };
    }

    /// Returns the state that follows `state` by `step`; `None` if the step has to wait.
    fn state_after(&self, state: Option<&ShardState>, step: QueuedStep) -> Option<ShardState> {
        let QueuedStep { config, from, to } = step;
        match state {
            Some(ShardState::Copying {
                source,
                copy,
                cursor,
                bytes,
            }) if to == self.gid && from == *source => Some(ShardState::Completing {
                config,
                source: from,
                copy: *copy,
                cursor: cursor.clone(),
                bytes: *bytes,
            }),
            None if to == self.gid && from == Gid::NONE => Some(ShardState::Serving { config }),
            None | Some(ShardState::Copying { .. }) if to == self.gid => {
                Some(ShardState::Pulling {
                    config,
                    source: from,
                    after: Cursor::default(),
                    bytes: 0,
                })
            }
            Some(ShardState::Serving { .. }) if from == self.gid => {
                Some(ShardState::Fenced { config, to })
            }
            _ => None,
        }
    }

    /// Removes the addresses of those `candidates` that have left and that no hand-off needs. Stops searching as soon as every
    /// candidate is known to be needed: mostly that is soon, and there may be very many shards.
    fn prune(&mut self, mut candidates: BTreeSet<Gid>, changed: &mut Changed) {
        candidates.retain(|gid| self.left.contains(gid));
        let deletes = self.pending_deletes.values().copied();
        let coming = self.shards.unfinished_shards().flat_map(|(_, shard)| {
            let pulled = match &shard.state {
                ShardState::Pulling { source, .. } | ShardState::Completing { source, .. } => {
                    Some(*source)
                }
                _ => None,
            };
            let due = shard.queue.iter().filter(|step| step.to == self.gid);
            pulled.into_iter().chain(due.map(|step| step.from))
        });
        for needed in deletes.chain(coming) {
            if candidates.is_empty() {
                return;
            }
            candidates.remove(&needed);
        }
        for gid in candidates {
            self.left.remove(&gid);
            Arc::make_mut(&mut self.groups).remove(&gid);
            changed.groups.insert(gid);
        }
    }
}

/// A shard while it changes.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) state: Option<ShardState>,
    queue: VecDeque<QueuedStep>,
    since: LogTime,
    pub(crate) clock: LogTime,
}

impl Slot {
    pub(crate) fn change(&mut self, state: ShardState, time: LogTime) {
        self.state = Some(state);
        self.since = time;
    }
}

/// Converts the source's session clock to this group's time to live. A table may have forgotten the sessions that were born
/// more than a time to live before its clock. That moment must not go back, so the clocks differ if the two groups chose
/// different times to live. See the crate's documentation.
pub(crate) fn clock_here(clock: LogTime, source_ttl_ms: u64, own_ttl_ms: u64) -> LogTime {
    LogTime(
        clock
            .0
            .saturating_add(own_ttl_ms)
            .saturating_sub(source_ttl_ms),
    )
}

pub(crate) fn due_if(due: bool) -> Verdict {
    if due { Verdict::Due } else { Verdict::Idle }
}

pub(crate) fn nonsense(why: &str) -> Verdict {
    Verdict::Refused(KvError::Malformed(why.to_owned()))
}

#[cfg(test)]
mod tests;
