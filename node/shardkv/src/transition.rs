//! Steps change a group's [`Ownership`]: the tables of the module `ownership`, as code.
//!
//! [`Ownership::judge`] alone decides whether a step is due. [`Ownership::take`] carries out a due step and returns the
//! records that changed. Neither touches keys, values or sessions: the machine does that.

use std::collections::BTreeSet;
use std::sync::Arc;

use types::{ConfigNum, Gid, LogTime, ShardId};

use crate::bug::{Bug, Bugs};
use crate::install::check_chunk;
use crate::ownership::Fence;
use crate::{Chunk, Genesis, KvError, Next, Ownership, Shard, ShardState, Step};

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
            Step::Configure(step) => self.judge_configure(step, genesis),
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
            Step::Configure(step) => self.take_configure(step, time, &mut changed),
            Step::Install(chunk) => self.install(chunk, time, genesis, bugs, &mut changed),
            Step::Delete { shard, .. } => {
                let mut slot = self.slot(*shard);
                slot.state = None;
                slot.clock = LogTime(0);
                changed.cleared.insert(*shard);
                self.put(*shard, slot, &mut changed);
            }
            Step::Deleted { shard, config } => {
                let delete = (*shard, *config);
                changed.pending_deletes.insert(delete);
                self.pending_deletes.remove(&delete);
            }
            Step::Copy(step) => self.take_copy(step, time, genesis, bugs, &mut changed),
        }
        self.check_invariants(&changed.shards);
        changed
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
        self.put(chunk.shard, slot, changed);
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
            since: shard.since,
            clock: shard.clock,
        }
    }

    /// Puts a shard back that changed.
    pub(crate) fn put(&mut self, shard: ShardId, slot: Slot, changed: &mut Changed) {
        changed.shards.insert(shard);
        match slot.state {
            None => self.shards.remove(&shard),
            Some(state) => self.shards.insert(
                shard,
                Arc::new(Shard {
                    state,
                    since: slot.since,
                    clock: slot.clock,
                }),
            ),
        };
    }
}

/// A shard while it changes.
#[derive(Default)]
pub(crate) struct Slot {
    pub(crate) state: Option<ShardState>,
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
