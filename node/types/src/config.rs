//! The numbered, immutable configurations of the controllers, which give each shard its owner.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::addresses::{BadAddresses, check_addresses, decode_addresses, encode_addresses};
use crate::{ConfigNum, DecodeError, Gid, Reader, ShardId, ShardRun, ShardSet, Writer};

/// The most shards of a cluster.
pub const MAX_SHARDS: u32 = 1_000_000;
/// The most replica groups of a cluster.
pub const MAX_GROUPS: usize = 10_000;
/// The version byte of an encoded configuration, and of an encoded delta.
const VERSION: u8 = 1;

/// A configuration: the groups with the addresses of their nodes, and each shard's owner.
///
/// Invariants: every owner is [`Gid::NONE`] or one of the groups; there are at most [`MAX_SHARDS`] shards,
/// [`MAX_GROUPS`] groups; each group has 1 to [`MAX_GROUP_ADDRESSES`](crate::MAX_GROUP_ADDRESSES) addresses; no group is
/// [`Gid::NONE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    num: ConfigNum,
    groups: BTreeMap<Gid, Vec<String>>,
    owners: Vec<Gid>,
}

/// The changes that turn configuration `num - 1` into configuration `num`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigDelta {
    /// The number of the configuration after the delta; at least 1.
    pub num: ConfigNum,
    /// The groups that are new or have new addresses, and `None` for each group that left.
    pub groups: BTreeMap<Gid, Option<Vec<String>>>,
    /// The shards that change their owner, in order; neighbours with the same change share a move.
    pub moves: Vec<ShardMove>,
}

/// Consecutive shards that move from one owner to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMove {
    /// The shards that move.
    pub run: ShardRun,
    /// The owner before; [`Gid::NONE`] if the shards had no owner.
    pub from: Gid,
    /// The owner from now on; never [`Gid::NONE`] and never `from`.
    pub to: Gid,
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
    /// The owner of a shard is not one of the groups.
    #[error("not a configuration: {0} owns shards and is no group")]
    UnknownOwner(Gid),
    /// A delta leads to configuration 0, which is the first.
    #[error("not a configuration: nothing leads to configuration 0")]
    NumberZero,
    /// A delta moves shards that don't exist, or out of order, or to no other group.
    #[error("not a configuration: the move of {0} is empty, out of order, or to no other group")]
    BadMove(ShardId),
    /// A delta moves shards from a group that doesn't own them.
    #[error(
        "not a configuration: the shards that move from {from}, {first} the first, are not all its own"
    )]
    NotOwned {
        /// The first shard of the move.
        first: ShardId,
        /// The owner before, according to the delta.
        from: Gid,
    },
    /// Runs of shards are empty, overlap, or are out of order.
    #[error("shard runs are out of order, empty or overlapping")]
    ShardRuns,
}

impl ShardConfig {
    /// Returns configuration 0: no groups, and no owner of any of the `shards` shards.
    pub fn empty(shards: u32) -> Self {
        Self {
            num: ConfigNum(0),
            groups: BTreeMap::new(),
            owners: vec![Gid::NONE; shards as usize],
        }
    }

    /// Creates a configuration of these parts; `owners` are runs of (shard count, owner) that cover all shards in
    /// order.
    pub fn new(
        num: ConfigNum,
        groups: BTreeMap<Gid, Vec<String>>,
        owners: impl IntoIterator<Item = (u32, Gid)>,
    ) -> Result<Self, ConfigError> {
        let mut list = Vec::new();
        for (count, owner) in owners {
            let length = list.len() + count as usize;
            if length > MAX_SHARDS as usize {
                return Err(ConfigError::ShardCount(length as u64));
            }
            list.resize(length, owner);
        }
        let config = Self {
            num,
            groups,
            owners: list,
        };
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
        for (gid, addresses) in &self.groups {
            if *gid == Gid::NONE {
                return Err(ConfigError::NoGroup);
            }
            check_addresses(addresses)
                .map_err(|reason| ConfigError::Addresses { gid: *gid, reason })?;
        }
        let foreign = |owner: &&Gid| **owner != Gid::NONE && !self.groups.contains_key(owner);
        match self.owners.iter().find(foreign) {
            Some(owner) => Err(ConfigError::UnknownOwner(*owner)),
            None => Ok(()),
        }
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

    /// Returns the groups with the addresses of their nodes.
    pub fn groups(&self) -> &BTreeMap<Gid, Vec<String>> {
        &self.groups
    }

    /// Returns the owner of each shard.
    pub fn owners(&self) -> &[Gid] {
        &self.owners
    }

    /// Returns the owner of a shard; [`Gid::NONE`] if no group owns the shard, or the shard doesn't exist.
    pub fn owner(&self, shard: ShardId) -> Gid {
        let owner = self.owners.get(shard.0 as usize);
        owner.copied().unwrap_or(Gid::NONE)
    }

    /// Returns the shards that `gid` owns.
    pub fn owned_by(&self, gid: Gid) -> ShardSet {
        let shards = (0..).map(ShardId).zip(&self.owners);
        shards
            .filter_map(|(shard, owner)| (*owner == gid).then_some(shard))
            .collect()
    }

    /// Returns the runs of neighbouring shards with equal owners as (shard count, owner), over all shards in order.
    pub fn owner_runs(&self) -> impl Iterator<Item = (u32, Gid)> + '_ {
        self.owners.chunk_by(|a, b| a == b).filter_map(|run| {
            let owner = run.first()?;
            Some((u32::try_from(run.len()).ok()?, *owner))
        })
    }

    /// Applies `delta`, which leads to the next configuration. On an error nothing changes.
    pub fn apply(&mut self, delta: &ConfigDelta) -> Result<(), ConfigError> {
        if delta.num != self.num.next() {
            return Err(ConfigError::Number {
                config: self.num,
                delta: delta.num,
            });
        }
        let mut next = self.clone();
        next.num = delta.num;
        for (gid, addresses) in &delta.groups {
            match addresses {
                Some(addresses) => next.groups.insert(*gid, addresses.clone()),
                None => next.groups.remove(gid),
            };
        }
        for ShardMove { run, from, to } in &delta.moves {
            let range = run.first.0 as usize..run.end().0 as usize;
            let Some(owners) = next.owners.get_mut(range) else {
                return Err(ConfigError::BadMove(run.first));
            };
            if run.count == 0 || from == to {
                return Err(ConfigError::BadMove(run.first));
            }
            if owners.iter().any(|owner| owner != from) {
                return Err(ConfigError::NotOwned {
                    first: run.first,
                    from: *from,
                });
            }
            owners.fill(*to);
        }
        next.check()?;
        *self = next;
        Ok(())
    }

    /// Encodes as a record for the disk and the log.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION)
            .number(self.num.0)
            .number(self.groups.len() as u64);
        for (gid, addresses) in &self.groups {
            out.number(gid.0);
            encode_addresses(&mut out, addresses);
        }
        out.number(self.owner_runs().count() as u64);
        for (count, owner) in self.owner_runs() {
            out.number(count.into()).number(owner.0);
        }
        out.finish()
    }

    /// Decodes the output of [`ShardConfig::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known_version(&mut input, "configuration version")?;
        let num = ConfigNum(input.number("configuration number")?);
        let mut groups = BTreeMap::new();
        for _ in 0..input.count("groups")? {
            let gid = Gid(input.number("gid")?);
            groups.insert(gid, decode_addresses(&mut input)?);
        }
        let mut owners = Vec::new();
        for _ in 0..input.count("owner runs")? {
            let count = input.number_u32("owner run")?;
            owners.push((count, Gid(input.number("owner")?)));
        }
        input.finish()?;
        Self::new(num, groups, owners).map_err(|_| DecodeError::OutOfRange("configuration"))
    }
}

impl ConfigDelta {
    /// Returns the delta from `before` to a configuration with these groups and owners.
    pub fn between(
        before: &ShardConfig,
        groups: &BTreeMap<Gid, Vec<String>>,
        owners: &[Gid],
    ) -> Self {
        let mut changed: BTreeMap<Gid, Option<Vec<String>>> = groups
            .iter()
            .filter(|(gid, addresses)| before.groups.get(gid) != Some(addresses))
            .map(|(gid, addresses)| (*gid, Some(addresses.clone())))
            .collect();
        let left = before.groups.keys().filter(|gid| !groups.contains_key(gid));
        changed.extend(left.map(|gid| (*gid, None)));
        let mut moves: Vec<ShardMove> = Vec::new();
        for ((shard, from), to) in (0..).map(ShardId).zip(&before.owners).zip(owners) {
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
        Self {
            num: before.num.next(),
            groups: changed,
            moves,
        }
    }

    /// Encodes as a record for the disk and the log.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION)
            .number(self.num.0)
            .number(self.groups.len() as u64);
        for (gid, addresses) in &self.groups {
            out.number(gid.0);
            // An empty list means that the group left.
            encode_addresses(&mut out, addresses.as_deref().unwrap_or_default());
        }
        out.number(self.moves.len() as u64);
        for ShardMove { run, from, to } in &self.moves {
            out.number(run.first.0.into())
                .number(run.count.into())
                .number(from.0)
                .number(to.0);
        }
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
            let addresses = decode_addresses(&mut input)?;
            groups.insert(gid, (!addresses.is_empty()).then_some(addresses));
        }
        let mut moves = Vec::new();
        for _ in 0..input.count("moves")? {
            moves.push(ShardMove {
                run: ShardRun {
                    first: ShardId(input.number_u32("first shard")?),
                    count: input.number_u32("shard count")?,
                },
                from: Gid(input.number("owner before")?),
                to: Gid(input.number("owner")?),
            });
        }
        input.finish()?;
        let delta = Self { num, groups, moves };
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
        for (gid, addresses) in &self.groups {
            if *gid == Gid::NONE {
                return Err(ConfigError::NoGroup);
            }
            if let Some(addresses) = addresses {
                check_addresses(addresses)
                    .map_err(|reason| ConfigError::Addresses { gid: *gid, reason })?;
            }
        }
        let mut next = ShardId(0);
        for ShardMove { run, from, to } in &self.moves {
            let fits = run.first >= next && run.count > 0 && run.count <= MAX_SHARDS;
            if !fits || run.end() > ShardId(MAX_SHARDS) || from == to || *to == Gid::NONE {
                return Err(ConfigError::BadMove(run.first));
            }
            next = run.end();
        }
        Ok(())
    }
}

fn known_version(input: &mut Reader, what: &'static str) -> Result<(), DecodeError> {
    match input.byte(what)? {
        VERSION => Ok(()),
        value => Err(DecodeError::Unknown {
            what,
            value: value.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(gid: u64) -> Vec<String> {
        (0..3).map(|node| format!("g{gid}-{node}:7000")).collect()
    }

    fn groups(gids: &[u64]) -> BTreeMap<Gid, Vec<String>> {
        gids.iter()
            .map(|gid| (Gid(*gid), addresses(*gid)))
            .collect()
    }

    fn gids(owners: &[u64]) -> Vec<Gid> {
        owners.iter().copied().map(Gid).collect()
    }

    #[test]
    fn a_delta_leads_from_one_configuration_to_the_next() {
        let mut config = ShardConfig::empty(6);
        let first = ConfigDelta::between(&config, &groups(&[1, 2]), &gids(&[1, 1, 1, 2, 2, 2]));
        assert_eq!(first.moves.len(), 2, "neighbours go together");
        config.apply(&first).unwrap();
        assert_eq!(config.num(), ConfigNum(1));
        let second = ConfigDelta::between(&config, &groups(&[2, 3]), &gids(&[3, 3, 3, 2, 2, 2]));
        assert_eq!(second.groups.get(&Gid(1)), Some(&None));
        let mut next = config.clone();
        next.apply(&second).unwrap();
        assert_eq!(next.owners(), gids(&[3, 3, 3, 2, 2, 2]));
        assert_eq!(next.owned_by(Gid(3)), ShardSet::all(3));
        assert_eq!(
            next.groups().keys().copied().collect::<Vec<_>>(),
            gids(&[2, 3])
        );
        for config in [&config, &next] {
            assert_eq!(ShardConfig::decode(config.encode()).as_ref(), Ok(config));
        }
        for delta in [first, second] {
            assert_eq!(ConfigDelta::decode(delta.encode()).as_ref(), Ok(&delta));
        }
    }

    #[test]
    fn a_delta_that_does_not_fit_changes_nothing() {
        let mut config = ShardConfig::empty(2);
        let good = ConfigDelta::between(&config, &groups(&[1]), &gids(&[1, 1]));
        let mut far = good.clone();
        far.num = ConfigNum(7);
        let mut outside = good.clone();
        outside.moves[0].run.count = 3;
        let mut foreign = good.clone();
        foreign.moves[0].to = Gid(9);
        let mut stolen = good.clone();
        stolen.moves[0].from = Gid(5);
        let mut nameless = good.clone();
        nameless
            .groups
            .insert(Gid(4), Some(vec!["nowhere".to_owned()]));
        for bad in [far, outside, foreign, stolen, nameless] {
            assert!(config.apply(&bad).is_err(), "{bad:?}");
            assert_eq!(config, ShardConfig::empty(2));
        }
        config.apply(&good).unwrap();
        assert!(config.apply(&good).is_err(), "once only");
    }

    #[test]
    fn bytes_that_are_cut_or_changed_never_panic() {
        let mut config = ShardConfig::empty(6);
        let delta = ConfigDelta::between(&config, &groups(&[1, 2]), &gids(&[1, 1, 1, 2, 2, 2]));
        config.apply(&delta).unwrap();
        for bytes in [config.encode(), delta.encode()] {
            for cut in 0..bytes.len() {
                assert!(ShardConfig::decode(bytes.slice(..cut)).is_err());
                assert!(ConfigDelta::decode(bytes.slice(..cut)).is_err());
                let mut changed = bytes.to_vec();
                changed[cut] ^= 0xff;
                let changed = Bytes::from(changed);
                let _ = (
                    ShardConfig::decode(changed.clone()),
                    ConfigDelta::decode(changed),
                );
            }
        }
    }
}
