//! The differences between neighbouring configurations.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::codec::known_version;
use crate::config::{VERSION, check_group};
use crate::{
    ConfigError, ConfigNum, DecodeError, Gid, Group, Incarnation, MAX_SHARDS, Reader, ShardConfig,
    ShardId, ShardRun, ShardSet, Writer,
};

/// The changes that turn configuration `num - 1` into configuration `num`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigDelta {
    /// The number of the configuration after the delta; at least 1.
    pub num: ConfigNum,
    /// The groups that are new or changed, and `None` for each group that is gone.
    pub groups: BTreeMap<Gid, Option<Group>>,
    /// The shards that change their target, in order; neighbours with the same change share a run.
    pub targets: Vec<ShardMove>,
    /// The shards that change their owner, likewise. The new owner is the shard's target after the delta.
    pub moves: Vec<ShardMove>,
    /// The shards of which no other group has anything any more, because a group was forgotten. `to` owns them from now on, and nobody
    /// owned them before: it serves what it has whole, or nothing. It may be `from`, and need not be the shards' target. No shard is
    /// among `moves`, too.
    pub resets: Vec<ShardMove>,
}

/// Consecutive shards that go from one owner, or target, to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMove {
    /// The shards.
    pub run: ShardRun,
    /// The group before; [`Gid::NONE`] if the shards had none.
    pub from: Gid,
    /// The group from now on; never [`Gid::NONE`], and `from` only in [`ConfigDelta::resets`].
    pub to: Gid,
}

impl ConfigDelta {
    /// Returns the delta from `before` to a configuration with these groups, targets and owners.
    pub fn new(
        before: &ShardConfig,
        groups: &BTreeMap<Gid, Group>,
        targets: &[Gid],
        owners: &[Gid],
    ) -> Self {
        let known = before.groups();
        let mut changed: BTreeMap<Gid, Option<Group>> = groups
            .iter()
            .filter(|(gid, group)| known.get(gid) != Some(group))
            .map(|(gid, group)| (*gid, Some(group.clone())))
            .collect();
        let gone = known.keys().filter(|gid| !groups.contains_key(gid));
        changed.extend(gone.map(|gid| (*gid, None)));
        Self {
            num: before.num().next(),
            groups: changed,
            targets: changes(before.targets(), targets),
            moves: changes(before.owners(), owners),
            resets: Vec::new(),
        }
    }

    /// Returns the same delta in which these shards are reset rather than moved. `owners` are those of [`ConfigDelta::new`].
    #[must_use]
    pub fn with_resets(self, before: &ShardConfig, owners: &[Gid], resets: &ShardSet) -> Self {
        let row = |shard: ShardId| {
            let from = before.owner(shard);
            let to = owners.get(shard.0 as usize).copied().unwrap_or(from);
            (shard, from, to)
        };
        let all = (0..).map(ShardId).zip(owners);
        let moved = all.filter(|(shard, _)| !resets.contains(*shard));
        let moved = moved.map(|(shard, _)| row(shard));
        Self {
            moves: runs(moved.filter(|(_, from, to)| from != to)),
            resets: runs(resets.shards().map(row)),
            ..self
        }
    }

    /// Returns the delta from `before` to a configuration in which these groups are the members, no group is leaving, and
    /// every owner is its shards' target.
    pub fn between(
        before: &ShardConfig,
        members: &BTreeMap<Gid, Vec<String>>,
        owners: &[Gid],
    ) -> Self {
        let group = |gid: &Gid, addresses: &[String]| Group {
            addresses: addresses.to_vec(),
            incarnation: match before.groups().get(gid) {
                Some(known) => known.incarnation,
                None => Incarnation(before.num().next().0),
            },
            leaving: false,
        };
        let groups = members.iter();
        let groups = groups.map(|(gid, addresses)| (*gid, group(gid, addresses)));
        Self::new(before, &groups.collect(), owners, owners)
    }

    /// Returns true if only owners change, to the targets that they had before.
    pub fn is_cut(&self) -> bool {
        self.groups.is_empty() && self.targets.is_empty() && self.resets.is_empty()
    }

    /// Returns the target that the delta gives a shard, if it does.
    pub fn new_target(&self, shard: ShardId) -> Option<Gid> {
        find(&self.targets, shard)
    }

    /// Returns the owner that the delta gives a shard, if it does.
    pub fn new_owner(&self, shard: ShardId) -> Option<Gid> {
        find(&self.moves, shard).or_else(|| find(&self.resets, shard))
    }

    /// Encodes as a record for the disk and the log.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION)
            .number(self.num.0)
            .number(self.groups.len() as u64);
        for (gid, group) in &self.groups {
            out.number(gid.0);
            match group {
                Some(group) => group.encode(out.byte(1)),
                None => {
                    out.byte(0);
                }
            }
        }
        encode_moves(&mut out, &self.targets);
        encode_moves(&mut out, &self.moves);
        encode_moves(&mut out, &self.resets);
        out.finish()
    }

    /// Decodes the output of [`ConfigDelta::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("configuration delta version")?;
        known_version("configuration delta version", version, VERSION)?;
        let num = ConfigNum(input.number("configuration number")?);
        let mut groups = BTreeMap::new();
        for _ in 0..input.count("groups")? {
            let gid = Gid(input.number("gid")?);
            let is_there = input.flag("group")?;
            let group = is_there.then(|| Group::decode(&mut input)).transpose()?;
            groups.insert(gid, group);
        }
        let targets = decode_moves(&mut input)?;
        let moves = decode_moves(&mut input)?;
        let resets = decode_moves(&mut input)?;
        input.finish()?;
        let delta = Self {
            num,
            groups,
            targets,
            moves,
            resets,
        };
        delta
            .check()
            .map_err(|_| DecodeError::OutOfRange("configuration delta"))?;
        Ok(delta)
    }

    /// Refuses a delta that no configuration could take.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.num == ConfigNum(0) {
            return Err(ConfigError::NumberZero);
        }
        for (gid, group) in &self.groups {
            match group {
                Some(group) => check_group(*gid, group, self.num)?,
                None if *gid == Gid::NONE => return Err(ConfigError::NoGroup),
                None => {}
            }
        }
        check_moves(&self.targets, false)?;
        check_moves(&self.moves, false)?;
        check_moves(&self.resets, true)?;
        let mut reset = self.resets.iter().flat_map(|step| step.run.shards());
        match reset.find(|shard| find(&self.moves, *shard).is_some()) {
            Some(shard) => Err(ConfigError::BadMove(shard)),
            None => Ok(()),
        }
    }
}

/// Returns the differences between two columns of equal length.
fn changes(before: &[Gid], after: &[Gid]) -> Vec<ShardMove> {
    let pairs = (0..).map(ShardId).zip(before.iter().zip(after));
    let steps = pairs.map(|(shard, (from, to))| (shard, *from, *to));
    runs(steps.filter(|(_, from, to)| from != to))
}

/// Returns steps of single shards, in order, as runs.
fn runs(steps: impl Iterator<Item = (ShardId, Gid, Gid)>) -> Vec<ShardMove> {
    let mut moves: Vec<ShardMove> = Vec::new();
    for (first, from, to) in steps {
        match moves.last_mut() {
            Some(last) if last.run.end() == first && (last.from, last.to) == (from, to) => {
                last.run.count += 1;
            }
            _ => {
                let run = ShardRun { first, count: 1 };
                moves.push(ShardMove { run, from, to });
            }
        }
    }
    moves
}

/// Returns where a shard goes. The runs are in order.
fn find(moves: &[ShardMove], shard: ShardId) -> Option<Gid> {
    let at = moves.partition_point(|step| step.run.end() <= shard);
    let step = moves.get(at)?;
    (step.run.first <= shard).then_some(step.to)
}

/// Refuses runs that no cluster has, and groups that stay unless they `may_stay`.
fn check_moves(moves: &[ShardMove], may_stay: bool) -> Result<(), ConfigError> {
    let mut next = ShardId(0);
    for ShardMove { run, from, to } in moves {
        let fits = run.first >= next && run.count > 0 && run.count <= MAX_SHARDS;
        let stays = from == to && !may_stay;
        if !fits || run.end() > ShardId(MAX_SHARDS) || stays || *to == Gid::NONE {
            return Err(ConfigError::BadMove(run.first));
        }
        next = run.end();
    }
    Ok(())
}

fn encode_moves(out: &mut Writer, moves: &[ShardMove]) {
    out.number(moves.len() as u64);
    for ShardMove { run, from, to } in moves {
        out.number(run.first.0.into())
            .number(run.count.into())
            .number(from.0)
            .number(to.0);
    }
}

fn decode_moves(input: &mut Reader) -> Result<Vec<ShardMove>, DecodeError> {
    let mut moves = Vec::new();
    for _ in 0..input.count("moves")? {
        moves.push(ShardMove {
            run: ShardRun {
                first: ShardId(input.number_u32("first shard")?),
                count: input.number_u32("shard count")?,
            },
            from: Gid(input.number("group before")?),
            to: Gid(input.number("group")?),
        });
    }
    Ok(moves)
}
