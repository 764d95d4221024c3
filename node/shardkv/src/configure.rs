//! The step by which a group takes up a configuration.
//!
//! A [`Configure`] leads from the accepted configuration to any later one. It carries the rows of the shards for which that brings
//! something new here, each as it is in the later configuration: what was between the two doesn't matter. That is enough, because a
//! shard's owner changes only once the owner serves the shard (it has a journal then), and an owner serves a shard only once the owner
//! before has fenced it. So a group never has more than one change of a shard that it has before it, however far it is behind.
//!
//! A row that doesn't fit what the group has of the shard belongs to another history. Then the whole configuration is refused,
//! because any part of it would be a guess.

mod codec;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{
    Assignment, ClusterId, ConfigNum, Gid, Group, LogTime, ShardConfig, ShardId, ShardRun,
};

use crate::change::{Changed, Verdict, due_if, nonsense};
use crate::{Cursor, Genesis, Ownership, PlannedMove, ShardState, Target};

/// A later configuration, as far as it is news to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configure {
    /// The group.
    pub gid: Gid,
    /// The controllers' incarnation. A group follows the one of its first configuration for ever.
    pub controller: ClusterId,
    /// The configuration that the group must have accepted before; 0 for its first step.
    pub after: ConfigNum,
    /// The configuration.
    pub num: ConfigNum,
    /// The groups that are new or changed since `after`, and `None` for each that is gone.
    pub groups: BTreeMap<Gid, Option<Group>>,
    /// The new rows, in order of the shards.
    pub rows: Vec<(ShardRun, Assignment)>,
}

impl Configure {
    /// Returns the step by which group `gid` takes up `config`.
    pub fn to(
        config: &ShardConfig,
        gid: Gid,
        controller: ClusterId,
        ownership: &Ownership,
    ) -> Self {
        let (known, groups) = (&ownership.groups, config.groups());
        let changed = groups.iter().filter(|(gid, it)| known.get(gid) != Some(it));
        let changed = changed.map(|(gid, group)| (*gid, Some(group.clone())));
        let gone = known.keys().filter(|gid| !groups.contains_key(gid));
        let mut rows: Vec<(ShardRun, Assignment)> = Vec::new();
        for (shard, row) in (0..).map(ShardId).zip(config.rows()) {
            if !ownership.is_news(gid, shard, &row) {
                continue;
            }
            match rows.last_mut() {
                Some((run, last)) if run.end() == shard && *last == row => run.count += 1,
                _ => {
                    let (first, count) = (shard, 1);
                    rows.push((ShardRun { first, count }, row));
                }
            }
        }
        Self {
            gid,
            controller,
            after: ownership.config,
            num: config.num(),
            groups: changed.chain(gone.map(|gid| (*gid, None))).collect(),
            rows,
        }
    }

    /// Returns each shard of the rows with its row.
    fn shards(&self) -> impl Iterator<Item = (ShardId, &Assignment)> {
        let rows = self.rows.iter();
        rows.flat_map(|(run, row)| run.shards().map(move |shard| (shard, row)))
    }
}

/// The row of a shard contradicts what the group has of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contradiction;

impl Ownership {
    /// Judges the step.
    pub(crate) fn judge_configure(&self, step: &Configure, genesis: &Genesis) -> Verdict {
        if step.gid == Gid::NONE {
            return nonsense("gid 0 is no replica group");
        }
        if let Some(own) = self.controller {
            if own != step.controller {
                let other = step.controller;
                return nonsense(&format!("the group follows controller {own}, not {other}"));
            }
            if self.gid != step.gid {
                return nonsense(&format!("the group is {}, not {}", self.gid, step.gid));
            }
            if step.num <= self.config {
                return Verdict::Idle;
            }
        }
        if step.after != self.config {
            return Verdict::Idle;
        }
        let num = step.num;
        let mut next = ShardId(0);
        for (run, row) in &step.rows {
            let fits = run.first >= next && run.count > 0 && run.count <= genesis.shards;
            if !fits || run.end().0 > genesis.shards || row.owner_since.max(row.target_since) > num
            {
                return nonsense(&format!(
                    "configuration {num} has rows out of order, or not of this group's {} shards",
                    genesis.shards
                ));
            }
            next = run.end();
        }
        let wrong = |(shard, row): &(ShardId, &Assignment)| {
            self.state_after(step.gid, *shard, row).is_err()
        };
        match step.shards().find(wrong) {
            None => due_if(true),
            Some((shard, row)) => {
                let verb = if row.owner == step.gid {
                    "gives"
                } else {
                    "takes"
                };
                nonsense(&format!(
                    "configuration {num} {verb} {shard} against what this group knows of it"
                ))
            }
        }
    }

    /// Carries out the step, which is due, in an entry of log time `time`.
    pub(crate) fn take_configure(
        &mut self,
        step: &Configure,
        time: LogTime,
        changed: &mut Changed,
    ) {
        self.gid = step.gid;
        self.controller = Some(step.controller);
        changed.group = true;
        if !step.groups.is_empty() {
            self.take_groups(&step.groups, changed);
        }
        for (shard, row) in step.shards() {
            if let Ok(Some(next)) = self.state_after(step.gid, shard, row) {
                let mut slot = self.slot(shard);
                // The copy is of another source.
                if matches!(slot.state, Some(ShardState::Copying { .. }))
                    && !matches!(next, ShardState::Completing { .. })
                {
                    changed.cleared.insert(shard);
                }
                if matches!(next, ShardState::Fenced { .. }) {
                    slot.clock = slot.clock.max(time);
                }
                slot.change(next, time);
                self.put(shard, slot, changed);
            }
            self.plan(shard, planned(step.gid, row), changed);
        }
        // Last, because what the group lacks depends on what it had accepted.
        self.config = step.num;
    }

    /// Takes up the groups, and forgets the deletes that groups owe which are gone. A group goes once it is drained: it has deleted all
    /// that it gave away. A group with another incarnation has the gid of one that is gone.
    fn take_groups(&mut self, groups: &BTreeMap<Gid, Option<Group>>, changed: &mut Changed) {
        let known = Arc::make_mut(&mut self.groups);
        let mut drained = BTreeSet::new();
        for (gid, group) in groups {
            let before = match group {
                Some(group) => known.insert(*gid, group.clone()),
                None => known.remove(gid),
            };
            let stays = |before: &Group| {
                let group = group.as_ref();
                group.is_some_and(|it| it.incarnation == before.incarnation)
            };
            if before.is_some_and(|before| !stays(&before)) {
                drained.insert(*gid);
            }
            changed.groups.insert(*gid);
        }
        self.pending_deletes.retain(|pending, source| {
            let goes = drained.contains(source);
            if goes {
                changed.pending_deletes.insert(*pending);
            }
            !goes
        });
    }

    /// Returns true if the row would change something here, or can't be right.
    fn is_news(&self, gid: Gid, shard: ShardId, row: &Assignment) -> bool {
        planned(gid, row) != self.planned.get(&shard).copied()
            || self.state_after(gid, shard, row) != Ok(None)
    }

    /// Returns the state into which a row brings a shard of group `gid`; `None` if the state stays.
    fn state_after(
        &self,
        gid: Gid,
        shard: ShardId,
        row: &Assignment,
    ) -> Result<Option<ShardState>, Contradiction> {
        let (config, source) = (row.owner_since, row.previous);
        let arrives = || match source {
            Gid::NONE => ShardState::Serving { config },
            _ => ShardState::Pulling {
                config,
                source,
                after: Cursor::default(),
                bytes: 0,
            },
        };
        let comes = row.owner == gid;
        Ok(Some(match self.state(shard) {
            None | Some(ShardState::Copying { .. }) if !comes => return Ok(None),
            None | Some(ShardState::Copying { .. }) if config <= self.config => {
                return Err(Contradiction);
            }
            None => arrives(),
            Some(ShardState::Copying {
                source: of,
                copy,
                cursor,
                bytes,
            }) => {
                if *of != source {
                    return Ok(Some(arrives()));
                }
                ShardState::Completing {
                    config,
                    source,
                    copy: *copy,
                    cursor: cursor.clone(),
                    bytes: *bytes,
                }
            }
            Some(ShardState::Serving { config: since }) if !comes => {
                if source != gid || config <= *since {
                    return Err(Contradiction);
                }
                let to = row.owner;
                ShardState::Fenced { config, to }
            }
            Some(ShardState::Fenced { config: by, to }) => {
                // The new owner may have given the shard away before it told this group to delete it.
                let same = *by == config && *to == row.owner;
                let later = *by < config && source != gid;
                if comes || !(same || later) {
                    return Err(Contradiction);
                }
                return Ok(None);
            }
            Some(state) => {
                if !comes || state.config() != config {
                    return Err(Contradiction);
                }
                return Ok(None);
            }
        }))
    }
}

/// Returns the move that a row plans, if group `gid` is one of the two.
fn planned(gid: Gid, row: &Assignment) -> Option<PlannedMove> {
    let concerns = row.is_moving() && (row.owner == gid || row.target == gid);
    concerns.then_some(PlannedMove {
        owner: row.owner,
        owner_since: row.owner_since,
        target: Target {
            to: row.target,
            since: row.target_since,
        },
    })
}

#[cfg(test)]
mod tests;
