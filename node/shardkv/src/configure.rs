//! The step by which a group takes up a configuration.
//!
//! A [`Configure`] leads from the accepted configuration to any later one. It carries the rows of the shards for which that brings
//! something new here, each as it is in the later configuration: what was between the two doesn't matter. That is enough, because a
//! shard's owner changes only once the owner serves the shard (it has a journal then), and an owner serves a shard only once the owner
//! before has fenced it. So a group never has more than one change of a shard that it has before it, however far it is behind.
//!
//! # Forgotten groups
//!
//! A group that is gone for good is forgotten: the controllers drop it, and whoever waited for it goes on without it.
//!
//! - A row whose owner changed since, and had nobody before, says that no other group has anything of the shard that is needed. Its owner
//!   serves what it has whole, that is if it served the shard or has it fenced for a group that is gone. A part of it, or a fence of an
//!   older move, is worth nothing, and is cleared: the shard begins empty.
//! - A shard that is fenced for a group that is gone, and doesn't come back, is deleted: that group had taken it over and given it away,
//!   and can't say so any more.
//! - A group that finds itself gone serves nothing from then on. What it served it keeps fenced, for people to look at, and what hadn't
//!   arrived it clears. A drained group has nothing, so this changes nothing for it.
//! - A group that joins as another incarnation begins with nothing: what it still has is of a life that ended.
//! - If another group has the gid since, of other nodes, then its rows don't concern this group. Otherwise nodes of an earlier
//!   incarnation that still run would serve the other group's shards. The addresses tell: a group that joins again has a node that it had.
//!
//! Rows and groups decide this alone. So it doesn't matter which configurations a group skips, but for one: if the group of an older
//! move was forgotten by one that is skipped, its fence looks like one of the last move, and is served.
//!
//! # Contradictions
//!
//! A row that doesn't fit what the group has of the shard belongs to another history. Then the whole configuration is refused,
//! because any part of it would be a guess.

mod codec;
mod news;
mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{
    Assignment, ClusterId, ConfigNum, Gid, Group, LogTime, ShardConfig, ShardId, ShardRun,
};

pub use news::News;
pub use parts::{ConfigurePart, ConfigureParts, Whole};

use crate::change::{Changed, Verdict, due_if, nonsense};
use crate::{Cursor, Genesis, Ownership, PlannedMove, Shard, ShardState, Target};

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
    /// Returns the step by which group `gid` takes up `config`. Looks at all shards: see [`Self::by_news`].
    pub fn to(
        config: &ShardConfig,
        gid: Gid,
        controller: ClusterId,
        ownership: &Ownership,
    ) -> Self {
        let known = ownership.groups.keys().chain(config.groups().keys());
        let groups: BTreeSet<Gid> = known.copied().collect();
        let shards = (0..config.shards()).map(ShardId);
        Self::of(config, gid, controller, ownership, (&groups, shards))
    }

    /// Returns the same step as [`Self::to`], for a `config` to which `news` lead. Looks only at what changed after the accepted
    /// configuration, if that is known.
    ///
    /// # Panics
    ///
    /// In debug builds and in those of the simulator, if the two steps differ.
    pub fn by_news(
        news: &News,
        config: &ShardConfig,
        gid: Gid,
        controller: ClusterId,
        ownership: &Ownership,
    ) -> Self {
        match news.after(ownership.config) {
            // A group that ends or begins looks at all that it has.
            Some((groups, shards)) if !groups.contains(&gid) => {
                let news = (&groups, shards.into_iter());
                let step = Self::of(config, gid, controller, ownership, news);
                if cfg!(any(debug_assertions, feature = "bugs")) {
                    let whole = Self::to(config, gid, controller, ownership);
                    assert_eq!(step, whole, "a row that didn't change is news");
                }
                step
            }
            _ => Self::to(config, gid, controller, ownership),
        }
    }

    fn of(
        config: &ShardConfig,
        gid: Gid,
        controller: ClusterId,
        ownership: &Ownership,
        (groups, shards): (&BTreeSet<Gid>, impl Iterator<Item = ShardId>),
    ) -> Self {
        let change = |gid: &Gid| {
            let (known, now) = (ownership.groups.get(gid), config.groups().get(gid));
            (known != now).then(|| (*gid, now.cloned()))
        };
        let life = ownership.life(gid, config.groups().get(&gid));
        let mut rows: Vec<(ShardRun, Assignment)> = Vec::new();
        for shard in shards {
            let row = config.row(shard);
            if !ownership.is_news(gid, life, shard, &row) {
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
            groups: groups.iter().filter_map(change).collect(),
            rows,
        }
    }

    /// Returns each shard of the rows with its row.
    fn shards(&self) -> impl Iterator<Item = (ShardId, &Assignment)> {
        let rows = self.rows.iter();
        rows.flat_map(|(run, row)| run.shards().map(move |shard| (shard, row)))
    }
}

/// The consequence of a row for the state of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
enum After {
    /// The state stays.
    Same,
    /// The shard is absent, and what was there is cleared.
    Absent,
    /// The shard comes into another state.
    State(ShardState),
}

/// The part that a configuration gives to this group itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The same as the accepted one.
    Continues,
    /// None: it was drained or forgotten.
    Ended,
    /// None, and another group has its gid now.
    Replaced,
    /// None, as in the accepted one.
    Outside,
    /// Another incarnation than in the accepted one, or the first.
    Begins,
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
        let life = self.life_after(step);
        let wrong = |(shard, row): &(ShardId, &Assignment)| {
            self.state_after(step.gid, life, *shard, row).is_err()
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
        let life = self.life_after(step);
        match life {
            Life::Ended | Life::Replaced => self.former = self.groups.get(&step.gid).cloned(),
            Life::Begins => self.former = None,
            Life::Continues | Life::Outside => {}
        }
        if life != Life::Continues && life != Life::Outside {
            // It was drained, and owes nothing, or forgotten, and may ask for nothing any more.
            let owed = std::mem::take(&mut self.pending_deletes);
            changed.pending_deletes.extend(owed.keys());
        }
        self.drop_parts(changed);
        self.gid = step.gid;
        self.controller = Some(step.controller);
        changed.group = true;
        let gone = self.take_groups(&step.groups, changed);
        // Before the rows, because this step may fence shards for another group that has the gid of one that is gone.
        let abandoned = match life {
            Life::Continues => self.fenced_for(&gone),
            Life::Ended | Life::Replaced | Life::Outside | Life::Begins => Vec::new(),
        };
        for (shard, row) in step.shards() {
            match self.state_after(step.gid, life, shard, row) {
                Ok(After::State(next)) => self.enter(shard, next, life, time, changed),
                Ok(After::Absent) => self.drop_shard(shard, changed),
                Ok(After::Same) | Err(Contradiction) => {}
            }
            self.plan(shard, planned(step.gid, life, row), changed);
        }
        for shard in abandoned {
            if matches!(self.state(shard), Some(ShardState::Fenced { .. })) {
                self.drop_shard(shard, changed);
            }
        }
        // Last, because what the group lacks depends on what it had accepted.
        self.config = step.num;
    }

    /// Brings a shard into the state to which a row leads. What it had stays only if it is whole, or the beginning of the same copy.
    fn enter(
        &mut self,
        shard: ShardId,
        next: ShardState,
        life: Life,
        time: LogTime,
        changed: &mut Changed,
    ) {
        let mut slot = self.slot(shard);
        let keeps = match &slot.state {
            None => true,
            Some(ShardState::Serving { .. }) => life != Life::Begins,
            // The group to which it went was forgotten, and this group has what that one got. A fence for a group that is still there
            // is of an older move: the shard went on from there, and its data are lost.
            Some(ShardState::Fenced { config, to }) => {
                life != Life::Begins && self.is_gone(*to, *config)
            }
            Some(ShardState::Copying { .. }) => matches!(next, ShardState::Completing { .. }),
            Some(ShardState::Pulling { .. } | ShardState::Completing { .. }) => false,
        };
        if !keeps {
            changed.cleared.insert(shard);
        }
        let was_served = keeps && matches!(slot.state, Some(ShardState::Serving { .. }));
        if let ShardState::Serving { config } = next
            && !was_served
            // No shard was served before the first configuration.
            && config > ConfigNum(1)
        {
            changed.lost.insert(shard);
        }
        slot.change(next, time);
        self.put(shard, slot, changed);
    }

    /// Returns true if a group that got a shard by configuration `by` isn't part of the accepted groups any more. Another may have its gid.
    fn is_gone(&self, gid: Gid, by: ConfigNum) -> bool {
        let group = self.groups.get(&gid);
        group.is_none_or(|group| group.incarnation.0 > by.0)
    }

    fn drop_shard(&mut self, shard: ShardId, changed: &mut Changed) {
        self.shards.remove(&shard);
        changed.shards.insert(shard);
        changed.cleared.insert(shard);
    }

    /// Returns the shards that are kept for groups which are gone.
    fn fenced_for(&self, gone: &BTreeSet<Gid>) -> Vec<ShardId> {
        if gone.is_empty() {
            return Vec::new();
        }
        let waits = |shard: &Shard| match &shard.state {
            ShardState::Fenced { to, .. } => gone.contains(to),
            _ => false,
        };
        let shards = self.shards.unfinished_shards();
        let waiting = shards.filter(|(_, shard)| waits(shard));
        waiting.map(|(shard, _)| *shard).collect()
    }

    /// Takes up the groups, and forgets the deletes that groups owe which are gone. A group goes once it is drained: it has deleted all
    /// that it gave away; or once it is forgotten: then it owes nothing any more. A group with another incarnation has the gid of one
    /// that is gone. Returns the groups that are gone.
    fn take_groups(
        &mut self,
        groups: &BTreeMap<Gid, Option<Group>>,
        changed: &mut Changed,
    ) -> BTreeSet<Gid> {
        if groups.is_empty() {
            return BTreeSet::new();
        }
        let known = Arc::make_mut(&mut self.groups);
        let mut over = BTreeSet::new();
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
                over.insert(*gid);
            }
            changed.groups.insert(*gid);
        }
        let pending = self.pending_deletes.iter();
        let done = pending.filter(|(_, source)| over.contains(*source));
        let done: Vec<(ShardId, ConfigNum)> = done.map(|(pending, _)| *pending).collect();
        for pending in done {
            Arc::make_mut(&mut self.pending_deletes).remove(&pending);
            changed.pending_deletes.insert(pending);
        }
        over
    }

    /// Returns the part that this group has in a configuration in which its gid is that of `after`.
    fn life(&self, gid: Gid, after: Option<&Group>) -> Life {
        let known = self.groups.get(&gid);
        let incarnation = |group: Option<&Group>| group.map(|it| it.incarnation);
        let same = incarnation(known) == incarnation(after);
        match (&self.former, known, after) {
            (None, Some(_), Some(_)) if same => Life::Continues,
            (None, Some(before), Some(after)) if !have_common_node(before, after) => Life::Replaced,
            (None, Some(_), None) => Life::Ended,
            (None, _, Some(_)) => Life::Begins,
            (Some(former), _, Some(after)) if !same && have_common_node(former, after) => {
                Life::Begins
            }
            (None, None, None) => Life::Continues,
            (Some(_), _, _) => Life::Outside,
        }
    }

    fn life_after(&self, step: &Configure) -> Life {
        let after = match step.groups.get(&step.gid) {
            None => self.groups.get(&step.gid),
            Some(group) => group.as_ref(),
        };
        self.life(step.gid, after)
    }

    /// Returns true if the row would change something here, or can't be right.
    fn is_news(&self, gid: Gid, life: Life, shard: ShardId, row: &Assignment) -> bool {
        planned(gid, life, row) != self.planned.get(&shard).copied()
            || self.state_after(gid, life, shard, row) != Ok(After::Same)
    }

    /// Returns the consequence of a row for the state of a shard of group `gid`.
    fn state_after(
        &self,
        gid: Gid,
        life: Life,
        shard: ShardId,
        row: &Assignment,
    ) -> Result<After, Contradiction> {
        let (state, comes) = (self.state(shard), row.owner == gid);
        match life {
            Life::Continues => self.state_of_row(gid, state, row),
            Life::Outside => Ok(After::Same),
            Life::Ended if comes => Err(Contradiction),
            Life::Ended | Life::Replaced => Ok(match state {
                None | Some(ShardState::Fenced { .. }) => After::Same,
                Some(ShardState::Serving { .. }) => After::State(ShardState::Fenced {
                    config: row.owner_since,
                    to: row.owner,
                }),
                Some(_) => After::Absent,
            }),
            Life::Begins => match self.state_of_row(gid, None, row)? {
                After::Same if state.is_some() => Ok(After::Absent),
                after => Ok(after),
            },
        }
    }

    /// Returns the consequence of a row for a shard of group `gid` that has this state.
    fn state_of_row(
        &self,
        gid: Gid,
        state: Option<&ShardState>,
        row: &Assignment,
    ) -> Result<After, Contradiction> {
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
        Ok(After::State(match state {
            None | Some(ShardState::Copying { .. }) if !comes => return Ok(After::Same),
            None | Some(ShardState::Copying { .. }) if config <= self.config => {
                return Err(Contradiction);
            }
            None => arrives(),
            // Nobody else has anything of it that is needed, because a group was forgotten.
            Some(state) if comes && source == Gid::NONE && config > state.config() => arrives(),
            Some(ShardState::Copying {
                source: of,
                copy,
                cursor,
                bytes,
            }) => {
                if *of != source {
                    return Ok(After::State(arrives()));
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
                return Ok(After::Same);
            }
            Some(state) => {
                if !comes || state.config() != config {
                    return Err(Contradiction);
                }
                return Ok(After::Same);
            }
        }))
    }
}

/// Returns true if a node of one group is a node of the other.
fn have_common_node(a: &Group, b: &Group) -> bool {
    a.addresses.iter().any(|it| b.addresses.contains(it))
}

/// Returns the move that a row plans, if group `gid` is one of the two.
fn planned(gid: Gid, life: Life, row: &Assignment) -> Option<PlannedMove> {
    let is_part = matches!(life, Life::Continues | Life::Begins);
    let concerns = is_part && row.is_moving() && (row.owner == gid || row.target == gid);
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
