//! Steps change a group's [`Ownership`]: the tables of the module `ownership`, as code.
//!
//! [`Ownership::judge`] alone decides whether a step is due. [`Ownership::take`] carries out a due step and returns the
//! records that changed. Neither touches keys, values or sessions: the machine does that.

use std::sync::Arc;

use types::LogTime;

use crate::bug::{Bug, Bugs};
use crate::change::{Changed, Verdict, due_if, nonsense};
use crate::install::check_chunk;
use crate::ownership::Fence;
use crate::{Chunk, Genesis, KvError, Next, Ownership, ShardState, Step};

impl Ownership {
    /// Judges `step` by the tables of the module `ownership`.
    pub(crate) fn judge(&self, step: &Step, genesis: &Genesis, bugs: Bugs) -> Verdict {
        match step {
            Step::Configure(step) => self.judge_configure(step, genesis),
            Step::ConfigurePart(part) => {
                self.judge_part_of_configure(part, |step| self.judge_configure(step, genesis))
            }
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
    pub(crate) fn take(&mut self, step: &Step, time: LogTime, bugs: Bugs) -> Changed {
        let mut changed = Changed::default();
        match step {
            Step::Configure(step) => self.take_configure(step, time, &mut changed),
            Step::ConfigurePart(part) => {
                if let Some(step) = self.take_part_of_configure(part, &mut changed) {
                    self.take_configure(&step, time, &mut changed);
                }
            }
            Step::Install(chunk) => self.install(chunk, time, &mut changed),
            Step::Delete { shard, .. } => {
                let mut slot = self.slot(*shard);
                slot.state = None;
                changed.cleared.insert(*shard);
                self.put(*shard, slot, &mut changed);
            }
            Step::Deleted { shard, config } => {
                let delete = (*shard, *config);
                changed.pending_deletes.insert(delete);
                Arc::make_mut(&mut self.pending_deletes).remove(&delete);
            }
            Step::Copy(step) => self.take_copy(step, time, bugs, &mut changed),
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

    fn install(&mut self, chunk: &Chunk, time: LogTime, changed: &mut Changed) {
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
            Next::Done { .. } => {
                let (config, source) = (*config, *source);
                slot.change(ShardState::Serving { config }, time);
                self.owe_delete(chunk.shard, config, source, changed);
            }
        }
        self.put(chunk.shard, slot, changed);
    }
}

#[cfg(test)]
mod tests;
