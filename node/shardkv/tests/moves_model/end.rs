//! The end of a world: everything arrives, and the result is compared with the model.

use std::collections::BTreeMap;

use replica::Table;
use shardkv::{PlannedMove, Response, ShardState, Step, Target};
use types::{Gid, ShardId};

use crate::common::Replica;
use crate::group::Group;
use crate::world::World;

impl World {
    /// All messages arrive from here on: everything ends, and at last nothing is planned.
    pub(crate) fn finish(&mut self) {
        self.settle();
        self.check_end();
        let owners = self.config().owners().to_vec();
        self.append(&owners, &owners);
        self.settle();
        let copies = |group: &Group| group.ownership().shards.len() > group.served().len();
        assert!(!self.groups.iter().any(copies), "a copy without a plan");
    }

    pub(crate) fn settle(&mut self) {
        for _ in 0..500 {
            if self.settled() {
                return;
            }
            for number in 0..self.groups.len() {
                self.advance(number);
                self.check_owners();
            }
        }
        panic!("it doesn't come to an end");
    }

    pub(crate) fn tell(&mut self, number: usize, step: &Step) -> Response {
        let now = self.clients.time;
        self.groups[number]
            .apply(now, vec![step.encode()])
            .remove(0)
    }

    pub(crate) fn settled(&self) -> bool {
        self.groups.iter().all(|group| {
            let ownership = group.ownership();
            ownership.controller.is_some() && ownership.settled() == self.config().num()
        })
    }

    /// One round of a reliable mover.
    pub(crate) fn advance(&mut self, number: usize) {
        let ownership = self.groups[number].ownership();
        let step = self.groups[number].configure(self.config(), &self.deltas);
        if self.tell(number, &step) == Response::Stepped {
            let num = self.config().num();
            assert_eq!(self.groups[number].ownership().config, num);
        } else {
            self.assert_comes_back(number);
        }
        for (shard, of) in &ownership.shards {
            if let ShardState::Pulling { .. } | ShardState::Completing { .. } = &of.state
                && let Some(step) = self.next_step(&ownership, *shard)
            {
                assert_eq!(self.tell(number, &step), Response::Stepped);
            }
        }
        for ((shard, config), source) in ownership.pending_deletes.iter() {
            let (shard, config) = (*shard, *config);
            let to = source.0 as usize - 1;
            if self.tell(to, &Step::Delete { shard, config }) == Response::Stepped {
                self.tell(number, &Step::Deleted { shard, config });
            }
        }
    }

    /// Returns the moves that the latest configuration plans for a group.
    pub(crate) fn planned(&self, gid: Gid) -> BTreeMap<ShardId, PlannedMove> {
        let rows = (0..).map(ShardId).zip(self.config().rows());
        let own = rows.filter(|(_, row)| row.is_moving() && [row.owner, row.target].contains(&gid));
        let planned = own.map(|(shard, row)| {
            let planned = PlannedMove {
                owner: row.owner,
                owner_since: row.owner_since,
                target: Target {
                    to: row.target,
                    since: row.target_since,
                },
            };
            (shard, planned)
        });
        planned.collect()
    }

    /// Each shard is with its owner, whole, and nowhere else, and only what is planned is copied.
    pub(crate) fn check_end(&self) {
        let mut data = BTreeMap::new();
        for group in &self.groups {
            let ownership = group.ownership();
            assert_eq!(
                group.served(),
                self.config().owned_by(group.gid).shards().collect()
            );
            assert_eq!(*ownership.planned, self.planned(group.gid));
            for (shard, of) in &ownership.shards {
                let planned = ownership.planned.get(shard).map(|it| it.target);
                match &of.state {
                    ShardState::Serving { .. } => {}
                    ShardState::Copying { copy, .. } => {
                        let (to, since) = (group.gid, copy.since);
                        assert_eq!(planned, Some(Target { to, since }));
                    }
                    other => panic!("{shard} is {other:?}"),
                }
            }
            assert!(ownership.pending_deletes.is_empty());
            assert_eq!(*ownership.groups, *self.config().groups());
            for ((table, key), value) in group.replica.state.pairs() {
                if *table == Table::Meta {
                    continue;
                }
                let shard = ShardId(u32::from_be_bytes(key[..4].try_into().unwrap()));
                assert!(group.served().contains(&shard), "{shard} was left behind");
                if *table == Table::Data {
                    data.insert(shardkv::user_key(key.clone()), value.clone());
                }
            }
        }
        assert_eq!(data, self.model.data);
    }

    /// The logs, entry by entry and without a restart, give the same state.
    pub(crate) fn check_again(&self) {
        for group in &self.groups {
            let mut again = Replica::with_bug(group.genesis, self.bug);
            for step in &group.log {
                again.batch(std::slice::from_ref(step));
            }
            assert_eq!(again.state.pairs(), group.replica.state.pairs());
            let (ours, theirs) = (&again.machine, &group.replica.machine);
            assert_eq!(ours.ownership(), theirs.ownership());
            assert_eq!(ours.session_count(), theirs.session_count());
            again.restart();
            assert_eq!(again.machine.ownership(), theirs.ownership());
        }
    }
}
