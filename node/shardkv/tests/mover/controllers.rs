//! The controllers of a cluster of tests, by the rules of the real ones.

use std::collections::BTreeMap;

use shardkv::mover::Outcome;
use types::{
    ClusterId, ConfigDelta, ConfigNum, Cut, Gid, Group, Incarnation, ShardConfig, ShardId,
};

/// The most deltas in an answer.
const MAX_DELTAS: usize = 3;
/// The deltas that are kept. A group that is further behind is given the whole configuration.
const KEPT_DELTAS: usize = 5;

pub(crate) struct Controllers {
    /// The latest configuration.
    pub(crate) config: ShardConfig,
    /// The deltas that led to it.
    deltas: Vec<ConfigDelta>,
    /// The groups of the next configuration.
    groups: BTreeMap<Gid, Group>,
    settled: BTreeMap<Gid, ConfigNum>,
    /// The groups that left and were drained.
    pub(crate) drained: u64,
}

impl Controllers {
    /// Returns controllers whose first configuration will have these groups.
    pub(crate) fn new(shards: u32, groups: impl Iterator<Item = Gid>) -> Self {
        let mut controllers = Self {
            config: ShardConfig::empty(shards),
            deltas: Vec::new(),
            groups: BTreeMap::new(),
            settled: BTreeMap::new(),
            drained: 0,
        };
        groups.for_each(|gid| controllers.join(gid));
        controllers
    }

    /// A group is part of the next configuration. One that was leaving stays.
    pub(crate) fn join(&mut self, gid: Gid) {
        if let Some(known) = self.groups.get_mut(&gid) {
            known.leaving = false;
            return;
        }
        let group = Group {
            addresses: vec![format!("{gid}:7000")],
            incarnation: Incarnation(self.config.num().next().0),
            leaving: false,
        };
        self.groups.insert(gid, group);
        self.settled.insert(gid, self.config.num());
    }

    /// A group leaves. Its shards are to go to group `to`.
    pub(crate) fn leave(&mut self, gid: Gid, to: Gid) {
        self.groups.get_mut(&gid).unwrap().leaving = true;
        let shards = (0..).map(ShardId).zip(self.config.targets());
        let shards = shards.filter(|(_, target)| **target == gid);
        self.aim(&shards.map(|(shard, _)| (shard, to)).collect::<Vec<_>>());
    }

    /// The next configuration, with these targets. A shard that nobody owns gets its owner at once.
    pub(crate) fn aim(&mut self, shards: &[(ShardId, Gid)]) {
        let mut targets = self.config.targets().to_vec();
        let mut owners = self.config.owners().to_vec();
        for (shard, gid) in shards {
            let at = shard.0 as usize;
            targets[at] = *gid;
            if owners[at] == Gid::NONE {
                owners[at] = *gid;
            }
        }
        self.push(&targets, &owners);
    }

    /// Returns the shards that a report may cut: those for which it names exactly the present state.
    pub(crate) fn due_cuts(&self, cuts: &BTreeMap<ShardId, Cut>) -> Vec<ShardId> {
        let due = cuts.iter().filter(|(shard, cut)| {
            let now = self.config.cut_of(**shard, cut.journal);
            self.config.row(**shard).is_moving() && now == Some(**cut)
        });
        due.map(|(shard, _)| *shard).collect()
    }

    /// The targets of these shards become their owners.
    pub(crate) fn cut(&mut self, shards: &[ShardId]) {
        let targets = self.config.targets().to_vec();
        let mut owners = self.config.owners().to_vec();
        for shard in shards {
            let at = shard.0 as usize;
            owners[at] = targets[at];
        }
        self.push(&targets, &owners);
    }

    /// A group has settled the configurations up to this one. The greatest number counts.
    pub(crate) fn settle(&mut self, gid: Gid, settled: ConfigNum) {
        assert!(settled <= self.config.num());
        if let Some(known) = self.settled.get_mut(&gid) {
            *known = settled.max(*known);
        }
        if self.groups.iter().any(|it| self.is_drained(it)) {
            let same = self.config.clone();
            self.push(same.targets(), same.owners());
        }
    }

    /// Returns true if the controllers know that all groups have settled the latest configuration, and each shard is where it is to
    /// be.
    pub(crate) fn know_all_settled(&self) -> bool {
        let latest = self.config.num();
        self.config.moving() == 0 && self.settled.values().all(|it| *it == latest)
    }

    /// Answers a question of a group; `None` if there are no news yet.
    pub(crate) fn answer(&self, gid: Gid, after: ConfigNum) -> Option<Outcome> {
        let latest = self.config.num();
        assert!(after <= latest, "{gid} has {after} of {latest}");
        if after == latest {
            return None;
        }
        let oldest = self.deltas.len().saturating_sub(KEPT_DELTAS) as u64;
        let is_whole = after == ConfigNum(0) || after.0 < oldest;
        let deltas = self.deltas.iter().filter(|delta| delta.num > after);
        let deltas = deltas.take(if is_whole { 0 } else { MAX_DELTAS });
        Some(Outcome::Configs {
            controller: ClusterId(0xc0),
            shards: self.config.shards(),
            settled: self.settled.get(&gid).copied().unwrap_or_default(),
            held: ConfigNum(0),
            full: is_whole.then(|| self.config.clone()),
            deltas: deltas.cloned().collect(),
        })
    }

    fn push(&mut self, targets: &[Gid], owners: &[Gid]) {
        let gone = self.groups.iter().filter(|it| self.is_drained(*it));
        let gone: Vec<Gid> = gone.map(|(gid, _)| *gid).collect();
        for gid in gone {
            self.groups.remove(&gid);
            self.drained += 1;
            self.settled.remove(&gid);
        }
        let delta = ConfigDelta::new(&self.config, &self.groups, targets, owners);
        self.config.apply(&delta).unwrap();
        self.deltas.push(delta);
    }

    /// Returns true if a group that leaves has nothing any more, as of the latest configuration.
    fn is_drained(&self, (gid, group): (&Gid, &Group)) -> bool {
        let mut rows = self.config.rows();
        let settled = self.settled[gid];
        let is_done = |row: types::Assignment| {
            let gave = row.previous == *gid && row.owner_since > settled;
            row.owner != *gid && !gave
        };
        group.leaving && rows.all(is_done)
    }
}
