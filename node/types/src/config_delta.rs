//! The differences between neighbouring configurations.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::config::{VERSION, check_group, known_version};
use crate::{
    ConfigError, ConfigNum, DecodeError, Gid, Group, Incarnation, MAX_SHARDS, Reader, ShardConfig,
    ShardId, ShardRun, Writer,
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
}

/// Consecutive shards that go from one owner, or target, to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMove {
    /// The shards.
    pub run: ShardRun,
    /// The group before; [`Gid::NONE`] if the shards had none.
    pub from: Gid,
    /// The group from now on; never [`Gid::NONE`] and never `from`.
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
        self.groups.is_empty() && self.targets.is_empty()
    }

    /// Returns the target that the delta gives a shard, if it does.
    pub fn new_target(&self, shard: ShardId) -> Option<Gid> {
        find(&self.targets, shard)
    }

    /// Returns the owner that the delta gives a shard, if it does.
    pub fn new_owner(&self, shard: ShardId) -> Option<Gid> {
        find(&self.moves, shard)
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
        out.finish()
    }

    /// Decodes the output of [`ConfigDelta::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known_version(&mut input, "configuration delta version")?;
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
        input.finish()?;
        let delta = Self {
            num,
            groups,
            targets,
            moves,
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
        check_moves(&self.targets)?;
        check_moves(&self.moves)
    }
}

/// Returns the differences between two columns of equal length.
fn changes(before: &[Gid], after: &[Gid]) -> Vec<ShardMove> {
    let mut moves: Vec<ShardMove> = Vec::new();
    for ((shard, from), to) in (0..).map(ShardId).zip(before).zip(after) {
        if from == to {
            continue;
        }
        match moves.last_mut() {
            Some(last) if last.run.end() == shard && (last.from, last.to) == (*from, *to) => {
                last.run.count += 1;
            }
            _ => moves.push(ShardMove {
                run: ShardRun {
                    first: shard,
                    count: 1,
                },
                from: *from,
                to: *to,
            }),
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

fn check_moves(moves: &[ShardMove]) -> Result<(), ConfigError> {
    let mut next = ShardId(0);
    for ShardMove { run, from, to } in moves {
        let fits = run.first >= next && run.count > 0 && run.count <= MAX_SHARDS;
        if !fits || run.end() > ShardId(MAX_SHARDS) || from == to || *to == Gid::NONE {
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
