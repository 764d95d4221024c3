//! From a plan to the next configuration: cuts change owners, and drained groups go.
//!
//! # When an owner changes
//!
//! Join, Leave and Move change targets. The owner of a shard changes only by a [`Change::Cut`](crate::Change::Cut), by which the target
//! reports that its copy of the shard has caught up. A shard that nobody has owned is the exception: there is nothing to copy, so its
//! target becomes its owner in the same configuration.
//!
//! A cut takes effect if the shard is in exactly the state that the cut names: owner and target, both incarnations, and since when they
//! are so. Numbers of owners and targets are never used again, so a report that comes late or twice changes nothing.
//!
//! The target reports it only while it has a copy that follows a journal of the owner, and the owner has a journal only while
//! it serves the shard, which the owner before has fenced by then. So no group ever has two changes of a shard that it has
//! before it. One that lags may skip any number of configurations: the latest one says all that the group still has to do. Nothing that
//! the controllers keep waits for a group.
//!
//! # When a group is drained
//!
//! A group that leaves stays in the configurations while it owns a shard, has one fenced, or is owed or owes a confirmation. That is so
//! until it owns nothing and has settled the last configuration that gave it a shard or took one from it
//! ([`GroupProgress::is_settled`]). Then the next configuration is without it, and its incarnation is recorded as drained.
//!
//! So a group's absence from the configurations implies that it has deleted every shard that it gave away: a group settles the
//! configuration that took a shard from it by deleting its copy. A destination relies on this. It has installed a
//! shard and waits for the source's confirmation of the delete; if the source is no longer part of the configurations, the
//! destination counts the delete as confirmed.
//!
//! A group may also be forgotten because it is gone for good. Then nobody waits for it either: see the module `forget`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::StoreError;
use replica::{Table, Transaction};
use types::{ConfigDelta, ConfigNum, Gid, Group, Incarnation, ShardConfig, ShardId};

use crate::bug::Bug;
use crate::history::impossible;
use crate::rules::Plan;
use crate::{Cut, Drained, GroupProgress, MAX_DRAINED, Response, Shardctrler, keys};

impl Shardctrler {
    /// Returns the incarnation that a group gets if it joins now.
    pub(crate) fn incarnation(&self, gid: Gid) -> Incarnation {
        match self.drained.get(&gid) {
            Some(before) if self.bugs.has(Bug::IncarnationReused) => before.incarnation,
            _ => Incarnation(self.history.latest().num().next().0),
        }
    }

    /// Returns the delta to a configuration with the plan's groups and targets and these owners, without drained groups.
    pub(crate) fn delta(&self, latest: &ShardConfig, plan: &Plan, owners: &[Gid]) -> ConfigDelta {
        let mut groups = plan.groups.clone();
        if groups.values().any(|group| group.leaving) {
            let early = self.bugs.has(Bug::LeavingCountsAsDrained);
            // A group that loses its last shard in this very configuration has to hand it over.
            let owning = if early { owners } else { latest.owners() };
            let owning: BTreeSet<Gid> = owning.iter().copied().collect();
            groups.retain(|gid, group| {
                let settled = self.progress.get(gid).is_none_or(|it| it.is_settled());
                !group.leaving || owning.contains(gid) || !(settled || early)
            });
        }
        ConfigDelta::new(latest, &groups, &plan.targets, owners)
    }

    /// Makes the configuration without a group that has reported, if the group is drained now.
    pub(crate) fn drop_if_drained(
        &mut self,
        gid: Gid,
        state: &mut Transaction<'_>,
    ) -> Result<(), StoreError> {
        let latest = self.latest();
        let is_leaving = latest.groups().get(&gid).is_some_and(|it| it.leaving);
        let is_settled = self.progress.get(&gid).is_some_and(|it| it.is_settled());
        if !is_leaving || !is_settled {
            return Ok(());
        }
        let delta = self.delta(&latest, &Plan::same(&latest), latest.owners());
        if delta.groups.is_empty() {
            return Ok(());
        }
        self.push(delta, state)
    }

    /// Cuts the shards that are in exactly the state that their cut names.
    pub(crate) fn cut(
        &mut self,
        cuts: &BTreeMap<ShardId, Cut>,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let latest = self.latest();
        let nothing = Response::Cut {
            num: latest.num(),
            cut: 0,
        };
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
        self.push(delta, state)?;
        Ok(Response::Cut { num, cut: count })
    }

    /// Returns true if the shard moves and is in exactly the state that the cut names. The journal is for owner and target
    /// to compare.
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
        self.forget_old(state)
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
                        held: ConfigNum(0),
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
        let steps = delta.moves.iter().chain(&delta.resets);
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
            forgotten: false,
            retired: false,
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
