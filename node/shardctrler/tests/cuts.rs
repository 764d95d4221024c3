//! Owners follow targets: at rest, on request, and never otherwise; groups leave when they are drained.

// Helpers of tests may panic as tests do.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{GENESIS, Replica, join, leave, move_shard, report};
use shardctrler::{
    Change, CtrlError, Cut, Drained, GroupProgress, HistoryLimits, MAX_CUTS, MIN_CUT_INTERVAL_MS,
    Query, Response,
};
use types::{ConfigNum, Gid, Incarnation, ShardConfig, ShardId};

/// Groups 1 and 2 have five shards each and have settled, in configuration 1.
fn two() -> Replica {
    let mut replica = Replica::new(GENESIS);
    replica.done(&join(&[1, 2]));
    replica.settle();
    replica
}

/// Two groups of which the first has a shard to hand to the second, that isn't at rest: a cut alone can move it.
fn waiting() -> Replica {
    let mut replica = two();
    replica.done(&move_shard(0, 2));
    replica.done(&move_shard(0, 1));
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.target), (Gid(2), Gid(1)));
    replica
}

#[test]
fn the_owner_of_a_shard_at_rest_changes_with_its_target() {
    let mut replica = two();
    assert_eq!(replica.done(&move_shard(0, 2)), (2, 1));
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(2), ConfigNum(2)));
    assert_eq!((row.previous, row.target_since), (Gid(1), ConfigNum(2)));
    let progress = replica.machine.progress();
    let due = GroupProgress {
        settled: ConfigNum(1),
        due: ConfigNum(2),
    };
    assert_eq!(progress[&Gid(1)], due);
    assert_eq!(progress[&Gid(2)], due);
}

#[test]
fn a_shard_that_is_not_at_rest_waits_for_its_owner() {
    let mut replica = waiting();
    // The source has settled: that alone doesn't say that the shard has arrived.
    replica.report(1, 3);
    assert!(replica.latest().row(ShardId(0)).is_moving());
    replica.restart();
    // The owner has not settled the configuration that gave it.
    replica.report(2, 1);
    assert_eq!(replica.machine.latest().num(), ConfigNum(3));
    replica.report(2, 2);
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(1), ConfigNum(4)));
    assert_eq!(row.previous, Gid(2));
    let configs = replica.after(3, 9, None);
    assert!(configs.deltas[0].is_cut(), "targets stay");
    let empty = replica.after(2, 1, None);
    assert!(
        empty.deltas[0].moves.is_empty(),
        "a change of targets alone"
    );
}

#[test]
fn a_target_that_returns_to_the_owner_ends_the_move() {
    let mut replica = waiting();
    replica.done(&move_shard(0, 2));
    replica.settle();
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(2), ConfigNum(2)));
    assert_eq!(row.target_since, ConfigNum(4));
    assert_eq!(
        replica.machine.latest().num(),
        ConfigNum(4),
        "nothing to cut"
    );
}

/// Every field counts, and nothing else does.
#[test]
fn a_cut_is_compared_field_by_field() {
    let (shard, good) = waiting().cut_now(0);
    let more = |num: ConfigNum| ConfigNum(num.0 + 1);
    let wrong: [Cut; 6] = [
        Cut {
            owner: Gid(1),
            ..good
        },
        Cut {
            owner_incarnation: Incarnation(9),
            ..good
        },
        Cut {
            owner_since: more(good.owner_since),
            ..good
        },
        Cut {
            target: Gid(2),
            ..good
        },
        Cut {
            target_incarnation: Incarnation(0),
            ..good
        },
        Cut {
            target_since: ConfigNum(good.target_since.0 - 1),
            ..good
        },
    ];
    let mut replica = waiting();
    let stored = replica.stored();
    for wrong in wrong {
        assert_eq!(replica.cut([(shard, wrong)]), (0, 3), "{wrong:?}");
    }
    assert_eq!(replica.cut([(ShardId(1), good)]), (0, 3), "another shard's");
    assert_eq!(replica.cut([]), (0, 3));
    assert_eq!(replica.stored(), stored);
    assert_eq!(replica.cut([(shard, good)]), (1, 4));
    let row = replica.latest().row(shard);
    assert_eq!((row.owner, row.owner_since), (Gid(1), ConfigNum(4)));
    assert_eq!(row.target_since, good.target_since);
    replica.time += MIN_CUT_INTERVAL_MS;
    assert_eq!(replica.cut([(shard, good)]), (0, 4), "once only");
}

#[test]
fn a_cut_that_comes_after_the_target_changed_is_void() {
    let mut replica = waiting();
    let (shard, stale) = replica.cut_now(0);
    replica.done(&join(&[3]));
    replica.done(&move_shard(0, 3));
    assert_eq!(replica.cut([(shard, stale)]).0, 0);
    // Back at the same target, but since another configuration: the copy that the cut speaks of was dropped.
    replica.done(&move_shard(0, 1));
    assert_eq!(replica.cut([(shard, stale)]).0, 0);
    let now = replica.cut_now(0);
    assert_eq!(replica.cut([now]).0, 1);
}

#[test]
fn cuts_come_in_batches_and_ten_times_a_second_at_most() {
    let mut replica = two();
    for shard in 0..4 {
        replica.done(&move_shard(shard, 2));
        replica.done(&move_shard(shard, 1));
    }
    let cuts: Vec<(ShardId, Cut)> = (0..4).map(|shard| replica.cut_now(shard)).collect();
    let num = replica.machine.latest().num().0;
    let mut stale = cuts[1];
    stale.1.owner_since = ConfigNum(1);
    assert_eq!(
        replica.cut([cuts[0], stale]),
        (1, num + 1),
        "the others of a batch count"
    );
    replica.time += MIN_CUT_INTERVAL_MS - 1;
    replica.restart();
    assert_eq!(replica.cut(cuts.clone()), (0, num + 1), "too early");
    replica.time += 1;
    assert_eq!(
        replica.cut(cuts),
        (3, num + 2),
        "three, in one configuration"
    );
    assert_eq!(replica.latest().moving(), 0);
}

#[test]
fn cuts_that_make_no_sense_are_refused() {
    let mut replica = waiting();
    let (_, cut) = replica.cut_now(0);
    let cuts = BTreeMap::from([(ShardId(10), cut)]);
    let error = CtrlError::NoShard {
        shard: ShardId(10),
        shards: 10,
    };
    assert_eq!(replica.refused(&Change::Cut { cuts }), error);
    let many = (0..=u32::try_from(MAX_CUTS).unwrap()).map(|shard| (ShardId(shard), cut));
    let cuts = many.collect();
    let limit = MAX_CUTS as u64;
    let error = CtrlError::TooManyCuts { limit };
    assert_eq!(replica.refused(&Change::Cut { cuts }), error);
}

#[test]
fn a_group_that_joins_and_leaves_swaps_nothing() {
    let mut replica = two();
    // Its shards are all on their way, so none has another owner yet.
    for shard in 0..10 {
        let to = 3 - replica.latest().target(ShardId(shard)).0;
        replica.done(&move_shard(shard, to));
    }
    let before = replica.latest();
    replica.done(&join(&[3]));
    assert!(replica.latest().moving() > 0);
    replica.done(&leave(&[3]));
    assert_eq!(replica.latest().targets(), before.targets());
    assert_eq!(replica.latest().owners(), before.owners());
    assert!(
        !replica.latest().groups().contains_key(&Gid(3)),
        "it had nothing"
    );
}

#[test]
fn a_leaving_group_stays_until_it_owns_fences_and_owes_nothing() {
    let mut replica = two();
    replica.done(&leave(&[2]));
    let config = replica.latest();
    assert!(config.groups()[&Gid(2)].leaving);
    assert_eq!(config.members().collect::<Vec<_>>(), [Gid(1)]);
    assert_eq!(config.owners(), [Gid(1); 10], "all were at rest");
    let drained = |replica: &Replica| replica.config(None).is_drained(Gid(2), Incarnation(1));
    assert!(!drained(&replica), "it has them fenced");
    replica.report(1, 2);
    replica.report(2, 1);
    replica.restart();
    assert!(!drained(&replica));
    replica.report(2, 2);
    assert!(drained(&replica));
    let config = replica.latest();
    assert_eq!(config.num(), ConfigNum(3));
    assert!(!config.groups().contains_key(&Gid(2)));
    assert!(!replica.machine.progress().contains_key(&Gid(2)));
    let expected = Drained {
        incarnation: Incarnation(1),
        gone_in: ConfigNum(3),
    };
    replica.restart();
    assert_eq!(replica.machine.drained()[&Gid(2)], expected);
    // Its last word may come twice.
    replica.report(2, 3);
    assert_eq!(replica.machine.latest().num(), ConfigNum(3));
}

#[test]
fn a_leaving_group_that_owns_shards_stays() {
    let mut replica = waiting();
    // Shard 0 is not at rest, so the leaving group keeps it, whatever it reports of earlier configurations.
    replica.done(&leave(&[2]));
    assert_eq!(replica.latest().owner(ShardId(0)), Gid(2));
    replica.report(1, 4);
    replica.report(2, 1);
    assert_eq!(replica.latest().owner(ShardId(0)), Gid(2));
    assert!(replica.latest().groups().contains_key(&Gid(2)));
    replica.settle();
    assert_eq!(replica.latest().owners(), [Gid(1); 10]);
    assert!(replica.config(None).is_drained(Gid(2), Incarnation(1)));
}

#[test]
fn a_group_that_is_unknown_is_not_drained() {
    let replica = two();
    let answer = replica.config(None);
    assert!(
        !answer.is_drained(Gid(9), Incarnation(1)),
        "absence proves nothing"
    );
    assert!(!answer.is_drained(Gid(1), Incarnation(1)));
}

#[test]
fn a_leaving_group_that_joins_again_is_the_same_and_one_that_was_drained_is_not() {
    let mut replica = two();
    replica.done(&leave(&[2]));
    replica.done(&join(&[2]));
    let group = replica.latest().groups()[&Gid(2)].clone();
    assert_eq!((group.incarnation, group.leaving), (Incarnation(1), false));
    replica.settle();
    replica.done(&leave(&[2]));
    replica.settle();
    let num = replica.machine.latest().num().0;
    assert!(replica.config(None).is_drained(Gid(2), Incarnation(1)));
    replica.done(&join(&[2]));
    let incarnation = replica.latest().groups()[&Gid(2)].incarnation;
    assert_eq!(incarnation, Incarnation(num + 1));
    let answer = replica.config(None);
    assert!(
        answer.is_drained(Gid(2), Incarnation(1)),
        "the earlier one still is"
    );
    assert!(!answer.is_drained(Gid(2), incarnation));
    replica.restart();
    // A cut that names the earlier one is void.
    replica.done(&leave(&[1]));
    let moving = replica.latest().rows().position(|row| row.is_moving());
    if let Some(at) = moving {
        let (shard, mut cut) = replica.cut_now(u32::try_from(at).unwrap());
        cut.target_incarnation = Incarnation(1);
        assert_eq!(replica.cut([(shard, cut)]).0, 0);
    }
}

#[test]
fn peoples_changes_are_kept_longer_than_cuts() {
    let limits = HistoryLimits {
        keep: 3,
        keep_cuts: 2,
        step: 1,
        ..HistoryLimits::default()
    };
    let mut replica = Replica::with_limits(GENESIS, limits);
    replica.done(&join(&[1, 2]));
    replica.settle();
    let mut peoples = Vec::new();
    for _ in 0..6 {
        // The second one waits for a cut, which a report makes.
        for _ in 0..2 {
            let to = 3 - replica.latest().target(ShardId(0)).0;
            peoples.push(replica.done(&move_shard(0, to)).0);
        }
        replica.settle();
    }
    let kept = peoples.iter().rev().take(3);
    for num in kept {
        assert_eq!(replica.config(Some(*num)).config.num(), ConfigNum(*num));
    }
    let gone = Query::Config {
        num: Some(ConfigNum(peoples[2])),
    };
    assert!(matches!(
        replica.query(&gone),
        Response::Refused(CtrlError::Compacted { .. })
    ));
}

#[test]
fn reports_that_settle_nothing_make_no_configuration() {
    let mut replica = waiting();
    let num = replica.machine.latest().num();
    assert_eq!(replica.apply(None, report(1, 2)), Response::Reported);
    assert_eq!(replica.apply(None, report(1, 2)), Response::Reported);
    assert_eq!(replica.apply(None, report(9, 2)), Response::Reported);
    assert_eq!(replica.machine.latest().num(), num);
    assert_eq!(
        ShardConfig::decode(replica.latest().encode()),
        Ok((*replica.latest()).clone())
    );
}
