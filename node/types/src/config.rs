//! The numbered, immutable configurations of the controllers: who owns each shard, and who is to own it.
//!
//! Each shard has an *owner*, the group that serves it, and a *target*, the group that the controllers want to serve it.
//! People change targets, and the owner follows by a *cut* once the target is ready. A row ([`Assignment`]) also
//! says since which configuration owner and target are so, and which group owned the shard before. So a group that lags
//! can go to the latest configuration at once and still do its part of the last change of each shard's owner.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::codec::known_version;
use crate::{
    Assignment, BadAddresses, BadRow, ConfigDelta, ConfigNum, DecodeError, Gid, Group, Incarnation,
    Reader, ShardId, ShardMove, ShardSet, Writer, check_addresses,
};

/// The most shards of a cluster.
pub const MAX_SHARDS: u32 = 1_000_000;
/// The most replica groups of a cluster.
pub const MAX_GROUPS: usize = 10_000;
/// The version byte of an encoded configuration, and of an encoded delta.
pub(crate) const VERSION: u8 = 3;

/// A configuration: the groups with the addresses of their nodes, and each shard's owner and target.
///
/// Invariants:
/// - there are 1 to [`MAX_SHARDS`] shards and at most [`MAX_GROUPS`] groups; no group is [`Gid::NONE`], and each has 1 to
///   [`crate::MAX_GROUP_ADDRESSES`] addresses;
/// - a shard has an owner if and only if it has a target; owner and target are groups, and the target isn't leaving;
/// - the owner before differs from the owner;
/// - no number of a row and no incarnation is above the configuration's number; where target and owner differ, the target is
///   the later of the two, or as old as an owner that got the shard from nobody because a group was forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    num: ConfigNum,
    groups: BTreeMap<Gid, Group>,
    // Columns rather than rows: most callers want the owners alone, as a slice.
    owners: Vec<Gid>,
    targets: Vec<Gid>,
    changes: Vec<LastChange>,
}

/// The columns of a row beside owner and target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LastChange {
    previous: Gid,
    owner_since: ConfigNum,
    target_since: ConfigNum,
}

/// An error in a configuration or a delta. Always a bug or damage, never a transient condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The delta doesn't follow this configuration.
    #[error("a delta to configuration {delta} can't follow configuration {config}")]
    Number {
        /// The number of this configuration.
        config: ConfigNum,
        /// The number of the configuration after the delta.
        delta: ConfigNum,
    },
    /// The configuration has no shards, or more than [`MAX_SHARDS`].
    #[error("not a configuration: a cluster has 1 to {MAX_SHARDS} shards, not {0}")]
    ShardCount(u64),
    /// The configuration has more than [`MAX_GROUPS`] groups.
    #[error("not a configuration: more than {MAX_GROUPS} groups")]
    TooManyGroups,
    /// A group has the id [`Gid::NONE`].
    #[error("not a configuration: gid 0 is no group")]
    NoGroup,
    /// A group can't have its addresses.
    #[error("not a configuration: {gid}: {reason}")]
    Addresses {
        /// The group.
        gid: Gid,
        /// The reason.
        reason: BadAddresses,
    },
    /// A group has an incarnation that is yet to come, or changes it while it is part of the configurations.
    #[error("not a configuration: {0} has the incarnation of another group")]
    Incarnation(Gid),
    /// A delta removes a group that is none.
    #[error("not a configuration: {0} goes and is no group")]
    UnknownGroup(Gid),
    /// A delta removes an owner, or a target leaves.
    #[error("not a configuration: {gid} goes and has {shard} still")]
    InUse {
        /// The group.
        gid: Gid,
        /// The first of its shards.
        shard: ShardId,
    },
    /// The row of a shard breaks an invariant.
    #[error("not a configuration: {shard}: {reason}")]
    Row {
        /// The shard.
        shard: ShardId,
        /// The reason.
        reason: BadRow,
    },
    /// A delta leads to configuration 0, which is the first.
    #[error("not a configuration: nothing leads to configuration 0")]
    NumberZero,
    /// A delta moves shards that don't exist, or out of order, or to no other group.
    #[error("not a configuration: the move of {0} is empty, out of order, or to no other group")]
    BadMove(ShardId),
    /// A delta moves shards from a group that doesn't have them.
    #[error(
        "not a configuration: the shards that move from {from}, {first} the first, are not all its own"
    )]
    NotOwned {
        /// The first shard of the move.
        first: ShardId,
        /// The group before, according to the delta.
        from: Gid,
    },
    /// Runs of shards are empty, overlap, or are out of order.
    #[error("shard runs are out of order, empty or overlapping")]
    ShardRuns,
}

impl ShardConfig {
    /// Returns configuration 0: no groups, and no owner of any of the `shards` shards.
    pub fn empty(shards: u32) -> Self {
        let shards = shards as usize;
        Self {
            num: ConfigNum(0),
            groups: BTreeMap::new(),
            owners: vec![Gid::NONE; shards],
            targets: vec![Gid::NONE; shards],
            changes: vec![LastChange::default(); shards],
        }
    }

    /// Creates a configuration in which no shard moves and no group leaves, and in which all is so since `num`. `owners`
    /// are runs of (shard count, owner) that cover all shards in order.
    pub fn new(
        num: ConfigNum,
        groups: BTreeMap<Gid, Vec<String>>,
        owners: impl IntoIterator<Item = (u32, Gid)>,
    ) -> Result<Self, ConfigError> {
        let group = |addresses| Group {
            addresses,
            incarnation: Incarnation(num.0),
            leaving: false,
        };
        let groups = groups.into_iter();
        let groups = groups.map(|(gid, addresses)| (gid, group(addresses)));
        let rows = owners.into_iter().map(|(count, owner)| {
            let since = if owner == Gid::NONE {
                ConfigNum(0)
            } else {
                num
            };
            let row = Assignment {
                owner,
                owner_since: since,
                previous: Gid::NONE,
                target: owner,
                target_since: since,
            };
            (count, row)
        });
        Self::from_rows(num, groups.collect(), rows)
    }

    /// Creates a configuration of its parts; `rows` are runs of (shard count, row) that cover all shards in order.
    pub fn from_rows(
        num: ConfigNum,
        groups: BTreeMap<Gid, Group>,
        rows: impl IntoIterator<Item = (u32, Assignment)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self {
            num,
            groups,
            ..Self::empty(0)
        };
        for (count, row) in rows {
            let length = config.owners.len() + count as usize;
            if length > MAX_SHARDS as usize {
                return Err(ConfigError::ShardCount(length as u64));
            }
            config.owners.resize(length, row.owner);
            config.targets.resize(length, row.target);
            let change = LastChange {
                previous: row.previous,
                owner_since: row.owner_since,
                target_since: row.target_since,
            };
            config.changes.resize(length, change);
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.owners.is_empty() {
            return Err(ConfigError::ShardCount(0));
        }
        if self.groups.len() > MAX_GROUPS {
            return Err(ConfigError::TooManyGroups);
        }
        for (gid, group) in &self.groups {
            check_group(*gid, group, self.num)?;
        }
        for (shard, row) in (0..).map(ShardId).zip(self.rows()) {
            self.check_row(&row)
                .map_err(|reason| ConfigError::Row { shard, reason })?;
        }
        Ok(())
    }

    fn check_row(&self, row: &Assignment) -> Result<(), BadRow> {
        if row.owner == Gid::NONE || row.target == Gid::NONE {
            return if *row == Assignment::default() {
                Ok(())
            } else {
                Err(BadRow::HalfAssigned)
            };
        }
        if !self.groups.contains_key(&row.owner) {
            return Err(BadRow::UnknownOwner(row.owner));
        }
        let is_member = |group: &Group| !group.leaving;
        if !self.groups.get(&row.target).is_some_and(is_member) {
            return Err(BadRow::BadTarget(row.target));
        }
        let same = row.previous == Gid::NONE && row.target_since == row.owner_since;
        let in_order = !row.is_moving() || row.target_since > row.owner_since || same;
        if row.owner_since.max(row.target_since) > self.num || !in_order {
            return Err(BadRow::Numbers);
        }
        if row.previous == row.owner {
            return Err(BadRow::SameOwner(row.owner));
        }
        Ok(())
    }

    /// Returns the number of the configuration.
    pub fn num(&self) -> ConfigNum {
        self.num
    }

    /// Returns the number of shards of the cluster.
    pub fn shards(&self) -> u32 {
        // The constructors limit the length.
        u32::try_from(self.owners.len()).unwrap_or(MAX_SHARDS)
    }

    /// Returns the groups, leaving ones included.
    pub fn groups(&self) -> &BTreeMap<Gid, Group> {
        &self.groups
    }

    /// Returns the groups that aren't leaving, in order: those that may be targets.
    pub fn members(&self) -> impl Iterator<Item = Gid> + '_ {
        let members = self.groups.iter().filter(|(_, group)| !group.leaving);
        members.map(|(gid, _)| *gid)
    }

    /// Returns the groups that aren't leaving, with their addresses.
    pub fn member_addresses(&self) -> BTreeMap<Gid, Vec<String>> {
        let members = self.groups.iter().filter(|(_, group)| !group.leaving);
        members
            .map(|(gid, group)| (*gid, group.addresses.clone()))
            .collect()
    }

    /// Returns the addresses of a group's nodes; none if there is no such group.
    pub fn addresses(&self, gid: Gid) -> &[String] {
        let group = self.groups.get(&gid);
        group.map_or(&[], |group| group.addresses.as_slice())
    }

    /// Returns the addresses of all nodes.
    pub fn all_addresses(&self) -> impl Iterator<Item = &String> {
        self.groups.values().flat_map(|group| &group.addresses)
    }

    /// Returns the owner of each shard.
    pub fn owners(&self) -> &[Gid] {
        &self.owners
    }

    /// Returns the target of each shard.
    pub fn targets(&self) -> &[Gid] {
        &self.targets
    }

    /// Returns the row of each shard.
    pub fn rows(&self) -> impl Iterator<Item = Assignment> + '_ {
        let columns = self.owners.iter().zip(&self.targets).zip(&self.changes);
        columns.map(|((owner, target), change)| row(*owner, *target, change))
    }

    /// Returns the row of a shard; an empty one if the shard doesn't exist.
    pub fn row(&self, shard: ShardId) -> Assignment {
        let at = shard.0 as usize;
        match (
            self.owners.get(at),
            self.targets.get(at),
            self.changes.get(at),
        ) {
            (Some(owner), Some(target), Some(change)) => row(*owner, *target, change),
            _ => Assignment::default(),
        }
    }

    /// Returns the owner of a shard; [`Gid::NONE`] if no group owns the shard, or the shard doesn't exist.
    pub fn owner(&self, shard: ShardId) -> Gid {
        let owner = self.owners.get(shard.0 as usize);
        owner.copied().unwrap_or(Gid::NONE)
    }

    /// Returns the target of a shard; [`Gid::NONE`] if it has none, or the shard doesn't exist.
    pub fn target(&self, shard: ShardId) -> Gid {
        let target = self.targets.get(shard.0 as usize);
        target.copied().unwrap_or(Gid::NONE)
    }

    /// Returns the shards that `gid` owns.
    pub fn owned_by(&self, gid: Gid) -> ShardSet {
        let shards = (0..).map(ShardId).zip(&self.owners);
        shards
            .filter_map(|(shard, owner)| (*owner == gid).then_some(shard))
            .collect()
    }

    /// Returns the number of shards that are to get another owner.
    pub fn moving(&self) -> u32 {
        let moving = self.owners.iter().zip(&self.targets);
        let moving = moving.filter(|(owner, target)| owner != target).count();
        u32::try_from(moving).unwrap_or(MAX_SHARDS)
    }

    /// Returns the configuration that all groups must have settled before the targets that configurations up to `num`
    /// set count as reached; `None` while the owner of such a shard isn't its target.
    pub fn reached_in(&self, num: ConfigNum) -> Option<ConfigNum> {
        let rows = self.rows().filter(|row| row.target_since <= num);
        rows.map(|row| (!row.is_moving()).then_some(row.owner_since))
            .try_fold(num, |last, since| Some(last.max(since?)))
    }

    /// Returns the runs of neighbouring shards with equal owners as (shard count, owner), over all shards in order.
    pub fn owner_runs(&self) -> impl Iterator<Item = (u32, Gid)> + '_ {
        self.owners.chunk_by(|a, b| a == b).filter_map(|run| {
            let owner = run.first()?;
            Some((u32::try_from(run.len()).ok()?, *owner))
        })
    }

    /// Returns the runs of neighbouring shards with equal rows as (shard count, row), over all shards in order.
    pub fn row_runs(&self) -> Vec<(u32, Assignment)> {
        let mut runs: Vec<(u32, Assignment)> = Vec::new();
        for row in self.rows() {
            match runs.last_mut() {
                Some((count, last)) if *last == row => *count += 1,
                _ => runs.push((1, row)),
            }
        }
        runs
    }

    /// Applies `delta`, which leads to the next configuration. On an error nothing changes. Costs what the delta holds,
    /// and a look at all shards only if a group leaves.
    pub fn apply(&mut self, delta: &ConfigDelta) -> Result<(), ConfigError> {
        if delta.num != self.num.next() {
            return Err(ConfigError::Number {
                config: self.num,
                delta: delta.num,
            });
        }
        delta.check()?;
        let mut groups = (!delta.groups.is_empty()).then(|| self.groups.clone());
        if let Some(groups) = &mut groups {
            change_groups(groups, delta)?;
        }
        let after = groups.as_ref().unwrap_or(&self.groups);
        self.judge(delta, after)?;
        if let Some(groups) = groups {
            self.groups = groups;
        }
        self.num = delta.num;
        self.take(delta);
        Ok(())
    }

    /// Refuses a delta that would break an invariant, given the groups after it.
    fn judge(&self, delta: &ConfigDelta, groups: &BTreeMap<Gid, Group>) -> Result<(), ConfigError> {
        let is_member = |gid: &Gid| groups.get(gid).is_some_and(|group| !group.leaving);
        let row = |shard, reason| Err(ConfigError::Row { shard, reason });
        for step in &delta.targets {
            check_run(&self.targets, step)?;
            if !is_member(&step.to) {
                return row(step.run.first, BadRow::BadTarget(step.to));
            }
            let mut shards = step.run.shards();
            if step.from == Gid::NONE
                && let Some(shard) = shards.find(|shard| delta.new_owner(*shard).is_none())
            {
                return row(shard, BadRow::HalfAssigned);
            }
        }
        for step in &delta.moves {
            check_run(&self.owners, step)?;
            let target = |shard| delta.new_target(shard).unwrap_or(self.target(shard));
            let mut shards = step.run.shards();
            if let Some(shard) = shards.find(|shard| target(*shard) != step.to) {
                return row(shard, BadRow::NotTheTarget(step.to));
            }
        }
        for step in &delta.resets {
            check_run(&self.owners, step)?;
            if !groups.contains_key(&step.to) {
                return row(step.run.first, BadRow::UnknownOwner(step.to));
            }
            if step.from == Gid::NONE {
                return row(step.run.first, BadRow::HalfAssigned);
            }
        }
        let changed = delta.groups.keys();
        let gone: BTreeSet<Gid> = changed.copied().filter(|gid| !is_member(gid)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        for (shard, row) in (0..).map(ShardId).zip(self.rows()) {
            let owner = delta.new_owner(shard).unwrap_or(row.owner);
            let target = delta.new_target(shard).unwrap_or(row.target);
            let owns = gone.contains(&owner) && !groups.contains_key(&owner);
            if owns || gone.contains(&target) {
                let gid = if owns { owner } else { target };
                return Err(ConfigError::InUse { gid, shard });
            }
        }
        Ok(())
    }

    /// Carries out the changes of rows, which [`Self::judge`] has allowed.
    fn take(&mut self, delta: &ConfigDelta) {
        for step in &delta.targets {
            for shard in step.run.shards() {
                let at = shard.0 as usize;
                if let (Some(target), Some(change)) =
                    (self.targets.get_mut(at), self.changes.get_mut(at))
                {
                    *target = step.to;
                    change.target_since = delta.num;
                }
            }
        }
        for step in &delta.moves {
            for shard in step.run.shards() {
                let at = shard.0 as usize;
                if let (Some(owner), Some(change)) =
                    (self.owners.get_mut(at), self.changes.get_mut(at))
                {
                    *owner = step.to;
                    change.previous = step.from;
                    change.owner_since = delta.num;
                }
            }
        }
        for step in &delta.resets {
            for shard in step.run.shards() {
                let target = self.target(shard);
                let at = shard.0 as usize;
                if let (Some(owner), Some(change)) =
                    (self.owners.get_mut(at), self.changes.get_mut(at))
                {
                    *owner = step.to;
                    change.previous = Gid::NONE;
                    change.owner_since = delta.num;
                    // A move that was planned from the owner before is another now.
                    if target != step.to {
                        change.target_since = delta.num;
                    }
                }
            }
        }
    }

    /// Encodes as a record for the disk and the log.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION)
            .number(self.num.0)
            .number(self.groups.len() as u64);
        for (gid, group) in &self.groups {
            group.encode(out.number(gid.0));
        }
        let runs = self.row_runs();
        out.number(runs.len() as u64);
        for (count, row) in runs {
            row.encode(out.number(count.into()));
        }
        out.finish()
    }

    /// Decodes the output of [`ShardConfig::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("configuration version")?;
        known_version("configuration version", version, VERSION)?;
        let num = ConfigNum(input.number("configuration number")?);
        let mut groups = BTreeMap::new();
        for _ in 0..input.count("groups")? {
            let gid = Gid(input.number("gid")?);
            groups.insert(gid, Group::decode(&mut input)?);
        }
        let mut rows = Vec::new();
        for _ in 0..input.count("rows")? {
            let count = input.number_u32("row count")?;
            let row = Assignment::decode(&mut input)?;
            rows.push((count, row));
        }
        input.finish()?;
        Self::from_rows(num, groups, rows).map_err(|_| DecodeError::OutOfRange("configuration"))
    }
}

fn row(owner: Gid, target: Gid, change: &LastChange) -> Assignment {
    Assignment {
        owner,
        owner_since: change.owner_since,
        previous: change.previous,
        target,
        target_since: change.target_since,
    }
}

/// Takes the delta's changes over into a copy of the groups.
fn change_groups(
    groups: &mut BTreeMap<Gid, Group>,
    delta: &ConfigDelta,
) -> Result<(), ConfigError> {
    for (gid, group) in &delta.groups {
        let known = match group {
            Some(group) => groups.insert(*gid, group.clone()),
            None => groups.remove(gid),
        };
        let same =
            |known: &Group| group.as_ref().map(|it| it.incarnation) == Some(known.incarnation);
        if group.is_none() && known.is_none() {
            return Err(ConfigError::UnknownGroup(*gid));
        }
        if group.is_some() && !known.as_ref().is_none_or(same) {
            return Err(ConfigError::Incarnation(*gid));
        }
    }
    if groups.len() > MAX_GROUPS {
        return Err(ConfigError::TooManyGroups);
    }
    Ok(())
}

/// Refuses a step of shards that don't exist, or that don't all have its `from` in the column.
fn check_run(column: &[Gid], step: &ShardMove) -> Result<(), ConfigError> {
    let range = step.run.first.0 as usize..step.run.end().0 as usize;
    let shards = column
        .get(range)
        .ok_or(ConfigError::BadMove(step.run.first))?;
    if shards.iter().all(|it| *it == step.from) {
        return Ok(());
    }
    Err(ConfigError::NotOwned {
        first: step.run.first,
        from: step.from,
    })
}

/// Refuses a group that configuration `num` can't have.
pub(crate) fn check_group(gid: Gid, group: &Group, num: ConfigNum) -> Result<(), ConfigError> {
    if gid == Gid::NONE {
        return Err(ConfigError::NoGroup);
    }
    if group.incarnation.0 > num.0 {
        return Err(ConfigError::Incarnation(gid));
    }
    check_addresses(&group.addresses).map_err(|reason| ConfigError::Addresses { gid, reason })
}

#[cfg(test)]
mod tests;
