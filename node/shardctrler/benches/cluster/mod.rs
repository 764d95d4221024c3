//! A cluster for the benches.

use std::collections::BTreeSet;

use shardctrler::rebalance;
use types::Gid;

/// Shards and groups of a large cluster, and of the largest one to which a group can still join.
pub(crate) const SCALES: [(u32, u64); 2] = [(16_384, 1_000), (1_000_000, 9_999)];

/// Groups and the owners of all shards.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) gids: BTreeSet<Gid>,
    pub(crate) owners: Vec<Gid>,
}

impl Cluster {
    /// Returns a cluster of the groups 1 to `groups`. A tenth of them left and joined again, three times, so that each group
    /// owns shards in several places.
    pub(crate) fn new(shards: u32, groups: u64) -> Self {
        let all: BTreeSet<Gid> = (1..=groups).map(Gid).collect();
        let mut cluster = Self {
            gids: BTreeSet::new(),
            owners: vec![Gid::NONE; shards as usize],
        };
        cluster.change(all.clone());
        for round in 0..3 {
            let stays = |gid: &&Gid| gid.0 % 10 != round;
            cluster.change(all.iter().filter(stays).copied().collect());
            cluster.change(all.clone());
        }
        cluster
    }

    /// Makes `gids` the groups, by joins or leaves, and rebalances.
    pub(crate) fn change(&mut self, gids: BTreeSet<Gid>) {
        self.owners = rebalance(
            &self.owners,
            &self.owners,
            gids.iter().copied(),
            &BTreeSet::new(),
        );
        self.gids = gids;
    }
}
