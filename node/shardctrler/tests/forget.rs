//! Groups that are gone for good, and numbers that are retired.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{GENESIS, Replica, addresses, assert_balanced, join, leave, move_shard, session};
use shardctrler::{Change, CtrlError, Loss, Query, Response};
use types::{ConfigNum, Gid, Incarnation, ShardId};

fn forget(gids: &[u64], accept_data_loss: bool) -> Change {
    Change::Forget {
        gids: gids.iter().copied().map(Gid).collect(),
        accept_data_loss,
    }
}

fn retire(gid: u64, incarnation: u64) -> Change {
    Change::Retire {
        gid: Gid(gid),
        incarnation: Incarnation(incarnation),
    }
}

impl Replica {
    #[track_caller]
    fn forgotten(&mut self, gids: &[u64]) -> Loss {
        match self.apply(None, forget(gids, true)) {
            Response::Forgotten { num, loss } => {
                assert_eq!(num, self.latest().num());
                loss
            }
            other => panic!("{other:?}"),
        }
    }

    /// The owner and the owner before of a shard, and since when, and the target.
    fn row(&self, shard: u32) -> (u64, u64, u64, u64) {
        let row = self.latest().row(ShardId(shard));
        (row.owner.0, row.previous.0, row.owner_since.0, row.target.0)
    }
}

fn shown(loss: &Loss) -> [String; 2] {
    [loss.emptied.to_string(), loss.returned.to_string()]
}

/// Groups 1 to 3, where group 1 owns shards 0 to 3, group 2 shards 4 to 6 and group 3 shards 7 to 9; nothing moves.
fn three() -> Replica {
    let mut replica = Replica::new(GENESIS);
    replica.done(&join(&[1, 2, 3]));
    replica.settle();
    let owners: Vec<u64> = replica.latest().owners().iter().map(|gid| gid.0).collect();
    assert_eq!(owners, [1, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    replica
}

#[test]
fn shards_of_a_forgotten_group_begin_empty_elsewhere() {
    let mut replica = three();
    // One of them was on its way to group 3, which becomes its owner.
    replica.done(&move_shard(1, 3));
    let refused = replica.refused(&forget(&[1], false));
    assert!(matches!(&refused, CtrlError::DataLoss(_)));
    assert_eq!(
        refused.to_string(),
        "data would be lost: 4 shards (0-3) would begin empty, and none would go back to earlier owners without later \
         writes: if the group is gone for good, stop its nodes and accept the loss"
    );
    let before = replica.latest();
    let loss = replica.forgotten(&[1]);
    assert_eq!(shown(&loss), ["4 shards (0-3)", "none"]);
    let config = replica.latest();
    assert_balanced(&config);
    assert_eq!(replica.row(1), (3, 0, 3, 3));
    for shard in 0..4 {
        let (owner, previous, since, target) = replica.row(shard);
        assert_eq!((owner, previous, since), (target, 0, 3));
    }
    for shard in 4..10 {
        assert_eq!(config.row(ShardId(shard)), before.row(ShardId(shard)));
    }
    assert!(!config.groups().contains_key(&Gid(1)));
    // Those that stay have something to settle, and nothing to wait for.
    assert_eq!(replica.machine.progress()[&Gid(2)].due, ConfigNum(3));
    let answer = replica.config(None);
    assert!(
        !answer.is_drained(Gid(1), Incarnation(1)),
        "its data may be nowhere else"
    );
    let ended = answer.drained[&Gid(1)];
    assert!(ended.forgotten && !ended.retired);
    replica.restart();
    assert_eq!(replica.config(None).drained, answer.drained);
    // Its nodes hear of it.
    let configs = replica.after(2, 10, Some(1));
    assert_eq!(configs.deltas[0].groups, [(Gid(1), None)].into());
    assert_eq!(
        replica.refused(&forget(&[1], true)),
        CtrlError::UnknownGroup(Gid(1))
    );
}

#[test]
fn a_group_that_has_nothing_is_forgotten_without_loss() {
    let mut replica = three();
    replica.done(&join(&[4]));
    let before = replica.latest();
    assert!(before.moving() > 0);
    // The addresses were wrong, say: no shard has come there.
    let response = replica.apply(None, forget(&[4], false));
    assert!(matches!(&response, Response::Forgotten { loss, .. } if loss.is_empty()));
    let config = replica.latest();
    assert_eq!((config.moving(), config.owners()), (0, before.owners()));
    let gid = Gid(4);
    replica.done(&join(&[4]));
    assert_eq!(replica.latest().groups()[&gid].incarnation, Incarnation(4));
}

#[test]
fn a_shard_on_its_way_to_a_forgotten_group_goes_back() {
    let mut replica = three();
    for shard in [0, 1] {
        replica.done(&move_shard(shard, 2));
    }
    let cuts = [replica.cut_now(0), replica.cut_now(1)];
    replica.cut(cuts);
    let cut = replica.latest().num().0;
    // Nobody has settled the cut: group 1 has the two still. Group 1 is to have no shard, so they are for group 3.
    replica.done(&leave(&[1]));
    let loss = replica.forgotten(&[2]);
    assert_eq!(shown(&loss), ["3 shards (4-6)", "2 shards (0-1)"]);
    let num = cut + 2;
    for shard in [0, 1] {
        assert_eq!(replica.row(shard), (1, 0, num, 3));
        let row = replica.latest().row(ShardId(shard));
        assert_eq!(row.target_since.0, num);
    }
    // Group 1 has their data. If its disks are empty when it comes, it finds that they are lost.
    for restarted in [false, true] {
        if restarted {
            replica.restart();
        }
        let held = [1, 3].map(|gid| replica.after(0, 9, Some(gid)).held);
        assert_eq!(held, [ConfigNum(num), ConfigNum(0)]);
    }
    // They go on from there, as any shard.
    replica.report(1, num);
    let cut = replica.cut_now(0);
    assert_eq!(replica.cut([cut]).0, 1);
    assert_eq!(replica.row(0), (3, 1, num + 1, 3));
    replica.arrive();
    assert_eq!(replica.latest().groups().len(), 1);
}

#[test]
fn a_shard_that_was_handed_over_does_not_go_back() {
    let mut replica = three();
    replica.done(&move_shard(0, 2));
    let cut = replica.cut_now(0);
    let (_, num) = replica.cut([cut]);
    // Group 1 has deleted it.
    replica.report(1, num);
    let loss = replica.forgotten(&[2]);
    assert_eq!(shown(&loss), ["4 shards (0,4-6)", "none"]);
    let (owner, previous, since, target) = replica.row(0);
    assert_eq!((owner, previous, since), (target, 0, num + 1));
}

#[test]
fn a_shard_that_a_forgotten_group_had_to_hand_over_begins_empty() {
    for settled in [false, true] {
        let mut replica = three();
        replica.done(&move_shard(0, 2));
        let cut = replica.cut_now(0);
        let (_, num) = replica.cut([cut]);
        // It is to go on to group 3.
        replica.done(&move_shard(0, 3));
        if settled {
            replica.report(2, num);
        }
        let loss = replica.forgotten(&[1]);
        if settled {
            assert_eq!(shown(&loss), ["3 shards (1-3)", "none"]);
            assert_eq!(replica.row(0), (2, 1, num, 3));
            continue;
        }
        assert_eq!(shown(&loss), ["4 shards (0-3)", "none"]);
        assert_eq!(replica.row(0), (2, 0, num + 2, 3));
        // What was to be cut before is void; what is cut after is not.
        replica.report(2, num + 2);
        let cut = replica.cut_now(0);
        assert_eq!(replica.cut([cut]).0, 1);
    }
}

#[test]
fn both_ends_of_a_move_may_be_forgotten() {
    let mut replica = three();
    replica.done(&move_shard(0, 2));
    let cut = replica.cut_now(0);
    replica.cut([cut]);
    let loss = replica.forgotten(&[1, 2]);
    assert_eq!(shown(&loss), ["7 shards (0-6)", "none"]);
    assert_eq!(replica.latest().owners(), [Gid(3); 10]);
    assert_eq!(replica.refused(&forget(&[3], true)), CtrlError::LastGroup);
}

#[test]
fn a_group_that_all_are_leaving_but_one_is_the_last() {
    let mut replica = three();
    replica.done(&leave(&[1, 2]));
    assert_eq!(replica.refused(&forget(&[3], true)), CtrlError::LastGroup);
    // Leaving groups may be forgotten, and targets are as they were.
    let targets = replica.latest().targets().to_vec();
    replica.forgotten(&[1]);
    assert_eq!(replica.latest().targets(), targets);
    for change in [forget(&[], true), forget(&[0], true), retire(0, 1)] {
        let refused = replica.refused(&change);
        assert!(matches!(refused, CtrlError::NoGroups | CtrlError::GidZero));
    }
}

#[test]
fn answers_and_refusals_are_remembered() {
    let mut replica = three();
    let first = replica.apply(session(1_000_000, 1, 1), forget(&[1], false));
    assert!(matches!(first, Response::Refused(CtrlError::DataLoss(_))));
    let done = replica.apply(session(1_000_000, 2, 1), forget(&[1], true));
    assert!(matches!(done, Response::Forgotten { .. }));
    replica.restart();
    let num = replica.latest().num();
    assert_eq!(
        replica.apply(session(1_000_000, 1, 1), forget(&[1], false)),
        first
    );
    assert_eq!(
        replica.apply(session(1_000_000, 2, 1), forget(&[1], true)),
        done
    );
    let retired = replica.apply(session(1_000_000, 3, 1), retire(1, 1));
    assert_eq!(retired, Response::Retired);
    let refused = replica.apply(session(1_000_000, 4, 1), join(&[1]));
    assert_eq!(refused, Response::Refused(CtrlError::Retired(Gid(1))));
    replica.restart();
    assert_eq!(
        replica.apply(session(1_000_000, 3, 1), retire(1, 1)),
        retired
    );
    assert_eq!(replica.apply(session(1_000_000, 4, 1), join(&[1])), refused);
    assert_eq!(replica.latest().num(), num);
}

#[test]
fn only_drained_groups_are_retired_and_never_join_again() {
    let mut replica = three();
    assert_eq!(
        replica.refused(&retire(1, 1)),
        CtrlError::NotDrained(Gid(1))
    );
    assert_eq!(
        replica.refused(&retire(9, 1)),
        CtrlError::NotDrained(Gid(9))
    );
    replica.done(&leave(&[1]));
    assert_eq!(
        replica.refused(&retire(1, 1)),
        CtrlError::NotDrained(Gid(1))
    );
    replica.arrive();
    // A later incarnation isn't drained.
    assert_eq!(
        replica.refused(&retire(1, 2)),
        CtrlError::NotDrained(Gid(1))
    );
    replica.done(&join(&[1]));
    assert_eq!(
        replica.refused(&retire(1, 1)),
        CtrlError::NotDrained(Gid(1)),
        "it is back"
    );
    replica.done(&leave(&[1]));
    replica.settle();
    let incarnation = replica.config(None).drained[&Gid(1)].incarnation;
    let num = replica.latest().num();
    for _ in 0..2 {
        assert_eq!(
            replica.apply(None, retire(1, incarnation.0)),
            Response::Retired
        );
        replica.restart();
    }
    assert!(replica.config(None).drained[&Gid(1)].retired);
    assert_eq!(replica.refused(&join(&[1, 4])), CtrlError::Retired(Gid(1)));
    assert_eq!(replica.latest().num(), num);
    // Its addresses are free, under another number.
    let groups: BTreeMap<Gid, Vec<String>> = [(Gid(4), addresses(1))].into();
    replica.done(&Change::Join { groups });
    let query = Query::Config { num: None };
    assert!(matches!(replica.query(&query), Response::Config(_)));
}

#[test]
fn long_lists_are_cut_and_say_so() {
    let genesis = shardctrler::Genesis {
        shards: 2_000,
        ..GENESIS
    };
    let mut replica = Replica::new(genesis);
    replica.done(&join(&[1]));
    replica.settle();
    replica.done(&join(&[2]));
    replica.arrive();
    // Every other shard.
    for shard in 0..1_200 {
        let gid = 1 + u64::from(shard % 2);
        if replica.latest().target(ShardId(shard)) != Gid(gid) {
            replica.done(&move_shard(shard, gid));
        }
    }
    replica.arrive();
    let loss = replica.forgotten(&[1]);
    assert_eq!(
        loss.emptied.listed.runs().len(),
        shardctrler::MAX_LISTED_RUNS
    );
    assert!(u64::from(loss.emptied.count) > loss.emptied.listed.len());
    assert!(loss.emptied.to_string().ends_with(" and more)"));
}
