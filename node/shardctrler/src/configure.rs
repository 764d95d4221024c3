//! From a plan to the next configuration: owners follow targets, and drained groups go.
//!
//! # When an owner changes
//!
//! A shard is *at rest* once its owner has settled the configuration that made it the owner: it serves the shard, and the
//! owner before has deleted its copy. Only then may the owner change again. So no group ever has two changes of one shard
//! before it, and one that lags may go to the latest configuration at once.
//!
//! The owner of a shard at rest changes in the same configuration as its target, or in the one that a report makes when it comes to
//! rest. A [`Change::Cut`](crate::Change::Cut) does it on request, if the shard is in exactly the state that the request
//! names.
//!
//! # When a group is drained
//!
//! A group that leaves stays in the configurations while it owns a shard, has one fenced, or is owed a confirmation: until it has
//! settled the last configuration that gave it a shard or took one from it. Then the next configuration is without it, and its
//! incarnation is recorded as drained.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::StoreError;
use replica::{Table, Transaction};
use types::{ConfigDelta, Gid, Group, Incarnation, LogTime, ShardConfig, ShardId};

use crate::bug::Bug;
use crate::machine::impossible;
use crate::rules::Plan;
use crate::{
    Cut, Drained, GroupProgress, MAX_DRAINED, MIN_CUT_INTERVAL_MS, Response, Shardctrler, keys,
};

impl Shardctrler {
    /// Returns the incarnation that a group gets if it joins now.
    pub(crate) fn incarnation(&self, gid: Gid) -> Incarnation {
        match self.drained.get(&gid) {
            Some(before) if self.bugs.has(Bug::IncarnationReused) => before.incarnation,
            _ => Incarnation(self.history.latest().num().next().0),
        }
    }

    /// Returns the owners after `latest`, given the targets: those of shards at rest change.
    pub(crate) fn owners_at_rest(&self, latest: &ShardConfig, targets: &[Gid]) -> Vec<Gid> {
        let rows = latest.rows().zip(targets);
        let owners = rows.map(|(row, target)| {
            let settled = self.progress.get(&row.owner).map(|it| it.settled);
            let at_rest = settled.is_some_and(|settled| settled >= row.owner_since);
            if row.owner == Gid::NONE || at_rest || self.bugs.has(Bug::CutBeforeRest) {
                *target
            } else {
                row.owner
            }
        });
        owners.collect()
    }

    /// Returns the delta to a configuration with the plan's groups and targets and these owners, without drained groups.
    pub(crate) fn delta(&self, latest: &ShardConfig, plan: &Plan, owners: &[Gid]) -> ConfigDelta {
        let mut groups = plan.groups.clone();
        if groups.values().any(|group| group.leaving) {
            let early = self.bugs.has(Bug::LeavingCountsAsDrained);
            // One that loses its last shard in this very configuration has to hand it over.
            let owning = if early { owners } else { latest.owners() };
            let owning: BTreeSet<Gid> = owning.iter().copied().collect();
            groups.retain(|gid, group| {
                let settled = self.progress.get(gid).is_none_or(|it| it.is_settled());
                !group.leaving || owning.contains(gid) || !(settled || early)
            });
        }
        ConfigDelta::new(latest, &groups, &plan.targets, owners)
    }

    /// Makes the configuration, if any, that follows from what groups reported: without a change of targets.
    pub(crate) fn follow(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        let latest = self.latest();
        let leaving = latest.groups().values().any(|group| group.leaving);
        if (!leaving && latest.moving() == 0) || self.full().is_some() {
            return Ok(());
        }
        let owners = self.owners_at_rest(&latest, latest.targets());
        let delta = self.delta(&latest, &Plan::same(&latest), &owners);
        if delta.moves.is_empty() && delta.groups.is_empty() {
            return Ok(());
        }
        self.push(delta, state)
    }

    /// Cuts the shards that are in exactly the state that their cut names.
    pub(crate) fn cut(
        &mut self,
        cuts: &BTreeMap<ShardId, Cut>,
        time: LogTime,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let latest = self.latest();
        let nothing = Response::Cut {
            num: latest.num(),
            cut: 0,
        };
        let early = self.last_cut != LogTime(0) && time.since(self.last_cut) < MIN_CUT_INTERVAL_MS;
        if early || self.full().is_some() {
            return Ok(nothing);
        }
        let mut owners = latest.owners().to_vec();
        let mut count = 0;
        for (shard, cut) in cuts {
            let Some(owner) = owners.get_mut(shard.0 as usize) else {
                continue;
            };
            if self.is_due(&latest, *shard, cut) {
                *owner = latest.target(*shard);
                count += 1;
            }
        }
        if count == 0 {
            return Ok(nothing);
        }
        let delta = self.delta(&latest, &Plan::same(&latest), &owners);
        let num = delta.num;
        self.last_cut = time;
        let record = Bytes::copy_from_slice(&time.0.to_be_bytes());
        state.put(Table::Meta, Bytes::from_static(keys::LAST_CUT), record);
        self.push(delta, state)?;
        Ok(Response::Cut { num, cut: count })
    }

    /// Returns true if the shard moves and is in exactly the state that the cut names. The journal is for owner and target to
    /// compare.
    fn is_due(&self, latest: &ShardConfig, shard: ShardId, cut: &Cut) -> bool {
        let row = latest.row(shard);
        let incarnation = |gid| latest.groups().get(&gid).map(|group| group.incarnation);
        let of_owner = (row.owner, row.owner_since) == (cut.owner, cut.owner_since)
            && incarnation(row.owner) == Some(cut.owner_incarnation);
        let of_target = (row.target, row.target_since) == (cut.target, cut.target_since)
            && incarnation(row.target) == Some(cut.target_incarnation);
        row.is_moving() && of_owner && (of_target || self.bugs.has(Bug::CutForOlderTarget))
    }

    /// Makes the next configuration.
    pub(crate) fn push(
        &mut self,
        delta: ConfigDelta,
        state: &mut Transaction<'_>,
    ) -> Result<(), StoreError> {
        self.track(&delta, state);
        let num = delta.num;
        let record = self.history.push(delta).map_err(impossible)?;
        state.put(Table::Meta, keys::delta(num), record);
        self.forget_passed(state)
    }

    /// Takes up groups that came, records which are drained, and notes what each has to do.
    fn track(&mut self, delta: &ConfigDelta, state: &mut Transaction<'_>) {
        let before = self.latest();
        for (gid, group) in &delta.groups {
            match (group, before.groups().get(gid)) {
                (Some(_), None) => {
                    let progress = GroupProgress {
                        // It has had nothing to do so far.
                        settled: before.num(),
                        due: before.num(),
                    };
                    self.progress.insert(*gid, progress);
                    state.put(Table::Meta, keys::group(*gid), progress.encode());
                }
                (None, Some(known)) => {
                    self.progress.remove(gid);
                    state.remove(Table::Meta, keys::group(*gid));
                    self.note_drained(*gid, known, delta, state);
                }
                _ => {}
            }
        }
        let steps = delta.moves.iter();
        let concerned: BTreeSet<Gid> = steps.flat_map(|step| [step.from, step.to]).collect();
        for gid in concerned {
            if let Some(progress) = self.progress.get_mut(&gid) {
                progress.due = delta.num;
                state.put(Table::Meta, keys::group(gid), progress.encode());
            }
        }
    }

    /// Records that a group is drained, and forgets those that were drained the longest ago if there are too many.
    fn note_drained(
        &mut self,
        gid: Gid,
        group: &Group,
        delta: &ConfigDelta,
        state: &mut Transaction<'_>,
    ) {
        let drained = Drained {
            incarnation: group.incarnation,
            gone_in: delta.num,
        };
        self.drained.insert(gid, drained);
        state.put(Table::Meta, keys::drained(gid), drained.encode());
        if self.drained.len() > MAX_DRAINED {
            let oldest = self
                .drained
                .iter()
                .min_by_key(|(gid, it)| (it.gone_in, **gid));
            if let Some(gid) = oldest.map(|(gid, _)| *gid) {
                self.drained.remove(&gid);
                state.remove(Table::Meta, keys::drained(gid));
            }
        }
    }

    /// Notes a shard that was moved by hand, and forgets those that a rebalance had to touch.
    pub(crate) fn hold(&mut self, before: &ShardConfig, plan: &Plan, state: &mut Transaction<'_>) {
        let target = |shard: &ShardId| plan.targets.get(shard.0 as usize).copied();
        let touched = |shard: &ShardId| target(shard) != Some(before.target(*shard));
        let touched: Vec<ShardId> = self.moved.iter().copied().filter(touched).collect();
        for shard in touched {
            self.moved.remove(&shard);
            state.remove(Table::Meta, keys::moved(shard));
        }
        if let Some(shard) = plan.moved {
            self.moved.insert(shard);
            state.put(Table::Meta, keys::moved(shard), Bytes::new());
        }
    }
}
